"""backprop() and MLP.forward in two processes: every rank gets the gradients of the whole batch."""

import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from manual_mlp import MLP, backprop
from ranks import RANKS, answers, needs_gloo, outcomes

pytestmark = [pytest.mark.processes, needs_gloo]

N, D, V = 8, 4, 3
SQUARES = (lambda y, t: y.square().sum(-1) / 2, lambda y, t: y)
Step = Callable[[nn.Module, Tensor, Tensor], Any]
Gradients = list[Tensor]


def network(tile_rows: int | None = None) -> MLP:
    torch.manual_seed(1)
    return MLP([D, 7, 6, V], "gelu", tile_rows=tile_rows, dtype=torch.float64)


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, D, generator=generator, dtype=torch.float64)
    return x, torch.randint(V, (N,), generator=generator)


def part(rank: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    x, t = batch(seed)
    return x[rank::RANKS], t[rank::RANKS]


def whole(seeds: tuple[int, ...] = (0,)) -> Gradients:
    """Compute the gradients of whole batches in one process, by torch's own modules."""
    model = network().to_sequential()
    for seed in seeds:
        x, t = batch(seed)
        F.cross_entropy(model(x), t).backward()
    return [p.grad for p in model.parameters()]


def explicit(model: nn.Module, x: Tensor, t: Tensor) -> None:
    backprop(model, x, t, tile_rows=2)


def by_autograd(model: nn.Module, x: Tensor, t: Tensor) -> None:
    F.cross_entropy(model(x), t).backward()


def by_ddp(step: Step, tile_rows: int | None = None, torchs: bool = False) -> Callable[[int], Gradients]:
    def run(rank: int) -> Gradients:
        mlp = network(tile_rows)
        model = nn.parallel.DistributedDataParallel(mlp.to_sequential() if torchs else mlp)
        step(model, *part(rank))
        return [p.grad for p in model.parameters()]

    return run


def without_sync(step: Step, tile_rows: int | None = None) -> Callable[[int], Gradients]:
    """Accumulate two batches, of which only the second is followed by an exchange."""

    def run(rank: int) -> Gradients:
        mlp = network(tile_rows)
        model = nn.parallel.DistributedDataParallel(mlp)
        for seed, context in ((0, model.no_sync()), (1, nullcontext())):
            with context:
                step(model, *part(rank, seed))
            if not seed:
                alone = network().to_sequential()
                by_autograd(alone, *part(rank))
                for p, q in zip(mlp.parameters(), alone.parameters(), strict=True):
                    torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=1e-12)
        return [p.grad for p in mlp.parameters()]

    return run


def sharded(step: Step, layers: bool, root: bool, tile_rows: int | None = None) -> Callable[[int], Gradients]:
    def run(_: int) -> Gradients:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mlp, mesh = network(tile_rows), init_device_mesh("cpu", (RANKS,))
        for module in [*(mlp.layers if layers else ()), *([mlp] if root else ())]:
            fully_shard(module, mesh=mesh)
        for _ in range(2):  # the second step gathers anew
            mlp.zero_grad()
            step(mlp, *part(dist.get_rank()))
        return [p.grad.full_tensor() for p in mlp.parameters()]

    return run


def by_first_fsdp(step: Step, strategy: str, use_orig_params: bool) -> Callable[[int], Gradients]:
    def run(rank: int) -> Gradients:
        from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy

        model = FullyShardedDataParallel(
            network(),
            sharding_strategy=ShardingStrategy[strategy],
            use_orig_params=use_orig_params,
            device_id=torch.device("cpu"),
        )
        step(model, *part(rank))
        if use_orig_params:
            with FullyShardedDataParallel.summon_full_params(model, with_grads=True):
                return [p.grad.clone() for p in model.parameters()]
        # The parameters of all layers are one vector, or its shards.
        total, expected = sum(p.grad.square().sum() for p in model.parameters()), whole()
        if strategy != "NO_SHARD":
            dist.all_reduce(total)
        torch.testing.assert_close(total.sqrt(), nn.utils.get_total_norm(expected), rtol=1e-12, atol=1e-12)
        return expected

    return run


CASES: dict[str, Callable[[int], Gradients]] = {"DDP of torch's modules": by_ddp(by_autograd, torchs=True)}
for made, take in (("backprop", explicit), ("loss.backward()", by_autograd)):
    for some in (None, 2):
        tiles = f"{made}, {some or 'all'} rows at once"
        CASES[f"DDP, {tiles}"] = by_ddp(take, some)
        CASES[f"DDP without sync, {tiles}"] = without_sync(take, some)
        CASES[f"fully_shard of the layers, {tiles}"] = sharded(take, True, False, some)
        CASES[f"fully_shard of the root, {tiles}"] = sharded(take, False, True, some)
        CASES[f"fully_shard of both, {tiles}"] = sharded(take, True, True, some)
    for plan in ("NO_SHARD", "FULL_SHARD"):
        for own in (True, False):
            name = f"FullyShardedDataParallel, {plan}, {'own' if own else 'flat'} parameters, {made}"
            CASES[name] = by_first_fsdp(take, plan, own)


def work(rank: int) -> dict[str, float | str]:
    """Run every case in one process of two, and return the largest errors, or what was raised."""
    expected = {name: whole((0, 1) if "without sync" in name else (0,)) for name in CASES}

    def error(name: str) -> float:
        return max((a - b).abs().max().item() for a, b in zip(CASES[name](rank), expected[name], strict=True))

    return outcomes({name: partial(error, name) for name in CASES})


def test_every_rank_gets_the_gradients_of_the_whole_batch(tmp_path: Path) -> None:
    for found in answers(work, tmp_path):
        assert found.keys() == CASES.keys()
        assert {name: error for name, error in found.items() if not isinstance(error, float) or error > 1e-12} == {}


def heard(call: Callable[[], Any]) -> int:
    """Count the warnings that gradients are not shared."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call()
    return sum("are not averaged" in str(each.message) for each in found)


def warned(rank: int) -> list[int]:
    """Count the warnings of calls on what DDP wraps, twice each, then of calls that need none."""
    found = []
    for wrap, loss in ((False, "cross_entropy"), (True, "cross_entropy"), (False, SQUARES)):
        mlp = network()
        model = nn.parallel.DistributedDataParallel(nn.Sequential(mlp) if wrap else mlp)
        found += [heard(lambda m=mlp, of=loss: backprop(m, *part(rank), loss=of)) for _ in range(2)]
        del model
    x, t = part(rank)
    model = nn.parallel.DistributedDataParallel(network())
    found += [heard(lambda: backprop(model, x, t)), heard(lambda: backprop(network(), x, t))]
    alone = nn.parallel.DistributedDataParallel(
        network(), process_group=[dist.new_group([k]) for k in range(RANKS)][rank]
    )
    return [*found, heard(lambda: backprop(alone.module, x, t))]


def test_backprop_on_the_module_inside_of_ddp_warns_once_that_gradients_are_not_shared(tmp_path: Path) -> None:
    for found in answers(warned, tmp_path):
        assert found == [1, 0] * 3 + [0, 0, 0]


def test_in_a_process_alone_backprop_looks_for_no_ddp() -> None:
    with mock.patch("gc.get_objects", side_effect=AssertionError):
        backprop(network(), *batch())
