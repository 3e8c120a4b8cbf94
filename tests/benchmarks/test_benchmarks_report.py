import json
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks import command, report
from benchmarks.__main__ import COMMANDS, main
from benchmarks.report import engines, summary, tables, training

OURS, AUTOGRAD = "manual_mlp", "manual_mlp autograd"
MACHINE = {"device": "cpu", "cpu": "AMD EPYC Processor", "cores": 2, "capability": "AVX2", "torch": "2.14.1"}
KEYS = [(threads, malloc) for threads in (1, 2) for malloc in ("default", "tuned")]


def provider(micros: float, ratio: float = 1.0, **more: object) -> dict:
    given = {"median_us": micros, "ratio": [ratio, ratio - 0.1, ratio + 0.1], "extra_us": [-453.2, -1856, 0.2]}
    return given | {"peak_bytes": 3_000_000, **more}


def run(rows: list[dict], date: str = "2026-11-24 02:24 UTC", quick: bool = False, **more: object) -> dict:
    return {"date": date, "settings": {"quick": quick}, "machine": MACHINE, "rows": rows, **more}


def rows_of(case: dict, providers: dict) -> list[dict]:
    return [case | {"threads": t, "malloc": m, "providers": providers} for t, m in KEYS]


KEPT = {"kept_bytes": {"total": 7000, "attributes": 400}}
DENSE = run(
    rows_of(
        {"case": "5×7→4", "activation": "gelu"},
        {"torch": provider(1234.5, **KEPT), OURS: provider(900, 0.805, **KEPT)},
    ),
    command="python -m benchmarks dense --json --seconds 1",
)
NETWORK = run(
    rows_of(
        {"case": "32→64→1, 8 rows, relu"},
        {
            "torch": provider(900, peak_bytes=101e6),
            OURS: provider(300, 3.0, ratios={"torch": [3.0, 2, 4], "compile": [2.0, 1, 3]}),
            "compile": provider(600, 1.5),
            AUTOGRAD: provider(450, 2.0),
        },
    ),
    by_batch=[
        {"case": "64→64, 8 rows, relu", "rows": n, "malloc": "default", "threads": 2}
        | {"providers": {name: provider(n, resident_bytes=n) for name in ("torch", OURS)}}
        for n in (1024, 4096, 1 << 20)
    ],
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.json").write_text(json.dumps({"dense": DENSE}))
    (tmp_path / "b.json").write_text(json.dumps({"network": NETWORK}))
    return tmp_path


def readme(folder: Path, *names: str) -> Path:
    path = folder / "README.md"
    marked = "".join(f"Prose.\n\n<!-- report: {name} -->\nold\n<!-- end -->\n\nMore.\n" for name in names)
    path.write_text(f"# Title\n{marked}")
    return path


def call(folder: Path, *arguments: str) -> int:
    return main(["report", "--results", str(folder), "--documents", str(folder / "README.md"), *arguments])


def test_tables_are_put_between_their_markers_and_prose_stays(folder, capsys):
    path = readme(folder, "dense")
    assert call(folder, "--check") == 1
    assert "old" in path.read_text()
    if find_spec("matplotlib"):
        assert call(folder) == 0
    else:
        path.write_text(report.rewritten(path.read_text(), {"dense": report.captioned("dense", {"dense": DENSE}, {})}))
    assert path.read_text() == (
        "# Title\nProse.\n\n<!-- report: dense -->\n\n"
        "Measured by `python -m benchmarks dense --json --seconds 1` on 2 cores of AMD EPYC with AVX2, torch 2.14.1, "
        "2026-11-24.\n\n"
        "| N × D_in → D_out | f | torch µs | ours − torch µs | 1 thread | 2 threads | kept kB: torch, ours |\n"
        "|---|---|---|---|---|---|---|\n"
        "| 5×7→4 | gelu | 1,234 | -453 [-1,856, 0] | 0.81, 0.81 | 0.81, 0.81 | 7, 7 |\n"
        "\n<!-- end -->\n\nMore.\n"
    ).replace("0.81", f"{0.805:.2f}")
    assert call(folder, "--check") == 0


def test_a_second_report_changes_nothing(folder):
    path = readme(folder, "network", "dense")
    once = report.rewritten(path.read_text(), {"dense": "| a |", "network": "| b |"})
    assert report.rewritten(once, {"dense": "| a |", "network": "| b |"}) == once
    assert "old" not in once


def test_a_network_is_one_line_with_the_ratios_of_both_mallocs():
    line = tables.network(NETWORK).splitlines()[-1]
    assert line == (
        "| 32→64→1, 8 rows, relu | 0.90 | 3.00, 3.00 | 3.00, 3.00 | 2.00, 2.00 | 2.00, 2.00 "
        "| 2.00, 2.00 | 2.00, 2.00 | 101, 3.0 |"
    )


def test_what_was_not_measured_is_a_dash_and_a_column_of_them_is_left_out():
    row = NETWORK["rows"][0]
    assert row["threads"] == 1
    some = row | {"case": "some", "providers": {name: row["providers"][name] for name in ("torch", OURS, AUTOGRAD)}}
    assert tables.network(run([*NETWORK["rows"], some])).splitlines()[-1].split(" | ")[2:6] == ["3.00", "–", "–", "–"]
    titles, _, line = tables.network(run([some])).splitlines()
    assert titles == "| network | torch ms | 1 thread | autograd path: 1 | peak MB: torch, ours |"
    assert line == "| some | 0.90 | 3.00 | 2.00 | 101, 3.0 |"


def test_transforms_and_training_have_their_tables():
    both = {"torch": provider(1500), OURS: provider(500, 0.5)}
    lines = tables.transforms(run(rows_of({"case": "jvp", "net": "4→4", "activation": "relu"}, both)))
    assert lines.splitlines()[-1] == "| jvp | 4→4 | relu | 1,500 | 0.50, 0.50 | 0.50, 0.50 |"
    three = {"torch": provider(1500, steps_per_second=666.7), OURS: provider(500, 3.0), AUTOGRAD: provider(500, 2.0)}
    lines = training.train(run(rows_of({"case": "4→4", "optimiser": "SGD"}, three)))
    assert lines.splitlines()[-1] == "| 4→4 | SGD | 667 | 3.00, 3.00 | 3.00, 3.00 | 2.00, 2.00 | 2.00, 2.00 |"


def test_the_newest_run_is_taken_and_a_quick_one_only_where_it_is_asked_for(folder):
    (folder / "c.json").write_text(json.dumps({"dense": run([], "2026-11-25 00:00 UTC", quick=True)}))
    (folder / "0.json").write_text(json.dumps({"dense": run([], "2026-11-23 00:00 UTC")}))
    assert report.newest(folder.glob("*.json"))["dense"] == {"name": "dense", **DENSE}
    assert report.newest([folder / "c.json"]) == {}
    assert report.newest([folder / "c.json"], quick=True)["dense"]["rows"] == []


def test_the_results_that_are_stored_make_every_table_of_theirs(capsys):
    assert main(["report", "--print"]) == 0
    printed = capsys.readouterr().out
    for name in report.TABLES:
        assert f"{name}\n\nMeasured " in printed
    typed = re.findall(r"`python -m benchmarks ([\w-]+)[^`]*`", printed)
    assert set(typed) <= set(COMMANDS)
    assert len(typed) >= len(report.TABLES) - 1  # the summary tells the machine alone
    assert main(["report", "--print", "--from", *map(str, command.RESULTS.glob("*.json"))]) == 0
    assert capsys.readouterr().out == printed


def test_the_plot_is_a_picture(folder, capsys):
    pytest.importorskip("matplotlib")
    readme(folder)
    assert call(folder) == 0
    assert (folder / "batch.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<!-- report: dnse -->\n<!-- end -->\n", "expected a marker of one of dense, network, gpu, got 'dnse'"),
        ("<!-- report: dense -->\n", "expected <!-- end --> behind every"),
        ("<!-- report: dense -->\n<!-- report: network -->\n<!-- end -->\n", "expected <!-- end --> behind every"),
    ],
)
def test_a_marker_that_cannot_be_served_is_said_in_one_line(folder, capsys, text, message):
    (folder / "README.md").write_text(text)
    assert call(folder, "--check") == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err
    assert (folder / "README.md").read_text() == text


