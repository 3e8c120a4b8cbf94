"""What is differentiated: the layers and losses of this package, beside torch's own."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from manual_mlp import (
    MLP,
    Dense,
    Linear,
    activations,
    dense,
    dense_squared_error,
    linear_binary_cross_entropy,
    linear_cross_entropy,
)
from manual_mlp.activations import to_module
from modes.elementary import ELEMENTARY
from modes.mode import Call, Map

# No two sizes are equal: a mode tells a batch of inputs by its number of rows.
N, D_IN, D_OUT, CLASSES = 5, 4, 3, 7
Shapes = tuple[tuple[int, ...], ...]
LAYER = (N, D_IN), (D_OUT, D_IN), (D_OUT,)
HEAD = (N, D_IN), (CLASSES, D_IN), (CLASSES,)


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


def at_once(rows: int | None) -> str:
    """Say how many rows are computed at once, unless that is left to choose."""
    return f", {rows} rows at once" if rows else ""


def beside(h: Tensor, t: Tensor) -> Tensor:
    """Turn a constant into a DTensor if h is one."""
    mesh = getattr(h, "device_mesh", None)
    if mesh is None:
        return t
    from torch.distributed.tensor import Replicate, distribute_tensor

    return distribute_tensor(t, mesh, [Replicate()])


def target_of(h: Tensor) -> Tensor:
    """Choose a target for the rows of h."""
    t = beside(h, torch.linspace(-1, 2, N * D_OUT, dtype=h.dtype, device=h.device).sin().view(N, D_OUT))
    return t[: h.shape[0]] if h.dim() > 1 else t[0]


def _dense(name: str) -> Subject:
    own = to_module(activations.get(name))
    return Subject(
        "dense", name, lambda h, w, b: dense(h, w, b, name), lambda h, w, b: own(F.linear(h, w, b)), chain(name)
    )


def _squared_error(name: str, chunk_rows: int | None = None) -> Subject:
    own = to_module(activations.get(name))
    return Subject(
        f"dense_squared_error{at_once(chunk_rows)}",
        name,
        lambda h, w, b: dense_squared_error(h, w, b, target_of(h), name, "mean", chunk_rows),
        lambda h, w, b: 0.5 * F.mse_loss(own(F.linear(h, w, b)), target_of(h)),
        lambda h, w, b: 0.5 * (chain(name)(h, w, b) - target_of(h)).square().mean(),
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


def labels(h: Tensor) -> Tensor:
    """Choose a class for each row of h."""
    classes = beside(h, (3 * torch.arange(N, device=h.device) + 1) % CLASSES)
    return classes[: h.shape[0]] if h.dim() > 1 else classes[0]


def probabilities(h: Tensor) -> Tensor:
    """Choose probabilities of the classes for each row of h; those of a row need not sum to one."""
    p = beside(h, torch.linspace(0, 1, N * CLASSES, dtype=h.dtype, device=h.device).sqrt().view(N, CLASSES))
    return p[: h.shape[0]] if h.dim() > 1 else p[0]


def weights(h: Tensor) -> Tensor:
    """Choose a weight for each class."""
    return beside(h, torch.linspace(0.5, 2, CLASSES, dtype=h.dtype, device=h.device))


def log_softmax(z: Tensor) -> Tensor:
    """Compute ln p; torch.logsumexp cannot be differentiated after forward mode over reverse."""
    return z - z.exp().sum(-1, keepdim=True).log()


def picked(z: Tensor, classes: Tensor) -> Tensor:
    """Pick the entry of each row's class."""
    return z.gather(-1, classes.unsqueeze(-1)).squeeze(-1)


def _cross_entropy(chunk_rows: int | None) -> Subject:
    return Subject(
        f"linear_cross_entropy{at_once(chunk_rows)}",
        "identity",
        lambda h, w, b: linear_cross_entropy(h, w, labels(h), linear_bias=b, chunk_rows=chunk_rows),
        lambda h, w, b: F.cross_entropy(F.linear(h, w, b), labels(h)),
        lambda h, w, b: -picked(log_softmax(F.linear(h, w, b)), labels(h)).mean(),
        HEAD,
    )


