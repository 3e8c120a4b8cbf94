"""Rows at once: what is swept, how far a choice is from the best, and which constants fit."""

import json
import re
from pathlib import Path

import pytest
import torch

from benchmarks import output, sizes
from benchmarks.layers import BASELINE
from benchmarks.network import cases
from benchmarks.sizes import fit, sweeps
from manual_mlp.sweep import tiling
from manual_mlp.sweep.tiling import Work, tiling_for

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


def test_a_sweep_goes_from_a_small_tile_to_all_rows_by_powers_of_two_and_has_the_choice():
    assert sweeps.candidates(512, 4096) == [32, 64, 128, 256, 512, 1024, 2048, 4096]
    assert sweeps.candidates(64, 4096) == [16, 32, 64, 128, 256, 512, 1024, 2048, 4096]
    assert sweeps.candidates(300, 1000) == [16, 32, 64, 128, 256, 300, 512, 1000]
    assert sweeps.candidates(1 << 21, 1 << 21) == [1 << k for k in range(14, 22)]
    # All is left to torch: then there is no choice of rows.
    assert sweeps.candidates(0, 4096) == [32, 64, 128, 256, 512, 1024, 2048, 4096]
    assert sweeps.candidates(5, 5) == [5]


@pytest.mark.parametrize(
    ("made", "work"),
    [
        (sweeps.of_loss(output.Case(300, 8, 500), CPU), Work(300, (8, 500), torch.float32, 0, loss=True)),
        (sweeps.of_loss(output.Case(300, 8, 500, "bfloat16"), CPU), Work(300, (8, 500), torch.float32, 0, loss=True)),
        (sweeps.of_network(cases.Case((8, 16, 4), 300), CPU), Work(300, (8, 16, 4), torch.float32, 0)),
    ],
)
def test_the_bytes_of_a_row_give_the_choice_of_the_model_for_a_gpu(made, work, monkeypatch):
    for limit in (1, 10_000, 100_000, 1 << 40):
        monkeypatch.setattr(tiling, "LIMIT_OF_LOGITS" if work.loss else "LIMIT", limit)
        tiling_for.cache_clear()
        assert str(tiling_for(work).rows) == fit.by_limit(made._asdict(), limit)
    tiling_for.cache_clear()