def recipe(name: str, error: float, **more: object) -> dict:
    given = {"recipe": name, "error": [error, error - 0.1, error + 0.1], "seeds": 3, "seconds": [90.4, 80.0, 99.0]}
    return given | {"epochs": 10, "of_epochs": 10, "threads": 1} | more


def test_the_literature_has_the_newest_whole_row_of_each_recipe_and_its_machine(tmp_path):
    cpu = {"device": "cpu", "cpu": "AMD EPYC Processor"}
    gpu = cpu | {"device": "NVIDIA H100"}
    on_gpu = recipe("dropout", 1.3, date="2026-11-26 13:40 UTC", machine=gpu)
    # A run keeps the rows that an earlier one of its day left in the file.
    earlier = recipe("dropout", 1.6, date="2026-11-26 13:10 UTC", machine=cpu)
    later = recipe("dropout", 0.1, epochs=1, date="2026-11-26 15:10 UTC", machine=cpu)
    of_another_time = recipe("no-longer-a-recipe", 1.0)
    runs = [
        run([earlier, recipe("simard", 1.2)], "2026-11-26 14:10 UTC", machine=cpu),
        run([on_gpu], "2026-11-26 13:40 UTC", machine=gpu),
        run([recipe("dropout", 1.9), of_another_time], "2026-11-25 14:10 UTC", machine=gpu),
        run([later], "2026-11-26 15:10 UTC", machine=cpu),
    ]
    for number, found in enumerate(runs):
        (tmp_path / f"{number}.json").write_text(json.dumps({"literature": found}))
    assert training.literature(report.newest(tmp_path.glob("*.json"))["literature"]).splitlines()[2:] == [
        "| `simard` | Simard 2003 | 800 | 1.60 | 1.20 [1.10, 1.30] | 3 | 10 | 90 | AMD EPYC, 1 |",
        "| `dropout` | Srivastava 2014 | 1024-1024-1024 | 1.25 | 1.30 [1.20, 1.40] | 3 | 10 | 90 | NVIDIA H100 |",
    ]


