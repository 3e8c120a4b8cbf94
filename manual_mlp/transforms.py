"""Who is asking for a derivative? The one place that touches torch's private API.

Each private name is asked for in one small function below. In a torch release that lacks it, the answer is the one
that is always right: the composite, and no shortcut.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from functools import wraps
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils import _device

_core = torch._C
_functorch: Any = getattr(_core, "_functorch", None)
_autograd: Any = getattr(_core, "_autograd", None)
_frames: Any = getattr(getattr(_core, "_dynamo", None), "eval_frame", None)
_module: Any = nn.modules.module
_call = nn.Module.__call__
_Node = torch.autograd.function.BackwardCFunction
ORDINARY = frozenset((Tensor, nn.Parameter, type(None)))
DEVICE_MODE: Any = getattr(_device, "DeviceContext", type(None))  # the mode of a default device
_WithoutClasses = getattr(_core, "DisableTorchFunctionSubclass", nullcontext)

F = TypeVar("F", bound=Callable[..., Any])
Caller = Literal["eager", "compiler", "transform", "composite", "torch"]
"""Which form of a Function serves the caller.

- eager: nothing but eager autograd, so a Function without ``jvp``, quick to call, is enough;
- compiler: ``torch.compile`` traces the call, and fuses torch's own operations best;
- transform: a ``torch.func`` transform or forward mode needs a Function with ``setup_context`` and ``jvp``;
- composite: torch's own operations serve best, as it mishandles every Function here, or the operations themselves are
  asked for (``torch.export``);
- torch: an operand's class, a mode or ``torch.jit.trace`` takes torch's functions by their names, so each is called as
  it would be without this package, and judges its arguments itself.
"""


def caller(*operands: Tensor | None) -> Caller:
    """Find out who calls, with these operands."""
    if torch.compiler.is_dynamo_compiling():
        try:
            if any(has_class(t) for t in operands) or _functions_are_overridden():
                return "torch"
        except AttributeError:
            return "composite"
        # torch 2.15 is wrong for compile(grad(grad)) and crashes for compile(vmap(grad)).
        return "composite" if composed_while_compiling() else "compiler"
    if torch.compiler.is_exporting():
        return "composite"
    for t in operands:
        if type(t) not in ORDINARY and has_class(t):
            return "torch"
    try:
        if _core._is_tracing() or (_core._len_torch_function_stack() and _functions_are_overridden()):
            return "torch"
        if _functorch.maybe_current_level() is None and forward_ad._current_level < 0:  # transforming(), but quicker
            return "eager"
        if any(has_class(_unwrapped(t)) for t in operands):
            return "torch"
        return "composite" if _no_function_is_right() else "transform"
    except AttributeError:
        return "composite"


def has_class(t: Any) -> bool:
    """Tell whether it is a tensor whose class computes some operations in its own way."""
    kind = type(t)
    if kind in ORDINARY or not isinstance(t, Tensor):
        return False
    # A parameter's class leaves all to torch, and so may a class that is derived from it.
    return (
        kind.__torch_function__ is not nn.Parameter.__torch_function__
        or kind.__torch_dispatch__ is not Tensor.__torch_dispatch__
    )


def is_dispatched(t: Tensor) -> bool:
    """Tell whether its class, such as DTensor, takes operations below autograd, and no function by its name."""
    return has_class(t) and type(t).__torch_function__ is nn.Parameter.__torch_function__


def is_plain(*cotangents: Tensor | None) -> bool:
    """Tell whether nobody looks into what is done to the cotangents while grad mode is off.

    Transforms do, a batch of cotangents (``is_grads_batched``) does, and so does a class of their own.
    """
    try:
        return not transforming() and not any(
            t is not None and (_is_batch(t) or (type(t) not in ORDINARY and has_class(t))) for t in cotangents
        )
    except AttributeError:
        return False


def transforming() -> bool:
    """Tell whether a ``torch.func`` transform or a forward-mode level is active."""
    return _functorch_level() is not None or _dual_level() >= 0


def needed_now(ctx: Any, count: int, absent: Sequence[int] = ()) -> list[bool]:
    """Tell which of the first inputs of a Function's node the running backward pass asks for.

    ``ctx.needs_input_grad`` tells only which require grad, and ``torch.autograd.grad(y, h)`` asks for less.
    The node lists tensors alone: of these inputs, those that were None are named, except the last.
    """
    will_run = [node is not None and _will_run(node) for node, _ in ctx.next_functions]
    if not any(will_run):  # The node was called by hand, and not by the engine.
        return list(ctx.needs_input_grad[:count])
    for k in absent:
        will_run.insert(k, False)
    return [ctx.needs_input_grad[k] and will_run[k] for k in range(count)]


def below_functions(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Let no class of a cotangent take torch's functions by their names: torch's own nodes do not ask it either."""

    @by_itself("compiled autograd calls this backward pass as it is, and goes on behind it")
    @wraps(backward)
    def run(ctx: Any, *cotangents: Tensor | None) -> Any:
        if all(type(t) in ORDINARY for t in cotangents):
            found = backward(ctx, *cotangents)
        else:
            with _WithoutClasses():
                found = backward(ctx, *cotangents)
        return found if isinstance(ctx, _Node) or not hasattr(ctx, "next_functions") else _whole(ctx, found)

    return run


