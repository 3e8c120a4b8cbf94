"""The documents say that nothing was seen on a GPU only as long as that is so."""

import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from benchmarks import command, report

ROOT = Path(__file__).parents[1]
# What a reader is told. CHANGELOG.md is left out: what it says was so at its date.
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks" / "results" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "docs").rglob("*.rst")),
]
ABOUT = re.compile(r"\bGPUs?\b|\bCUDA\b|--cuda|gpu\.md|\bcards?\b")
# A sentence about a GPU that holds one of these is of the time before one was seen. To each: why, and an example.
WAITING = {
    r"\b(no|not|nothing|never|none|neither)\b.*\byet\b": (
        'the usual wording, of lines, figures and tests alike: "not yet", "has not run yet", "nothing … yet"',
        "- Built on Linux. **Its CUDA half has not been seen yet.**",
    ),
    r"\b(never|not|nothing|no \w+)\b[^,;:]*\b(seen|run|ran|measured|tried|timed) (on|by) (a|one|any)\b": (
        'the same without "yet": of one GPU it is false as soon as there are results',
        "The kernels were never run on a GPU.",
    ),
    r"\bno (figure|number|line|test)\b.*\b(one's|a GPU's)": (
        "figures: each would be found in the results",
        "None of it is a GPU's, and no figure in this repository is one's.",
    ),
    r"\bguess(es)?\b": (
        "sizes that were chosen without a card: the sweeps there either confirm or replace them",
        "The sizes of tiles on a GPU are guesses (`tiling.py`).",
    ),
    r"\bwaits? (to be|for an? (GPU|card|owner|H100)|there)|\bstill waits?\b": (
        'claims that are listed as open: what was run is confirmed or refuted, and what was not says "not measured"',
        "Whether chunks pay waits for a card.",
    ),
    r"\b(interpreter|on a CPU|without (a|one) (GPU|card))\b.*\b(instead|only|alone)\b|\btested on a CPU\b": (
        "how it was tested in the place of a GPU",
        "`--cuda-graph` was tested on a CPU, by replaying what is captured.",
    ),
    r"\bhas to (tell|show|confirm|decide)\b": (
        "questions that were left to a card",
        "A card has to tell which of the forms is the best.",
    ),
    r"\bwe expect\b": (
        "forecasts, where there are figures now",
        "On a GPU we expect chunks to cost more than they save.",
    ),
}
# As far as the next: an end of a sentence, a cell of a table, a blank line.
SENTENCE = re.compile(r"(?:(?!\n\s*\n|[.!?][*_)]*\s|\|).)+", re.DOTALL)


def waiting(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the words of each sentence of the time before a GPU was seen; docs/gpu.md is about one."""
    text = path.read_text("utf-8")
    for sentence in SENTENCE.finditer(text):
        said = sentence[0].lstrip("*_)-#> \n")
        start = sentence.end() - len(said)
        said = " ".join(said.replace("**", "").split())
        about = path.name == "gpu.md" or ABOUT.search(said)
        if about and any(re.search(wording, said, re.IGNORECASE) for wording in WAITING):
            yield text.count("\n", 0, start) + 1, said


def still_standing(documents: Iterable[Path], results: Path) -> list[str]:
    """List the sentences that results of a GPU have made untrue, each with its file and line."""
    if not report.by_card(results.glob("*.json")):
        return []
    found = ((path, line, said) for path in documents for line, said in waiting(path))
    return [f"{os.path.relpath(path, ROOT)}:{line}: {said}" for path, line, said in found]


def test_once_there_are_results_of_a_gpu_no_document_says_that_there_are_none() -> None:
    found = still_standing(DOCUMENTS, command.RESULTS)
    assert not found, "results of a GPU are there, and these sentences still stand:\n" + "\n".join(found)


def save(folder: Path, device: str, quick: bool = False) -> None:
    run = {"date": "2031-01-02 03:04 UTC", "settings": {"quick": quick}, "machine": {"device": device}, "rows": []}
    (folder / "results.json").write_text(json.dumps({"dense": run}))


@pytest.mark.parametrize("wording", WAITING)
def test_a_sentence_of_each_wording_is_named_by_file_and_line_and_only_once_a_card_has_results(
    wording: str, tmp_path: Path
) -> None:
    _, said = WAITING[wording]
    # No other wording means it too: each is needed.
    assert [other for other in WAITING if re.search(other, said, re.IGNORECASE)] == [wording]
    document = tmp_path / "page.md"
    document.write_text(f"# Title\n\nA first sentence. {said}\nA last sentence.\n")
    save(tmp_path, "cpu")
    assert still_standing([document], tmp_path) == []
    save(tmp_path, "NVIDIA H100 80GB HBM3", quick=True)
    assert still_standing([document], tmp_path) == []
    save(tmp_path, "NVIDIA H100 80GB HBM3")
    (found,) = still_standing([document], tmp_path)
    assert "/page.md:3: " in found
    assert re.search(wording, found, re.IGNORECASE)


@pytest.mark.parametrize(
    "said",
    [
        "Kernels that have run on GPUs, where this has\n[not yet](gpu.md); and other losses.",
        "| CUDA alone | CPU; CUDA, [not yet seen on one](gpu.md) |",
        "Dropout by Triton (`engines/triton/`);\nelse plain. [Not yet seen on one](gpu.md).",
        "**Nothing here has been run on a GPU\nyet**, and that is all.",
        "Captures a step on a GPU ([not run on one yet](gpu.md)).",
    ],
)
def test_a_wording_is_found_over_lines_in_links_and_in_cells(said: str, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(f"Before.\n\n{said}\n\nAfter.\n")
    ((line, _),) = waiting(tmp_path / "page.md")
    assert 3 <= line <= 4


def test_what_the_report_writes_while_there_are_no_results_is_such_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(f"{report.TABLES['summary'].unseen}\n\n{report.gpu.section({})}\n")
    assert [line for line, _ in waiting(tmp_path / "page.md")] == [1, 3]


def test_on_the_page_for_an_owner_of_a_gpu_every_sentence_is_about_one(tmp_path: Path) -> None:
    for name, count in (("gpu.md", 2), ("page.md", 0)):
        (tmp_path / name).write_text(
            "# A page\n\n## What waits to be confirmed\n\n- The sizes, which are guesses there.\n"
        )
        assert len([*waiting(tmp_path / name)]) == count


@pytest.mark.parametrize(
    "said",
    [
        "It was measured on one NVIDIA H100.",
        "A table has not been written yet.",
        "Each runs on a GPU by `--device cuda`.",
        "The cards' tables have no threads.",
        "On a GPU no step waits for the host.",
        "The native engine is not built there yet. On a GPU it is.",
    ],
)
def test_what_stays_true_with_a_gpu_is_let_stand(said: str, tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text(said)
    assert [*waiting(tmp_path / "page.md")] == []
