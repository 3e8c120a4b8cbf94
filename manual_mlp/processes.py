"""Other processes that learn with this one: what a call on a part of a network leaves out."""

import gc
import warnings
from weakref import WeakSet

import torch.distributed as dist
from torch import nn

_looked_at: WeakSet[nn.Module] = WeakSet()


def warn_of_own_gradients(module: nn.Module) -> None:
    """Warn, once a module, if it is what DistributedDataParallel wraps, for that shares gradients only when called."""
    if not (dist.is_available() and dist.is_initialized()) or module in _looked_at:
        return
    _looked_at.add(module)
    ddp = nn.parallel.DistributedDataParallel
    if isinstance(module, ddp):
        return
    # DDP leaves no mark on what it wraps. The type is asked, for some objects answer isinstance by loading something.
    for wrapper in [each for each in gc.get_objects() if issubclass(type(each), ddp)]:
        if wrapper.process_group.size() > 1 and any(part is module for part in wrapper.modules()):
            warnings.warn(
                "backprop got the module inside of DistributedDataParallel: its gradients are this process's own, and "
                "are not averaged with the others'. Call backprop with the DistributedDataParallel module, or "
                "all-reduce the gradients and divide them by the number of processes",
                stacklevel=3,
            )
            return
