"""Hypothesis draws a layer and a way to differentiate it; the answer is that of the composite.

``make fuzz`` draws thousands of cases at random; the suite draws a few hundred, the same ones every time.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from conditions import PRECISIONS
from drawn_calls import Reverse, Transform, reverses, transforms
from drawn_layers import MODERATE, VMAPPED, Layer, given, hypothesis, layers, st
from modes.mode import Map

# The claims.

on_any_device = hypothesis.settings(suppress_health_check=list(hypothesis.HealthCheck))


def assert_equal(ours: Sequence[Tensor], truth: Sequence[Tensor]) -> None:
    assert len(ours) == len(truth)
    for k, (a, b) in enumerate(zip(ours, truth, strict=True)):
        if a is None and b is None:
            continue
        size = b.detach().abs().max().item() if b.numel() else 0.0
        message = f"result {k} of {len(truth)}: {{}}".format
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9 * max(1.0, size), equal_nan=True, msg=message)


def _plain(
    subject: str,
    activation: str,
    batch: tuple[int, ...],
    widths: tuple[int, ...],
    count: int,
    frozen: Iterable[int] = (),
) -> Layer:
    layouts = ("contiguous",) * count
    return Layer(subject, activation, batch, widths, False, layouts, "normal", 0, frozenset(frozen))


def asked_of(layer: Any, asked: Callable[[Layer], Any]) -> Any:
    """Draw a layer, and what is asked of it."""
    return layer.flatmap(lambda case: st.tuples(st.just(case), asked(case)))


@on_any_device
@given(case=asked_of(layers(), reverses))
def test_what_autograd_is_asked_for_is_what_the_composite_gives(device: str, case: tuple[Layer, Reverse]) -> None:
    layer, asked = case
    inputs = layer.laid_out(layer.inputs(device))
    assert_equal(*(asked(f, inputs, layer.active) for f in (layer.ours(), layer.truth())))


# What was once found stays. In turn: vmap over the target alone, torch's CELU, and a third derivative at a kink.
FOUND = [
    (_plain("squared error, sum", "identity", (1,), (2, 3), 3), Transform("jvp", (None, None, 0), False, 1)),
    (_plain("dense", "celu(0.7)", (2,), (2, 2), 2), Transform("jvp(jvp)", (), True, 0)),
    (
        replace(
            _plain("squared error, mean", "softplus(1.0, 3.0)", (), (2, 1), 3, {1, 2}),
            values="whole",
            seed=47,
        ),
        Transform("grad(jvp)", (), True, 2),
    ),
]


@on_any_device
@hypothesis.example(case=FOUND[0])
@hypothesis.example(case=FOUND[1])
@hypothesis.example(case=FOUND[2])
@given(case=asked_of(layers(MODERATE, VMAPPED, size=3, most=2), transforms))
def test_what_a_transform_gives_is_what_it_gives_of_the_composite(device: str, case: tuple[Layer, Transform]) -> None:
    layer, asked = case
    inputs = layer.inputs(device)
    # torch refuses a tangent whose tensor overlaps itself, so the layouts are made inside.
    both = (lambda *t, f=f: f(*layer.laid_out(t)) for f in (layer.ours(), layer.truth()))
    assert_equal(*(asked(f, inputs, layer.active) for f in both))


# In low precision a single draw may happen to be exact in torch, so the largest error over some draws is compared, and
# two roundings of the largest result are forgiven at first order, four at second.
DRAWS = 8


@on_any_device
# 1 − tanh², where tanh is close to 1, loses its digits.
@hypothesis.example(
    case=(
        _plain("dense", "gelu_tanh", (2, 4), (2, 1), 2),
        Reverse(((0, 1), (-1, 0, 1)), ((0, 1),), ("contiguous", "contiguous"), False, False),
    ),
    precision="float32",
)
@given(
    case=asked_of(layers(MODERATE), partial(reverses, most=2)),
    precision=st.sampled_from(list(PRECISIONS)),
)
def test_the_error_in_low_precision_is_at_most_twice_torchs_own(
    device: str, case: tuple[Layer, Reverse], precision: str
) -> None:
    (layer, asked), (dtype, region) = case, PRECISIONS[precision]
    ours, torchs, truth = layer.ours(), layer.torchs(), layer.truth()

    def cast(f: Map, *t: Tensor) -> Tensor:
        with torch.autocast(device, region, enabled=region is not None):
            return f(*t)

    errors: list[Tensor] = []
    for seed in range(DRAWS):
        inputs = layer.laid_out(replace(layer, seed=layer.seed + seed).inputs(device, dtype))
        low = [asked(partial(cast, f), inputs, layer.active) for f in (ours, torchs)]
        exact = asked(truth, [t.double() for t in inputs], layer.active)
        assert [t.dtype for t in low[0]] == [t.dtype for t in low[1]]
        assert [t.shape for t in low[0]] == [t.shape for t in low[1]]
        errors.append(
            torch.tensor([[largest(a - e), largest(b - e), largest(e)] for a, b, e in zip(*low, exact, strict=True)])
        )
    few = 2 * len(asked.asked) * torch.finfo(region or dtype).eps
    for k, (mine, torchs_own, size) in enumerate(torch.stack(errors).amax(0).tolist()):
        assert mine <= 2 * torchs_own + few * size + 1e-6, f"result {k}: {mine}, torch {torchs_own}, largest {size}"


def largest(t: Tensor) -> float:
    return t.detach().double().abs().nan_to_num(nan=math.inf, posinf=math.inf).max().item() if t.numel() else 0.0


def test_the_suite_draws_hundreds_of_cases_and_make_fuzz_thousands() -> None:
    count = sum(hypothesis.is_hypothesis_test(test) for name, test in globals().items() if name.startswith("test"))
    profiles = [hypothesis.settings.get_profile(name) for name in ("covering", "all", "fuzz")]
    suite, every, fuzz = (count * profile.max_examples for profile in profiles)
    assert 300 <= suite < every <= 1000
    assert fuzz >= 2000
    assert [profile.derandomize for profile in profiles] == [True, True, False]
