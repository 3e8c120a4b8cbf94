"""How many rows of logits at once: what the model of chunks.py chooses."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from manual_mlp.chunks import CPU, CUDA, rows_at_once

from manual_mlp import chunks

sizes = st.integers(1, 100_000)
float32 = torch.float32


def seconds(n: int, d: int, v: int, c: int) -> float:
    """Evaluate T(c) for one core and float32, as the module's docstring states it."""
    products = 6 * n * d * v / CPU.products
    logits = 4 * n * v / CPU.logits
    weights = -(-n // c) * (4 * d * v / CPU.weight + CPU.chunk)
    return products + logits + weights + 4 * c * v / CPU.fresh + CPU.step


@pytest.fixture
def one_core() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_core")
@pytest.mark.parametrize(
    ("n", "d", "v"), [(2048, 64, 4096), (1024, 512, 8192), (4096, 512, 32000), (512, 256, 1000), (64, 512, 32000)]
)
def test_the_choice_is_the_smallest_within_five_percent_of_the_best(n: int, d: int, v: int) -> None:
    chosen = rows_at_once(n, d, v, float32, "cpu")
    candidates = sorted({n, *(2**k for k in range(4, 20) if 2**k < n)})
    best = min(seconds(n, d, v, c) for c in candidates)
    assert chosen == min(c for c in candidates if seconds(n, d, v, c) <= 1.05 * best)


@given(sizes, st.integers(1, 20_000), sizes, st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
def test_any_size_has_an_answer_within_the_limit(n: int, d: int, v: int, dtype: torch.dtype) -> None:
    for device, rates in (("cpu", CPU), ("cuda", CUDA)):
        c = rows_at_once(n, d, v, dtype, device)
        assert 0 <= c <= n
        assert c in (0, n) or c & (c - 1) == 0
        assert c <= 16 or c * v * max(dtype.itemsize, 4) <= rates.limit


def test_small_logits_are_left_to_torch() -> None:
    assert rows_at_once(128, 256, 10, float32, "cpu") == 0
    assert rows_at_once(1, 512, 50_000, float32, "cpu") == 0
    assert rows_at_once(1024, 64, 1024, float32, "cpu") > 0


@pytest.mark.usefixtures("one_core")
def test_chunks_are_wider_where_reading_the_weight_again_costs_more() -> None:
    # Twice the inputs are twice the weight, and as many logits.
    chosen = [rows_at_once(65536, d, 4096, float32, "cpu") for d in (16, 64, 256, 1024)]
    assert chosen == sorted(chosen)
    assert chosen[0] < chosen[-1]


@pytest.mark.parametrize("name", ["amx_bf16", "avx512_bf16"])
def test_products_in_bfloat16_are_fast_on_a_cpu_with_instructions_for_them(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for has in (True, False):
        monkeypatch.setattr(chunks, "capabilities", lambda has=has: {name: has})
        assert chunks.has_fast_products(torch.bfloat16, "cpu") is has
        assert chunks.has_fast_products(torch.bfloat16, "cuda")
        assert (chunks.speed_of(torch.bfloat16) > 1) is has
    monkeypatch.setattr(chunks, "capabilities", dict)
    assert not chunks.has_fast_products(torch.bfloat16, "cpu")
