"""What a GPU measured stands by itself, and changes no table of a CPU."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report
from benchmarks.__main__ import main
from benchmarks.report import gpu, training
from pretend_card import A100, FILES, H100, KEPT, write

OURS = "manual_mlp"
# No CPU has results of these to be turned into a card's.
OF_CARDS = {"sizes", "kernels", "cuda-graph"}
# Those that name other machines on purpose.
MIXED = {"summary", "time-to", "literature"}


def written(*files: Path) -> dict[str, str]:
    return report.written(report.newest(files), report.by_card(files))


def change(path: Path, name: str, **fields: Any) -> None:
    """Write other fields into a run."""
    runs = json.loads(path.read_text())
    runs[name] |= fields
    path.write_text(json.dumps(runs))


@pytest.fixture
def card(tmp_path: Path) -> Path:
    return write(tmp_path, H100)


def of(card: str, section: str) -> dict[str, list[str]]:
    """Return the lines of each table of a card, by its heading."""
    (text,) = re.findall(rf"^### {re.escape(card)}\n(.*?)(?=^### |\Z)", section, re.MULTILINE | re.DOTALL)
    parts = re.split(r"^#### (.*)$", text, flags=re.MULTILINE)
    tables = zip(parts[1::2], parts[2::2], strict=True)
    return {title: [line for line in body.splitlines() if line.startswith("|")] for title, body in tables}


def cells(table: list[str], line: int = 2) -> dict[str, str]:
    titles, values = ([cell.strip() for cell in table[at].strip("|").split(" | ")] for at in (0, line))
    return dict(zip(titles, values, strict=True))


def columns(text: str, count: int) -> list[str]:
    """Leave of each line of a table so many columns."""
    return [" | ".join(line.split(" | ")[:count]) for line in text.splitlines() if line.startswith("| ")]


def test_the_tables_of_cpus_stay_as_they_are_whatever_a_gpu_measured_later(card: Path) -> None:
    before, after = written(*KEPT), written(*KEPT, card)
    assert before.keys() == after.keys() == {*report.TABLES, "gpu"}
    assert {name for name in before if before[name] != after[name]} == {*MIXED, "gpu"}
    # A dozen steps get a column.
    assert columns(after["summary"], 5) == [line.removesuffix(" |") for line in columns(before["summary"], 5)]
    # The times to an accuracy get lines, which name the machine.
    lines = {tuple(line.split(" | ")) for line in after["time-to"].splitlines() if line.startswith("| 9")}
    cpus = {line[:1] + line[2:] for line in lines if line[1] != H100}
    assert cpus == {tuple(line.split(" | ")) for line in before["time-to"].splitlines() if line.startswith("| 9")}
    assert len(lines) == 2 * len(cpus) >= 4


def test_a_row_of_the_literature_is_a_gpus_only_where_its_run_is_newer_and_whole_and_each_machine_is_told(
    card: Path,
) -> None:
    runs = json.loads(card.read_text())
    rows = {row["recipe"]: row for row in runs["literature"]["rows"]}
    began = rows["simard"] | {"epochs": 1, "date": "2031-01-02 03:04 UTC"}
    later = rows["dropout"] | {"date": "2031-01-02 03:04 UTC", "error": [1.1, 1.0, 1.2]}
    change(card, "literature", rows=[began, later])
    before, after = (written(*files)["literature"] for files in (KEPT, (*KEPT, card)))
    changed = [(a, b) for a, b in zip(before.splitlines(), after.splitlines(), strict=True) if a != b]
    (told, told_after), (line, line_after) = changed
    assert line.startswith("| `dropout` ")
    cpus = line.split(" | ")
    assert line_after.split(" | ") == [*cpus[:4], "1.10 [1.00, 1.20]", *cpus[5:8], f"{H100} |"]
    assert H100 not in told
    assert f"--device cuda` on one {H100}, torch {later['machine']['torch']}, 2031-01-02; `" in told_after
    # In its own table the run that has only begun says so.
    table = of(H100, written(*KEPT, card)["gpu"])["Recipes of the literature"]
    assert [cells(table, line)["epochs"] for line in (2, 3)] == [f"1 of {began['of_epochs']}", str(later["epochs"])]


def test_the_section_has_every_table_and_says_which_were_not_measured(card: Path) -> None:
    section = written(*KEPT, card)["gpu"]
    tables = of(H100, section)
    assert [*tables] == [table.title for name, table in gpu.TABLES.items() if name not in OF_CARDS]
    assert all(len(table) >= 3 for table in tables.values())
    missing = "; ".join(table.title for name, table in gpu.TABLES.items() if name in OF_CARDS)
    assert f"\n\nNot measured there: {missing}.\n\n" in section
    assert section.count("Measured by `python -m benchmarks ") == len(tables)


def test_a_line_has_torchs_time_the_speed_the_shares_of_the_ceiling_the_hosts_time_and_the_peak(card: Path) -> None:
    row = json.loads(card.read_text())["dense"]["rows"][0]
    torch, ours = (row["providers"][name] for name in ("torch", OURS))
    value, low, high = ours["ratio"]
    table = of(H100, written(card)["gpu"])["Layers and what they keep"]
    assert cells(table) == {
        "N × D_in → D_out": row["case"],
        "f": row["activation"],
        "torch µs": f"{torch['median_us']:,.0f}",
        "speed": f"{value:.2f} [{low:.2f}, {high:.2f}]",
        "kept MB: torch, ours": "0.00, 0.00",
        "% of the ceiling: torch, ours": ", ".join(f"{100 * one['products_share']:.0f}" for one in (torch, ours)),
        "host µs: torch, ours": ", ".join(f"{one['host_us']:,.0f}" for one in (torch, ours)),
        "peak MB: torch, ours": "0.00, 0.00",
    }
    few = [row | {"rounds": 4}]
    change(card, "dense", rows=few)
    assert cells(of(H100, written(card)["gpu"])["Layers and what they keep"])["speed"] == f"{value:.2f}~"


def test_a_card_has_no_threads_and_no_mallocs_and_every_table_of_steps_its_ceiling_and_its_host(card: Path) -> None:
    tables = of(H100, written(*KEPT, card)["gpu"])
    for title, table in tables.items():
        assert not re.search(r"malloc|\b[12] threads?\b", table[0]), title
    steps = [table[0] for table in tables.values() if "torch µs" in table[0]]
    assert len(steps) == 13
    assert all("% of the ceiling: torch, ours" in titles and "host µs: torch, ours" in titles for titles in steps)


def test_the_ceilings_of_a_card_are_the_best_that_any_of_its_runs_found(card: Path) -> None:
    runs = json.loads(card.read_text())
    limits = runs["dense"]["ceilings"]["default"]["1"]
    told = (
        "products in TFLOP/s: float32 {}, bfloat16 741; copy {} GB/s; a launch {} µs; an empty autograd call 14.1 µs."
    )
    assert f"\n\nIts ceilings: {told.format('51.2', '2,610', '3.2')}\n\n" in written(card)["gpu"]
    slower = limits | {"gflops_float32": 40_000.0, "copy_gbs": 2700.0, "launch_us": 2.9}
    change(card, "dense", ceilings={"default": {"1": slower}})
    assert told.format("51.2", "2,700", "2.9") in written(card)["gpu"]


def test_two_cards_stand_apart(card: Path) -> None:
    alone = written(*KEPT, card)
    other = write(card.parent, A100, "transforms", "time-to-99")
    rows = json.loads(other.read_text())["dense"]["rows"]
    change(other, "dense", rows=[rows[0] | {"case": "9×9→9"}])
    assert other != card
    section = written(*KEPT, card, other)["gpu"]
    assert re.findall(r"^### (.*)$", section, re.MULTILINE) == [A100, H100]
    tables = of(A100, section)
    assert "Under torch.func" not in tables
    assert [line.split(" | ")[0] for line in tables["Layers and what they keep"][2:]] == ["| 9×9→9"]
    assert of(H100, section) == of(H100, alone["gpu"])
    together = written(*KEPT, card, other)
    assert together["summary"].count(": torch µs, speed |") == 2
    assert {f"| {name} |" in together["time-to"] for name in (A100, H100)} == {True}
    for name in report.TABLES.keys() - MIXED:
        assert together[name] == alone[name]


def test_check_sees_a_change_of_a_cards_results_and_a_report_puts_it_right(
    card: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = [card.parent / path.name for path in report.DOCUMENTS]
    for path in (*KEPT, *report.DOCUMENTS):
        shutil.copy(path, card.parent)
    arguments = ["report", "--results", str(card.parent), "--documents", *map(str, documents)]
    main(arguments)  # where there is nothing to draw with, the documents are written all the same
    assert main([*arguments, "--check"]) == 0
    rows = json.loads(card.read_text())["dropout"]["rows"]
    rows[0]["providers"][OURS]["host_us"] *= 2
    change(card, "dropout", rows=rows)
    assert main([*arguments, "--check"]) == 1
    assert capsys.readouterr().out.endswith("\nfigures.md: python -m benchmarks report\n")
    card.unlink()
    assert main([*arguments, "--check"]) == 1
    assert capsys.readouterr().out == "README.md, figures.md: python -m benchmarks report\n"


@pytest.mark.parametrize("kept", [True, False])
def test_that_nothing_was_measured_on_a_gpu_is_said_in_both_documents_until_something_is(
    card: Path, kept: bool
) -> None:
    tables = written(*KEPT, *([card] if kept else []))
    said = {name: gpu.NOTHING in tables[name] for name in ("summary", "gpu")}
    assert said == {"summary": not kept, "gpu": not kept}
    assert gpu.NOTHING not in "".join(text for name, text in tables.items() if name not in said)
    assert ("](gpu.md)" in tables["gpu"]) is not kept


def test_a_run_that_lacks_rows_leaves_its_tables_out_and_one_that_lacks_fields_is_told_in_one_line(
    card: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = json.loads(card.read_text())["native"]["rows"]
    change(card, "native", rows=[row for row in rows if row["group"].startswith("layer")])
    section = written(*KEPT, card)["gpu"]
    assert [title for title in of(H100, section) if "native" in title] == ["Layers by the native engine"]
    (told,) = re.findall(r"^Not measured there: (.*)\.$", section, re.MULTILINE)
    assert [title for title in told.split("; ") if "native" in title] == [
        f"{what} by the native engine" for what in ("Networks", "Output layers", "Second derivatives")
    ]
    del rows[0]["providers"][OURS]["ratio"]
    change(card, "native", rows=rows)
    assert main(["report", "--print", "--from", str(card)]) == 2
    assert capsys.readouterr() == (
        "",
        f"python -m benchmarks report: expected whole runs for Layers by the native engine on {H100}, "
        "got none of 'ratio'\n",
    )


def test_stages_that_did_not_end_well_are_told(card: Path) -> None:
    run = json.loads(card.read_text())["dense"]
    ended = {"ok": {}, "out of time": {"why": "stopped after 6 min"}, "failed": {"why": "exit status 2: `x` | y"}}
    rows = [{"stage": f"stage-{k}", "status": status, **why} for k, (status, why) in enumerate(ended.items())]
    runs = json.loads(card.read_text())
    card.write_text(json.dumps({"dense": runs["dense"], "day": run | {"rows": rows}}))
    assert (
        "\n\nStages of `python -m benchmarks day`, 2031-01-02: 1 ok, 1 out of time, 1 failed; "
        "`stage-1`: out of time (`stopped after 6 min`); `stage-2`: failed (`exit status 2: x | y`).\n\n"
    ) in written(card)["gpu"]


@pytest.mark.parametrize("name", ["quick", "tiny"])
def test_a_look_and_a_dry_run_are_no_results(card: Path, name: str) -> None:
    runs = json.loads(card.read_text())
    card.write_text(json.dumps({of: run | {"settings": {"quick": True, name: True}} for of, run in runs.items()}))
    assert written(*KEPT, card) == written(*KEPT)
    assert report.by_card([card], quick=True).keys() == {H100}


def test_in_no_row_of_a_card_is_ours_wrong() -> None:
    for card, runs in report.by_card(FILES).items():
        for name, run in runs.items():
            for row in run["rows"]:
                providers: Mapping[str, Any] = row.get("providers", {})
                wrong = [one for one, provider in providers.items() if OURS in one and provider.get("wrong")]
                assert not wrong, f"{card}, {name}, {row}"


def timed(micros: float, ratio: float, **more: Any) -> dict[str, Any]:
    return {"median_us": micros, "ratio": [ratio, ratio - 0.1, ratio + 0.1], **more}


def test_rows_at_once_are_held_beside_the_best_and_the_constants_that_fit() -> None:
    row = {
        "argument": "chunk_rows",
        "case": "8×4→9 float32",
        "chosen": "torch",
        "best": "16",
        "over_best": [1.2, 1.1, 1.3],
    }
    row |= {"providers": {"torch": timed(60.0, 1.0), "16": timed(50.0, 1.2)}}
    constants = [
        {"constant": "ON_GPU", "in_code": 1 << 20, "fits": 1 << 26},
        {"constant": "X", "in_code": 4, "fits": None},
    ]
    assert gpu.TABLES["sizes"].write({"rows": [row], "constants": constants}).splitlines() == [
        "| case | of | rows at once | the best | its time over the best's | µs by the rows at once |",
        "|---|---|---|---|---|---|",
        "| 8×4→9 float32 | `chunk_rows` | torch | 16 | 1.20 [1.10, 1.30] | torch: 60; 16: 50 |",
        "",
        "| constant | in the code | fits |",
        "|---|---|---|",
        "| `ON_GPU` | 1,048,576 | 67,108,864 |",
        "| `X` | 4 | – |",
    ]


def test_the_quickest_of_the_kernels_stands_beside_torch_with_what_was_decided() -> None:
    forms = {"registers": {}, "memory": {}}
    kernels = {
        "registers": timed(20.0, 5.0, floor_share=0.25),
        "registers captured": timed(10.0, 10.0, floor_share=0.5),
    }
    providers = {"torch": timed(100.0, 1.0), OURS: timed(80.0, 1.25), "cuda graph": timed(40.0, 2.5), **kernels}
    rows = [{"case": "64→64, 8 rows", "dtype": "bfloat16", "rounds": 20, "forms": forms, "providers": providers}]
    decisions = [{"question": "sums where?", "case": "64→64, 8 rows", "answer": "registers"}]
    right = {"rows": [{"cases": 30}, {"cases": 12}], "wrong": [{}], "failed": []}
    found = gpu.TABLES["kernels"].write({"right": right, "rows": rows, "decisions": decisions})
    assert found.startswith("Against float64: 42 cases, 1 wrong; 0 did not run.\n\n")
    table, decided = found.split("\n\n")[1:]
    assert cells(table.splitlines()) == {
        "case": "64→64, 8 rows",
        "products": "bfloat16",
        "torch µs": "100",
        "speed": "1.25 [1.15, 1.35]",
        "CUDA graph": "2.50 [2.40, 2.60]",
        "quickest kernel": "registers captured",
        "its speed": "10.00 [9.90, 10.10]",
        "% of its floor": "50",
    }
    assert decided.splitlines()[2] == "| sums where? | 64→64, 8 rows | registers |"


def test_training_with_a_graph_stands_beside_that_without_and_a_refusal_says_why() -> None:
    about = {"case": "small", "flags": "--hidden 128", "seeds": 3}
    ran = about | {"cuda_graph": False, "seconds": [2.0, 1.9, 2.2], "ratio": 1.0, "accuracy": [97.5, 97.4, 97.6]}
    found = gpu.TABLES["cuda-graph"].write({"rows": [ran, about | {"cuda_graph": True, "left_out": "it needs CUDA"}]})
    assert found.splitlines()[2:] == [
        "| small | `--hidden 128` | no | 2.0 [1.9, 2.2] | 1.00 | 97.50 [97.40, 97.60] |",
        "| small | `--hidden 128` | yes | it needs CUDA | – | – |",
    ]


def test_a_command_is_in_the_section_or_no_table_of_it_is_asked_for() -> None:
    shown = {name for table in gpu.TABLES.values() for name in table.commands}
    assert shown >= {name for table in report.TABLES.values() for name in table.commands}
    assert shown >= {*training.TIMES}
