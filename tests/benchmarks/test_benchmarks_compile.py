"""The benchmark of what is compiled."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import compile as compile_command
from benchmarks.__main__ import main
from benchmarks.compile import graphs, rows
from briefly import BRIEF, CPU
from manual_mlp import Dense

COMMAND = ["compile", *BRIEF[:-2], "--quick"]
compiles = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="inductor needs C++")


def run_of(folder: Path, *arguments: str, status: int = 0) -> dict:
    assert main([*COMMAND, *arguments, "--json", "--results", str(folder)]) == status
    (path,) = folder.iterdir()
    return json.loads(path.read_text())["compile"]


def row_of(name: str) -> rows.Row:
    (row,) = (row for row in rows.ROWS if str(row) == name)
    return row


@compiles
@pytest.mark.usefixtures("brief")
def test_every_row_is_right_and_documented(tmp_path, capsys):
    given = ["--parts", "rows", "--mode", "default", "--way", "step", "--only", "relu"]
    found = run_of(tmp_path, *given)["rows"]
    found += run_of(tmp_path / "more", "--parts", "rows", "--mode", "max-autotune", "--only", "logistic forward")[
        "rows"
    ]
    assert [(row["group"], row["of"], row["way"], row["mode"]) for row in found] == [
        ("Dense", "relu", "step", "default"),
        ("MLP", "relu", "step", "default"),
        ("loss", "logistic", "forward", "max-autotune"),
    ]
    documented = set(re.findall(r"\w+", compile_command.__doc__))
    for row in found:
        assert row.keys() <= documented
        assert list(row["providers"]) == ["torch", "manual_mlp", "manual_mlp eager"]
        for provider in row["providers"].values():
            assert provider.keys() <= documented
            assert max(provider["error"].values()) < 1e-4
            assert not provider["wrong"]
        ours = row["providers"]["manual_mlp"]
        assert row["reached"] is (ours["ratio"][2] >= 0.97)
        assert set(ours["ratios"]) == {"torch", "manual_mlp eager"}
        assert ("dweight0" in ours["error"]) is (row["group"] == "MLP")
        assert (ours["error"].keys() == {"output"}) is (row["way"] == "forward")
        eager = row["providers"]["manual_mlp eager"]
        assert ours["peak_over_eager"] == pytest.approx(ours["peak_bytes"] / eager["peak_bytes"], rel=1e-3)
    printed = capsys.readouterr().out
    assert "of 2 rows reach 0.97" in printed
    assert printed.count("BELOW 0.97") == sum(not row["reached"] for row in found)


@compiles
@pytest.mark.usefixtures("brief")
def test_a_wrong_answer_fails_the_command(monkeypatch, capsys):
    monkeypatch.setattr(
        Dense, "forward", lambda self, h: F.relu(F.linear(h, self.weight.bfloat16().float(), self.bias))
    )
    given = ["--parts", "rows", "--mode", "default", "--way", "forward", "--only", "Dense 32×64→64 relu"]
    assert main([*COMMAND, *given]) == 1
    assert "WRONG manual_mlp" in capsys.readouterr().out


def test_the_rows_are_those_that_are_promised():
    named = {(row.group, row.case) for row in rows.ROWS}
    assert {case for group, case in named if group == "MLP"} == {
        "64→64×2→10, 32 rows",
        "784→512→256→10, 256 rows",
        "64→256×4→4, 8192 rows",
        "32→64×3→1, 65536 rows",
    }
    of = {(row.way, row.mode) for row in rows.ROWS}
    assert of == {(way, mode) for way in ("step", "forward") for mode in ("default", "max-autotune")}
    assert len(rows.ROWS) == len(of) * len({(row.group, row.case, row.of) for row in rows.ROWS}) == 64
    assert {row.of for row in rows.ROWS if row.group == "loss"} == {"cross-entropy", "logistic", "squared error"}


@pytest.mark.parametrize(
    "name",
    [
        "Linear 32×64→64 identity step default",
        "Dense 32×64→64 gelu step default",
        "MLP 64→64×2→10, 32 rows relu step default",
        "loss 128×256→10 bias cross-entropy step default",
        "loss 128×256→10 bias squared error step default",
    ],
)
def test_both_are_given_the_same_tensors_and_agree(name):
    made = row_of(name).make(CPU, torch.float64)
    of = {who: rows.outcome(rows.step_of(f, made, "step"), made) for who, f in made.functions.items()}
    assert of["torch"].keys() == of["manual_mlp"].keys() == {"output", *(f"d{leaf}" for leaf in made.leaves)}
    for key, expected in of["torch"].items():
        torch.testing.assert_close(of["manual_mlp"][key], expected, rtol=1e-9, atol=1e-9)


def test_a_forward_alone_asks_for_no_gradient():
    made = row_of("Dense 32×64→64 relu forward default").make(CPU, torch.float32)
    step = rows.step_of(made.functions["manual_mlp"], made, "forward")
    assert not step().requires_grad
    assert rows.outcome(step, made).keys() == {"output"}


class Breaking(nn.Linear):
    def forward(self, h):
        torch._dynamo.graph_break()
        return super().forward(h)


class Watching(nn.Linear):
    def forward(self, h):
        return super().forward(h) if self.training else F.linear(h, self.weight, self.bias)


@pytest.mark.parametrize(
    ("kind", "pattern", "expected"),
    [
        (nn.Linear, "one shape", (1, 0, 0)),
        (nn.Linear, "a third batch", (1, 1, 0)),
        (nn.Linear, "train, eval, train", (1, 0, 0)),
        (Watching, "train, eval, train", (1, 1, 0)),
        (nn.Linear, "no_grad", (1, 1, 0)),
        (nn.Linear, "frozen weights", (1, 1, 0)),
        (nn.Linear, "another dtype", (1, 1, 0)),
        (nn.Linear, "a new instance", (1, 0, 0)),
        (Breaking, "one shape", (1, 0, 1)),
    ],
)
def test_graphs_recompilations_and_breaks_are_counted(kind, pattern, expected):
    assert graphs.count(lambda: kind(16, 12), lambda *_: (), graphs.PATTERNS[pattern]) == expected


def test_eight_patterns_are_counted_for_every_subject():
    found = graphs.count_all(["Linear", "LinearCrossEntropyLoss, 3 rows at once"])
    assert [row["pattern"] for row in found] == [*graphs.PATTERNS] * 2
    assert len(graphs.PATTERNS) == 8
    assert {*graphs.SUBJECTS} >= {"MLP", "MLP with dropout", "Linear", "Dense", "cross-entropy"}
    assert all(row["torch"]["graphs"] == 1 and not row["torch"]["breaks"] for row in found)


def test_more_than_torchs_is_marked(monkeypatch):
    monkeypatch.setitem(graphs.SUBJECTS, "Linear", graphs.Subject(lambda: nn.Linear(16, 12), lambda: Watching(16, 12)))
    found = graphs.count_all(["Linear"])
    assert [row["pattern"] for row in found if row["more"]] == ["train, eval, train"]
    (line,) = (line for line in compile_command.graphs_table(found).splitlines() if "eval" in line)
    assert line.split()[-4:] == ["0,", "1", "0", "MORE"]
