"""Every mode of differentiation, by name: the answer is the truth's, or a known error."""

import re
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from manual_mlp import activations
from modes import FEW, LIMITS, MODES, Mode
from modes.elementary import ELEMENTARY
from modes.judge import Verdict, compare, judge
from modes.subjects import LAYER, SUBJECTS, WITHOUT_ACTIVATION, Subject, chain

# The other layers and losses, by what they are, and by how many rows they take at once.
ROWS = re.compile("(.*?)(, \\d rows at once)?")
OTHERS = {name: ("identity",) if name in WITHOUT_ACTIVATION else FEW for name in SUBJECTS if name != "dense"}
SLOW_FOR_OTHERS = "compile, static batch", "compile of a module", "export, strict", "ONNX in onnxruntime"
FOR_EVERY_ACTIVATION = "backward", "create_graph, second order", "jvp", "vmap(grad) over rows"

subject_of = cache(lambda name, activation: SUBJECTS[name](activation))


def assert_as_promised(mode: Mode, subject: Subject, device: str) -> None:
    verdict = judge(mode, subject, device)
    names, message = LIMITS.get(mode.name, ((), ""))
    if subject.activation in names and subject.name == "dense":
        assert verdict.outcome == "raises" or verdict.detail.startswith("both raise"), verdict
        assert re.search(message, verdict.detail), verdict
    else:
        assert verdict.outcome == "equal", verdict


def runs(mode: Mode, activation: str) -> bool:
    # inductor builds C++, which takes seconds.
    return "inductor" not in mode.name or activation == "gelu"


@pytest.mark.product
@pytest.mark.parametrize(
    ("mode", "activation"),
    [pytest.param(mode, name, id=f"{mode.name}-{name}") for mode in MODES.values() for name in FEW if runs(mode, name)],
)
def test_a_mode_of_the_layer_gives_the_truth(mode: Mode, activation: str, device: str) -> None:
    assert_as_promised(mode, subject_of("dense", activation), device)


def of_others(modes: Iterable[Mode], last: bool) -> pytest.MarkDecorator:
    """List each mode with each of the other layers and losses, and a few activations, or the last of them."""
    return pytest.mark.parametrize(
        ("mode", "kind", "rows", "activation"),
        [
            pytest.param(mode, *ROWS.fullmatch(name).groups(""), activation, id=f"{mode.name}-{name}-{activation}")
            for mode in modes
            for name, some in OTHERS.items()
            for activation in (some[-1:] if last else some)
        ],
    )


@pytest.mark.product
@of_others([mode for mode in MODES.values() if not mode.compiles], last=False)
def test_a_mode_of_the_other_layers_and_losses_gives_the_truth(
    mode: Mode, kind: str, rows: str, activation: str, device: str
) -> None:
    assert_as_promised(mode, subject_of(kind + rows, activation), device)


@pytest.mark.product
@pytest.mark.each_value
@of_others([MODES[name] for name in SLOW_FOR_OTHERS], last=True)
def test_what_compiles_the_other_layers_and_losses_gives_the_truth(
    mode: Mode, kind: str, rows: str, activation: str, device: str
) -> None:
    assert_as_promised(mode, subject_of(kind + rows, activation), device)


@pytest.mark.parametrize("activation", activations.names())
@pytest.mark.parametrize("mode", [MODES[name] for name in FOR_EVERY_ACTIVATION], ids=lambda mode: mode.name)
def test_every_activation_gives_the_truth(mode: Mode, activation: str, device: str) -> None:
    assert_as_promised(mode, subject_of("dense", activation), device)


@pytest.mark.parametrize("activation", ["leaky_relu", "relu6"])
def test_an_output_that_was_kept_may_not_be_changed_in_place(activation: str, device: str) -> None:
    assert_as_promised(MODES["in-place change of the output"], subject_of("dense", activation), device)


def test_every_mode_that_may_raise_is_a_mode() -> None:
    assert set(LIMITS) <= set(MODES)
    assert set(ELEMENTARY) == set(activations.names())


