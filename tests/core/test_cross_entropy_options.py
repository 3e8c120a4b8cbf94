"""Weights of rows, z-loss and softcap of linear_cross_entropy(), against the formula in torch's own operations."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from conditions import PRECISIONS
from linear_losses import (
    D,
    Draw,
    N,
    V,
    assert_same,
    bfloat16_products,
    classes,
    every_chunk,
    every_reduction,
    ours,
)
from manual_mlp import MLP, LinearCrossEntropyLoss, backprop, linear_cross_entropy

ROWS = [0.5, 2.0, 0.0, 1.5, -1.0]


def formula(
    h: Tensor,
    w: Tensor,
    b: Tensor | None,
    t: Tensor,
    weight: Tensor | None = None,
    ignore_index: int | None = None,
    label_smoothing: float = 0.0,
    row_weight: Tensor | None = None,
    z_loss: float = 0.0,
    softcap: float | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Write u((Σa) lse − a·s + ζ lse²) of every row in torch's operations."""
    z = F.linear(h, w, b)
    s = z if softcap is None else softcap * torch.tanh(z / softcap)
    lse, classes = s.logsumexp(-1), s.shape[-1]
    known = torch.ones_like(lse, dtype=torch.bool) if t.is_floating_point() else t != (ignore_index or -100)
    p = t if t.is_floating_point() else (t[..., None] == torch.arange(classes, device=t.device)).to(s.dtype)
    a = ((1 - label_smoothing) * p + label_smoothing / classes) * (1.0 if weight is None else weight)
    u = known * (torch.ones_like(lse) if row_weight is None else row_weight.to(lse.dtype))
    values = u * (a.sum(-1) * lse - (a * s).sum(-1) + z_loss * lse.square())
    if reduction == "none":
        return values
    if reduction == "sum":
        return values.sum()
    counts = u if weight is None or t.is_floating_point() else u * weight[torch.where(known, t, 0)]
    return values.sum() / counts.sum()


def target_of(kind: str, device: str) -> Tensor:
    return classes(N, device=device) if kind == "classes" else torch.rand(N, V, dtype=torch.float64, device=device)


def rows_of(device: str) -> Tensor:
    return torch.tensor(ROWS, dtype=torch.float64, device=device)


