"""LinearCrossEntropyLoss under fully_shard: every process gets the loss and the gradients of the whole batch."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from manual_mlp import Linear, LinearCrossEntropyLoss
from ranks import RANKS, answers, needs_gloo, outcomes

pytestmark = [pytest.mark.processes, needs_gloo]

N, D, V = 8, 4, 7
WRAPPED = ("loss.linear", "root", "loss and root", "loss.linear and root")


class TorchsLoss(nn.Module):
    """The same loss in torch's operations."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(D, V)

    def forward(self, h: Tensor, t: Tensor) -> Tensor:
        return F.cross_entropy(self.linear(h), t, label_smoothing=0.1)


class Model(nn.Module):
    """A layer below a loss, as language models have it."""

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.below = Linear(D, D)
        self.loss = loss

    def forward(self, x: Tensor, t: Tensor) -> Any:
        return self.loss(torch.tanh(self.below(x)), t)


def model(dtype: torch.dtype, torchs: bool = False, rows: int | None = None) -> Model:
    torch.manual_seed(1)
    loss = LinearCrossEntropyLoss(D, V, bias=True, label_smoothing=0.1, chunk_rows=rows)
    made = Model(TorchsLoss() if torchs else loss)
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) / 2)
    return made.to(dtype)


def batch(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x.to(dtype), torch.arange(N) % V


def whole(dtype: torch.dtype) -> list[Tensor]:
    """Compute the loss and the gradients of the whole batch in one process, in torch's operations."""
    made = model(dtype, torchs=True)
    loss = made(*batch(dtype))
    return [loss.detach(), *torch.autograd.grad(loss, list(made.parameters()))]


def sharded(wrapped: str, made: Model, call: Callable[..., Any], **options: Any) -> list[Tensor]:
    """Take two steps with parts of the batch, and return the mean of the losses and the gradients of the second."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    dtype, mesh = made.below.weight.dtype, init_device_mesh("cpu", (RANKS,))
    for name in wrapped.split(" and "):
        part = {"root": made, "loss": made.loss, "loss.linear": made.loss.linear}[name]
        fully_shard(part, mesh=mesh, **options)
    x, t = (part[dist.get_rank() :: RANKS] for part in batch(dtype))
    for _ in range(2):  # the second step gathers anew
        made.zero_grad()
        loss = call(made, x, t)
        loss.backward()
    found = [loss.detach().to(dtype), *(p.grad for p in made.parameters())]
    return [t.full_tensor() if hasattr(t, "full_tensor") else averaged(t) for t in found]


def averaged(t: Tensor) -> Tensor:
    """Average what is no part of what fully_shard wraps."""
    total = t.clone()
    dist.all_reduce(total)
    return total / RANKS


def called(made: Model, x: Tensor, t: Tensor) -> Any:
    return made(x, t)


def compiled(made: Model, x: Tensor, t: Tensor) -> Any:
    return torch.compile(made, backend="aot_eager")(x, t)


def exact(wrapped: str, rows: int | None, call: Callable[..., Any]) -> float:
    found = sharded(wrapped, model(torch.float64, rows=rows), call)
    return max((a - b).abs().max().item() for a, b in zip(found, whole(torch.float64), strict=True))


def mixed(wrapped: str, rows: int | None) -> float:
    """Return by how much the errors in bfloat16 are more than twice those of torch's loss, wrapped likewise."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    errors = []
    for torchs in (False, True):
        found = sharded(wrapped, model(torch.float32, torchs, None if torchs else rows), called, mp_policy=policy)
        assert {g.dtype for g in found[1:]} == {torch.float32}
        pairs = zip(found, whole(torch.float64), strict=True)
        errors.append([(a.double() - b).abs().max().item() for a, b in pairs])
    return max(0.0, *(a - 2 * b - 1e-6 for a, b in zip(*errors, strict=True)))


CASES: dict[str, Callable[[], float]] = {
    **{f"{w}, {rows} rows": partial(exact, w, rows, called) for w in WRAPPED for rows in (None, 2)},
    **{f"{w}, {rows} rows, mixed": partial(mixed, w, rows) for w in WRAPPED if "root" in w for rows in (None, 2)},
    "root, compiled": partial(exact, "root", 2, compiled),
}


def work(_: int) -> dict[str, float | str]:
    return outcomes(CASES)


def test_under_fully_shard_a_loss_module_has_the_loss_and_the_gradients_of_the_whole_batch(tmp_path: Path) -> None:
    for found in answers(work, tmp_path):
        assert found.keys() == CASES.keys()
        assert {name: error for name, error in found.items() if not isinstance(error, float) or error > 1e-12} == {}