class Detaching(Function):
    """A layer whose gradient is a constant: second derivatives are silently without z."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        z = F.linear(h, w, b)
        ctx.slope = 1 - torch.tanh(z.detach()).square()
        ctx.save_for_backward(h, w)
        return torch.tanh(z)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        h, w = ctx.saved_tensors
        delta = dy * ctx.slope
        return delta @ w, delta.mT @ h, delta.sum(0)


class Plain(Function):
    """A layer that is right, but for what torch gets wrong through any Function."""

    generate_vmap_rule = True

    @staticmethod
    def forward(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return torch.tanh(F.linear(h, w, b))

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        h, w, b = ctx.saved_tensors
        delta = dy * (1 - torch.tanh(F.linear(h, w, b)).square())
        return delta @ w, delta.mT @ h, delta.sum(0)

    @staticmethod
    def jvp(ctx: Any, h_dot: Tensor, w_dot: Tensor, b_dot: Tensor) -> Tensor:
        h, w, b = ctx.saved_tensors
        z_dot = F.linear(h_dot, w) + F.linear(h, w_dot) + b_dot
        return z_dot * (1 - torch.tanh(F.linear(h, w, b)).square())


class Unwatched(Function):
    """A layer that keeps its output where autograd does not see it change."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        ctx.y = torch.tanh(F.linear(h, w, b))
        ctx.save_for_backward(h, w)
        return ctx.y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        h, w = ctx.saved_tensors
        delta = dy * (1 - ctx.y.square())
        return delta @ w, delta.mT @ h, delta.sum(0)


def broken(f: Callable[..., Tensor]) -> Subject:
    return Subject("broken", "tanh", f, chain("tanh"), chain("tanh"), LAYER)


def composite(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return torch.tanh(F.linear(h, w, b))


@pytest.mark.parametrize(
    ("f", "mode", "outcome"),
    [
        (composite, "create_graph, second order", "equal"),
        (composite, "jvp(jvp)", "equal"),
        (composite, "autocast, backward inside, bf16", "equal"),
        (Detaching.apply, "backward", "equal"),
        (Detaching.apply, "create_graph, second order", "WRONG"),
        (Detaching.apply, "jvp", "raises"),
        (Plain.apply, "jvp", "equal"),
        (Plain.apply, "create_graph, second order", "equal"),
        (Plain.apply, "jvp(jvp)", "WRONG"),
        (lambda *t: composite(*t).detach(), "backward", "detached"),
        (lambda *t: composite(*t).detach(), "grad", "WRONG"),
        (lambda h, w, b: composite(h, w.detach(), b), "backward", "detached"),
        (lambda h, w, b: composite(h, w + 0 * w.detach(), b * 1.0000001), "backward", "WRONG"),
        (lambda *t: composite(*t) * torch.nan, "backward", "WRONG"),
        (lambda *t: composite(*t).float(), "backward", "WRONG"),
        (lambda *t: composite(*t).clone(), "in-place change of the output", "equal"),
        (Unwatched.apply, "backward", "equal"),
        (Unwatched.apply, "in-place change of the output", "WRONG"),
        (lambda *t: composite(*(x.bfloat16() for x in t)), "autocast, backward inside, fp16", "WRONG"),
        (lambda *t: composite(*t).bfloat16().float(), "autocast, backward inside, fp16", "WRONG"),
    ],
)
def test_the_judge_sees_through(f: Callable[..., Tensor], mode: str, outcome: str) -> None:
    assert judge(MODES[mode], broken(f)).outcome == outcome


@pytest.mark.parametrize(
    ("mine", "truth", "outcome"),
    [
        ([torch.ones(2)], [torch.ones(2)], "equal"),
        ([torch.ones(2)], (torch.ones(2),), "equal"),
        ([torch.zeros(2)], [torch.ones(2)], "WRONG"),
        ([torch.full((2,), torch.nan)], [torch.ones(2)], "WRONG"),
        ([torch.ones(2), torch.ones(2)], [torch.ones(2)], "WRONG"),
        ([torch.ones(1)], [torch.ones(2)], "WRONG"),
        ([torch.ones(2)], [torch.ones(2, dtype=torch.float64)], "WRONG"),
        ([None], [torch.ones(2)], "detached"),
        ([torch.ones(2)], [torch.ones(2, requires_grad=True)], "detached"),
        ([1.0, "aten"], [1.0, "aten"], "equal"),
        ([1.0, "aten"], [1.0, "submodule"], "WRONG"),
    ],
)
def test_the_judge_compares_nested_results(mine: Any, truth: Any, outcome: str) -> None:
    assert compare(mine, truth, 1e-9).outcome == outcome


def test_the_judge_reports_the_error() -> None:
    verdict = compare([torch.zeros(2)], [torch.full((2,), 3.0)], 1e-9)
    assert verdict == Verdict("WRONG", "", 0.75)


def test_the_judge_refuses_a_truth_that_raises() -> None:
    subject = Subject("", "tanh", composite, composite, Detaching.apply, LAYER)
    with pytest.raises(AssertionError, match="the truth of 'jvp' raises"):
        judge(MODES["jvp"], subject)
