"""What dropout zeroes depends on the random state, the layer, the row and the column, and on nothing else."""

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, vmap
from torch.overrides import BaseTorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from manual_mlp import MLP, backprop
from manual_mlp.dropout import Mask, draw_seed, drop
from manual_mlp.engines import native

N, D = 7, 6
WORD = 2**32


def mix(u: int) -> int:
    u ^= u >> 16
    u = u * 0x7FEB352D % WORD
    u ^= u >> 15
    return u * 0x846CA68B % WORD


def factor(seed: int, layer: int, row: int, column: int, p: float) -> float:
    """Compute the factor of one entry as the documentation says, in Python's integers."""
    key = mix((mix((seed + layer * 0x9E3779B9) % WORD) + seed // WORD) % WORD)
    u = mix((mix((key + row) % WORD) + mix(column)) % WORD)
    signed = u - WORD if u >= WORD // 2 else u
    return 0.0 if signed < p * WORD - WORD // 2 else 1 / (1 - p)


def factors(n: int, d: int, p: float, seed: int = 0, layer: int = 0) -> Tensor:
    return drop(torch.ones(n, d, dtype=torch.float64), Mask(torch.tensor(seed), layer, p))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.999])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_mask_is_the_documented_hash(device: str, p: float, dtype: torch.dtype) -> None:
    seed, layer, first = 2**62 + 12345678901, 3, 70_000
    t = torch.randn(5, 9).to(device, dtype)
    expected = torch.tensor([[factor(seed, layer, first + r, c, p) for c in range(9)] for r in range(5)])
    found = drop(t, Mask(torch.tensor(seed, device=device), layer, p, first))
    assert found.dtype is dtype
    torch.testing.assert_close(found.cpu(), (t.cpu().double() * expected.double()).to(dtype))


@pytest.mark.parametrize("shape", [(8,), (2, 3, 5), (0, 4), (4, 0), (300, 517)], ids=str)
def test_the_rows_of_a_mask_are_those_of_the_flattened_input(device: str, shape: tuple[int, ...]) -> None:
    t = torch.randn(shape, device=device)
    mask = Mask(draw_seed(t.device), 1, 0.4)
    flat = drop(t.reshape(t.shape[:-1].numel(), shape[-1]), mask)
    torch.testing.assert_close(drop(t, mask), flat.view(shape))
    below = t.reshape(flat.shape)[2:]
    torch.testing.assert_close(drop(below, mask._replace(row=2)), flat[2:])


def test_nothing_is_left_where_all_is_zeroed_and_nan_stays(device: str) -> None:
    t = torch.tensor([[1.0, torch.nan, torch.inf]], device=device)
    result = drop(t, Mask(draw_seed(t.device), 0, 1.0))
    torch.testing.assert_close(result, F.dropout(t.cpu(), 1.0).to(device), equal_nan=True)


@pytest.mark.parametrize("p", [0.01, 0.25, 0.5, 0.9])
def test_a_share_of_the_entries_is_zeroed(p: float) -> None:
    n, seeds = 300 * 500, range(20)
    shares = torch.stack([(factors(300, 500, p, 7919 * seed) == 0).double().mean() for seed in seeds])
    deviation = (p * (1 - p) / n) ** 0.5
    assert ((shares - p).abs() < 4.5 * deviation).all()
    # The shares of the seeds vary as those of independent draws do, no less and no more.
    assert 0.4 < float(shares.var() / deviation**2) < 2.2


