"""A learner's own backward pass, graded step by step."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from manual_mlp.activations import Activation
from manual_mlp.explain.blocks import Check, Refused, Values
from manual_mlp.explain.compare import agree, attempt
from manual_mlp.explain.formulas import MISTAKES, RIGHT, Formulas
from manual_mlp.explain.network import Network, draw_network
from manual_mlp.explain.story import Story
from manual_mlp.explain.terminal import render_check

Backward = Callable[[Tensor, Tensor, Tensor, Tensor], Any]

# In the order of the derivation: a later step rests on those before it.
STEPS = ("Z", "Y", "dY", "delta", "dB", "dW", "dH")
_MEANING = {
    "Z": "HW + B",
    "Y": "f(Z)",
    "dY": "∂J/∂Y",
    "delta": "δ = ∂J/∂Y ⊙ f′(Z)",
    "dB": "∂J/∂B = Σₙ δₙ",
    "dW": "∂J/∂W = Hᵀδ",
    "dH": "∂J/∂H = δWᵀ",
}


@dataclass(frozen=True)
class Grade:
    """What became of a learner's backward pass.

    Attributes:
        checks: a comparison for each result that was returned, in the order of the derivation.
        mistakes: the names of the usual mistakes whose numbers it gives; keys of
            :data:`manual_mlp.explain.MISTAKES`.
        hints: what to change, in words.
    """

    checks: tuple[Check, ...]
    mistakes: tuple[str, ...]
    hints: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether every result is right."""
        return all(check.passed for check in self.checks)

    def __str__(self) -> str:
        lines = [line for check in self.checks for line in render_check(check)]
        hints = [line for hint in self.hints for line in textwrap.wrap(hint, 100)]
        return "\n".join([*lines, *hints, "All is right." if self.passed else "Not right yet."])


def check_my_backward(
    fn: Backward,
    *,
    inputs: int = 3,
    outputs: int = 2,
    batch: int = 4,
    activation: Activation | str | torch.nn.Module = "sigmoid",
    loss: str = "squared-error",
    seed: int = 0,
) -> Grade:
    """Grade a backward pass that you have written, step by step, and name the usual mistakes in it.

    Args:
        fn: ``(H, W, B, target) -> results`` in the textbook's layout, for ``Y = f(HW + B)`` and the loss J, summed over
            rows and outputs. The results are a dict with any of ``Z``, ``Y``, ``dY``, ``delta``, ``dB``, ``dW`` and
            ``dH``, the last five being ∂J/∂Y, ∂J/∂Z, ∂J/∂B, ∂J/∂W, ∂J/∂H; or a tuple ``(dW, dB)`` or ``(dH, dW, dB)``.
        inputs, outputs, batch: D_in, D_out, N.
        activation: f, which ``fn`` computes too.
        loss: "squared-error", ½ Σ (Y − Y*)², or "cross-entropy", which takes Y for logits and a one-hot target.
        seed: of the numbers.

    Shape:
        H: (N, D_in), W: (D_in, D_out), B: (D_out,), target: (N, D_out), all float64

    Raises:
        TypeError: ``fn`` is not callable, or returns something else.
        ValueError: as for :func:`draw_network`, or a result of an unknown name.

    Example::

        def backward(H, W, B, target):
            Y = torch.sigmoid(H @ W + B)
            delta = (Y - target) * Y * (1 - Y)
            return {"delta": delta, "dB": delta.sum(0), "dW": H.T @ delta, "dH": delta @ W.T}


        print(check_my_backward(backward))
    """
    if not callable(fn):
        raise TypeError(f"expected a function (H, W, B, target) -> results, got {type(fn).__name__}")
    with torch.inference_mode(False), torch.enable_grad():
        return _graded(fn, draw_network(inputs, outputs, batch, activation, loss, seed))


