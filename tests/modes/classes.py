"""Tensors and modes that compute some of torch's functions in their own way."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import grad
from torch.overrides import TorchFunctionMode

from modes.mode import Map, Mode, Run, first_order, head, heads, leaves, second_order, within

Inputs = tuple[Tensor, ...]


def rounded(t: Tensor) -> Tensor:
    """Round to a decimal, for whoever looks forward; the gradient goes straight through."""
    return t + (t.round(decimals=1) - t).detach()


class Rounded(Tensor):
    """A tensor that a linear layer rounds, as weight or as input, forward and so backward."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func is F.linear:
                args = [rounded(a) if isinstance(a, Rounded) and k < 2 else a for k, a in enumerate(args)]
            result = func(*args, **(kwargs or {}))
        # A parameter is made of what is detached.
        return result.as_subclass(Rounded) if func is Tensor.detach else result


class Rounding(TorchFunctionMode):
    """A mode in which every linear layer rounds its weight."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args = [rounded(a) if func is F.linear and k == 1 else a for k, a in enumerate(args)]
        return func(*args, **(kwargs or {}))


def in_class(run: Run, which: Callable[[int, Tensor], bool]) -> Run:
    """Give some of the inputs the class that rounds."""

    def wrapped(f: Map) -> Map:
        return lambda *t: f(*(x.as_subclass(Rounded) if which(k, x) else x for k, x in enumerate(t)))

    return lambda f, inputs: run(wrapped(f), inputs)


def is_weight(k: int, t: Tensor) -> bool:
    return k > 0 and t.dim() == 2


def is_input(k: int, t: Tensor) -> bool:
    return k == 0


def without_grad(f: Map, inputs: Inputs) -> Any:
    with torch.no_grad():
        return f(*inputs)


def distributed(f: Map, inputs: Inputs, create_graph: bool = False) -> Any:
    """Turn the inputs into DTensors of one process."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, distribute_tensor

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh(inputs[0].device.type, (1,))
        t = leaves(tuple(distribute_tensor(x, mesh, [Replicate()]) for x in inputs))
        y = f(*t)
        first = grad(head(y), t, create_graph=create_graph)
        second = grad(heads(first), t) if create_graph else ()
        return [x.full_tensor() for x in (y, *first, *second)]
    finally:
        dist.destroy_process_group()


def flat(run: Run) -> Run:
    """List the results of a run one after another."""

    def listed(f: Map, inputs: Inputs) -> Any:
        y, *derivatives = run(f, inputs)
        return [y, *(g for some in derivatives for g in some)]

    return listed


CLASSES = [
    Mode("tensor subclass, the weights", in_class(first_order, is_weight)),
    Mode("tensor subclass, the weights, create_graph", in_class(second_order, is_weight)),
    Mode("tensor subclass, the input", in_class(first_order, is_input)),
    Mode("tensor subclass, the input, create_graph", in_class(second_order, is_input)),
    Mode("tensor subclass, no_grad", in_class(without_grad, is_weight)),
    Mode("function mode", within(Rounding, first_order)),
    Mode("function mode, create_graph", within(Rounding, second_order)),
    Mode("function mode, no_grad", within(Rounding, without_grad)),
    Mode("default device", within(partial(torch.device, "cpu"), second_order)),
    Mode("DTensor", distributed, plain=flat(first_order)),
    Mode("DTensor, create_graph", partial(distributed, create_graph=True), plain=flat(second_order)),
]
