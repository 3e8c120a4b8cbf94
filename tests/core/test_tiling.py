"""How many rows at once: what the model of sweep/tiling.py chooses."""

from itertools import pairwise, product
from math import ceil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from manual_mlp import precision
from manual_mlp.activations import IDENTITY
from manual_mlp.formulas.layer import Layer
from manual_mlp.precision import product_dtype, speed_of
from manual_mlp.sweep import tiling
from manual_mlp.sweep.tiling import Tiling, Work, few_logits, tiling_for, tiling_of, tiling_of_loss

sizes = st.integers(1, 100_000)
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float64])
float32 = torch.float32
KINDS = (), ("recompute",), ("shared",), ("shared", "recompute"), ("loss",)


def work(*widths: int, n: int, threads: int = 1, **kinds: bool) -> Work:
    return Work(n, widths, float32, threads, **kinds)


def loss_seconds(n: int, d: int, v: int, c: int) -> float:
    """Evaluate T(c) for a layer with its loss on one core in float32, as the module's docstring states it."""
    products = 6 * n * d * v / tiling.PRODUCTS
    again = ceil(n / c) * (tiling.WIDE_CALLS + 3 * 4 * d * v / tiling.MEMORY)
    return products + 4 * n * v / tiling.LOSS + again + 4 * c * v / tiling.FRESH


def network_seconds(n: int, widths: tuple[int, ...], c: int) -> float:
    """Evaluate T(c) for a network on one core in float32, whose tiles stay in the third level of the cache."""
    weights, s = sum(a * b for a, b in pairwise(widths)), sum(widths[1:])
    busy = 6 * n * weights / tiling.PRODUCTS + 40 * n * s / tiling.THIRD_LEVEL
    calls = ceil(n / c) * (len(widths) * tiling.CALL + 12 * weights / tiling.MEMORY)
    return busy + calls + 4 * c * (s + 2 * max(widths[1:])) / tiling.FRESH


@pytest.mark.parametrize(
    ("n", "d", "v"), [(2048, 64, 4096), (1024, 512, 8192), (4096, 512, 32000), (512, 256, 1000), (64, 512, 32000)]
)
def test_the_choice_for_a_loss_is_the_smallest_within_five_percent_of_the_best(n: int, d: int, v: int) -> None:
    chosen = tiling_for(work(d, v, n=n, loss=True))
    candidates = sorted({n, *(2**k for k in range(4, 20) if 2**k < n)})
    best = min(loss_seconds(n, d, v, c) for c in candidates)
    assert chosen == Tiling(min(c for c in candidates if loss_seconds(n, d, v, c) <= 1.05 * best))


def test_the_choice_for_a_network_is_the_smallest_within_five_percent_of_the_best(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tiling, "capabilities", lambda: {"l2_cache_size": 0})
    monkeypatch.setattr(tiling, "THIRD_LEVEL_BYTES", 2**40)
    n, widths = 2**16, (64, 256, 256, 256, 65)
    candidates = [2**k for k in range(6, 16)]
    best = min(network_seconds(n, widths, c) for c in candidates)
    chosen = tiling_for(work(*widths, n=n)).rows
    assert chosen == min(c for c in candidates if network_seconds(n, widths, c) <= 1.05 * best)


def test_tiles_that_threads_share_are_no_wider_and_every_thread_has_one() -> None:
    widths, n = (64, 64, 64, 64, 64, 64), 2**17
    for threads in (2, 4):
        alone, shared = (tiling_for(work(*widths, n=n, threads=threads, shared=s)) for s in (False, True))
        assert (alone.workers, shared.workers) == (1, threads)
        assert shared.rows <= alone.rows