def _graded(fn: Backward, network: Network) -> Grade:
    given = _results(fn, network)
    if isinstance(given, Refused):
        return _refused(fn, given, network)
    right = _truth(network)
    checks = tuple(
        agree(f"{name}: {_MEANING[name]}", given[name], right[name], allowed=_tolerance(given[name]))
        for name in STEPS
        if name in given
    )
    if all(check.passed for check in checks):
        return Grade(checks, (), ())
    mistakes = _mistakes(given, network)
    hints = tuple(map(_hint, mistakes)) or (
        *_multiples(given, right, network),
        *_follow(given, right, network),
        "None of the usual mistakes gives these numbers.",
    )
    return Grade(checks, mistakes, hints)


def _refused(fn: Backward, given: Refused, network: Network) -> Grade:
    """Grade a function that raised: equal sides accept every product, and show what was meant."""
    check = Check("the function runs", "calling it", None, 0.0, given.reason)
    square = draw_network(3, 3, 3, network.f, network.loss)
    meant = _results(fn, square)
    if isinstance(meant, Refused):
        return Grade((check,), (), ("It does not run with 3 rows, 3 inputs and 3 outputs either.",))
    mistakes = _mistakes(meant, square)
    if mistakes:
        return Grade((check,), mistakes, tuple(map(_hint, mistakes)))
    if _is_right(meant, square):
        hint = "With 3 rows, 3 inputs and 3 outputs it is right: a size is written into it."
    else:
        turned = _results(lambda h, w, b, t: fn(h, w.mT.contiguous(), b, t), square)
        stored = not isinstance(turned, Refused) and any(_same(v, _truth(square)[k]) for k, v in turned.items())
        hint = (
            "It takes W as PyTorch stores it, (D_out, D_in). Here W is the textbook's, (D_in, D_out)."
            if stored
            else "None of the usual mistakes gives its numbers with 3 rows, 3 inputs and 3 outputs."
        )
    return Grade((check,), (), (hint,))


def _hint(name: str) -> str:
    if name == "convention-swapped":
        return f"{name}: dW is δᵀH, in PyTorch's layout. Here it has W's shape, and should be Hᵀδ."
    mistake = MISTAKES[name]
    return f"{name}: this is {mistake.wrong}, and should be {mistake.right}. {mistake.why}"


def _multiples(given: Mapping[str, Tensor], right: Mapping[str, Tensor], network: Network) -> tuple[str, ...]:
    """Say where the first wrong result is a simple multiple of the right one."""
    rows, _, outputs = network.shape
    factors = {"−1": -1.0, "2": 2.0, "1/2": 0.5, "N": rows, "1/N": 1 / rows, "1/(N · D_out)": 1 / (rows * outputs)}
    for name, value in given.items():
        if _same(value, right[name]):
            continue
        found = [factor for factor, times in factors.items() if _same(value, times * right[name])]
        return (f"{name} is {found[0]} times what it should be.",) if found else ()
    return ()


def _follow(given: Mapping[str, Tensor], right: Mapping[str, Tensor], network: Network) -> tuple[str, ...]:
    """Say which gradients are wrong only because δ is."""
    delta = given.get("delta")
    if delta is None or delta.shape != network.z.shape or _same(delta, right["delta"]):
        return ()
    told = {
        "dB": attempt(RIGHT.bias, delta),
        "dW": attempt(RIGHT.weight, network.h, delta),
        "dH": attempt(RIGHT.input, delta, network.w),
    }
    rightly = [name for name, value in told.items() if name in given and _same(given[name], value)]
    return (f"Mend δ: {', '.join(rightly)} follow from it as they should.",) if rightly else ()