def test_no_row_column_layer_or_seed_tells_of_another() -> None:
    n, d, p = 400, 300, 0.5
    signs = {
        (seed, layer): factors(n, d, p, seed, layer) - 1 for seed in (0, 1, 2**32, 2**40 + 1) for layer in (0, 1, 2)
    }
    first = signs[0, 0]
    others = [
        *(first.roll(k, 0) for k in (1, 2, 16, 256)),  # rows
        *(first.roll(k, 1) for k in (1, 2, 16, 256)),  # columns
        *(other for key, other in signs.items() if key != (0, 0)),  # layers and seeds
        first.roll((1, 1), (0, 1)),
        first[:d].mT.roll(1, 0),
    ]
    for other in others:
        rows = len(other) if other.shape[1] == d else d
        product = (
            first[: other.shape[0], : other.shape[1]] * other
            if other.shape == first.shape
            else first[:d] * other[:, :d]
        )
        assert abs(float(product.mean())) < 4.5 / (rows * d) ** 0.5
    # Nor do three corners of a rectangle tell of the fourth, as they would if rows and columns were only added.
    for down, right in itertools.product((1, 3, 64), (1, 5, 128)):
        corners = first * first.roll(down, 0) * first.roll(right, 1) * first.roll((down, right), (0, 1))
        assert abs(float(corners.mean())) < 4.5 / (n * d) ** 0.5


def network(device: str, p: float = 0.5, tile_rows: int | None = None) -> MLP:
    """Make a network whose output is its hidden layer's, after dropout."""
    given = {"bias": False, "dtype": torch.float64, "device": device}
    mlp = MLP([D, 9, 9], "identity", dropout=p, tile_rows=tile_rows, **given)
    with torch.no_grad():
        mlp.layers[1].weight.copy_(torch.eye(9))
    return mlp


def zeros(run: Callable[[], Tensor]) -> Tensor:
    torch.manual_seed(5)
    return run().detach() == 0


def hooked(mlp: MLP) -> MLP:
    mlp.layers[0].register_forward_hook(lambda *_: None)
    return mlp


def replaced(mlp: MLP) -> MLP:
    linear = nn.Linear(D, 9, bias=False)
    linear.weight = mlp.layers[0].weight
    mlp.layers[0] = linear
    return mlp


def test_whatever_the_path_the_same_entries_are_zeroed(device: str) -> None:
    x = torch.randn(N, D, dtype=torch.float64, device=device)
    t = torch.zeros(N, 9, dtype=torch.float64, device=device)

    def forward(mlp: MLP, x: Tensor = x) -> Callable[[], Tensor]:
        return lambda: mlp(x)

    expected = zeros(forward(network(device)))
    assert 0.2 < float(expected.double().mean()) < 0.8

    def explicit(mlp: MLP, rows: int | None = None) -> Callable[[], Tensor]:
        return lambda: backprop(mlp, x, t, "squared_error", tile_rows=rows, return_output=True)[1]

    def without_grad(mlp: MLP) -> Callable[[], Tensor]:
        return torch.no_grad()(lambda: mlp(x))

    def inferring(mlp: MLP) -> Callable[[], Tensor]:
        return torch.inference_mode()(lambda: mlp(x))

    single = network(device).float()

    def autocast() -> Tensor:
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            return single(x.float())

    def autocast_explicit() -> Tensor:
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            return backprop(single, x.float(), t.float(), "squared_error", return_output=True)[1]

    of_dimensions = forward(network(device), x.view(1, N, 1, D))
    runs = {
        "tiles": forward(network(device, tile_rows=2)),
        "no_grad": without_grad(network(device)),
        "no_grad in tiles": without_grad(network(device, tile_rows=3)),
        "inference mode": inferring(network(device, tile_rows=3)),
        "frozen": forward(network(device).requires_grad_(False)),
        "by the input": forward(network(device, tile_rows=4), x.clone().requires_grad_()),
        "hooked": forward(hooked(network(device))),
        "replaced": forward(replaced(network(device))),
        "more dimensions": lambda: of_dimensions().view(N, 9),
        "backprop": explicit(network(device)),
        "backprop in tiles": explicit(network(device), 2),
        "backprop, hooked": explicit(hooked(network(device))),
        "half precision": forward(network(device).bfloat16(), x.bfloat16()),
        "autocast": autocast,
        "autocast, backprop": autocast_explicit,
    }
    for name, run in runs.items():
        assert torch.equal(zeros(run), expected), name
    again = network(device)
    assert not torch.equal(expected, zeros(lambda: (torch.rand(1, device=device), again(x))[1]))


