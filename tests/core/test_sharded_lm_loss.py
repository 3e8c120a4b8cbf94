"""lm_loss() of a head whose weight is cut among processes: the whole's answers, or an error."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from manual_mlp import lm_loss
from ranks import RANKS, answers, needs_gloo, outcomes

pytestmark = [pytest.mark.processes, needs_gloo]

B, T, D, V = 4, 5, 4, 8


class Model(nn.Module):
    """A model of language whose head is tied to its embedding, or not."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(V, D), nn.Linear(D, V, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor, ours: bool = True) -> Tensor:
        hidden = self.embedding(tokens).tanh()
        if ours:
            return lm_loss(hidden, self.head, tokens, chunk_rows=3)
        return F.cross_entropy(self.head(hidden)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def model(tied: bool) -> Model:
    torch.manual_seed(1)
    return Model(tied).double()


def tokens_of(rank: int | None = None) -> Tensor:
    tokens = torch.randint(V, (B, T), generator=torch.Generator().manual_seed(0))
    return tokens if rank is None else tokens[rank::RANKS]


def whole(t: Tensor) -> Tensor:
    return t.full_tensor() if hasattr(t, "full_tensor") else t


def under_fully_shard(part: str, tied: bool, compiles: bool = False) -> float:
    """Compare the gradients with those of the whole batch in one process."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    made, truth = model(tied), model(tied)
    mesh = init_device_mesh("cpu", (RANKS,))
    for name in part.split(" and "):
        fully_shard(getattr(made, name) if name != "root" else made, mesh=mesh)
    run: Callable[..., Any] = torch.compile(made, backend="aot_eager") if compiles else made
    for _ in range(2):  # the second step gathers anew
        made.zero_grad()
        run(tokens_of(dist.get_rank())).backward()
    truth(tokens_of(), ours=False).backward()
    pairs = zip(made.parameters(), truth.parameters(), strict=True)
    return max((whole(mine.grad) - theirs.grad).abs().max().item() for mine, theirs in pairs)


def cut(head: nn.Linear) -> nn.Linear:
    """Share the classes out."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    head.weight = nn.Parameter(distribute_tensor(head.weight.detach(), init_device_mesh("cpu", (RANKS,)), [Shard(0)]))
    return head


def of_shared_classes() -> float:
    """Compare the loss of states that are a DTensor, in chunks, with the whole's."""
    from torch.distributed.tensor import DTensor, Replicate

    made, truth = model(False), model(False)
    head, tokens = cut(made.head), tokens_of()
    hidden = made.embedding(tokens).tanh().detach()
    replicated = DTensor.from_local(hidden, head.weight.device_mesh, [Replicate()]).requires_grad_()
    own = hidden.requires_grad_()
    with mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as exchange:
        loss = lm_loss(replicated, head, tokens, chunk_rows=5, num_items_in_batch=16)
    assert exchange.call_count >= B * T // 5  # one a chunk at least
    theirs = F.cross_entropy(truth.head(own)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    theirs.backward()
    pairs = (loss, theirs), (replicated.grad, own.grad), (head.weight.grad, truth.head.weight.grad)
    return max((whole(mine).detach() - known.detach()).abs().max().item() for mine, known in pairs)


def refused(make: Callable[[Model], nn.Module]) -> float:
    """Plain states differ from process to process where weights are gathered for use: a cut weight is no place."""
    made = model(False)
    make(made)
    with pytest.raises(RuntimeError, match=r"mixed torch\.Tensor and DTensor"):
        lm_loss(torch.randn(B, T, D).double(), made.head, tokens_of())
    return 0.0


def sharded_root(made: Model) -> nn.Module:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    return fully_shard(made, mesh=init_device_mesh("cpu", (RANKS,)))


CASES: dict[str, Callable[[], float]] = {
    "root": partial(under_fully_shard, "root", False),
    "root, tied": partial(under_fully_shard, "root", True),
    "root, tied, compiled": partial(under_fully_shard, "root", True, True),
    "head": partial(under_fully_shard, "head and root", False),
    "shared classes": of_shared_classes,
    "plain states before a cut weight": partial(refused, lambda made: cut(made.head)),
    "a head outside of its root's forward": partial(refused, sharded_root),
}


def work(_: int) -> dict[str, float | str]:
    return outcomes(CASES)


def test_a_head_whose_weight_is_cut_has_the_wholes_answers_or_raises(tmp_path: Path) -> None:
    for found in answers(work, tmp_path):
        assert found.keys() == CASES.keys()
        assert {name: error for name, error in found.items() if not isinstance(error, float) or error > 1e-12} == {}