def _weighted_cross_entropy(chunk_rows: int | None) -> Subject:
    options = {"ignore_index": 4, "label_smoothing": 0.2, "reduction": "none"}

    def ours(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        given = {"linear_bias": b, "weight": weights(h), "chunk_rows": chunk_rows}
        return linear_cross_entropy(h, w, labels(h), **given, **options)

    def torchs(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(h, w, b), labels(h), weights(h), **options)

    def truth(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        log_p, v = log_softmax(F.linear(h, w, b)), weights(h)
        values = -0.8 * picked(v * log_p, labels(h)) - 0.2 / CLASSES * (v * log_p).sum(-1)
        return values * (labels(h) != 4)

    name = f"linear_cross_entropy of each row, smoothed and weighted{at_once(chunk_rows)}"
    return Subject(name, "identity", ours, torchs, truth, HEAD)


def _cross_entropy_of_probabilities(chunk_rows: int | None) -> Subject:
    def ours(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return linear_cross_entropy(
            h, w, probabilities(h), linear_bias=b, weight=weights(h), label_smoothing=0.1, chunk_rows=chunk_rows
        )

    def torchs(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(h, w, b), probabilities(h), weights(h), label_smoothing=0.1)

    def truth(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        a = weights(h) * (0.9 * probabilities(h) + 0.1 / CLASSES)
        return -(a * log_softmax(F.linear(h, w, b))).sum(-1).mean()

    name = f"linear_cross_entropy of probabilities{at_once(chunk_rows)}"
    return Subject(name, "identity", ours, torchs, truth, HEAD)


def row_weights(h: Tensor) -> Tensor:
    """Choose a weight for each row of h."""
    u = beside(h, torch.linspace(2, 0.5, N, dtype=h.dtype, device=h.device))
    return u[: h.shape[0]] if h.dim() > 1 else u[0]


def _cross_entropy_with(chunk_rows: int | None, *options: str) -> Subject:
    softcap = 1.5 if "softcap" in options else None
    z_loss = 0.1 if "z_loss" in options else 0.0

    def weight_of(h: Tensor) -> Tensor | None:
        return row_weights(h) if "row_weight" in options else None

    def ours(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        given = {"linear_bias": b, "row_weight": weight_of(h), "chunk_rows": chunk_rows}
        return linear_cross_entropy(h, w, labels(h), softcap=softcap, z_loss=z_loss, **given)

    def logits(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        z = F.linear(h, w, b)
        return softcap * torch.tanh(z / softcap) if softcap else z

    def mean(values: Tensor, h: Tensor) -> Tensor:
        u = weight_of(h)
        return values.mean() if u is None else (u * values).sum() / u.sum()

    def torchs(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        s = logits(h, w, b)
        values = F.cross_entropy(s, labels(h), reduction="none") + z_loss * s.logsumexp(-1).square()
        return mean(values, h)

    def truth(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        s = logits(h, w, b)
        lse = s.exp().sum(-1).log()
        return mean(lse - picked(s, labels(h)) + z_loss * lse.square(), h)

    name = f"linear_cross_entropy with {', '.join(options)}{at_once(chunk_rows)}"
    return Subject(name, "identity", ours, torchs, truth, HEAD)


def _binary_cross_entropy(chunk_rows: int | None) -> Subject:
    def ours(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return linear_binary_cross_entropy(
            h, w, probabilities(h), linear_bias=b, pos_weight=weights(h), chunk_rows=chunk_rows
        )

    def torchs(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(F.linear(h, w, b), probabilities(h), pos_weight=weights(h))

    def truth(h: Tensor, w: Tensor, b: Tensor) -> Tensor:
        p, t = torch.sigmoid(F.linear(h, w, b)), probabilities(h)
        return -(weights(h) * t * p.log() + (1 - t) * (1 - p).log()).mean()

    name = f"linear_binary_cross_entropy{at_once(chunk_rows)}"
    return Subject(name, "identity", ours, torchs, truth, HEAD)


def _linear(_: str) -> Subject:
    ours, torchs = Call(Linear(D_IN, D_OUT)), Call(nn.Linear(D_IN, D_OUT))
    return Subject("Linear", "identity", ours, torchs, chain("identity"))


def _module(name: str) -> Subject:
    own = nn.Sequential(nn.Linear(D_IN, D_OUT), to_module(activations.get(name)))
    return Subject("Dense", name, Call(Dense(D_IN, D_OUT, name)), Call(own), chain(name))


def _mlp(name: str, tile_rows: int | None = None) -> Subject:
    mlp = MLP([D_IN, 6, 3, 2], name, tile_rows=tile_rows)
    shapes = (N, D_IN), (6, D_IN), (6,), (3, 6), (3,), (2, 3), (2,)
    truth = chain(name, name, "identity")
    return Subject(f"MLP{at_once(tile_rows)}", name, Call(mlp), Call(mlp.to_sequential()), truth, shapes)


SUBJECTS: dict[str, Callable[[str], Subject]] = {
    "dense": _dense,
    "dense_squared_error": _squared_error,
    "dense_squared_error, 2 rows at once": partial(_squared_error, chunk_rows=2),
    "dense_squared_error, 8 rows at once": partial(_squared_error, chunk_rows=8),
    "dense_squared_error, by its target too": _squared_error_by_target,
    "Linear": _linear,
    "Dense": _module,
    "MLP": _mlp,
    "MLP, 2 rows at once": partial(_mlp, tile_rows=2),
}
# Losses whose layer has no activation: each runs in several chunks, in one, and as it chooses.
for make in (_cross_entropy, _weighted_cross_entropy, _cross_entropy_of_probabilities, _binary_cross_entropy):
    for rows in (2, 8, None):
        subject = make(rows)
        SUBJECTS[subject.name] = lambda _, subject=subject: subject
OPTIONS = "softcap", "z_loss", "row_weight"
for rows, options in ((2, OPTIONS), (8, OPTIONS), (None, OPTIONS), *((2, (option,)) for option in OPTIONS)):
    subject = _cross_entropy_with(rows, *options)
    SUBJECTS[subject.name] = lambda _, subject=subject: subject
WITHOUT_ACTIVATION = "Linear", *(name for name in SUBJECTS if name.startswith("linear_"))
