"""The benchmark of the native engine's goals."""

import json
import re
from pathlib import Path

import pytest
import torch

from benchmarks import native as native_command
from benchmarks import native_rows, products
from benchmarks.__main__ import main
from briefly import BRIEF, CPU
from manual_mlp.engines import native

if native.doors is None:
    pytest.skip(f"native is off: {native.why()}", allow_module_level=True)

COMMAND = ["native", *BRIEF[:-2]]


def rows_of(folder: Path, *arguments: str, status: int = 0) -> list[dict]:
    assert main([*COMMAND, *arguments, "--json", "--results", str(folder)]) == status
    (path,) = folder.iterdir()
    return json.loads(path.read_text())["native"]["rows"]


@pytest.mark.usefixtures("brief")
def test_every_row_of_the_goals_is_right_and_documented(tmp_path, capsys):
    rows = rows_of(tmp_path, "--quick")
    assert {row["group"] for row in rows} == set(native_command.GROUPS) - {"second order"}
    documented = set(re.findall(r"\w+", native_command.__doc__))
    for row in rows:
        assert row.keys() <= documented
        assert list(row["providers"]) == ["torch", "manual_mlp", "plain", "products"]
        for name, provider in row["providers"].items():
            assert provider.keys() <= documented
            assert ("error" in provider) is (name != "products" and not ("dropout" in row["group"] and name == "torch"))
        assert row["reached"] is (row["providers"]["manual_mlp"]["ratio"][0] >= row["goal"])
        assert max(row["providers"]["manual_mlp"]["error"].values()) < (0.1 if "bfloat16" in row["case"] else 1e-4)
    printed = capsys.readouterr().out
    assert f"of {len(rows)} goals are reached" in printed
    assert printed.count("MISSED") == sum(not row["reached"] for row in rows)


@pytest.mark.usefixtures("brief")
def test_second_order_and_a_network_with_dropout_run(tmp_path):
    rows = rows_of(tmp_path, "--only", "hvp 64")
    rows += rows_of(tmp_path / "more", "--group", "backprop with dropout", "--only", "32 rows")
    assert [row["goal"] for row in rows] == [1.12, 3.5]


def test_a_row_is_measured_against_plain_without_native():
    row = next(row for row in native_command.ROWS if str(row) == "layer 32×64→64 relu")
    steps = row.make(CPU).steps
    seen = []

    def spy(*args):
        seen.append(native.doors is None)
        return steps["manual_mlp"](*args)

    native_command.plainly(spy)()
    spy()
    assert seen == [True, False]


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("layer 32×64→64 relu", 3),
        ("backprop 64×3→10, 32 rows relu", 8),
        ("head 128×256→10 bias float32 cross-entropy", 3),
    ],
)
def test_the_products_are_those_of_torchs_step(name, count):
    row = next(row for row in native_command.ROWS if str(row).replace("64→64×2→10", "64×3→10") == name)
    made = row.make(CPU)
    step = products.products_of(made.steps["torch"], CPU)
    with torch.autograd.profiler.profile() as profiler:
        step()
    assert sum(event.name == "aten::mm" for event in profiler.function_events) == count


def test_goals_depend_on_threads_and_on_the_malloc_where_they_say_so():
    goal = native_rows.Goal(1.9, 1.8, (3.2, 3.1))
    assert [goal.at(malloc, n) for malloc in ("tuned", "default") for n in (1, 2)] == [1.9, 1.8, 3.2, 3.1]
    assert native_rows.Goal(1.2, 1.2).at("default", 1) == 1.2


@pytest.mark.parametrize(
    ("group", "host", "goal"), [("layer", 9.5, 1.2), ("backprop", 9.5, 1.5), ("backprop", 5.0, 1.0), ("head", 5.0, 1.0)]
)
def test_on_cuda_ours_is_to_save_launches_where_they_bind(group, host, goal):
    row = next(row for row in native_rows.ROWS if row.group == group)
    torchs = {"median_us": 10.0, "host_us": host}
    assert native_command.of_launches(row, {"providers": {"torch": torchs}}) == goal


def test_a_miss_says_what_the_limit_is():
    def row(ours, plain, products, peak=1.0):
        providers = {
            "torch": {"wrong": False},
            "manual_mlp": {"ratio": ours, "ratios": {"plain": plain}, "wrong": False, "peak_bytes": peak},
            "plain": {"wrong": False, "peak_bytes": 1.0},
            "products": {"ratio": products, "wrong": False},
        }
        return {"providers": providers, "goal": 1.2, "reached": ours[0] >= 1.2, "busy": False}

    assert native_command.verdict(row([1.3, 1.2, 1.4], [1.1, 1.0, 1.2], [2.0])) == ""
    assert (
        native_command.verdict(row([1.1, 1.0, 1.15], [1.1, 1.0, 1.2], [1.15])) == "MISSED, its products alone miss it"
    )
    assert (
        native_command.verdict(row([1.1, 1.0, 1.3], [0.9, 0.8, 0.95], [2.0]))
        == "MISSED within the interval, BELOW PLAIN"
    )


@pytest.mark.usefixtures("brief")
def test_without_native_the_command_says_so(monkeypatch, capsys):
    monkeypatch.setattr(native, "doors", None)
    with pytest.raises(SystemExit) as stopped:
        main([*COMMAND, "--quick"])
    assert stopped.value.code == 2
    assert "native is off" in capsys.readouterr().err


@pytest.mark.usefixtures("brief")
def test_a_wrong_result_is_marked_and_fails_the_command(monkeypatch, capsys):
    loss = native_rows.HEADS["logistic"]
    monkeypatch.setitem(native_rows.HEADS, "logistic", (loss[0], lambda *t: 1.01 * loss[1](*t)))
    assert main([*COMMAND, "--quick", "--only", "logistic"]) == 1
    assert "WRONG manual_mlp" in capsys.readouterr().out
