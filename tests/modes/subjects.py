"""What is differentiated: the layers and losses of this package, beside torch's own."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manual_mlp import MLP, Dense, Linear, activations, dense, dense_squared_error
from manual_mlp.activations import to_module
from modes.elementary import ELEMENTARY
from modes.mode import Call, Map

# No two sizes are equal: a mode tells a batch of inputs by its number of rows.
N, D_IN, D_OUT = 5, 4, 3
Shapes = tuple[tuple[int, ...], ...]
LAYER = (N, D_IN), (D_OUT, D_IN), (D_OUT,)


@dataclass(frozen=True)
class Subject:
    """Hold a function of tensors, torch's way to compute it, and the same by elementary operations."""

    name: str
    activation: str
    ours: Map
    torchs: Map
    truth: Map
    shapes: Shapes = LAYER

    def of_torch(self) -> "Subject":
        """Make torch's way the candidate."""
        return replace(self, ours=self.torchs)


def draw(shapes: Shapes, seed: int = 0, device: str = "cpu") -> tuple[Tensor, ...]:
    """Draw the inputs; a weight's rows are scaled so that z varies by two."""
    generator = torch.Generator().manual_seed(seed)
    drawn = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return tuple((2 * t if k == 0 else t / t.shape[-1] ** 0.5).to(device) for k, t in enumerate(drawn))


def chain(*names: str) -> Map:
    """Compute a chain of layers by elementary operations."""

    def f(h: Tensor, *params: Tensor) -> Tensor:
        for name, w, b in zip(names, params[::2], params[1::2], strict=True):
            h = ELEMENTARY[name](F.linear(h, w, b))
        return h

    return f


def target_of(h: Tensor) -> Tensor:
    """Choose a target for the rows of h."""
    t = torch.linspace(-1, 2, N * D_OUT, dtype=h.dtype, device=h.device).sin().view(N, D_OUT)
    return t[: len(h)] if h.dim() > 1 else t[0]


def _dense(name: str) -> Subject:
    own = to_module(activations.get(name))
    return Subject(
        "dense", name, lambda h, w, b: dense(h, w, b, name), lambda h, w, b: own(F.linear(h, w, b)), chain(name)
    )


def _squared_error(name: str) -> Subject:
    own = to_module(activations.get(name))
    return Subject(
        "dense_squared_error",
        name,
        lambda h, w, b: dense_squared_error(h, w, b, target_of(h), name),
        lambda h, w, b: 0.5 * F.mse_loss(own(F.linear(h, w, b)), target_of(h), reduction="sum"),
        lambda h, w, b: 0.5 * (chain(name)(h, w, b) - target_of(h)).square().sum(),
    )


def _squared_error_by_target(name: str) -> Subject:
    own = to_module(activations.get(name))

    # A single row of h meets a single row of the target.
    def ours(h: Tensor, w: Tensor, b: Tensor, t: Tensor) -> Tensor:
        return dense_squared_error(h, w, b, t if h.dim() == t.dim() else t[0], name, "mean")

    def torchs(h: Tensor, w: Tensor, b: Tensor, t: Tensor) -> Tensor:
        return 0.5 * F.mse_loss(own(F.linear(h, w, b)), t if h.dim() == t.dim() else t[0])

    def truth(h: Tensor, w: Tensor, b: Tensor, t: Tensor) -> Tensor:
        return 0.5 * (chain(name)(h, w, b) - (t if h.dim() == t.dim() else t[0])).square().mean()

    return Subject("dense_squared_error, by its target too", name, ours, torchs, truth, (*LAYER, (N, D_OUT)))


def _linear(_: str) -> Subject:
    ours, torchs = Call(Linear(D_IN, D_OUT)), Call(nn.Linear(D_IN, D_OUT))
    return Subject("Linear", "identity", ours, torchs, chain("identity"))


def _module(name: str) -> Subject:
    own = nn.Sequential(nn.Linear(D_IN, D_OUT), to_module(activations.get(name)))
    return Subject("Dense", name, Call(Dense(D_IN, D_OUT, name)), Call(own), chain(name))


def _mlp(name: str) -> Subject:
    mlp = MLP([D_IN, 6, 3, 2], name)
    shapes = (N, D_IN), (6, D_IN), (6,), (3, 6), (3,), (2, 3), (2,)
    return Subject("MLP", name, Call(mlp), Call(mlp.to_sequential()), chain(name, name, "identity"), shapes)


SUBJECTS: dict[str, Callable[[str], Subject]] = {
    "dense": _dense,
    "dense_squared_error": _squared_error,
    "dense_squared_error, by its target too": _squared_error_by_target,
    "Linear": _linear,
    "Dense": _module,
    "MLP": _mlp,
}
