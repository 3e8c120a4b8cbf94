"""Benchmarks of the last layer and its loss."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import harness
from benchmarks import output as output_command
from benchmarks.__main__ import main
from briefly import CPU, OUTPUT, OUTPUT_CASES, output_rows
from manual_mlp.engines import native
from manual_mlp.formulas.cross_entropy import CrossEntropy


@pytest.mark.usefixtures("brief", "alone")
def test_every_output_row_is_right_and_documented(tmp_path, capsys):
    rows = output_rows(tmp_path, *OUTPUT_CASES)
    assert [row["case"] for row in rows] == [str(output_command.read_case(text)) for text in OUTPUT_CASES]
    documented = set(re.findall(r"\w+", output_command.__doc__))
    for row in rows:
        assert row.keys() <= documented
        assert {"torch", "manual_mlp"} <= row["providers"].keys() <= set(output_command.PROVIDERS)
        for provider in row["providers"].values():
            assert provider.keys() <= documented
            assert provider["error"].keys() == {"output", "dinput", "dweight"} | ({"dbias"} if row["bias"] else set())
            assert ("peak_bytes" in provider) is not row["saturated"]
            assert ("over_usual" in provider) is row["saturated"]
        assert max(row["providers"]["manual_mlp"]["error"].values()) < {"float64": 1e-12, "float32": 1e-4}.get(
            row["dtype"], 0.1
        )
        assert ("chunk_errors" in row) is (row["dtype"] == "bfloat16")
    assert rows[0]["least_bytes"] == 8 * (5 * 7 + 4 * 7 + 4)
    assert rows[2]["least_bytes"] == 2 * 8 * (600 + 500) + 4 * 8 * 500
    printed = capsys.readouterr().out
    assert "torch/ours [95 %]" in printed
    assert "left out" not in printed or not hasattr(torch.nn, "LinearCrossEntropyOptions")


@pytest.mark.usefixtures("brief", "alone")
def test_a_saturated_row_is_compared_with_the_usual_one_of_its_kind(tmp_path, capsys):
    usual, saturated = output_rows(tmp_path, "5x7x4", "5x7x4-saturated")
    for name, provider in saturated["providers"].items():
        expected = provider["median_us"] / usual["providers"][name]["median_us"]
        assert provider["over_usual"] == pytest.approx(expected, rel=1e-3)
    assert f"{saturated['providers']['torch']['over_usual']:.1f}x" in capsys.readouterr().out


@pytest.mark.usefixtures("brief", "alone")
def test_the_usual_rows_of_another_dtype_are_no_twin(tmp_path, capsys):
    _, saturated = output_rows(tmp_path, "5x7x4-float64", "5x7x4-saturated")
    assert "over_usual" not in saturated["providers"]["torch"]
    assert "saturated logits" not in capsys.readouterr().out


@pytest.mark.usefixtures("brief", "alone")
def test_products_in_too_few_digits_are_marked_and_fail_the_command(monkeypatch, capsys):
    def rounded(chunk_rows=None):
        def loss(h, w, target, b):
            return F.cross_entropy(F.linear(h, w.bfloat16().float(), b), target)

        return loss

    monkeypatch.setitem(output_command.PROVIDERS, "manual_mlp", rounded)
    assert main([*OUTPUT, "600x8x500"]) == 1
    assert "WRONG manual_mlp" in capsys.readouterr().out


@pytest.mark.usefixtures("brief", "alone")
def test_another_provider_that_is_wrong_is_marked_but_does_not_fail_the_command(monkeypatch, capsys):
    monkeypatch.setitem(
        output_command.PROVIDERS, "torch chunked", lambda: lambda h, w, y, b: 1.01 * F.cross_entropy(h @ w.mT, y)
    )
    assert main([*OUTPUT, "5x7x4"]) == 0
    assert "WRONG torch chunked" in capsys.readouterr().out


@pytest.mark.usefixtures("brief")
def test_a_provider_that_does_not_run_is_left_out_in_one_line(monkeypatch, tmp_path, capsys):
    def no_package():
        raise ImportError("no such package")

    def no_driver():
        def loss(h, w, target, b):
            if h.dtype == torch.float32:
                raise RuntimeError("0 active drivers\nand more")
            return F.cross_entropy(F.linear(h, w, b), target)

        return loss

    monkeypatch.setitem(output_command.PROVIDERS, "torch chunked", no_package)
    monkeypatch.setitem(output_command.PROVIDERS, "Liger-Kernel", no_driver)
    monkeypatch.delitem(output_command.PROVIDERS, "cut-cross-entropy")
    single, double = output_rows(tmp_path, "5x7x4", "5x7x4-float64")
    assert list(single["providers"]) == ["torch", "manual_mlp"]
    assert list(double["providers"]) == ["torch", "manual_mlp", "Liger-Kernel"]
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert line == (
        "left out: torch chunked (no such package); left out of 5×7→4 float32: Liger-Kernel (0 active drivers)"
    )


def test_the_error_of_many_chunks_is_found(monkeypatch):
    def narrow_sum(chunk_rows=None):
        def loss(h, w, target, b):
            # Each chunk reads its own w, so that the chunks' shares of dw are added in w's dtype.
            parts = zip(h.split(chunk_rows), target.split(chunk_rows), strict=True)
            losses = [F.cross_entropy(F.linear(a, w).float(), t, reduction="sum") for a, t in parts]
            return sum(losses) / len(h)

        return loss

    monkeypatch.setitem(output_command.PROVIDERS, "torch chunked", narrow_sum)
    names = ("torch", "manual_mlp", "torch chunked")
    tensors, target = output_command.Case(256, 16, 64, "bfloat16").tensors(CPU)
    layer = output_command.layers_of(names, target)["torch"]
    exact = harness.gradients(layer, harness.in_float64(tensors), torch.ones((), dtype=torch.float64))["dweight"]
    found = output_command.chunk_errors(names, tensors, target, exact)
    ours, narrow = ([found[name][str(count)] for count in output_command.CHUNK_COUNTS] for name in names[1:])
    assert max(ours) <= 1.05 * min(ours)
    assert narrow[-1] > 2 * max(narrow[0], *ours)
    table = output_command.chunks_table([{"case": "a case", "chunk_errors": found}])
    assert [line.split()[:3] for line in table.splitlines()[1:]] == [["a", "case", name] for name in ("ours", "torch")]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [(5, 7, 4), (600, 8, 3000)])
def test_the_rows_of_a_chunk_are_those_that_ours_takes(monkeypatch, size, dtype):
    seen, values = [], CrossEntropy.values

    def spy(self, z, *rest):
        seen.append(len(z))
        return values(self, z, *rest)

    monkeypatch.setattr(CrossEntropy, "values", spy)
    case = output_command.Case(*size, dtype)
    tensors, target = case.tensors(CPU)
    with native.without():
        harness.gradients(output_command.layers_of(["manual_mlp"], target)["manual_mlp"], tensors, torch.ones(()))
    assert max(seen, default=0) == output_command.chosen_rows(case, CPU)


def test_bare_products_are_the_three_of_a_step():
    case = output_command.Case(5, 7, 4)
    tensors, _ = case.tensors(CPU)
    with FlopCounterMode(display=False) as counter:
        output_command.bare_products(tensors)()
    assert counter.get_total_flops() == case.flops
    assert output_command.bare_us(tensors, 0.001) > 0