def _results(fn: Backward, network: Network) -> dict[str, Tensor] | Refused:
    """Call the function on copies, and give its results their names."""
    arguments = (network.h, network.w, network.b, network.target)
    try:
        found = fn(*(t.clone() for t in arguments))
    except Exception as error:  # whatever a learner's code raises is an answer to the learner
        return Refused(f"{type(error).__name__}: {error}")
    if hasattr(found, "_asdict"):
        found = found._asdict()
    if isinstance(found, (tuple, list)):
        names = {2: ("dW", "dB"), 3: ("dH", "dW", "dB")}.get(len(found))
        if names is None:
            raise TypeError(f"expected (dW, dB) or (dH, dW, dB), got {len(found)} results")
        found = dict(zip(names, found, strict=True))
    if not isinstance(found, Mapping) or not found:
        raise TypeError(f"expected a dict of results or a tuple, got {type(found).__name__}")
    unknown = [str(name) for name in found if name not in STEPS]
    if unknown:
        raise ValueError(f"expected results among {', '.join(STEPS)}, got {', '.join(unknown)}")
    results = {}
    for name in STEPS:
        if name in found:
            try:
                results[name] = torch.as_tensor(found[name]).detach().cpu()
            except (TypeError, ValueError, RuntimeError) as error:
                raise TypeError(f"expected a tensor for {name}, got {type(found[name]).__name__}: {error}") from None
            if results[name].is_complex():
                raise TypeError(f"expected real numbers for {name}, got {results[name].dtype}")
    if "dB" in results and results["dB"].shape == (1, len(network.b)):
        results["dB"] = results["dB"][0]  # the textbook's B is a row
    return results


def _truth(network: Network) -> dict[str, Tensor]:
    story = Story(network)
    dh, dw, db = network.gradients
    return {
        "Z": network.z,
        "Y": network.y,
        "dY": story.true_dy,
        "delta": story.true_delta,
        "dB": db,
        "dW": dw,
        "dH": dh,
    }


def _is_right(given: Mapping[str, Tensor], network: Network) -> bool:
    right = _truth(network)
    return all(_same(value, right[name]) for name, value in given.items())


def _mistakes(given: Mapping[str, Tensor], network: Network) -> tuple[str, ...]:
    """Find the fewest mistakes that together give all the numbers, or else those that give a wrong one of them."""
    if _is_right(given, network):
        return ()
    for size in (1, 2, 3):
        for chosen in itertools.combinations(MISTAKES, size):
            told = _told(network, _combined(chosen))
            if all(_same(value, told[name]) for name, value in given.items()):
                return chosen
    right = _truth(network)
    rows = len(network.x)
    if all(_same(value, right[name] if name in ("Z", "Y") else right[name] / rows) for name, value in given.items()):
        return ("mean-for-sum",)  # from the cost on
    wrong = {name: value for name, value in given.items() if not _same(value, right[name])}
    found = []
    for mistake in MISTAKES:
        told = _told(network, _combined((mistake,)))
        if any(_same(value, told[name]) for name, value in wrong.items()):
            found.append(mistake)
    return tuple(found)


def _combined(names: tuple[str, ...]) -> Formulas:
    """Make several mistakes at once; of two in the same formula the last."""
    formulas = RIGHT
    for name in names:
        of = MISTAKES[name].formulas
        formulas = replace(formulas, **{k: v for k, v in vars(of).items() if v is not getattr(RIGHT, k)})
    return formulas


def _told(network: Network, formulas: Formulas) -> dict[str, Values]:
    """Compute all results with the formulas given. Who swaps the convention returns dW in PyTorch's layout."""
    story = Story(network, formulas)
    dw = story.dw
    if formulas.stored_weight is MISTAKES["convention-swapped"].formulas.stored_weight:
        dw = attempt(lambda dw: dw.mT, dw)
    return {
        "Z": network.z,
        "Y": network.y,
        "dY": story.dy,
        "delta": story.delta,
        "dB": story.db,
        "dW": dw,
        "dH": story.dh,
    }


def _same(value: Tensor, want: Values) -> bool:
    return agree("", value, want, allowed=_tolerance(value)).passed


def _tolerance(value: Tensor) -> float:
    return 1e-9 if value.dtype == torch.float64 else 1e-5 if value.dtype == torch.float32 else 1e-2
