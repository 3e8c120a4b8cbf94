"""lm_loss(): the loss of a head that is a module, against F.cross_entropy of the logits it makes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations, parametrize, prune

from conditions import PRECISIONS
from linear_losses import Draw, Products, every_reduction
from manual_mlp import Linear, LinearCrossEntropyLoss, language, linear_cross_entropy, lm_loss
from modes.classes import Rounded

B, T, D, V = 2, 5, 4, 7
ROWS = [[0.5, 2.0, 0.0, 1.5, 1.0], [1.0, 0.25, 3.0, 0.5, 2.0]]
every_shift = pytest.mark.parametrize("shift", [False, True, 2])


class Adapted(nn.Module):
    """A layer with an adapter of low rank beside it, as peft makes one."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.base_layer = linear.requires_grad_(False)
        options: dict[str, Any] = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        self.a, self.b = nn.Linear(D, 2, bias=False, **options), nn.Linear(2, V, bias=False, **options)

    @property
    def weight(self) -> Tensor:
        return self.base_layer.weight

    @property
    def bias(self) -> Tensor:
        return self.base_layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + 0.5 * self.b(self.a(x))


class Quantised(nn.Linear):
    """A layer with its weight in int8, whose forward makes numbers of it."""

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.weight = nn.Parameter((linear.weight.detach() / scale).round().to(torch.int8), requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype) * self.scale, self.bias)


