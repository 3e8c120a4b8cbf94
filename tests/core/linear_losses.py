"""Losses of a linear layer, ours beside torch's."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from manual_mlp import dense_squared_error, linear_binary_cross_entropy, linear_cross_entropy

Draw = Callable[..., Tensor]
Loss = Callable[..., Tensor]
N, D, V = 5, 4, 7
CHUNKS = 1, 2, 5, 8
every_reduction = pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
every_chunk = pytest.mark.parametrize("chunk_rows", [*CHUNKS, None])


def cross_entropy(h: Tensor, w: Tensor, b: Tensor | None, t: Tensor, **options: Any) -> Tensor:
    """Compute torch's loss, for input of any number of dimensions."""
    z = F.linear(h, w, b)
    flat = t.reshape(-1, V) if t.is_floating_point() else t.reshape(-1)
    loss = F.cross_entropy(z.reshape(-1, len(w)), flat, **options)
    return loss.reshape(h.shape[:-1]) if loss.dim() else loss


def ours(h: Tensor, w: Tensor, b: Tensor | None, t: Tensor, **options: Any) -> Tensor:
    return linear_cross_entropy(h, w, t, linear_bias=b, **options)


def binary(h: Tensor, w: Tensor, b: Tensor | None, t: Tensor, **options: Any) -> Tensor:
    return linear_binary_cross_entropy(h, w, t, linear_bias=b, **options)


def binary_of_torch(h: Tensor, w: Tensor, b: Tensor | None, t: Tensor, **options: Any) -> Tensor:
    return F.binary_cross_entropy_with_logits(F.linear(h, w, b), t, **options)


def classes(*shape: int, device: str = "cpu") -> Tensor:
    """Draw classes, one of them -100."""
    t = torch.randint(V, shape)
    t.view(-1)[-1:] = -100
    return t.to(device)


def with_gradients(loss: Tensor, inputs: Any) -> Any:
    return loss, torch.autograd.grad(loss.sum(), inputs)


def derivatives(loss: Tensor, inputs: tuple[Tensor, ...]) -> Any:
    """Compute the gradients, and those of a function of them, also by the upstream gradient."""
    upstream = torch.linspace(-1, 2, loss.numel(), dtype=loss.dtype, device=loss.device).view(loss.shape)
    upstream = (upstream + 1.5).requires_grad_()
    first = torch.autograd.grad(loss, inputs, upstream, create_graph=True)
    return first, torch.autograd.grad(sum(g.sin().sum() for g in first), (*inputs, upstream))


def assert_same(mine: Tensor, theirs: Tensor, inputs: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(derivatives(mine, inputs), derivatives(theirs, inputs), rtol=1e-11, atol=1e-11)


STEPS: dict[str, Callable[[str, int], Loss]] = {
    "classes": lambda device, c: lambda h, w, b: ours(h, w, b, labels(device), chunk_rows=c),
    "probabilities": lambda device, c: lambda h, w, b: ours(h, w, b, fractions(device), chunk_rows=c),
    "each row": lambda device, c: (
        lambda h, w, b: ours(h, w, b, labels(device), reduction="none", label_smoothing=0.1, chunk_rows=c)
    ),
    "logistic": lambda device, c: lambda h, w, b: binary(h, w, b, fractions(device), chunk_rows=c),
    "each entry": lambda device, c: (
        lambda h, w, b: binary(
            h, w, b, fractions(device), pos_weight=3 * fractions(device)[0], reduction="none", chunk_rows=c
        )
    ),
    "squared error": lambda device, c: (
        lambda h, w, b: dense_squared_error(h, w, b, fractions(device), "gelu", "mean", chunk_rows=c)
    ),
    "each squared error": lambda device, c: (
        lambda h, w, b: dense_squared_error(h, w, b, fractions(device), "tanh", "none", chunk_rows=c)
    ),
}
every_step = pytest.mark.parametrize("make", STEPS.values(), ids=STEPS)


def labels(device: str) -> Tensor:
    return torch.tensor([3, 0, -100, 6, 3], device=device)


def fractions(device: str) -> Tensor:
    return torch.linspace(0, 1, N * V, dtype=torch.float64, device=device).sqrt().view(N, V)


class Products(TorchDispatchMode):
    """Watch the matrix products, by the shapes of their results."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []
        self.denormal = False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ in ("mm", "addmm", "addmm_"):
            self.shapes.append(tuple(result.shape))
            for t in args:
                if isinstance(t, Tensor) and t.dtype in (torch.float32, torch.bfloat16):
                    self.denormal |= bool(((t != 0) & (t.abs() < torch.finfo(t.dtype).tiny)).any())
        return result


@contextmanager
def bfloat16_products(fast: bool) -> Iterator[None]:
    """Let a CPU be one whose products in bfloat16 are fast, or one whose are not."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "manual_mlp.head.plan.product_dtype",
            lambda dtype, _: dtype if fast or dtype.itemsize >= 4 else torch.float32,
        )
        yield
