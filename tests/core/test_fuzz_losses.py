"""Hypothesis draws a loss of a layer and a way to differentiate it; the answer is that of torch's loss."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, hessian, jvp

from manual_mlp import dense_squared_error, linear_binary_cross_entropy, linear_cross_entropy

hypothesis = pytest.importorskip("hypothesis")
given, st = hypothesis.given, hypothesis.strategies

KINDS = "classes", "probabilities", "logistic", "squared error"
ORDERS = "backward", "backward twice", "create_graph", "third order", "grad", "hessian", "jvp", "is_grads_batched"


@dataclass(frozen=True)
class Case:
    """Hold a loss, how its inputs lie in memory, which of h, w and b require grad, and what is asked."""

    kind: str
    batch: tuple[int, ...]
    d: int
    v: int
    chunk_rows: int | None
    reduction: str
    bias: bool
    weighted: bool
    smoothing: float
    ignored: bool
    layouts: tuple[str, str]
    frozen: tuple[bool, bool, bool]
    order: str
    seed: int


cases = st.builds(
    Case,
    kind=st.sampled_from(KINDS),
    batch=st.sampled_from([(), (1,), (5,), (6,), (2, 3), (0,), (2, 1, 2)]),
    d=st.integers(1, 4),
    v=st.integers(1, 5),
    chunk_rows=st.sampled_from([None, 1, 2, 4, 5, 6, 9]),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    bias=st.booleans(),
    weighted=st.booleans(),
    smoothing=st.sampled_from([0.0, 0.3]),
    ignored=st.booleans(),
    layouts=st.tuples(*[st.sampled_from(["contiguous", "transposed", "sliced", "expanded"])] * 2),
    frozen=st.sampled_from([(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1) if not a * b * c]),
    order=st.sampled_from(ORDERS),
    seed=st.integers(0, 99),
)


def laid_out(t: Tensor, layout: str) -> Tensor:
    """Give a tensor of two dimensions or more another layout."""
    if t.dim() < 2 or layout == "contiguous":
        return t
    if layout == "transposed":
        return t.mT.contiguous().mT
    if layout == "sliced":
        return torch.cat([t, t + 1], -1)[..., : t.shape[-1]]
    return t[..., :1].expand_as(t)


def losses(case: Case) -> tuple[Any, Any, list[Tensor]]:
    """Make ours, torch's, and h, w and b where there is one."""
    torch.manual_seed(case.seed)
    shapes = (*case.batch, case.d), (case.v, case.d), (case.v,)
    given = [torch.randn(*shape, dtype=torch.float64) for shape in shapes[: 2 + case.bias]]
    given[:2] = (laid_out(t, layout) for t, layout in zip(given, case.layouts, strict=False))
    entries = torch.rand(*case.batch, case.v, dtype=torch.float64)
    weight = torch.rand(case.v, dtype=torch.float64) + 0.1 if case.weighted else None
    options: dict[str, Any] = {"reduction": case.reduction}
    b_of = lambda rest: rest[0] if rest else None  # noqa: E731
    if case.kind == "squared error":

        def squares(h: Tensor, w: Tensor, *b: Tensor) -> Tensor:
            values = 0.5 * (torch.tanh(F.linear(h, w, b_of(b))) - entries).square()
            return values if case.reduction == "none" else getattr(values, case.reduction)()

        return (
            lambda h, w, *b: dense_squared_error(h, w, b_of(b), entries, "tanh", case.reduction, case.chunk_rows),
            squares,
            given,
        )
    if case.kind == "logistic":
        options |= {"pos_weight": weight, "weight": entries if case.ignored else None}
        return (
            lambda h, w, *b: linear_binary_cross_entropy(
                h, w, entries, linear_bias=b_of(b), chunk_rows=case.chunk_rows, **options
            ),
            lambda h, w, *b: F.binary_cross_entropy_with_logits(F.linear(h, w, b_of(b)), entries, **options),
            given,
        )
    options |= {"weight": weight, "label_smoothing": case.smoothing}
    target = torch.randint(case.v, case.batch) if case.kind == "classes" else entries
    if case.kind == "classes" and case.ignored:
        options["ignore_index"] = case.v - 1

    def torchs(h: Tensor, w: Tensor, *b: Tensor) -> Tensor:
        z, n = F.linear(h, w, b_of(b)), h.shape[:-1].numel()
        rows = target.reshape(n, case.v) if case.kind == "probabilities" else target.reshape(n)
        loss = F.cross_entropy(z.reshape(n, case.v), rows, **options)
        return loss.reshape(case.batch) if case.reduction == "none" else loss

    return (
        lambda h, w, *b: linear_cross_entropy(h, w, target, linear_bias=b_of(b), chunk_rows=case.chunk_rows, **options),
        torchs,
        given,
    )


def ask(loss: Any, case: Case, given: list[Tensor]) -> Any:
    """Ask a loss for the derivatives of a case."""
    head = lambda *t: loss(*t).sin().sum()  # noqa: E731
    if case.order in ("grad", "hessian", "jvp"):
        every = tuple(range(len(given)))
        given = [t.contiguous() for t in given]  # an expanded tensor cannot be a dual number
        if case.order == "jvp":
            y, y_dot = jvp(loss, tuple(given), tuple(t.cos() for t in given))
            return y, y_dot.masked_fill(y.isnan(), 0.0)  # a mean over nothing has no derivative
        return (grad if case.order == "grad" else hessian)(head, every)(*given)
    inputs = [t.detach().requires_grad_(not frozen) for t, frozen in zip(given, case.frozen, strict=False)]
    asked = [t for t in inputs if t.requires_grad]
    y = loss(*inputs)
    if not asked:
        return y
    if case.order == "backward":
        return y, torch.autograd.grad(y.sin().sum(), asked)
    if case.order == "backward twice":
        total = y.sin().sum()
        return torch.autograd.grad(total, asked, retain_graph=True), torch.autograd.grad(total, asked)
    if case.order == "is_grads_batched":
        return torch.autograd.grad(y, asked, torch.stack([y.detach().cos(), y.detach()]), is_grads_batched=True)
    first = torch.autograd.grad(y.sin().sum(), asked, create_graph=True)
    total = sum(g.square().sum() for g in first)
    second = torch.autograd.grad(total, asked, create_graph=case.order == "third order")
    if case.order == "create_graph":
        return y, first, second
    return second, torch.autograd.grad(sum(g.sin().sum() for g in second) + total, asked)


@given(cases)
def test_a_drawn_loss_is_torchs(case: Case) -> None:
    ours, torchs, given = losses(case)
    torch.testing.assert_close(ask(ours, case, given), ask(torchs, case, given), rtol=1e-9, atol=1e-9, equal_nan=True)