@given(sizes, st.integers(1, 20_000), sizes, dtypes, st.integers(0, 4), st.sampled_from(KINDS))
def test_any_size_has_an_answer_within_the_limit(
    n: int, d: int, v: int, dtype: torch.dtype, threads: int, kinds: tuple[str, ...]
) -> None:
    rows, workers = tiling_for(Work(n, (d, v), dtype, threads, **dict.fromkeys(kinds, True)))
    assert 1 <= rows <= n
    assert rows == n or rows & (rows - 1) == 0
    assert 1 <= workers <= (max(1, threads) if "shared" in kinds else 1)
    assert workers <= ceil(n / rows)
    if "loss" in kinds:
        most = tiling.LOGITS if threads else tiling.LIMIT_OF_LOGITS
        assert rows <= 16 or rows * v * max(dtype.itemsize, 4) <= most


def network(*widths: int) -> list[Layer]:
    return [Layer(torch.empty(b, a, device="meta"), None, IDENTITY) for a, b in pairwise(widths)]


def test_few_rows_are_one_tile() -> None:
    assert tiling_of(network(64, 64, 10), torch.empty(tiling.FEW, 64)) == Tiling(tiling.FEW)


def test_a_choice_is_that_for_the_rows_at_hand() -> None:
    threads = torch.get_num_threads()
    h = torch.empty(1, 1).expand(2**15, 64)
    for recompute, shared in product((False, True), repeat=2):
        expected = tiling_for(Work(2**15, (64, 256, 10), float32, threads, shared, recompute))
        assert tiling_of(network(64, 256, 10), h, recompute=recompute, shared=shared) == expected
    expected = tiling_for(Work(2**15, (64, 1000), torch.bfloat16, threads, loss=True))
    assert tiling_of_loss(h, 1000, torch.bfloat16) == expected


def test_few_logits_are_left_to_torch() -> None:
    assert few_logits(128, 10, cuda=False)
    assert few_logits(1, 50_000, cuda=False)
    assert not few_logits(1024, 1024, cuda=False)
    assert few_logits(1024, 1024, cuda=True)


def test_given_rows_are_taken_and_shared_by_as_many_threads_as_have_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    layers, h = network(4, 3), torch.empty(100, 4)
    tilings = [tiling_of(layers, h, rows, shared=True) for rows in (30, 60, 1000)]
    assert tilings == [Tiling(30, 4), Tiling(60, 2), Tiling(100, 1)]
    assert [tiling_of(layers, h, rows) for rows in (30, 60, 1000)] == [Tiling(30), Tiling(60), Tiling(100)]
    assert tiling_of_loss(h, 3, float32, 30) == Tiling(30, 1)


def test_tiles_are_wider_where_reading_the_weight_again_costs_more() -> None:
    # Twice the inputs are twice the weight, and as many logits.
    chosen = [tiling_for(work(d, 4096, n=1024, loss=True)).rows for d in (16, 64, 256, 1024)]
    assert chosen == sorted(chosen)
    assert chosen[0] < chosen[-1]


def test_tiles_are_no_smaller_where_they_are_run_forward_once_more() -> None:
    widths = 32, 256, 256, 256, 3
    assert tiling_for(work(*widths, n=2**16)).rows < 2**16
    assert tiling_for(work(*widths, n=2000, recompute=True)).rows >= tiling_for(work(*widths, n=2000)).rows


@pytest.mark.parametrize("name", ["amx_bf16", "avx512_bf16"])
def test_products_in_bfloat16_are_fast_on_a_cpu_with_instructions_for_them(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for has in (True, False):
        monkeypatch.setattr(precision, "capabilities", lambda has=has: {name: has})
        assert product_dtype(torch.bfloat16, cpu) is (torch.bfloat16 if has else torch.float32)
        assert product_dtype(torch.bfloat16, cuda) is torch.bfloat16
        assert product_dtype(torch.float16, cpu) is torch.float32
        assert product_dtype(torch.float64, cpu) is torch.float64
        assert (speed_of(torch.bfloat16) > 1) is has
    monkeypatch.setattr(precision, "capabilities", dict)
    assert product_dtype(torch.bfloat16, cpu) is torch.float32