def test_threads_do_not_change_what_is_zeroed() -> None:
    mlp, x, before = network("cpu", tile_rows=4), torch.randn(64, D, dtype=torch.float64), torch.get_num_threads()
    masks = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            masks.append(zeros(lambda: mlp(x)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(mask, masks[0]) for mask in masks)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_of_many_rows_has_the_gradients_of_its_own_output(reentrant: bool) -> None:
    mlp = MLP([784, 512, 256, 10], dropout=0.5)
    x = torch.randn(4096, 784, requires_grad=True)
    y = checkpoint(mlp, x, use_reentrant=reentrant)
    y.square().sum().backward()
    last = mlp.layers[-1]
    euler = (last.weight.grad * last.weight).sum() + (last.bias.grad * last.bias).sum()
    torch.testing.assert_close(euler, 2 * y.square().sum(), rtol=1e-4, atol=0)


def test_a_mode_around_the_first_forward_alone_changes_no_mask() -> None:
    mlp, x = MLP([20, 64, 32, 10], dropout=0.5), torch.randn(512, 20, requires_grad=True)
    with BaseTorchFunctionMode():
        y = checkpoint(mlp, x, use_reentrant=True)
    y.square().sum().backward()
    last = mlp.layers[-1]
    euler = (last.weight.grad * last.weight).sum() + (last.bias.grad * last.bias).sum()
    torch.testing.assert_close(euler, 2 * y.square().sum(), rtol=1e-4, atol=0)


def test_a_reversible_block_finds_its_output_once_more(device: str) -> None:
    mlp, x = network(device, tile_rows=2), torch.randn(N, D, dtype=torch.float64, device=device)
    torch.manual_seed(5)
    with torch.no_grad():
        y = mlp(x)
    torch.manual_seed(5)
    again = mlp(x)
    torch.testing.assert_close(again.detach(), y)
    again.sum().backward()
    # The first layer's gradient is that of the entries which were kept.
    expected = (2 * (y != 0).double()).mT @ x
    torch.testing.assert_close(mlp.layers[0].weight.grad, expected)


@pytest.mark.parametrize("tile_rows", [None, 2])
@pytest.mark.parametrize("how", ["as it is", "hooked"])
def test_backprop_and_backward_have_one_mask(device: str, tile_rows: int | None, how: str) -> None:
    torch.manual_seed(1)
    mlp = MLP([D, 9, 8, 3], "gelu", dropout=(0.5, 0.25), tile_rows=tile_rows, dtype=torch.float64, device=device)
    mlp = hooked(mlp) if how == "hooked" else mlp
    x, t = torch.randn(N, D, dtype=torch.float64, device=device), torch.randint(3, (N,), device=device)
    results = []
    for step in (lambda: backprop(mlp, x, t), lambda: F.cross_entropy(mlp(x), t).backward()):
        mlp.zero_grad()
        torch.manual_seed(5)
        step()
        results.append([*(p.grad for p in mlp.parameters()), torch.rand(2, device=device)])
    torch.testing.assert_close(*results, rtol=1e-12, atol=1e-12)


def test_a_dropped_output_has_every_derivative(device: str) -> None:
    t = torch.randn(5, 4, dtype=torch.float64, device=device, requires_grad=True)
    mask = Mask(draw_seed(t.device), 0, 0.5)
    assert torch.autograd.gradcheck(lambda t: drop(t, mask).sin(), t, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(lambda t: drop(t, mask).sin(), t, check_batched_grad=True)
    whole = drop(torch.ones_like(t), mask)
    with forward_ad.dual_level():
        y = drop(forward_ad.make_dual(t.detach(), t.detach()), mask)
        torch.testing.assert_close(forward_ad.unpack_dual(y).tangent, (t * whole).detach())
    torch.testing.assert_close(vmap(grad(lambda t: drop(t, mask).sum()))(t.detach()[None].expand(3, 5, 4))[1], whole)


def test_transforms_and_compilers_keep_torchs_dropout_and_its_rules() -> None:
    mlp = network("cpu")
    parameters = dict(mlp.named_parameters())
    x = torch.randn(4, N, D, dtype=torch.float64)

    def outputs(randomness: str) -> Tensor:
        return vmap(lambda x: functional_call(mlp, parameters, (x,)), randomness=randomness)(x[:1].expand(4, N, D))

    same, different = outputs("same"), outputs("different")
    assert torch.equal(same[0], same[1])
    assert not torch.equal(different[0], different[1])
    with pytest.raises(RuntimeError, match="randomness"):
        outputs("error")
    torch.manual_seed(5)
    compiled = torch.compile(mlp, backend="eager", fullgraph=True)(x[0])
    torch.manual_seed(5)
    assert torch.equal(compiled, mlp.to_sequential()(x[0]))


class Recorded(TorchDispatchMode):
    """Stand for a CUDA graph: record operations, to run them again on the same memory; fail at what would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        assert func.overloadpacket.__name__ not in ("_local_scalar_dense", "nonzero", "masked_select"), f"{func} waits"
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(*([r] if isinstance(r, Tensor) else [] for r in (result, again)), strict=True):
                if old is not new and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.mark.parametrize("tile_rows", [None, 2])
def test_two_replays_of_a_captured_step_have_two_masks(tile_rows: int | None) -> None:
    mlp, x = network("cpu", tile_rows=tile_rows), torch.randn(N, D, dtype=torch.float64)
    t = torch.zeros(N, 9, dtype=torch.float64)
    with Recorded() as graph:
        _, y = backprop(mlp, x, t, "squared_error", return_output=True)
    masks = [y == 0]
    for _ in range(2):
        graph.replay()
        masks.append(y == 0)
    for a, b in itertools.combinations(masks, 2):
        assert not torch.equal(a, b)


KERNEL = """
import contextlib, functools, torch
torch.cuda.device_of = lambda t: contextlib.nullcontext()
from manual_mlp.dropout import Mask, draw_seed, drop
from manual_mlp.engines.triton import dropout
for shape in ((5, 7), (3, 2, 9), (130, 70), (4, 3000), (8,), (0, 4), (4, 0)):
    for p in (0.3, 0.999, 1.0):
        for dtype in (torch.float16, torch.float32, torch.float64):
            t = torch.randn(shape).to(dtype)
            mask = Mask(draw_seed(t.device), 3, p, 11)
            expected = drop(t, mask)
            rtol = 2e-3 if dtype == torch.float16 else 1e-7  # one rounds the factor, the other the product
            close = functools.partial(torch.testing.assert_close, rtol=rtol, atol=0)
            close(dropout.drop(t, mask), expected)
            close(dropout.drop(t.mT.contiguous().mT if t.dim() > 1 else t, mask), expected)
"""


@pytest.mark.processes
@pytest.mark.skipif(find_spec("triton") is None, reason="no Triton")
def test_the_kernel_for_a_gpu_computes_the_same_in_the_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-c", KERNEL],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.processes
def test_the_core_does_not_import_triton() -> None:
    code = "import sys, torch, manual_mlp; sys.exit('manual_mlp.engines.triton.dropout' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_network_keeps_what_torch_keeps_or_less() -> None:
    mlp, x, kept = network("cpu"), torch.randn(N, D, dtype=torch.float64), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t), nullcontext():
        mlp(x)
    # The input; the second weight, since the first layer learns; the hidden layer, and its mask unless it is hashed
    # again.
    mask = [] if native.doors is not None else [N * 9]
    assert sorted(t.numel() for t in kept if t is not None) == sorted([N * D, 9 * 9, N * 9, *mask])
