"""A learner's own backward pass, graded step by step."""

from __future__ import annotations

import torch

from manual_mlp.activations import Activation
from manual_mlp.explain.grading.call import LAYOUTS, Backward
from manual_mlp.explain.grading.case import Case, Grade
from manual_mlp.explain.grading.judge import judge
from manual_mlp.explain.network import draw_network
from manual_mlp.losses import by_flag, flags
from manual_mlp.nearest import did_you_mean

__all__ = ["Grade", "check_my_backward"]


def check_my_backward(
    fn: Backward,
    *,
    inputs: int = 3,
    outputs: int = 2,
    batch: int = 4,
    activation: Activation | str | torch.nn.Module | None = None,
    loss: str = "squared-error",
    seed: int = 0,
    layout: str = "textbook",
) -> Grade:
    """Grade a backward pass that you have written, step by step, and name the usual mistakes in it.

    A result passes where it agrees with autograd's to 9 digits; if a result is float32, to what float32 may lose in the
    terms of each entry. Then the function is called again with the same numbers, and with others of the same sizes,
    until every mistake that the grader knows would have shown. A dtype with fewer digits, or none after the point, is
    refused. A function that is wrong is called again too: a mistake is named if it gives those numbers as well.

    Args:
        fn: ``(H, W, B, target) -> results`` for ``Y = f(HW + B)`` and the loss J, summed over rows and outputs. It is
            given tensors, or NumPy arrays if it is written with NumPy's functions. The results are tensors, arrays or
            lists: a dict with any of ``Z``, ``Y``, ``dY``, ``delta``, ``dB``, ``dW`` and ``dH``, the last five being
            ∂J/∂Y, ∂J/∂Z, ∂J/∂B, ∂J/∂W, ∂J/∂H; or a tuple ``(dW, dB)`` or ``(dH, dW, dB)``.
        inputs, outputs, batch: D_in, D_out, N. In a batch of one row, or with one output, some mistakes are none.
        activation: f, which ``fn`` computes too. By default the sigmoid for the squared error, and the identity for
            the cross-entropies, whose softmax or sigmoid belongs to the loss.
        loss: "squared-error", ½ Σ (Y − Y*)², or "cross-entropy", −Σ t log p, which takes Y for logits and a one-hot
            target t. There ``p = softmax(Y)`` may be returned as ``Y`` too, and −t/p, its derivative, as ``dY``. Or
            "binary-cross-entropy", which takes Y for logits too, each for itself.
        seed: of the numbers.
        layout: how W is stored, and dW returned: "textbook", (D_in, D_out) with Z = HW + B, or "torch", (D_out, D_in)
            with Z = HWᵀ + B.

    Shape:
        H: (N, D_in), W: (D_in, D_out) or (D_out, D_in), B: (D_out,), target: (N, D_out), all float64

    Returns:
        A :class:`Grade`, to be printed. What ``fn`` raises is a grade too. A function that is right passes even if it
        writes over its arguments, with a hint that says so.

    Raises:
        TypeError: ``fn`` is not callable, or returns nothing, or something else.
        ValueError: as for :func:`draw_network`, an unknown layout, or a result of an unknown name.

    Example::

        def backward(H, W, B, target):
            Y = torch.sigmoid(H @ W + B)
            delta = (Y - target) * Y * (1 - Y)
            return {"delta": delta, "dB": delta.sum(0), "dW": H.T @ delta, "dH": delta @ W.T}


        print(check_my_backward(backward))
    """
    if not callable(fn):
        raise TypeError(f"expected a function (H, W, B, target) -> results, got {type(fn).__name__}")
    if layout not in LAYOUTS:
        near = did_you_mean(layout, LAYOUTS)
        raise ValueError(f"expected a layout among {', '.join(LAYOUTS)}, got {layout!r}{near}")
    if activation is None:
        activation = "identity" if loss in flags() and by_flag(loss).has_shares else "sigmoid"
    with torch.inference_mode(False), torch.enable_grad():
        return judge(Case(fn, draw_network(inputs, outputs, batch, activation, loss, seed), layout))
