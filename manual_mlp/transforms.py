"""Who is asking for a derivative? The one place that touches torch's private API."""

from enum import Enum, auto
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

_functorch = torch._C._functorch


class Caller(Enum):
    """Say which form of a Function serves the caller."""

    EAGER = auto()
    """Nothing but eager autograd: a Function without ``jvp``, quick to call, is enough."""
    COMPILER = auto()
    """``torch.compile`` traces the call, and refuses a Function that defines ``jvp``."""
    TRANSFORM = auto()
    """A ``torch.func`` transform or forward mode: a Function needs ``setup_context`` and ``jvp``."""
    COMPOSITE = auto()
    """torch's own operations serve best: it mishandles every Function here, or no gradient is asked for."""


def caller() -> Caller:
    """Find out who calls."""
    if torch.compiler.is_compiling():
        # torch 2.15 is wrong for compile(grad(grad)) and crashes for compile(vmap(grad)).
        return Caller.COMPOSITE if _transforming_while_compiling() else Caller.COMPILER
    if not transforming():
        return Caller.EAGER if torch.is_grad_enabled() else Caller.COMPOSITE
    return Caller.COMPOSITE if _nested_forward_mode() else Caller.TRANSFORM


def plain(dy: Tensor) -> bool:
    """Tell whether no transform looks into what is done to ``dy`` while grad mode is off.

    A batch of cotangents (``is_grads_batched``) counts as one.
    """
    return not (transforming() or _functorch.is_legacy_batchedtensor(dy))


def transforming() -> bool:
    """Tell whether a ``torch.func`` transform or a forward-mode level is active."""
    return _functorch.maybe_current_level() is not None or forward_ad._current_level >= 0


def _transforming_while_compiling() -> bool:
    return transforming()


# The compiler cannot trace the question, but it enters the transforms itself while it traces, so the answer is a
# constant. torch.compiler.assume_constant_result sets this same mark, and imports the compiler to do so: seconds.
_transforming_while_compiling._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _nested_forward_mode() -> bool:
    # Two levels of jvp through any Function give silent errors in torch 2.15.
    stack = _functorch.get_interpreter_stack() or []
    return sum(interpreter.key() == _functorch.TransformType.Jvp for interpreter in stack) > 1


def without_jvp(function: type[Function]) -> type[Function]:
    """Make the twin of a Function that serves eager autograd and the compiler, with the same formulas."""

    class Twin(Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            output = function.forward(*args)
            function.setup_context(ctx, args, output)
            return output

        backward = staticmethod(function.backward)

    Twin.__name__ = Twin.__qualname__ = function.__name__
    return Twin