class Mean(nn.Module):
    """A head that looks back: at each position, at the mean of all states until there."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        count = torch.arange(1, x.shape[-2] + 1, device=x.device, dtype=x.dtype)
        return self.linear(x.flip(-2).cumsum(-2) / count[:, None])


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def ours(linear: nn.Linear) -> nn.Module:
    own = Linear(D, V, device=linear.weight.device, dtype=linear.weight.dtype)
    own.load_state_dict(linear.state_dict())
    return own


def without_bias(linear: nn.Linear) -> nn.Module:
    linear.bias = None
    return linear


def hooked(linear: nn.Linear) -> nn.Module:
    linear.register_forward_hook(lambda module, args, output: 2 * output)
    return linear


def hooked_before(linear: nn.Linear) -> nn.Module:
    linear.register_forward_pre_hook(lambda module, args: (3 * args[0],))
    return linear


def hooked_behind(linear: nn.Linear) -> nn.Module:
    linear.register_full_backward_hook(lambda module, dx, dy: (2 * dx[0],))
    return linear


def with_class(linear: nn.Linear) -> nn.Module:
    linear.__class__ = Scaled
    return linear


def replaced(linear: nn.Linear) -> nn.Module:
    linear.forward = lambda x: F.linear(x, 3 * linear.weight, linear.bias)
    return linear


def parametrised(linear: nn.Linear) -> nn.Module:
    class Doubled(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return 2 * w

    return parametrize.register_parametrization(linear, "weight", Doubled())


def rounded(linear: nn.Linear) -> nn.Module:
    linear.weight = nn.Parameter(linear.weight.detach().as_subclass(Rounded))
    return linear


TAKEN: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "nn.Linear": lambda linear: linear,
    "Linear": ours,
    "no bias": without_bias,
}
CALLED: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "adapter": Adapted,
    "subclass": with_class,
    "quantised": Quantised,
    "class of the weight": rounded,
    "hook": hooked,
    "pre-hook": hooked_before,
    "backward hook": hooked_behind,
    "forward replaced": replaced,
    "parametrised": parametrised,
    "weight norm": parametrizations.weight_norm,
    "spectral norm": lambda linear: parametrizations.spectral_norm(linear).eval(),
    "pruned": lambda linear: prune.random_unstructured(linear, "weight", 0.5),
    "normed": lambda linear: nn.Sequential(nn.LayerNorm(D, dtype=linear.weight.dtype).to(linear.weight.device), linear),
    "looking back": Mean,
}
HEADS = {**TAKEN, **CALLED}
every_head = pytest.mark.parametrize("name", HEADS)
some_heads = pytest.mark.parametrize("name", ["nn.Linear", "no bias", "adapter", "hook", "parametrised"])


def head_of(name: str, device: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    torch.manual_seed(1)
    return HEADS[name](nn.Linear(D, V, device=device, dtype=dtype))


def labels_on(device: str) -> Tensor:
    return torch.tensor([[3, 0, -100, 6, 3], [2, 2, 5, -100, 1]], device=device)


def torchs(hidden: Tensor, head: nn.Module, labels: Tensor, shift: bool | int = True, **options: Any) -> Tensor:
    """Compute F.cross_entropy of the logits that the head makes."""
    z, labels = head(hidden), labels.long()
    if shift:
        z, labels = z[..., : -int(shift), :], labels[..., int(shift) :]
    loss = F.cross_entropy(z.flatten(0, -2), labels.flatten(), **options)
    return loss.view(labels.shape) if loss.dim() else loss


def derivatives(loss: Tensor, inputs: list[Tensor]) -> list[Any]:
    """Compute the gradients, and those of a function of them."""
    first = torch.autograd.grad(loss.cos().sum(), inputs, create_graph=True)
    return [first, torch.autograd.grad(sum(g.sin().sum() for g in first), inputs)]


def inputs_of(hidden: Tensor, head: nn.Module) -> list[Tensor]:
    return [hidden, *(p for p in head.parameters() if p.requires_grad)]


def assert_same(mine: Tensor, theirs: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(derivatives(mine, inputs), derivatives(theirs, inputs), rtol=1e-11, atol=1e-11)


@pytest.fixture
def takes(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """List the weights that are taken from their heads."""
    taken: list[Tensor] = []

    def spy(input: Tensor, linear_weight: Tensor, *args: Any, **options: Any) -> Any:
        taken.append(linear_weight)
        return linear_cross_entropy(input, linear_weight, *args, **options)

    monkeypatch.setattr(language, "linear_cross_entropy", spy)
    return taken


@every_head
@every_shift
@every_reduction
@pytest.mark.parametrize("chunk_rows", [None, 3])
def test_the_loss_and_its_derivatives_are_those_of_the_heads_logits(
    draw: Draw, device: str, name: str, shift: bool | int, reduction: str, chunk_rows: int | None
) -> None:
    head, hidden, labels = head_of(name, device), draw(B, T, D), labels_on(device)
    options: dict[str, Any] = {"shift": shift, "reduction": reduction, "label_smoothing": 0.1}
    mine = lm_loss(hidden, head, labels, chunk_rows=chunk_rows, **options)
    assert_same(mine, torchs(hidden, head, labels, **options), inputs_of(hidden, head))


@every_head
def test_a_weight_is_taken_where_it_is_all_the_head_is_and_else_the_head_is_called(
    draw: Draw, device: str, name: str, takes: list[Tensor]
) -> None:
    head = head_of(name, device)
    lm_loss(draw(B, T, D), head, labels_on(device))
    assert [weight is head.weight for weight in takes] == [True] * (name in TAKEN)


def test_a_hook_on_all_modules_is_run(draw: Draw, device: str, takes: list[Tensor]) -> None:
    head, hidden, labels = head_of("nn.Linear", device), draw(B, T, D), labels_on(device)
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, output: 2 * output)
    try:
        mine, theirs = lm_loss(hidden, head, labels), torchs(hidden, head, labels)
    finally:
        handle.remove()
    assert takes == []
    assert mine != lm_loss(hidden, head, labels)
    assert_same(mine, theirs, inputs_of(hidden, head))


@pytest.mark.parametrize("name", ["nn.Linear", "no bias", "adapter"])
def test_only_a_called_head_makes_all_logits_at_once(draw: Draw, device: str, name: str) -> None:
    head, hidden = head_of(name, device), draw(B, T, D)
    with Products() as products:
        lm_loss(hidden, head, labels_on(device), chunk_rows=3).backward()
    assert ((B * T, V) in products.shapes) is (name in CALLED)


@pytest.mark.parametrize("name", ["nn.Linear", "hook", "adapter"])
def test_a_weight_tied_to_an_embedding_gets_its_gradients_from_both(device: str, name: str) -> None:
    tokens, found = torch.randint(V, (B, T), device=device), []
    for loss in (lm_loss, torchs):
        head = head_of(name, device)
        linear: Any = head.base_layer if name == "adapter" else head
        embedding = nn.Embedding(V, D, device=device, dtype=torch.float64)
        embedding.weight = linear.weight.requires_grad_()
        value = loss(embedding(tokens).tanh(), head, tokens)
        value.backward()
        found.append([value.detach(), embedding.weight.grad])
        without = torch.autograd.grad(loss(embedding(tokens).tanh().detach(), head, tokens), linear.weight)[0]
        assert not torch.allclose(found[-1][1], without)
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


@some_heads
@pytest.mark.parametrize("items", [9, 9.0, torch.tensor(9), torch.tensor([9])], ids=repr)
@pytest.mark.parametrize("weighted", [False, True])
def test_a_number_of_items_divides_the_sum(draw: Draw, device: str, name: str, items: Any, weighted: bool) -> None:
    head, hidden, labels = head_of(name, device), draw(B, T, D), labels_on(device)
    rows = torch.tensor(ROWS, dtype=torch.float64, device=device)
    mine = lm_loss(hidden, head, labels, num_items_in_batch=items, row_weight=rows if weighted else None)
    each = torchs(hidden, head, labels, reduction="none")
    assert mine.dim() == 0
    assert_same(mine, ((rows[:, 1:] if weighted else 1) * each).sum() / 9, inputs_of(hidden, head))


@pytest.mark.parametrize("name", ["nn.Linear", "hook"])
def test_in_float16_a_sum_beyond_its_numbers_is_divided_before_it_is_rounded(device: str, name: str) -> None:
    head = head_of(name, device, torch.float16)
    hidden = torch.randn(40, 1000, D, device=device, dtype=torch.float16)
    labels = torch.randint(V, (40, 1000), device=device)
    theirs = torchs(hidden.double(), head_of(name, device, torch.float16).double(), labels)
    assert theirs * 40 * 999 > 65504
    for items in (40 * 999, 10**7):
        mine = lm_loss(hidden, head, labels, num_items_in_batch=torch.tensor(items))
        assert mine.dtype is torch.float16
        torch.testing.assert_close(mine.double(), theirs * 40 * 999 / items, rtol=2e-3, atol=0)


@some_heads
@every_shift
@every_reduction
def test_all_options_are_those_of_linear_cross_entropy(
    draw: Draw, device: str, name: str, shift: bool | int, reduction: str
) -> None:
    head, hidden, labels = head_of(name, device), draw(B, T, D), labels_on(device)
    options: dict[str, Any] = {
        "weight": torch.rand(V, dtype=torch.float64, device=device),
        "ignore_index": 3,
        "label_smoothing": 0.2,
        "z_loss": 0.3,
        "softcap": 1.5,
        "reduction": reduction,
        "return_stats": True,
        "shift": shift,
        "row_weight": torch.tensor(ROWS, dtype=torch.float64, device=device),
    }
    labels = torch.where(labels < 0, 3, labels)
    mine, stats = lm_loss(hidden, head, labels, chunk_rows=3, **options)
    eye = torch.eye(V, dtype=torch.float64, device=device)
    theirs, expected = linear_cross_entropy(head(hidden), eye, labels, **options)
    assert_same(mine, theirs, inputs_of(hidden, head))
    assert stats.logsumexp.shape == stats.correct.shape == (B, T - int(shift))
    torch.testing.assert_close(stats, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["nn.Linear", "adapter"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_rows_may_be_masked_and_bytes_be_labels(draw: Draw, device: str, name: str, dtype: torch.dtype) -> None:
    head, hidden = head_of(name, device), draw(B, T, D)
    labels = labels_on(device).clamp(min=0).to(torch.uint8)
    mask = torch.tensor([[1, 0, 1, 1, 0], [1, 1, 0, 1, 1]], device=device)
    mine = lm_loss(hidden, head, labels, row_weight=mask.to(dtype))
    assert_same(mine, torchs(hidden, head, labels.long().where(mask.bool(), -100)), inputs_of(hidden, head))


@pytest.mark.parametrize("name", ["nn.Linear", "adapter"])
@pytest.mark.parametrize("shape", [(), (T,), (3, B, T)], ids=str)
def test_states_may_have_any_dimensions(draw: Draw, device: str, name: str, shape: tuple[int, ...]) -> None:
    head, hidden = head_of(name, device), draw(*shape, D)
    labels = torch.randint(V, shape, device=device)
    mine = lm_loss(hidden, head, labels, shift=bool(shape))
    theirs = torchs(hidden, head, labels) if shape else torchs(hidden[None], head, labels[None], False)
    assert_same(mine, theirs, inputs_of(hidden, head))


@pytest.mark.parametrize("name", ["nn.Linear", "hook"])
def test_where_every_label_is_ignored_there_is_no_gradient(draw: Draw, device: str, name: str) -> None:
    head, hidden, none = head_of(name, device), draw(B, T, D), torch.full((B, T), -100, device=device)
    items: Any
    for items in (None, 3, torch.tensor(0)):
        loss = lm_loss(hidden, head, none, num_items_in_batch=items)
        assert loss.isnan() if items is None else loss == 0
        assert not any(g.any() for g in torch.autograd.grad(loss, inputs_of(hidden, head)))


@pytest.mark.each_value
@pytest.mark.parametrize("name", ["nn.Linear", "no bias", "Linear", "adapter", "hook", "parametrised", "looking back"])
@pytest.mark.parametrize("items", [None, 9, torch.tensor(9)], ids=repr)
def test_a_compiler_leaves_the_answers_as_they_are(draw: Draw, device: str, name: str, items: Any) -> None:
    head, hidden, labels = head_of(name, device), draw(B, T, D), labels_on(device)

    def step(hidden: Tensor, labels: Tensor, items: Any) -> Any:
        return lm_loss(hidden, head, labels, num_items_in_batch=items, chunk_rows=3, return_stats=True)

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    (mine, stats), (theirs, expected) = compiled(hidden, labels, items), step(hidden, labels, items)
    torch.testing.assert_close(stats, expected, rtol=1e-12, atol=1e-12)
    pairs = [[loss, torch.autograd.grad(loss, inputs_of(hidden, head))] for loss in (mine, theirs)]
    torch.testing.assert_close(*pairs, rtol=1e-12, atol=1e-12)
    plain = torchs(hidden, head, labels, reduction="sum") / 9 if items is not None else torchs(hidden, head, labels)
    torch.testing.assert_close(mine, plain, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("items", ["none", "numbers", "tensors"])
def test_a_compiled_loss_is_one_operation_and_a_number_of_items_compiles_it_once_more(device: str, items: str) -> None:
    head, graphs = nn.Linear(D, V, device=device), []

    def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append({str(node.target) for node in graph.graph.nodes})
        return graph

    def step(hidden: Tensor, labels: Tensor, items: Any) -> Any:
        return lm_loss(hidden, head, labels, num_items_in_batch=items, chunk_rows=3)

    torch.compiler.reset()
    compiled = torch.compile(step, fullgraph=True, backend=keep)
    hidden, labels = torch.randn(B, T, D, device=device, requires_grad=True), torch.randint(V, (B, T), device=device)
    for k in (5, 6, 7, 8):
        compiled(hidden, labels, {"none": None, "numbers": k, "tensors": torch.tensor(k)}[items]).backward()
    assert len(graphs) == 1 + (items == "numbers")
    assert all("manual_mlp.linear_loss.default" in graph for graph in graphs)


@some_heads
@pytest.mark.parametrize("transform", ["grad", "hessian", "jvp", "per sample"])
def test_transforms_have_the_answers_of_the_heads_logits(draw: Draw, device: str, name: str, transform: str) -> None:
    head, hidden, labels = head_of(name, device), draw(B, T, D), labels_on(device)
    params = {k: p.detach() for k, p in head.named_parameters()}

    class Whole(nn.Module):
        def __init__(self, loss: Callable[..., Tensor]) -> None:
            super().__init__()
            self.head, self.loss = head, loss

        def forward(self, hidden: Tensor, labels: Tensor) -> Tensor:
            return self.loss(hidden, self.head, labels)

    def answer(loss: Callable[..., Tensor]) -> Any:
        def of(params: dict[str, Tensor], hidden: Tensor, labels: Tensor = labels) -> Tensor:
            return functional_call(Whole(loss), {f"head.{k}": p for k, p in params.items()}, (hidden, labels))

        if transform == "grad":
            return torch.func.grad(of, argnums=(0, 1))(params, hidden)
        if transform == "hessian":
            return torch.func.hessian(of)(params, hidden)
        if transform == "jvp":
            return torch.func.jvp(of, (params, hidden), ({k: p.cos() for k, p in params.items()}, hidden.sin()))
        return torch.func.vmap(torch.func.grad(of), (None, 0, 0))(params, hidden, labels)

    torch.testing.assert_close(answer(lm_loss), answer(torchs), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["nn.Linear", "no bias", "adapter", "hook"])
@pytest.mark.parametrize("items", [None, 8])
@pytest.mark.parametrize(("dtype", "region"), PRECISIONS.values(), ids=PRECISIONS)
def test_the_error_is_at_most_twice_torchs_own(
    draw: Draw, device: str, name: str, items: int | None, dtype: torch.dtype, region: torch.dtype | None
) -> None:
    largest = torch.zeros(2, 2, dtype=torch.float64)
    for seed in range(20):
        torch.manual_seed(seed)
        hidden, labels = draw(B, T, D, dtype=dtype), torch.randint(V, (B, T), device=device)  # 8 count
        head, wide = head_of(name, device, dtype), head_of(name, device, dtype).double()
        truth = torchs(hidden.double(), wide, labels)
        true = torch.autograd.grad(truth, inputs_of(hidden, wide))
        for k, loss in enumerate((lm_loss, torchs)):
            given: dict[str, Any] = {"num_items_in_batch": items} if k == 0 else {}
            with torch.autocast(device, region or torch.bfloat16, enabled=region is not None):
                value = loss(hidden, head, labels, **given)
            assert value.dtype == (torch.float32 if region else dtype)
            found = torch.autograd.grad(value, inputs_of(hidden, head))
            errors = [max((a.double() - b).abs().max() for a, b in zip(found, true, strict=True)), abs(value - truth)]
            largest[k] = torch.maximum(largest[k], torch.stack(errors).detach().cpu())
    assert (largest[0] <= 2 * largest[1] + 1e-6).all(), largest


def test_the_module_of_the_loss_calls_its_layer_where_lm_loss_does(draw: Draw, device: str) -> None:
    hidden, labels = draw(B, T, D), labels_on(device)
    for name in HEADS:
        module = LinearCrossEntropyLoss(D, V, shift=True, device=device)
        module.linear = head_of(name, device)
        if name != "looking back":  # it is shown the states that are compared, and no others
            torch.testing.assert_close(module(hidden, labels), torchs(hidden, module.linear, labels))


HIDDEN, LABELS = torch.randn(B, T, D), torch.zeros(B, T, dtype=torch.int64)
WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "a weight": ({"head": torch.randn(V, D)}, TypeError, "head to be a module, got Tensor; linear_cross_entropy takes"),
    "no head": ({"head": None}, TypeError, "expected head to be a module, got NoneType"),
    "no tensor": ({"hidden": [1.0]}, TypeError, "expected hidden to be a tensor, got list"),
    "no labels": ({"labels": None}, TypeError, "expected labels to be a tensor, got NoneType"),
    "floats": ({"labels": LABELS.float()}, TypeError, "labels to be int64 or uint8 classes, got torch.float32"),
    "int32": ({"labels": LABELS.int()}, TypeError, "expected labels to be int64 or uint8 classes, got torch.int32"),
    "labels": ({"labels": LABELS[:, 1:]}, ValueError, r"labels \(2, 5\) for hidden \(2, 5, 4\), got \(2, 4\)"),
    "flat": ({"labels": LABELS.view(-1)}, ValueError, r"labels \(2, 5\) for hidden \(2, 5, 4\), got \(10,\)"),
    "rows": ({"row_weight": torch.ones(2, 4)}, ValueError, r"row_weight \(2, 5\) for hidden .*, got \(2, 4\)"),
    "listed rows": ({"row_weight": ROWS}, TypeError, "expected row_weight to be a tensor, got list"),
    "one dimension": (
        {"hidden": HIDDEN[0, 0], "labels": LABELS[0, 0]},
        ValueError,
        r"expected hidden \(\*, T, D\) where labels are shifted, got \(4,\)",
    ),
    "no dimension": ({"hidden": torch.ones(()), "shift": 0}, ValueError, r"expected hidden \(\*, D\), got \(\)"),
    "shift": ({"shift": 5}, ValueError, r"expected shift from 0 to 4 for hidden \(2, 5, 4\), got 5"),
    "shift back": ({"shift": -1}, ValueError, "expected shift from 0 up, got -1"),
    "shift by a word": ({"shift": "x"}, TypeError, "expected shift to be an int or a bool, got 'x'"),
    "items of a sum": (
        {"num_items_in_batch": 3, "reduction": "sum"},
        ValueError,
        "expected reduction 'mean' with num_items_in_batch, got 'sum'",
    ),
    "no items": ({"num_items_in_batch": 0}, ValueError, "expected num_items_in_batch above 0, got 0"),
    "more items": ({"num_items_in_batch": torch.ones(2)}, ValueError, r"num_items_in_batch of one entry, got \(2,\)"),
    "a word of items": ({"num_items_in_batch": "3"}, TypeError, "to be a number or a tensor, got '3'"),
    "reduction": ({"reduction": "all"}, ValueError, "expected reduction 'none', 'mean' or 'sum', got 'all'"),
    "chunks": ({"chunk_rows": 0}, ValueError, "expected chunk_rows to be an int from 1 up, or None, got 0"),
    "smoothing": ({"label_smoothing": 2}, ValueError, "expected label_smoothing from 0 to 1, got 2"),
    "softcap": ({"softcap": 0}, ValueError, "expected softcap above 0, and finite, got 0"),
    "options": ({"options": 3}, TypeError, "expected options to be torch.nn.LinearCrossEntropyOptions or None, got 3"),
    "width": ({"hidden": torch.randn(B, T, 3)}, (ValueError, RuntimeError), r"\(\*, 4\)|cannot be multiplied"),
    "no class": ({"labels": LABELS + V}, IndexError, "7 is out of bounds"),
}


@pytest.mark.parametrize("name", ["nn.Linear", "hook"])
@pytest.mark.parametrize(("given", "error", "message"), WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_told(name: str, given: dict[str, Any], error: type[Exception], message: str) -> None:
    options = {"hidden": HIDDEN, "head": head_of(name, "cpu", torch.float32), "labels": LABELS} | given
    with pytest.raises(error, match=message):
        lm_loss(**options)


@pytest.mark.parametrize("head", [nn.LSTM(D, V), nn.Flatten(0, 1), nn.LazyLinear(V)], ids=lambda head: repr(head)[:9])
def test_a_head_that_returns_no_logits_is_told(head: nn.Module) -> None:
    if isinstance(head, nn.LazyLinear):
        assert lm_loss(HIDDEN, head, LABELS).isfinite()
        return
    got = "tuple" if isinstance(head, nn.LSTM) else r"\(10, 4\)"
    with pytest.raises(ValueError, match=rf"to return logits \(2, 5, V\), got {got}"):
        lm_loss(HIDDEN, head, LABELS)
