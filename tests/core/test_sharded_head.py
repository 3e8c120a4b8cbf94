"""The cross-entropy of a layer whose classes are shared out among processes: every one gets the loss of all classes."""

import random
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.memory import peak_bytes
from covering import covering
from manual_mlp import LinearCrossEntropyLoss, linear_cross_entropy
from manual_mlp.formulas.cross_entropy import CrossEntropy
from manual_mlp.formulas.sharded import ShardedCrossEntropy, Share
from manual_mlp.head.plan import Head
from manual_mlp.head.sharded import step_for
from ranks import answers, needs_gloo, outcomes

N, D = 7, 4
ROWS = (2, 3)  # of more than two dimensions, where asked for
CPU = torch.device("cpu")
# What each case draws one of: the classes (shared out evenly or not, and with nothing left for some), and so on.
DRAWN: dict[str, tuple[Any, ...]] = {
    "classes": (8, 7, 5, 1),
    "reduction": ("mean", "sum", "none"),
    "rows": (2, 100, None),
    "bias": (True, False),
    "weight": (False, True),
    "smoothing": (0.0, 0.1),
    "target": ("classes", "some ignored", "all ignored", "uint8", "probabilities"),
    "row weight": (False, True),
    "z-loss": (0.0, 0.3),
    "softcap": (None, 2.0),
    "given": ("plain", "replicated", "of more dimensions"),
}


def mesh() -> Any:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", (dist.get_world_size(),))


def cut(t: Tensor, dim: int = 0) -> Tensor:
    from torch.distributed.tensor import Shard, distribute_tensor

    return distribute_tensor(t.detach(), mesh(), [Shard(dim)]).requires_grad_(t.is_floating_point())


def copied(t: Tensor) -> Tensor:
    from torch.distributed.tensor import Replicate, distribute_tensor

    return distribute_tensor(t, mesh(), [Replicate()])


def whole(t: Any) -> Tensor:
    return t.full_tensor() if hasattr(t, "full_tensor") else t


