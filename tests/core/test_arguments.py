"""Arguments are judged once, at the door: no answer, and no refusal, depends on the size."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from judged import CLASSES, D, N, V, assert_alike, at_every_size, outcome, randn
from manual_mlp import (
    dense_squared_error,
    linear_binary_cross_entropy,
    linear_cross_entropy,
)

hypothesis = pytest.importorskip("hypothesis")
given, st = hypothesis.given, hypothesis.strategies
operands = st.fixed_dictionaries(
    {
        "h": st.sampled_from(
            [randn(N, D)] * 6
            + [randn(N, D).half(), randn(N, D).bfloat16(), randn(N, D).double(), randn(N, D).long(), randn(N, 2)]
            + [randn(N, 1, D), randn(D), randn(0, D), torch.tensor(1.0), randn(N, D).to("meta"), None, 3]
        ),
        "w": st.sampled_from(
            [randn(V, D)] * 8 + [randn(V, D).double(), randn(V, D).half(), randn(D), randn(V, D).to("meta")]
        ),
        "b": st.sampled_from([None] * 4 + [randn(V)] * 3 + [randn(1), randn(V).double(), randn(V).to("meta")]),
        "reduction": st.sampled_from(["mean", "sum", "none"] * 4 + ["avg", None]),
    }
)
targets = st.sampled_from(
    [CLASSES] * 4
    + [
        CLASSES.to(torch.uint8),
        CLASSES.int(),
        CLASSES > 1,
        CLASSES.float(),
        CLASSES[:3],
        CLASSES.view(1, N),
        CLASSES.view(N, 1),
    ]
    + [
        torch.tensor(2),
        CLASSES[:0],
        CLASSES + 2,
        CLASSES - 2,
        torch.where(CLASSES > 1, -100, CLASSES),
        CLASSES.to("meta"),
    ]
    + [randn(N, V).abs()] * 2
    + [
        randn(N, V).abs().double(),
        randn(N, V).abs().half(),
        randn(N, 1, V).abs(),
        randn(V).abs(),
        randn(N, V, 1),
        [1] * N,
        None,
    ]
)
class_weights = st.sampled_from(
    [None] * 5
    + [torch.tensor([1.0, 2.0, 0.0, 0.5])] * 2
    + [
        torch.ones(V).double(),
        torch.ones(V).half(),
        torch.ones(V).long(),
        torch.ones(V) > 0,
        torch.ones(3),
        torch.ones(V, 1),
        [1.0] * V,
        torch.ones(V).to("meta"),
    ]
)


@given(
    operands=operands,
    target=targets,
    weight=class_weights,
    smoothing=st.sampled_from([0.0] * 5 + [0.1, 1.0, 1, -0.1, 1.5, float("nan"), "a", None]),
    ignore_index=st.sampled_from([-100] * 3 + [None, None, 1, 3, -1, 2.0, "a", True]),
)
def test_cross_entropy_judges_arguments_as_torch_does_at_every_size(
    operands: dict[str, Any], target: Any, weight: Any, smoothing: Any, ignore_index: Any
) -> None:
    h, w, b, reduction = operands.values()
    options = {"weight": weight, "reduction": reduction, "label_smoothing": smoothing}

    def ours(chunk_rows: int | None = None) -> Tensor:
        return linear_cross_entropy(
            h, w, target, linear_bias=b, ignore_index=ignore_index, chunk_rows=chunk_rows, **options
        )

    def theirs() -> Tensor:
        z = F.linear(h, w, b)
        classes = not target.is_floating_point()
        t = target.long() if target.dtype == torch.uint8 else target
        flat = z.dim() > 2
        y = F.cross_entropy(
            z.flatten(0, -2) if flat else z,
            (t.flatten() if classes else t.flatten(0, -2)) if flat else t,
            ignore_index=-100 if ignore_index is None else ignore_index,
            **options,
        )
        return y.view(z.shape[:-1]) if reduction == "none" and flat else y

    stricter = (
        on_several_devices(h, w, b, target, weight)
        or broadcasts(w, b)
        or misfits(h, target, isinstance(target, Tensor) and target.is_floating_point())
        or (isinstance(smoothing, float) and not 0 <= smoothing <= 1)
    )
    assert_alike(at_every_size(ours), outcome(theirs), stricter)


# Where torch answers what is no answer: from memory that nobody wrote, or by broadcasting what was meant otherwise.
def on_several_devices(*tensors: Any) -> bool:
    return len({t.device for t in tensors if isinstance(t, Tensor)}) > 1


def broadcasts(w: Any, b: Any) -> bool:
    return (isinstance(w, Tensor) and w.dim() == 1) or (isinstance(b, Tensor) and b.shape == (1,))


def misfits(h: Any, target: Any, entries: bool) -> bool:
    if not isinstance(h, Tensor) or not isinstance(target, Tensor) or not h.dim():
        return False
    return target.shape[: h.dim() - 1] != h.shape[:-1] or target.dim() != h.dim() - (not entries)


of_entries = st.sampled_from(
    [randn(N, V).sigmoid()] * 6
    + [randn(N, V).sigmoid().double(), randn(N, V).sigmoid().bfloat16(), torch.ones(N, V).long(), torch.ones(N, V) > 0]
    + [randn(N, 1, V).sigmoid(), randn(V).sigmoid(), randn(0, V), randn(N, 1).sigmoid(), randn(1, V).sigmoid()]
    + [torch.ones(N, V).cfloat(), randn(N, V).to("meta"), 1.0, None]
)
entry_weights = st.sampled_from(
    [None] * 4
    + [randn(V).abs(), randn(N, V).abs(), randn(N, 1).abs(), torch.tensor(2.0), torch.ones(V).double()]
    + [torch.ones(V).long(), torch.ones(N, V).int(), torch.ones(V) > 0, torch.ones(V).cfloat(), torch.ones(3)]
    + [torch.ones(2, 1, V), torch.ones(V).to("meta"), 2.0]
)


@given(operands=operands, target=of_entries, weight=entry_weights, pos_weight=entry_weights)
def test_logistic_cross_entropy_judges_arguments_as_torch_does_at_every_size(
    operands: dict[str, Any], target: Any, weight: Any, pos_weight: Any
) -> None:
    h, w, b, reduction = operands.values()

    def ours(chunk_rows: int | None = None) -> Tensor:
        options = {"weight": weight, "pos_weight": pos_weight, "reduction": reduction}
        return linear_binary_cross_entropy(h, w, target, linear_bias=b, chunk_rows=chunk_rows, **options)

    def theirs() -> Tensor:
        z = F.linear(h, w, b)
        return F.binary_cross_entropy_with_logits(z, target, weight, None, None, reduction, pos_weight)

    stricter = on_several_devices(h, w, b, target, weight, pos_weight) or broadcasts(w, b) or misfits(h, target, True)
    assert_alike(at_every_size(ours), outcome(theirs), stricter)


@given(operands=operands, target=of_entries)
@pytest.mark.filterwarnings("ignore:Using a target size:UserWarning")
def test_squared_error_judges_arguments_as_torch_does_at_every_size(operands: dict[str, Any], target: Any) -> None:
    h, w, b, reduction = operands.values()

    def ours(chunk_rows: int | None = None) -> Tensor:
        return dense_squared_error(h, w, b, target, "tanh", reduction, chunk_rows)

    def theirs() -> Tensor:
        y = torch.tanh(F.linear(h, w, b))
        value = 0.5 * F.mse_loss(y, target, reduction=reduction)
        if y.shape != target.shape:
            raise ValueError("torch only warns")
        return value

    assert_alike(at_every_size(ours), outcome(theirs), on_several_devices(h, w, b, target) or broadcasts(w, b))
