"""Who is asking for a derivative? The one place that touches torch's private API."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import Function, forward_ad

_functorch = torch._C._functorch


Caller = Literal["eager", "compiler", "transform", "composite"]
"""Which form of a Function serves the caller.

- eager: nothing but eager autograd, so a Function without ``jvp``, quick to call, is enough;
- compiler: ``torch.compile`` traces the call, and refuses a Function that defines ``jvp``;
- transform: a ``torch.func`` transform or forward mode needs a Function with ``setup_context`` and ``jvp``;
- composite: torch's own operations serve best, as it mishandles every Function here or no gradient is asked for.
"""


def caller() -> Caller:
    """Find out who calls."""
    if torch.compiler.is_dynamo_compiling():
        # torch 2.15 is wrong for compile(grad(grad)) and crashes for compile(vmap(grad)).
        return "composite" if _transforming_while_compiling() else "compiler"
    if not transforming():
        return "eager" if torch.is_grad_enabled() else "composite"
    return "composite" if _no_function_is_right() else "transform"


def plain(*cotangents: Tensor | None) -> bool:
    """Tell whether no transform looks into what is done to the cotangents while grad mode is off.

    A batch of cotangents (``is_grads_batched``) counts as one.
    """
    return not transforming() and not any(t is not None and _functorch.is_legacy_batchedtensor(t) for t in cotangents)


def transforming() -> bool:
    """Tell whether a ``torch.func`` transform or a forward-mode level is active."""
    return _functorch.maybe_current_level() is not None or forward_ad._current_level >= 0


def _transforming_while_compiling() -> bool:
    return transforming()


# The compiler cannot trace the question, but it enters the transforms itself while it traces, so the answer is a
# constant. torch.compiler.assume_constant_result sets this same mark, and imports the compiler to do so: seconds.
_transforming_while_compiling._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _no_function_is_right() -> bool:
    # Two levels of jvp through any Function give silent errors in torch 2.15; functionalize refuses all of them.
    kinds = [interpreter.key() for interpreter in _functorch.get_interpreter_stack() or ()]
    of = _functorch.TransformType
    return kinds.count(of.Jvp) > 1 or of.Functionalize in kinds


def needed_now(ctx: Any, count: int) -> list[bool]:
    """Tell which of the first inputs of a Function's node the running backward pass asks for.

    ``ctx.needs_input_grad`` tells only which require grad, and ``torch.autograd.grad(y, h)`` asks for less.
    The node lists tensors alone: of these inputs, only the last may be None.
    """
    nodes = ctx.next_functions
    return [ctx.needs_input_grad[k] and _will_run(nodes[k][0]) for k in range(count)]


def _will_run(node: Any) -> bool:
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:
        # A leaf that is among the inputs of torch.autograd.grad.
        return True


def version(t: Tensor | None) -> int | None:
    """Count the in-place changes of a tensor; an inference tensor has no count."""
    return None if t is None or t.is_inference() else t._version


def has_hooks(module: nn.Module) -> bool:
    """Tell whether a forward or backward hook is registered on the module itself."""
    kinds = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
    return any(getattr(module, f"_{kind}") for kind in kinds)


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