def native_rows(group: str, case: str, of: str, ratio: float) -> list[dict]:
    ours = provider(500, ratio, ratios={"torch": [ratio, 0, 0], "plain": [1.5, 1, 2]})
    others = {"torch": provider(1500), OURS: ours, "products": provider(100, 4.0)}
    return rows_of({"group": group, "case": case, "of": of}, others)


def test_a_layer_has_both_ways_on_one_line_and_other_groups_have_theirs():
    found = run(
        [
            *native_rows("layer", "5×7→4", "relu", 1.2),
            *native_rows("layer by grad", "5×7→4", "relu", 0.9),
            *native_rows("head", "5×7→4 float32", "logistic", 2.0),
        ]
    )
    assert engines.layers(found).splitlines()[2:] == [
        "| 5×7→4 | relu | 1,500 | 1.20, 1.20 | 1.20, 1.20 | 0.90, 0.90 | 0.90, 0.90 | 1.50 |"
    ]
    assert engines.native("head")(found).splitlines()[2:] == [
        "| 5×7→4 float32 | logistic | 1.5 | 2.00, 2.00 | 2.00, 2.00 | 4.00 | 1.50 | 3.0, 3.0 |"
    ]
    two = engines.native("head", "layer")(found).splitlines()
    assert two[0].startswith("| by | case | f or loss | torch ms |")
    assert [line.split(" | ")[0] for line in two[2:]] == ["| layer", "| head"]


def test_a_compiled_step_and_its_forward_pass_alone_are_one_line():
    case = {"group": "Dense", "case": "5×7→4", "of": "relu", "mode": "default"}
    rows = [
        row
        for way, ratio in (("step", 1.1), ("forward", 0.9))
        for row in rows_of(
            case | {"way": way},
            {"torch": provider(1500), OURS: provider(1400, ratio, ratios={"manual_mlp eager": [2.5, 2, 3]})},
        )
    ]
    assert engines.compiled(run(rows)).splitlines()[2:] == [
        "| Dense | 5×7→4 | relu | default | 1.5 | 1.10, 1.10 | 1.10, 1.10 | 0.90, 0.90 | 0.90, 0.90 | 2.50 | 3.0, 3.0 |"
    ]


