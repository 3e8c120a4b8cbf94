"""The curves of an output layer's loss: time against memory, by the number of chunks."""

import json
import re
import shutil

import pytest
import torch
import torch.nn.functional as F

from benchmarks import output, peers
from benchmarks.__main__ import main
from briefly import OUTPUT
from manual_mlp.engines import native
from manual_mlp.formulas.cross_entropy import CrossEntropy

CASE = "600x8x500"
compiles = pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="inductor needs C++")


@compiles
@pytest.mark.usefixtures("brief", "alone")
def test_every_point_is_right_documented_and_drawn(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "peers.png"
    given = ["--peers", "--chunks", "1", "4", "--picture", str(picture), "--json", "--results", str(tmp_path / "found")]
    assert main([*OUTPUT, CASE, *given]) == 0
    (path,) = (tmp_path / "found").iterdir()
    (row,) = json.loads(path.read_text())["output-peers"]["rows"]
    documented = set(re.findall(r"\w+", peers.__doc__))
    assert row.keys() <= documented
    curves: dict[str, list[int]] = {}
    for point in row["providers"].values():
        assert point.keys() <= documented
        assert max(point["error"].values()) < 1e-4
        curves.setdefault(point["curve"], []).append(point["chunks"])
    ours = {curve: curves[curve] for curve in curves if curve.startswith("manual_mlp")}
    assert ours == {"manual_mlp": [0, 1, 4], "manual_mlp compiled": [0, 1, 4]}
    assert curves["torch"] == curves["torch compiled"] == [0]
    for curve in ("torch chunked", "torch chunked compiled"):
        assert curves[curve] == [1, 4] if curve in curves else f"{curve}, 1 chunk" in row["left_out"]
    peaks = [row["providers"][name]["peak_bytes"] for name in ("torch", "manual_mlp, 1 chunk", "manual_mlp, 4 chunks")]
    assert peaks[0] > peaks[1] > peaks[2] > row["least_bytes"]
    printed = capsys.readouterr().out
    assert f"drawn: {picture}" in printed
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_report_draws_the_curves_of_every_case(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    point = {"median_us": 1500.0, "peak_bytes": 3_000_000}
    of = {f"{c}{n}": {**point, "curve": c, "chunks": n} for c in ("torch", "manual_mlp") for n in (0, 2, 4)}
    rows = [{"case": case, "threads": 1, "malloc": "default", "providers": of} for case in "abb"]
    run = {"date": "2026-11-24 02:24 UTC", "settings": {"quick": False}, "machine": {"device": "cpu"}, "rows": rows}
    (tmp_path / "some.json").write_text(json.dumps({"output-peers": run}))
    (tmp_path / "README.md").write_text("")
    assert main(["report", "--results", str(tmp_path), "--documents", str(tmp_path / "README.md")]) == 0
    assert "peers.png" in capsys.readouterr().out
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")


def test_of_numbers_of_chunks_that_no_rows_tell_apart_there_is_one():
    found = peers.points(5, (1, 2, 4, 8, 64))
    assert [chunks for curve, chunks in found.values() if curve == "manual_mlp"] == [0, 1, 2, 4, 8]
    # A chunk of 5 rows in 4 chunks is 2 rows, as in 3; of 64 chunks it is one, as in 8.
    assert [-(-5 // n) for n in (1, 2, 4, 8)] == [5, 3, 2, 1]
    assert found["manual_mlp, 8 chunks"] == ("manual_mlp", 8)
    assert found["manual_mlp, 1 chunk"] == ("manual_mlp", 1)


@pytest.mark.parametrize("chunks", [2, 3, 7])
def test_ours_is_told_its_chunks(monkeypatch, chunks):
    seen, values = [], CrossEntropy.values

    def spy(self, z, *rest):
        seen.append(len(z))
        return values(self, z, *rest)

    monkeypatch.setattr(CrossEntropy, "values", spy)
    tensors, target = output.Case(21, 8, 500).tensors(torch.device("cpu"))
    with native.without():
        peers.loss_of(("manual_mlp", chunks), 21)(tensors["input"], tensors["weight"], target, None)
    assert sum(seen) == 21
    assert len(seen) == chunks


def test_the_compiler_keeps_what_is_alone_apart():
    seen: list[torch.fx.GraphModule] = []

    def backend(graph, inputs):
        seen.append(graph)
        return graph.forward

    def make(k):
        return lambda x: x * k

    torch.compiler.reset()
    for k in range(12):  # more than the compiler would keep of one code
        f = torch.compile(peers.alone(make(k)), backend=backend, dynamic=False)
        assert f(torch.ones(2)).tolist() == [k, k]
        assert len(seen) == k + 1


@pytest.mark.usefixtures("brief", "alone")
@compiles
def test_a_wrong_point_of_ours_fails_the_command(monkeypatch, capsys):
    def rounded(chunk_rows=None):
        return lambda h, w, target, b: F.cross_entropy(F.linear(h, w.bfloat16().float(), b), target)

    monkeypatch.setitem(output.PROVIDERS, "manual_mlp", rounded)
    monkeypatch.delitem(output.PROVIDERS, "torch chunked")
    assert main([*OUTPUT, CASE, "--peers", "--chunks", "1"]) == 1
    assert "WRONG" in capsys.readouterr().out


def test_chunks_are_for_peers(capsys):
    with pytest.raises(SystemExit):
        output.read_options([*OUTPUT[1:], CASE, "--chunks", "2"])
    assert "--chunks and --picture are for --peers" in capsys.readouterr().err
    options = output.read_options(["--peers", "--quick", "--device", "cpu"])
    assert options.case == [*peers.QUICK_CASES]