def drawn(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def target_of(kind: str, classes: int, rows: tuple[int, ...]) -> Tensor:
    t = torch.arange(torch.Size(rows).numel()).reshape(rows) % classes
    if kind == "probabilities":
        return drawn((*rows, classes))[0].softmax(-1)
    if kind == "uint8":
        return t.to(torch.uint8)
    if kind == "all ignored":
        return torch.full_like(t, -100)
    return torch.where(t == 0, -100, t) if kind == "some ignored" else t


def by_torch(h: Tensor, w: Tensor, t: Tensor, b: Tensor | None, o: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the loss of all classes in one process, the log-sum-exp and what is right, in torch's operations."""
    z = F.linear(h, w, b).flatten(0, -2)
    z = z if o["softcap"] is None else o["softcap"] * (z / o["softcap"]).tanh()
    hard = not t.is_floating_point()
    t = t.flatten().long() if hard else t.flatten(0, -2)
    values = F.cross_entropy(z, t, o["weight"], reduction="none", label_smoothing=o["label_smoothing"])
    lse, known = z.logsumexp(-1), t != -100 if hard else torch.ones(len(t), dtype=torch.bool)
    counts = torch.where(known, 1.0 if o["row_weight"] is None else o["row_weight"].flatten(), 0.0).to(z.dtype)
    values = torch.where(known, values + o["z_loss"] * lse.square(), 0.0) * counts
    if hard and o["weight"] is not None:
        counts = counts * o["weight"][torch.where(known, t, 0)]
    right = z.argmax(-1) == (t if hard else t.argmax(-1))
    loss = values.reshape(h.shape[:-1]) if o["reduction"] == "none" else values.sum()
    return loss / counts.sum() if o["reduction"] == "mean" else loss, lse, right


def error(mine: Iterable[Tensor], theirs: Iterable[Tensor], scale: float = 1.0) -> float:
    """Return the largest difference, inf where NaN is not where NaN is."""
    found = 0.0
    for a, b in zip(mine, theirs, strict=True):
        assert a.shape == b.shape, (a.shape, b.shape)
        if not torch.equal(a.isnan(), b.isnan()):
            return float("inf")
        of_this = (a - b).nan_to_num(0.0).abs().max() / b.nan_to_num(0.0).abs().max().clamp(min=scale)
        found = max(found, of_this.item())
    return found


def derivatives(y: Tensor, operands: list[Tensor]) -> list[Tensor]:
    """Compute the value and its derivatives of first and second order, whole."""
    first = torch.autograd.grad(y.sin().sum(), operands, create_graph=True)
    second = torch.autograd.grad(sum(whole(g).sin().sum() for g in first), operands)
    return [whole(x).detach() for x in (y, *first, *second)]


def as_one_process(case: dict[str, Any]) -> float:
    classes, many = case["classes"], case["given"] == "of more dimensions"
    rows = ROWS if many else (N,)
    h, w, b, weight, rho = drawn((*rows, D), (classes, D), (classes,), (classes,), rows)
    t = target_of(case["target"], classes, rows)
    rho = rho.abs()
    rho.view(-1)[0] = 0
    options = {
        "weight": weight.exp() if case["weight"] else None,
        "row_weight": rho if case["row weight"] else None,
        "label_smoothing": case["smoothing"],
        "z_loss": case["z-loss"],
        "softcap": case["softcap"],
        "reduction": case["reduction"],
    }
    operands = [x.requires_grad_() for x in (h, w, b)[: 2 + case["bias"]]]
    loss, lse, right = by_torch(h, w, t, b if case["bias"] else None, options)
    parts = [cut(w), cut(b)][: 1 + case["bias"]]
    own = h.detach().clone().requires_grad_()
    given: dict[str, Any] = dict(options)
    if case["given"] == "replicated":
        own, t = copied(h.detach()).requires_grad_(), copied(t)
        given |= {name: copied(x) for name in ("weight", "row_weight") if (x := options[name]) is not None}
    given |= {"linear_bias": parts[1] if case["bias"] else None, "chunk_rows": case["rows"]}
    mine, seen = linear_cross_entropy(own, parts[0], t, return_stats=True, **given)
    assert type(mine) is type(own)
    assert torch.equal(whole(seen.correct).flatten(), right)
    found = error([whole(seen.logsumexp).flatten().double()], [lse.detach()])
    return max(found, error(derivatives(mine, [own, *parts]), derivatives(loss, operands)))


def by_loss_parallel() -> float:
    """Compare with torch's own loss of logits that are cut along the classes, on which softmax and loss stay cut."""
    from torch.distributed.tensor.parallel import loss_parallel

    h, w = drawn((N, D), (8, D))
    t, weight = torch.arange(N) % 8, drawn((8,))[0].exp()
    found = []
    for ours in (False, True):
        own, part = copied(h).requires_grad_(), cut(w)
        if ours:
            loss = linear_cross_entropy(own, part, copied(t), weight=copied(weight), chunk_rows=2)
            loss.backward()
        else:
            with loss_parallel():
                loss = F.cross_entropy(F.linear(own, part), copied(t), copied(weight))
                loss.backward()
        found.append([whole(x).detach() for x in (loss, own.grad, part.grad)])
        assert part.grad.placements == part.placements
    return error(*found)


def extreme(bias: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float64) -> Callable[[], float]:
    """Give the logits of classes a bias: such that nothing is left of a process's part, say."""

    def run() -> float:
        h, w = drawn((N, D), (8, D), dtype=dtype)
        b, t = bias(torch.arange(8.0)).to(dtype), torch.full((N,), 7)
        found = []
        for cuts in (False, True):
            own = [h.detach().requires_grad_(), *(cut(x) if cuts else x.detach().requires_grad_() for x in (w, b))]
            if cuts:
                loss = linear_cross_entropy(own[0], own[1], t, linear_bias=own[2], chunk_rows=2)
            else:
                loss = F.cross_entropy(F.linear(*own), t)
            found.append([whole(x).detach() for x in (loss, *torch.autograd.grad(loss, own))])
        return error(found[1], found[0]) * (1e-12 / 1e-6 if dtype is torch.float32 else 1)

    return run


def of_ties() -> float:
    """Of equal logits in several processes, the first is the largest."""
    h, w = torch.zeros(2, D), torch.zeros(8, D)
    _, seen = linear_cross_entropy(h, cut(w), torch.tensor([0, 5]), return_stats=True)
    assert seen.correct.tolist() == [True, False]
    return 0.0


def in_dtype(dtype: torch.dtype, reduction: str, autocast: bool = False) -> Callable[[], float]:
    """Return 0 if the errors against float64 are at most twice torch's, in one process."""

    def run() -> float:
        n, d, v = 32, 16, 97
        t = torch.arange(n) % v
        exact = [x / 4 for x in drawn((n, d), (v, d), (v,))]
        given = [x.to(torch.float32 if autocast else dtype) for x in exact]

        def found(h: Tensor, w: Tensor, b: Tensor, ours: bool) -> list[Tensor]:
            own = [h.detach().requires_grad_(), *(cut(x) if ours else x.detach().requires_grad_() for x in (w, b))]
            options: dict[str, Any] = {"reduction": reduction, "label_smoothing": 0.1}
            with torch.autocast("cpu", dtype, enabled=autocast and h.dtype is not torch.float64):
                if ours:
                    loss = linear_cross_entropy(own[0], own[1], t, linear_bias=own[2], chunk_rows=8, **options)
                else:
                    loss = F.cross_entropy(F.linear(*own), t, **options)
            g = torch.autograd.grad(loss.sum(), own)
            assert [x.dtype for x in g] == [x.dtype for x in own]
            return [loss.detach().double(), *(whole(x).double() for x in g)]

        truth = found(*[x.double() for x in given], ours=False)
        mine, theirs = found(*given, ours=True), found(*given, ours=False)
        pairs = [
            ((a - x).abs().max().item(), (b - x).abs().max().item())
            for a, b, x in zip(mine, theirs, truth, strict=True)
        ]
        worst = max(a - 2 * b - 1e-6 for a, b in pairs)
        return max(worst, 0.0)

    return run


def of_counts() -> float:
    """Count what is exchanged: once a chunk, and once for dh if anybody asks for it."""
    from torch.distributed.tensor.debug import CommDebugMode

    h, w = drawn((N, D), (8, D))
    t = torch.arange(N) % 8
    for rows, chunks in ((2, 4), (3, 3), (100, 1)):
        for reduction in ("mean", "sum"):
            for asked in ("both", "weight alone", "h frozen", "h alone"):
                own, part = h.clone().requires_grad_(asked != "h frozen"), cut(w)
                part.requires_grad_(asked != "h alone")
                wanted = [x for x in (own, part) if x.requires_grad]
                with CommDebugMode() as forward:
                    loss = linear_cross_entropy(own, part, t, reduction=reduction, chunk_rows=rows, z_loss=0.1)
                with CommDebugMode() as backward:
                    torch.autograd.grad(loss, part if asked == "weight alone" else wanted)
                found = forward.get_total_counts(), backward.get_total_counts()
                assert found == (chunks, int(asked in ("both", "h alone"))), (rows, asked, found)
                kinds = {str(kind) for kind in (forward.get_comm_counts() | backward.get_comm_counts())}
                assert kinds == {"c10d.allreduce_"}, kinds
    part = cut(w)
    with torch.no_grad(), CommDebugMode() as alone:
        linear_cross_entropy(h, part, t, chunk_rows=2, return_stats=True, label_smoothing=0.1)
    assert alone.get_total_counts() == 4
    return 0.0


def of_memory() -> float:
    """Hold one chunk of this process's logits, and little beside."""
    n, v, chunks, ranks = 1024, 2048, 8, dist.get_world_size()
    h, w = drawn((n, D), (v, D), dtype=torch.float32)
    own, part, t = h.requires_grad_(), cut(w), torch.arange(n) % v
    chunk, gradients = 4 * n * v // (ranks * chunks), h.nbytes * 3 + w.nbytes // ranks * 2
    known = 8 * 4 * ranks * n // chunks
    peak = peak_bytes(lambda: linear_cross_entropy(own, part, t, chunk_rows=n // chunks).backward(), (own, part), CPU)
    assert chunk <= peak <= chunk + gradients + 8 * known + 2**16, (peak, chunk, gradients, known)
    return 0.0


def of_module(make: Callable[[LinearCrossEntropyLoss], nn.Module], shares: bool) -> Callable[[], float]:
    """Compare a module whose layer is cut with one that is whole."""

    def run() -> float:
        (h,) = drawn((N, D))
        t, found = torch.arange(N) % 8, []
        for cuts in (False, True):
            torch.manual_seed(1)
            module: nn.Module = LinearCrossEntropyLoss(
                D, 8, bias=True, weight=torch.rand(8).double(), chunk_rows=2
            ).double()
            module = make(module) if cuts else module
            own = h.clone().requires_grad_()
            with mock.patch.object(dist, "all_reduce", wraps=dist.all_reduce) as exchange:
                loss = module(own, t)
            assert exchange.call_count == (4 if cuts and shares else 0)
            loss.backward()
            found.append([whole(x).detach() for x in (loss, own.grad, *(p.grad for p in module.parameters()))])
        return error(*found)

    return run


def distributed(module: LinearCrossEntropyLoss) -> nn.Module:
    from torch.distributed.tensor import distribute_module

    def shard(_: str, part: nn.Module, __: Any) -> None:
        if part is module.linear:
            for name, p in list(part.named_parameters()):
                part.register_parameter(name, nn.Parameter(cut(p)))

    return distribute_module(module, mesh(), shard)


def parallelised(module: LinearCrossEntropyLoss) -> nn.Module:
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    return parallelize_module(module, mesh(), {"linear": ColwiseParallel(output_layouts=Replicate())})


def after_rows_of_tensor_parallelism() -> float:
    """Take the input from a layer whose result is still under way."""
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    (x,), t, found = drawn((N, D)), torch.arange(N) % 8, []
    for cuts in (False, True):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(D, 8), nn.GELU(), nn.Linear(8, D)).double()
        head = nn.Linear(D, 8).double()
        w, b = head.weight, head.bias
        if cuts:
            parallelize_module(model, mesh(), {"0": ColwiseParallel(), "2": RowwiseParallel()})
            w, b = cut(w), cut(b)
            loss = linear_cross_entropy(model(x), w, t, linear_bias=b)
        else:
            loss = F.cross_entropy(head(model(x)), t)
        loss.backward()
        found.append([whole(x).detach() for x in (loss, *(p.grad for p in model.parameters()), w.grad, b.grad)])
    return error(*found)


def in_third_order() -> float:
    h, w = drawn((N, D), (7, D))
    t, found = torch.arange(N) % 7, []
    for cuts in (False, True):
        own = [h.clone().requires_grad_(), cut(w) if cuts else w.clone().requires_grad_()]
        loss = linear_cross_entropy(*own, t, chunk_rows=2) if cuts else F.cross_entropy(F.linear(*own), t)
        for _ in range(2):
            loss = sum(whole(g).sin().sum() for g in torch.autograd.grad(loss, own, create_graph=True))
        found.append([whole(g).detach() for g in torch.autograd.grad(loss, own)])
    return error(*found)


def of_no_rows() -> float:
    own, part = torch.empty(0, D, requires_grad=True), cut(torch.ones(8, D))
    loss = linear_cross_entropy(own, part, torch.empty(0, dtype=torch.long), reduction="sum")
    loss.backward()
    assert own.grad.shape == own.shape
    return error([loss.detach(), whole(part.grad)], [torch.zeros(()), torch.zeros(8, D)])


def refused(expected: type[Exception], match: str, call: Callable[[], Any]) -> Callable[[], float]:
    def run() -> float:
        with pytest.raises(expected, match=match):
            call()
        return 0.0

    return run


def of(t: list[int], h: Tensor | None = None, b: Tensor | None = None, **options: Any) -> Tensor:
    """Compute the loss of few rows over 8 classes that are cut."""
    h = torch.ones(2, D, requires_grad=True) if h is None else h
    return linear_cross_entropy(h, cut(torch.ones(8, D)), torch.tensor(t), linear_bias=b, **options)


def in_batches() -> None:
    h = torch.ones(2, D, requires_grad=True)
    torch.autograd.grad(of([0, 1], h, reduction="none"), h, torch.ones(3, 2), is_grads_batched=True)


def cut_by_its_style() -> Tensor:
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    module = parallelize_module(LinearCrossEntropyLoss(D, 8), mesh(), {"linear": ColwiseParallel()})
    return module(torch.ones(2, D), torch.tensor([0, 1]))


def cut_along_inputs() -> Tensor:
    return linear_cross_entropy(torch.ones(2, D), cut(torch.ones(8, D), 1), torch.tensor([0, 1]))


def in_a_transform() -> None:
    w, t = cut(torch.ones(8, D)), torch.tensor([0, 1])
    torch.func.grad(lambda h: linear_cross_entropy(h, w, t))(torch.ones(2, D))


MIXED = "mixed torch.Tensor and DTensor"
OTHERS: dict[str, Callable[[], float]] = {
    "loss_parallel": by_loss_parallel,
    "no class of one process counts": extreme(lambda k: torch.where(k < 4, -torch.inf, 0.0)),
    "one class alone": extreme(lambda k: torch.where(k < 7, -torch.inf, 0.0)),
    "a right class that cannot be": extreme(lambda k: torch.where(k == 7, -torch.inf, 0.0)),
    "no class": extreme(lambda k: torch.full_like(k, -torch.inf)),
    "saturated": extreme(lambda k: 300 * k),
    "far from 0": extreme(lambda k: 1e4 + k, torch.float32),
    "ties": of_ties,
    "collectives": of_counts,
    "memory": of_memory,
    "third order": in_third_order,
    "no rows": of_no_rows,
    "after RowwiseParallel": after_rows_of_tensor_parallelism,
    "distribute_module": of_module(distributed, True),
    "ColwiseParallel": of_module(parallelised, False),
    **{
        f"{dtype}, {reduction}{', autocast' * autocast}": in_dtype(dtype, reduction, autocast)
        for dtype in (torch.float32, torch.bfloat16, torch.float16)
        for reduction in ("mean", "none")
        for autocast in (False, True)
        if not (autocast and dtype is torch.float32)
    },
    "a class that is none": refused(IndexError, "Target 8 is out of bounds", lambda: of([0, 8])),
    "a class below 0": refused(IndexError, "Target -3 is out of bounds", lambda: of([-3, 0])),
    "targets that differ": refused(ValueError, "differ in 1 of 2 rows", lambda: of([0, dist.get_rank()])),
    "a batch of gradients": refused(RuntimeError, "one gradient at a time", in_batches),
    "a wrong width": refused(ValueError, r"expected input \(\*, 4\)", lambda: of([0], torch.ones(1, 3))),
    "another dtype": refused(TypeError, "expected one dtype", lambda: of([0], torch.ones(1, D).double())),
    "a bias that is whole": refused(RuntimeError, MIXED, lambda: of([0, 1], b=torch.ones(8))),
    "a cut along the inputs": refused(RuntimeError, MIXED, cut_along_inputs),
    "func.grad": refused(RuntimeError, MIXED, in_a_transform),
    "ColwiseParallel's own output": refused(ValueError, "logits of all 8 classes", cut_by_its_style),
}


def cases(ranks: int, every_case: bool) -> dict[str, Callable[[], float]]:
    """Draw from the product of all values so many that every pair occurs, or twice as many."""
    chance = random.Random(ranks)
    drawn = [tuple(chance.choice(of) for of in DRAWN.values()) for _ in range(800)]
    least = covering(drawn)
    chosen = [drawn[k] for k in (range(2 * len(least)) if every_case else least)]
    return {str(row): partial(as_one_process, dict(zip(DRAWN, row, strict=True))) for row in chosen} | OTHERS


def work(every_case: bool, _: int) -> dict[str, float | str]:
    return outcomes(cases(dist.get_world_size(), every_case))


@needs_gloo
@pytest.mark.processes
@pytest.mark.parametrize("ranks", [2, 4])
def test_every_process_gets_the_loss_and_the_gradients_of_all_classes(
    tmp_path: Path, ranks: int, every_case: bool
) -> None:
    for found in answers(partial(work, every_case), tmp_path, ranks):
        assert len(found) > 50
        assert {name: error for name, error in found.items() if not isinstance(error, float) or error > 1e-12} == {}


def test_the_chunks_depend_neither_on_a_process_part_nor_on_its_threads() -> None:
    n, classes, h = 4096, 4097, torch.randn(4096, 64)
    found, threads = set(), torch.get_num_threads()
    for width in (2049, 2048, 1, 0):
        for count in (1, 2):
            torch.set_num_threads(count)
            share = Share(slice(0, width), classes, 2049, torch.clone, torch.clone)
            loss = ShardedCrossEntropy.of(CrossEntropy(torch.zeros(n, dtype=torch.long), None, -100, 0.0), share)
            step = step_for(loss, Head(h, torch.randn(width, 64), None), "mean", None)
            assert step is not None
            found.add(step.tiling)
    torch.set_num_threads(threads)
    assert len(found) == 1
    assert found.pop().rows < n