@pytest.mark.usefixtures("brief")
def test_every_row_and_field_is_documented_and_the_cost_of_the_choice_is_its_time_over_the_best(tmp_path, capsys):
    flags = ["--tiny", "--device", "cpu", "--threads", "1", "--malloc", "default"]
    assert sizes.main([*flags, "--seconds", "0.001", "--json", "--results", str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    run = json.loads(path.read_text())["sizes"]
    documented = set(re.findall(r"\w+", sizes.__doc__))
    assert "constants" not in run
    assert {row["argument"] for row in run["rows"]} == {"chunk_rows", "tile_rows"}
    for row in run["rows"]:
        assert row.keys() <= documented
        providers = row["providers"]
        assert (BASELINE in providers) is (row["argument"] == "chunk_rows")
        assert {str(row["rows"]), row["chosen"], row["best"]} <= providers.keys()
        medians = {name: provider["median_us"] for name, provider in providers.items()}
        assert medians[row["best"]] == min(medians.values())
        assert row["over_best"] == providers[row["best"]]["ratio"]
        assert providers[row["chosen"]]["ratio"] == [1, 1, 1]
        assert all(provider.keys() <= documented and provider["peak_bytes"] > 0 for provider in providers.values())
    assert "over the best [95 %]" in capsys.readouterr().out


def test_the_swept_step_takes_the_rows_that_it_is_told(monkeypatch):
    asked = []
    monkeypatch.setattr(sweeps, "by_hand", lambda problem, rows: lambda: asked.append(rows))
    sweeps.of_network(cases.Case((8, 4), 64), CPU).step(32)()

    def loss(h, w, target, *, linear_bias, chunk_rows):
        asked.append(chunk_rows)
        return (h @ w.T).sum()

    monkeypatch.setattr(output, "linear_cross_entropy", loss)
    sweeps.of_loss(output.Case(64, 8, 500), CPU).step(16)()
    assert asked == [32, 16]


# A made-up card, on which each chunk, or tile, costs a time of its own.
V, N = 128256, 4096


def measured(argument: str, rows: int, row_bytes: int, us: dict[int | str, float]) -> dict:
    providers = {
        str(name): {"median_us": time, "peak_bytes": row_bytes * k} for k, (name, time) in enumerate(us.items())
    }
    return {"argument": argument, "rows": rows, "row_bytes": row_bytes, "providers": providers}


def by_chunks(fixed: float, of_chunk: float, rows: int = N) -> dict[int | str, float]:
    sizes_ = [1 << k for k in range(5, rows.bit_length())]
    return {size: fixed + of_chunk * rows / size for size in sizes_}


def test_the_limit_that_fits_is_the_smallest_within_five_percent_of_the_best():
    # 100 + 1 for each chunk: four chunks are within 5 % of one, eight are not: 1024 rows of 4 V bytes.
    rows = [measured("chunk_rows", N, 4 * V, by_chunks(100.0, 1.0) | {BASELINE: 1.0})]
    (limit, _) = fit.constants(rows)
    assert limit["constant"] == "LIMIT_OF_LOGITS"
    assert limit["in_code"] == tiling.LIMIT_OF_LOGITS
    assert limit["fits"] == 1 << (1024 * 4 * V - 1).bit_length() == 2**29
    assert limit["fits_cost"]["worst"] == pytest.approx(104 / 101)
    # The code's 2^28 bytes are 512 rows.
    assert limit["in_code_cost"]["worst"] == pytest.approx(108 / 101)


def test_a_limit_is_judged_by_its_worst_row_and_costs_the_mean_of_all():
    rows = [
        measured("tile_rows", N, 1 << 12, by_chunks(100.0, 0.0)),
        measured("tile_rows", N, 1 << 16, by_chunks(100.0, 10.0)),
    ]
    (limit,) = fit.constants(rows)
    assert limit["constant"] == "LIMIT"
    # Of the second one tile alone is good enough: 4096 rows of 2^16 bytes.
    assert limit["fits"] == 2**28
    assert limit["rows"] == 2
    cost = fit.cost_of(2**27, fit.by_limit, rows)
    assert cost.worst == pytest.approx(120 / 110)
    assert cost.mean == pytest.approx((120 / 110) ** 0.5)
    assert cost.peak_bytes == 6 << 16


def test_where_no_limit_is_good_for_all_rows_the_least_bad_one_is_taken():
    rows = [
        measured("tile_rows", 64, 1 << 14, {16: 1.0, 32: 1.3, 64: 2.0}),
        measured("tile_rows", 64, 1 << 14, {16: 2.0, 32: 1.2, 64: 1.0}),
    ]
    (limit,) = fit.constants(rows)
    assert limit["fits"] == 32 << 14
    assert limit["fits_cost"]["worst"] == pytest.approx(1.3)


def test_a_limit_whose_choice_was_not_measured_is_not_judged():
    row = measured("tile_rows", 64, 1 << 10, {32: 1.0, 64: 1.0})
    assert fit.cost_of(16 << 10, fit.by_limit, [row]) is None
    assert fit.fit([16 << 10], fit.by_limit, [row]) is None
    assert sizes.written(None) == "none was measured"


def test_few_are_the_logits_below_which_torch_is_quicker():
    few, some, many = (
        measured("chunk_rows", rows, 4 * 1024, {rows: ours, BASELINE: torchs})
        for rows, ours, torchs in ((64, 2.0, 1.0), (512, 2.0, 1.0), (4096, 1.0, 2.0))
    )
    *_, found = fit.constants([few, some, many])
    assert found["constant"] == "FEW_LOGITS_OF_CUDA"
    # 2^19 logits are torch's, 2^22 ours.
    assert found["fits"] == 2**20
    assert found["fits_cost"]["worst"] == 1.0
    # The code's leaves the last to torch as well.
    assert found["in_code_cost"]["worst"] == 2.0


def test_the_constants_are_told_beside_those_in_the_code(capsys):
    rows = [measured("tile_rows", N, 1 << 16, by_chunks(100.0, 10.0))]
    table = sizes.constants_table(fit.constants(rows)).splitlines()
    assert [line.split() for line in table[1:]] == [
        ["LIMIT", "1", "in", "code", "2^30", "+0.0%", "+0.0%", "0.5"],
        ["LIMIT", "1", "fits", "2^28", "+0.0%", "+0.0%", "0.5"],
    ]


def test_the_page_reckons_what_chunks_cost_from_operations_and_bytes():
    page = (ROOT / "docs" / "gpu.md").read_text("utf-8").partition("## What we expect of chunks")[2]
    n, d, v = 4096, 4096, 128256
    operations, moved = 989e9, 3.35e9  # of an H100, in a millisecond

    def row(of_logits: int, chunks: int) -> list[float]:
        # A chunk writes and reads the product, and reads and writes the total; zeros and rounding come once.
        dw = (12 * chunks + 10) * v * d / moved if chunks else 0.0
        found = [6 * n * d * v / operations, of_logits * n * v / moved, dw]
        return [*found, sum(found)]

    unfused = row(12, 0)
    for line, expected in zip(
        [line for line in page.splitlines() if line.startswith(("| ours", "| unfused"))],
        [unfused, row(40, 0), row(44, 2), row(44, 8)],
        strict=True,
    ):
        *times, ratio = (cell.strip() for cell in line.split("|")[2:-1])
        assert [float(time) if time != "–" else 0.0 for time in times] == [round(each, 1) for each in expected]
        assert float(ratio) == round(unfused[-1] / expected[-1], 2)
    assert str(tiling_for(Work(n, (d, v), torch.bfloat16, 0, loss=True)).rows) == "512"