def test_dropout_accuracies_and_times_to_one_have_their_tables():
    both = {"torch": provider(1500), OURS: provider(300, 5.0)}
    lines = engines.dropout(run(rows_of({"case": "8×16", "way": "forward"}, both)))
    assert lines.splitlines()[-1] == "| 8×16 | forward | 1.5 | 5.00, 5.00 | 5.00, 5.00 |"
    row = {"dataset": "mnist", "accuracies": [98.7, 98.9], "accuracy": [98.8, 98.7, 98.9], "seconds": [5.0, 4.9, 6.0]}
    assert training.accuracy(run([row])).splitlines()[-1] == "| mnist | 98.70, 98.90 | 98.80 | 5.0 [4.9, 6.0] |"
    spans = {"accuracy": [98.1, 98, 98.2], "seconds": [0.6, 0.5, 0.7], "ready": [2.3, 2, 2.5]}
    goals = [run([{"goal": goal, "provider": OURS, "threads": 2, "seeds": 10, **spans}]) for goal in (98.0, 99.0)]
    assert [line.split(" | ")[:3] for line in training.time_to(*goals).splitlines()[2:]] == [
        ["| 98 %", "train.py, no TensorBoard", "10"],
        ["| 99 %", "train.py, no TensorBoard", "10"],
    ]


def test_what_measured_a_table_is_said_once_for_each_machine_and_day_and_busy_rows_are_counted():
    rows = [{"busy": True}, {"busy": False}]
    gpu = MACHINE | {"device": "NVIDIA H100"}
    runs = [
        run(rows, command="python -m benchmarks dense --json"),
        run([{}], name="native"),
        run([{}], name="network") | {"machine": gpu},
    ]
    assert report.told(runs) == (
        "Measured by `python -m benchmarks dense --json` (1 of 2 rows beside other work), "
        "`python -m benchmarks native --json` on 2 cores of AMD EPYC with AVX2, torch 2.14.1, 2026-11-24; "
        "`python -m benchmarks network --json` on one NVIDIA H100, torch 2.14.1, 2026-11-24."
    )
    assert report.told_briefly(runs) == (
        "Measured on 2 cores of AMD EPYC with AVX2, torch 2.14.1, 2026-11-24; one NVIDIA H100, torch 2.14.1, "
        "2026-11-24; 1 of 4 rows beside other work."
    )


def test_every_line_of_the_summary_finds_its_row_in_the_results_and_shows_one_thread():
    runs = report.newest(command.RESULTS.glob("*.json"))
    written = summary.summary(*(runs[name] for name in summary.COMMANDS)).splitlines()[2:]
    assert [line.split(" | ")[0].removeprefix("| ") for line in written] == [line.says for line in summary.LINES]
    asked = summary.LINES[0]
    (row,) = (
        row
        for row in runs[asked.command]["rows"]
        if row["threads"] == 1 and row["malloc"] == "tuned" and all(row[k] == v for k, v in asked.which.items())
    )
    assert written[0].split(" | ")[3] == f"{row['providers'][OURS]['ratio'][0]:.2f}"


def test_a_figure_of_few_rounds_is_marked_and_a_run_that_lacks_rows_is_said_in_one_line(folder, capsys):
    rows = [row | {"rounds": 4 if row["malloc"] == "tuned" else 5} for row in DENSE["rows"]]
    assert "| 0.81, 0.81~ | 0.81, 0.81~ |" in tables.dense(run(rows)).replace(f"{0.805:.2f}", "0.81")
    (folder / "c.json").write_text(json.dumps({"native": run(native_rows("layer", "5×7→4", "relu", 1.2))}))
    readme(folder)
    assert call(folder) == 2
    assert capsys.readouterr().err.startswith("python -m benchmarks report: expected whole runs for layers")


def test_in_no_row_that_is_shown_is_ours_wrong():
    runs = report.newest(command.RESULTS.glob("*.json"))
    shown = [row for table in report.TABLES.values() for name in table.commands for row in runs[name]["rows"]]
    judged = [provider for row in shown for name, provider in row.get("providers", {}).items() if OURS in name]
    assert sum("wrong" in provider for provider in judged) > 300
    assert not any(provider.get("wrong") for provider in judged)