every_kind = pytest.mark.parametrize("kind", ["classes", "probabilities"])
few_chunks = pytest.mark.parametrize("chunk_rows", [2, 8, None])
OPTIONS: dict[str, dict[str, Any]] = {
    "row weights": {"row_weight": ROWS},
    "z-loss": {"z_loss": 0.3},
    "softcap": {"softcap": 1.5},
    "all": {"row_weight": ROWS, "z_loss": 0.3, "softcap": 1.5, "label_smoothing": 0.1},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def on(device: str, options: dict[str, Any]) -> dict[str, Any]:
    return options | ({"row_weight": rows_of(device)} if "row_weight" in options else {})


@every_chunk
@every_reduction
@every_kind
@pytest.mark.parametrize("row_weight", [False, True])
@pytest.mark.parametrize("z_loss", [0.0, 0.3])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_loss_and_its_derivatives_are_those_of_the_formula(
    draw: Draw,
    device: str,
    chunk_rows: int | None,
    reduction: str,
    kind: str,
    row_weight: bool,
    z_loss: float,
    softcap: float | None,
    smoothing: float,
    weighted: bool,
) -> None:
    inputs, t = (draw(N, D), draw(V, D), draw(V)), target_of(kind, device)
    options = {
        "weight": torch.rand(V, dtype=torch.float64, device=device) if weighted else None,
        "label_smoothing": smoothing,
        "row_weight": rows_of(device) if row_weight else None,
        "z_loss": z_loss,
        "softcap": softcap,
        "reduction": reduction,
    }
    assert_same(ours(*inputs, t, chunk_rows=chunk_rows, **options), formula(*inputs, t, **options), inputs)


@pytest.mark.each_value
@every_option
@every_kind
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("chunk_rows", [2, 8])
def test_gradients_are_those_of_central_differences(
    draw: Draw, device: str, options: dict[str, Any], kind: str, reduction: str, chunk_rows: int
) -> None:
    t, given = target_of(kind, device), on(device, options) | {"chunk_rows": chunk_rows, "reduction": reduction}
    inputs = draw(N, D), draw(V, D), draw(V)

    def step(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return ours(h, w, b, t, **given)

    assert gradcheck(step, inputs, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(step, inputs, check_fwd_over_rev=True, check_batched_grad=True)


@every_option
@every_kind
@pytest.mark.parametrize("transform", ["grad", "hessian", "jvp", "per sample"])
def test_transforms_have_the_formulas_answers(
    draw: Draw, device: str, options: dict[str, Any], kind: str, transform: str
) -> None:
    h, w, b, t, given = draw(N, D), draw(V, D), draw(V), target_of(kind, device), on(device, options)

    def answer(loss: Callable[..., Tensor]) -> Any:
        def of_input(h: Tensor) -> Tensor:
            return loss(h, w, b, t, **given)

        if transform == "grad":
            return torch.func.grad(of_input)(h)
        if transform == "hessian":
            return torch.func.hessian(of_input)(h)
        if transform == "jvp":
            return torch.func.jvp(of_input, (h,), (h.cos(),))
        apart = {k: v for k, v in given.items() if k != "row_weight"}
        row_weight = given.get("row_weight", torch.ones(N, dtype=torch.float64, device=device))

        def of_row(h: Tensor, t: Tensor, u: Tensor) -> Tensor:
            return loss(h[None], w, b, t[None], row_weight=u[None], reduction="sum", **apart)

        return torch.func.vmap(torch.func.grad(of_row))(h, t, row_weight)

    torch.testing.assert_close(answer(ours), answer(formula), rtol=1e-10, atol=1e-10)


@every_option
@few_chunks
@pytest.mark.parametrize("frozen", ["input", "weight", "bias", "both"])
@every_reduction
def test_frozen_operands_change_no_other_gradient(
    draw: Draw, device: str, options: dict[str, Any], chunk_rows: int | None, frozen: str, reduction: str
) -> None:
    inputs, t, given = (draw(N, D), draw(V, D), draw(V)), classes(N, device=device), on(device, options)
    still = {"input": (0,), "weight": (1,), "bias": (2,), "both": (0, 2)}[frozen]
    fixed = [x.detach() if k in still else x for k, x in enumerate(inputs)]
    moving = tuple(x for x in fixed if x.requires_grad)
    losses = (
        ours(*fixed, t, chunk_rows=chunk_rows, reduction=reduction, **given),
        formula(*fixed, t, reduction=reduction, **given),
    )
    assert_same(*losses, moving)


@few_chunks
@every_reduction
@every_kind
@pytest.mark.parametrize("weighted", [False, True])
def test_weights_of_rows_that_require_grad_get_theirs(
    draw: Draw, device: str, chunk_rows: int | None, reduction: str, kind: str, weighted: bool
) -> None:
    u = rows_of(device).requires_grad_()
    inputs, t = (draw(N, D), draw(V, D), draw(V), u), target_of(kind, device)
    weight = torch.rand(V, dtype=torch.float64, device=device) if weighted else None
    given = {"row_weight": u, "weight": weight, "z_loss": 0.3, "softcap": 1.5, "reduction": reduction}
    assert_same(ours(*inputs[:3], t, chunk_rows=chunk_rows, **given), formula(*inputs[:3], t, **given), inputs)
    assert torch.autograd.grad(ours(*inputs[:3], t, chunk_rows=chunk_rows, **given).sum(), u)[0][2] != 0


@few_chunks
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bool, torch.int64])
def test_weights_of_rows_may_be_of_any_dtype_and_the_loss_keeps_its_own(
    draw: Draw, device: str, chunk_rows: int | None, dtype: torch.dtype
) -> None:
    inputs, t = (draw(N, D), draw(V, D), draw(V)), classes(N, device=device)
    u = torch.tensor([1, 0, 1, 1, 0], device=device).to(dtype)
    mine = ours(*inputs, t, row_weight=u, chunk_rows=chunk_rows)
    assert mine.dtype == torch.float64
    assert_same(mine, formula(*inputs, t, row_weight=u), inputs)


@every_chunk
@every_reduction
@every_kind
@pytest.mark.parametrize("create_graph", [False, True])
def test_a_row_of_weight_zero_gets_a_gradient_of_exactly_zero(
    draw: Draw, device: str, chunk_rows: int | None, reduction: str, kind: str, create_graph: bool
) -> None:
    h, w, b, t = draw(N, D), draw(V, D), draw(V), target_of(kind, device)
    with torch.no_grad():
        h[2] *= 1e8
    options = {"row_weight": rows_of(device), "z_loss": 0.3, "reduction": reduction, "chunk_rows": chunk_rows}
    loss = ours(h, w, b, t, **options)
    found = torch.autograd.grad(loss.sum(), (h, w, b), create_graph=create_graph)
    assert not found[0][2].any()
    assert all(g.isfinite().all() for g in found)
    rest = [0, 1, 3, 4]
    without = ours(h[rest], w, b, t[rest], **options | {"row_weight": rows_of(device)[rest]})
    theirs = torch.autograd.grad(without.sum(), (w, b))
    torch.testing.assert_close(found[1:], theirs, rtol=1e-12, atol=1e-12)


@few_chunks
@every_kind
@every_reduction
@pytest.mark.parametrize("way", ["eager", "create_graph", "a transform"])
def test_where_all_weights_of_rows_are_zero_a_mean_is_not_a_number_and_has_no_gradient(
    draw: Draw, device: str, chunk_rows: int | None, kind: str, reduction: str, way: str
) -> None:
    inputs, t = (draw(N, D), draw(V, D), draw(V)), target_of(kind, device)
    zeros = torch.zeros(N, device=device)

    def loss(*inputs: Tensor) -> Tensor:
        given = {"row_weight": zeros, "z_loss": 0.1, "reduction": reduction, "chunk_rows": chunk_rows}
        return ours(*inputs, t, **given).sum()

    value = loss(*inputs)
    assert value.isnan() if reduction == "mean" else value == 0
    if way == "a transform":
        found = torch.func.grad(loss, argnums=(0, 1, 2))(*inputs)
    else:
        found = torch.autograd.grad(value, inputs, create_graph=way == "create_graph")
    assert not any(g.any() for g in found)


@few_chunks
@every_reduction
@every_option
@pytest.mark.parametrize("n", [0, 1, N])
def test_nothing_counts_in_an_empty_batch_or_where_every_row_is_ignored(
    draw: Draw, device: str, chunk_rows: int | None, reduction: str, options: dict[str, Any], n: int
) -> None:
    inputs, t = (draw(n, D), draw(V, D), draw(V)), torch.full((n,), -100, device=device)
    given = options | ({"row_weight": torch.ones(n, device=device)} if "row_weight" in options else {})
    loss = ours(*inputs, t, reduction=reduction, chunk_rows=chunk_rows, **given)
    assert loss.shape == ((n,) if reduction == "none" else ())
    assert loss.isnan() if reduction == "mean" else not loss.any()
    assert not any(g.nan_to_num().any() for g in torch.autograd.grad(loss.sum(), inputs))


@few_chunks
@every_reduction
@pytest.mark.parametrize("options", [OPTIONS["z-loss"], OPTIONS["all"]], ids=["z-loss", "all"])
def test_an_ignored_row_adds_nothing_to_a_z_loss_whatever_its_logits(
    draw: Draw, device: str, chunk_rows: int | None, reduction: str, options: dict[str, Any]
) -> None:
    h, w, b, t, given = draw(N, D), draw(V, D), draw(V), classes(N, device=device), on(device, options)
    with torch.no_grad():
        h[-1] *= 1e200
    kept = given | ({"row_weight": given["row_weight"][:-1]} if "row_weight" in given else {})
    mine = ours(h, w, b, t, reduction=reduction, chunk_rows=chunk_rows, **given)
    rest = ours(h[:-1], w, b, t[:-1], reduction=reduction, chunk_rows=chunk_rows, **kept)
    torch.testing.assert_close(mine.sum(), rest.sum(), rtol=1e-12, atol=1e-12)
    pairs = (torch.autograd.grad(loss.sum(), (w, b)) for loss in (mine, rest))
    torch.testing.assert_close(*pairs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chunk_rows", [3, 16, None])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("fast", [True, False], ids=["fast bfloat16", "slow bfloat16"])
@pytest.mark.parametrize(("dtype", "region"), PRECISIONS.values(), ids=PRECISIONS)
def test_the_error_is_at_most_twice_torchs_own(
    draw: Draw,
    device: str,
    reduction: str,
    chunk_rows: int | None,
    fast: bool,
    dtype: torch.dtype,
    region: torch.dtype | None,
) -> None:
    largest = torch.zeros(2, 4, dtype=torch.float64)
    for seed in range(30):
        torch.manual_seed(seed)
        inputs = [draw(*s, dtype=dtype) for s in ((9, D), (V, D), (V,))]
        wide = [x.detach().double().requires_grad_() for x in inputs]
        t, u = classes(9, device=device), torch.rand(9, device=device).to(dtype)
        options: dict[str, Any] = {"z_loss": 0.1, "softcap": 3.0, "label_smoothing": 0.1, "reduction": reduction}
        truth_loss = formula(*wide, t, row_weight=u.double(), **options)
        upstream = torch.randint_like(truth_loss, -4, 5) if reduction == "none" else torch.ones_like(truth_loss)
        truth = truth_loss, *torch.autograd.grad(truth_loss, wide, upstream)
        for k, function in enumerate((ours, formula)):
            chunks = {"chunk_rows": chunk_rows} if function is ours else {}
            with torch.autocast(device, region or torch.bfloat16, enabled=region is not None), bfloat16_products(fast):
                loss = function(*inputs, t, row_weight=u, **options, **chunks)
            assert function is formula or loss.dtype == (torch.float32 if region else dtype)
            result = loss, *torch.autograd.grad(loss, inputs, upstream.to(loss.dtype))
            errors = torch.stack([(a.double() - b).abs().max() for a, b in zip(result, truth, strict=True)])
            largest[k] = torch.maximum(largest[k], errors.detach().cpu())
    assert (largest[0] <= 2 * largest[1] + 1e-6).all(), largest


@every_option
@every_reduction
@pytest.mark.parametrize("change", ["hook", "subclass", "parametrized"])
def test_the_module_answers_alike_whether_its_layer_is_called_or_its_weight_is_taken(
    device: str, options: dict[str, Any], reduction: str, change: str
) -> None:
    given = {k: v for k, v in options.items() if k != "row_weight"}
    plain = LinearCrossEntropyLoss(
        D, V, bias=True, dtype=torch.float64, device=device, reduction=reduction, chunk_rows=2, **given
    )
    other = copy.deepcopy(plain)
    if change == "hook":
        other.linear.register_forward_hook(lambda module, args, output: None)
    elif change == "subclass":
        other.linear = type("Own", (nn.Linear,), {})(D, V, dtype=torch.float64, device=device)
        other.linear.load_state_dict(plain.linear.state_dict())
    else:
        nn.utils.parametrize.register_parametrization(other.linear, "weight", nn.Identity())
    h, t = torch.randn(N, D, dtype=torch.float64, device=device, requires_grad=True), classes(N, device=device)
    u = rows_of(device) if "row_weight" in options else None
    losses = plain(h, t, u), other(h, t, row_weight=u)
    truth = formula(h, *plain.linear.parameters(), t, row_weight=u, reduction=reduction, **given)
    for loss in losses:
        torch.testing.assert_close(loss, truth, rtol=1e-12, atol=1e-12)
    first = [torch.autograd.grad(loss.sum(), h, create_graph=True)[0] for loss in losses]
    torch.testing.assert_close(*first, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(*(torch.autograd.grad(g.sin().sum(), h) for g in first), rtol=1e-12, atol=1e-12)


def test_the_module_shows_copies_and_pickles_its_options(device: str) -> None:
    module = LinearCrossEntropyLoss(4, 7, z_loss=1e-4, softcap=30.0, shift=True, return_stats=True, device=device)
    assert "z_loss=0.0001, softcap=30.0, shift=1" in repr(module)
    h, t = torch.randn(2, 5, 4, device=device), torch.randint(7, (2, 5), device=device)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.testing.assert_close(other(h, t), module(h, t), rtol=0, atol=0)


@every_reduction
@every_kind
@pytest.mark.parametrize("tile_rows", [None, 2])
@pytest.mark.parametrize("wrapped", [False, True])
def test_backprop_takes_weights_of_rows_and_a_z_loss(
    device: str, reduction: str, kind: str, tile_rows: int | None, wrapped: bool
) -> None:
    mlp = MLP([D, 6, V], "tanh", dtype=torch.float64, device=device)
    network: nn.Module = nn.Sequential(mlp) if wrapped else mlp
    h, t = torch.randn(N, D, dtype=torch.float64, device=device), target_of(kind, device)
    options = {"row_weight": rows_of(device), "z_loss": 0.3, "label_smoothing": 0.1}
    eye = torch.eye(V, dtype=torch.float64, device=device)
    truth = formula(mlp(h), eye, None, t, reduction=reduction, **options)
    upstream = torch.linspace(1, 2, N, dtype=torch.float64, device=device) if reduction == "none" else None
    theirs = torch.autograd.grad(truth, list(mlp.parameters()), upstream)
    value = backprop(network, h, t, "cross_entropy", reduction, tile_rows, gradient=upstream, **options)
    torch.testing.assert_close(value, truth.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close([p.grad for p in mlp.parameters()], list(theirs), rtol=1e-12, atol=1e-12)


@few_chunks
@pytest.mark.parametrize("kind", ["classes", "smoothed", "probabilities"])
def test_no_ignore_index_is_minus_a_hundred_as_for_torch(
    draw: Draw, device: str, chunk_rows: int | None, kind: str
) -> None:
    inputs = draw(N, D), draw(V, D), draw(V)
    t = target_of("probabilities" if kind == "probabilities" else "classes", device)
    smoothing = {"label_smoothing": 0.1} if kind == "smoothed" else {}
    mine = ours(*inputs, t, ignore_index=None, chunk_rows=chunk_rows, **smoothing)
    assert_same(mine, F.cross_entropy(F.linear(*inputs), t, ignore_index=-100, **smoothing), inputs)
    if hasattr(F, "linear_cross_entropy"):
        h, w, b = inputs
        theirs = F.linear_cross_entropy(h, w, t, linear_bias=b, ignore_index=None, **smoothing)
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    module = LinearCrossEntropyLoss(D, V, ignore_index=None)
    assert module.ignore_index == -100


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"softcap": 0.0}, ValueError, "expected softcap above 0, and finite, got 0.0"),
        ({"softcap": float("inf")}, ValueError, "expected softcap above 0, and finite, got inf"),
        ({"softcap": float("nan")}, ValueError, "expected softcap above 0, and finite, got nan"),
        ({"softcap": "30"}, TypeError, "expected softcap to be a number or None, got '30'"),
        ({"z_loss": -1e-4}, ValueError, "expected z_loss from 0 up, and finite, got -0.0001"),
        ({"z_loss": float("inf")}, ValueError, "expected z_loss from 0 up, and finite, got inf"),
        ({"z_loss": "x"}, TypeError, "expected z_loss to be a number, got 'x'"),
        ({"row_weight": [1.0] * N}, TypeError, "expected row_weight to be a tensor of real numbers, got list"),
        ({"row_weight": torch.ones(N, dtype=torch.cfloat)}, TypeError, "of real numbers, got torch.complex64"),
        ({"row_weight": torch.ones(N - 1)}, ValueError, r"expected row_weight \(5,\), one for each row, got \(4,\)"),
        ({"row_weight": torch.ones(N, 1)}, ValueError, r"expected row_weight \(5,\), one for each row, got \(5, 1\)"),
        ({"row_weight": torch.ones(N, device="meta")}, ValueError, "expected row_weight on cpu, got meta"),
    ],
)
def test_an_option_that_is_wrong_is_told(options: dict[str, Any], error: type[Exception], message: str) -> None:
    h, w, t = torch.randn(N, D), torch.randn(V, D), torch.randint(V, (N,))
    for chunk_rows in (None, 2):
        with pytest.raises(error, match=message):
            linear_cross_entropy(h, w, t, chunk_rows=chunk_rows, **options)
    if "row_weight" not in options:
        with pytest.raises(error, match=message):
            LinearCrossEntropyLoss(D, V, **options)
    else:
        module = LinearCrossEntropyLoss(D, V)
        with pytest.raises(error, match=message):
            module(h, t, **options)
        module.linear.register_forward_hook(lambda *_: None)
        with pytest.raises(error, match=message):
            module(h, t, **options)


@pytest.mark.parametrize("change", ["row_weight", "target"])
def test_a_weight_of_a_row_changed_before_backward_is_an_error(device: str, change: str) -> None:
    h, w = torch.randn(N, D, device=device), torch.randn(V, D, device=device, requires_grad=True)
    t, u = torch.randint(V, (N,), device=device), torch.rand(N, device=device)
    for reduction in ("mean", "none"):
        loss = linear_cross_entropy(h, w, t, row_weight=u, reduction=reduction, chunk_rows=2).sum()
        (t if change == "target" else u).zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