def _whole(ctx: Any, found: Any) -> Any:
    """Put zeros where a gradient that is asked for is None: compiled autograd adds up whatever comes."""
    edges = iter([(node, k) for node, k in ctx.next_functions if node is not None])

    def whole(t: Tensor | None, need: bool) -> Tensor | None:
        node, k = next(edges) if need else (None, 0)
        if t is not None or node is None:
            return t
        like = node._input_metadata[k]
        return torch.zeros(tuple(like.shape), dtype=like.dtype, device=like.device)

    return tuple(map(whole, found if isinstance(found, tuple) else (found,), ctx.needs_input_grad))


def by_itself(why: str) -> Callable[[F], F]:
    """Let a compiler break its graph around each call of a function, and follow nothing that it calls.

    ``torch.compiler.disable`` does the same, and imports the compiler: seconds. Without the private names the compiler
    is left to run into what it cannot follow.
    """

    def mark(function: F) -> F:
        vars(function).update(_torchdynamo_disable=True, _torchdynamo_disable_msg=why)
        with suppress(AttributeError):
            _leave_out(function)
        return function

    return mark


def last_pass() -> bool:
    """Tell whether the running backward pass frees the graph: what a node has made, no later pass will ask for."""
    try:
        return not _keeps_graph()
    except AttributeError:
        return False


def has_hooks(module: nn.Module) -> bool:
    """Tell whether a forward or backward hook is registered on the module itself."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def called_as_it_is(module: nn.Module) -> bool:
    """Tell whether to call the module is to run the forward of its class, and nothing beside it."""
    own = vars(module)
    return type(module).__call__ is _call and not (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
        or "forward" in own
        or own.get("_compiled_call_impl")
    )


def modules_are_watched() -> bool:
    """Tell whether a hook is registered on all modules at once."""
    try:
        return bool(_module._has_any_global_hook())
    except AttributeError:
        return True


def traced() -> bool:
    """Tell whether ``torch.jit.trace`` records each operation."""
    return torch.jit.is_tracing()  # type: ignore[attr-defined, no-any-return, no-untyped-call]


def operations_are_watched() -> bool:
    """Tell whether a mode or a tracer sees each operation: it would miss those of other threads."""
    try:
        return bool(_core._len_torch_dispatch_stack() or _core._is_tracing())
    except AttributeError:
        return True


def may_autocast() -> bool:
    """Tell whether autocast may be on for some device: a quick question, for there is a slow one for each device."""
    try:
        return bool(_core._is_any_autocast_enabled())
    except AttributeError:
        return True


def has_gradient_hooks(parameter: Tensor) -> bool:
    """Tell whether a hook waits for the parameter's gradient."""
    try:
        return bool(parameter._backward_hooks or parameter._post_accumulate_grad_hooks)
    except AttributeError:
        return True


def version(t: Tensor) -> int:
    """Tell how often a tensor was changed in place; of one that autograd does not follow, nothing is known."""
    return 0 if t.is_inference() else t._version


def constant(f: F) -> F:
    """Let a compiler call a function as it traces, and keep the answer: it depends on nothing but its arguments."""
    # torch.compiler.assume_constant_result sets this same mark, and imports the compiler to do so: seconds.
    f._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return f


def _functions_are_overridden() -> bool:
    """Tell whether a mode other than that of a default device takes torch's functions by their names."""
    depth = _core._len_torch_function_stack()
    return depth > 0 and any(type(_core._get_function_stack_at(k)) is not DEVICE_MODE for k in range(depth))


def _unwrapped(t: Tensor | None) -> Tensor | None:
    """Find the tensor inside those that transforms wrap around it."""
    while t is not None and _functorch.is_functorch_wrapped_tensor(t):
        t = _functorch.get_unwrapped(t)
    return t


@constant
def composed_while_compiling() -> bool:
    """Tell whether a compiler traces inside a transform, or exports: torch's operations themselves are asked for."""
    try:
        # torch 2.11 takes the first for True wherever it traces it.
        return torch.compiler.is_exporting() or transforming()
    except AttributeError:
        return True


def _no_function_is_right() -> bool:
    # Two levels of jvp through any Function give silent errors in torch 2.15; functionalize refuses all of them.
    kinds, of = _transforms(), _functorch.TransformType
    return kinds.count(of.Jvp) > 1 or of.Functionalize in kinds


def _functorch_level() -> int | None:
    return _functorch.maybe_current_level()  # type: ignore[no-any-return]


def _dual_level() -> int:
    return forward_ad._current_level


def _transforms() -> list[Any]:
    return [interpreter.key() for interpreter in _functorch.get_interpreter_stack() or ()]


def _is_batch(t: Tensor) -> bool:
    return _functorch.is_legacy_batchedtensor(t)  # type: ignore[no-any-return]


def _leave_out(function: Any) -> None:
    skip = _frames._FrameAction.SKIP
    _frames.set_code_exec_strategy(function.__code__, _frames._FrameExecStrategy(skip, skip))


def _keeps_graph() -> bool:
    return _autograd._get_current_graph_task_keep_graph()  # type: ignore[no-any-return]


def _will_run(node: Any) -> bool:
    try:
        return _core._will_engine_execute_node(node)
    except (AttributeError, RuntimeError):
        # The engine refuses to tell of a leaf that is among the inputs of torch.autograd.grad.
        return True
