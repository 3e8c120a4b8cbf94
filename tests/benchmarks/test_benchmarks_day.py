"""The day on a GPU: its stages fail alone, end in time and with their children, and what became of them is kept."""

import json
import os
import re
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import day
from benchmarks.__main__ import COMMANDS
from benchmarks.__main__ import main as benchmark
from benchmarks.day import process, stages
from benchmarks.day.stages import STAGES, Stage

pytest.importorskip("tqdm")

ON = SimpleNamespace(signal=0)  # nobody interrupts
FOREVER = "import time; time.sleep(9999)"


def python(code: str) -> str:
    return f"python -c {shlex.quote(code.replace('{', '{{').replace('}', '}}'))}"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the day with stages of one's own; return its status, and its rows by name."""

    def of(made: dict[str, str | Stage], *flags: str) -> tuple[int, dict[str, dict]]:
        table = [one if isinstance(one, Stage) else Stage(name, one, 600, "a claim") for name, one in made.items()]
        monkeypatch.setattr(day, "STAGES", tuple(table))
        monkeypatch.setattr(day, "NAMES", tuple(made))
        status = day.main(["--device", "cpu", "--tiny", "--logs", str(tmp_path), *flags])
        (path,) = tmp_path.glob("*.json")
        return status, {row["stage"]: row for row in json.loads(path.read_text())["day"]["rows"]}

    return of


@pytest.fixture
def options(tmp_path):
    return day.read_options(["--device", "cpu", "--tiny", "--logs", str(tmp_path)])


def test_a_stage_that_fails_is_told_and_the_next_one_runs(run, tmp_path, capsys):
    wrong = python("import sys; print('said'); sys.exit('expected a file, got /home/me/data/file.gz')")
    status, rows = run({"wrong": wrong, "none": "python -m no_such_module", "right": python("print('fine')")})
    assert status == 1
    assert [row["status"] for row in rows.values()] == ["failed", "failed", "ok"]
    assert rows["wrong"]["why"] == "exit status 1: expected a file, got file.gz"
    assert "no_such_module" in rows["none"]["why"]
    assert (tmp_path / "wrong.log").read_text().startswith("said\n")
    assert (tmp_path / "right.log").read_text() == "fine\n"
    printed = capsys.readouterr().out
    assert str(tmp_path / "wrong.log") in printed
    assert "right.log" not in printed


def test_stages_that_all_run_are_status_0(run):
    assert run({"one": python("1"), "two": python("2")})[0] == 0


def test_what_became_of_the_stages_is_written_after_each(run, tmp_path):
    told = python(f"import pathlib; [print(p.read_text()) for p in pathlib.Path({str(tmp_path)!r}).glob('*.json')]")
    run({"one": python("1"), "two": told, "three": told})
    seen = [json.loads((tmp_path / f"{name}.log").read_text())["day"]["rows"] for name in ("two", "three")]
    assert [[row["stage"] for row in rows] for rows in seen] == [["one"], ["one", "two"]]


def test_a_stage_out_of_time_is_told_and_the_next_one_runs(run, monkeypatch):
    monkeypatch.setattr(process, "GRACE", 0.0)
    status, rows = run({"long": Stage("long", python(FOREVER), 1, "a claim"), "next": python("1")})
    assert status == 1
    assert (rows["long"]["status"], rows["long"]["why"]) == ("out of time", "stopped after 1 s")
    assert rows["next"]["status"] == "ok"


def test_a_stage_for_which_no_time_is_left_does_not_run(options, tmp_path):
    row = day.take(Stage("late", python("1"), 60, "a claim"), options, 0.0, ON)
    assert (row["status"], row["why"]) == ("left out", f"nothing is left of {stages.duration(options.seconds)}")
    assert not (tmp_path / "late.log").exists()


def test_the_seconds_of_all_stages_bound_each(run):
    _, rows = run({"one": python("1"), "two": python("2")}, "--seconds", "50")
    assert all(row["limit"] <= 50 for row in rows.values())


def once(log: Path, text: str) -> Callable[[], bool]:
    """Ask whether a log holds a text."""
    return lambda: text in log.read_text()


# The child holds a pipe open for a minute, and then writes into it.
CHILD = """
import signal, subprocess, sys
{deaf}
child = "import time; f = open({pipe!r}, 'w'); print(flush=True); time.sleep(60); f.write('survived')"
started = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE)
started.stdout.readline()
print("is there", flush=True)
"""


@pytest.fixture
def pipe(tmp_path):
    """Make a pipe; return its path, and what reads it until nobody holds it open any more."""
    path = str(tmp_path / "pipe")
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)

    def read() -> bytes:
        os.set_blocking(reader, True)
        return b"".join(iter(lambda: os.read(reader, 99), b""))

    yield path, read
    os.close(reader)


needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")


@needs_pipes
@pytest.mark.parametrize("deaf", ["", "signal.signal(signal.SIGINT, signal.SIG_IGN)"])
def test_a_stage_that_is_stopped_is_gone_with_its_children(tmp_path, monkeypatch, pipe, deaf):
    path, read = pipe
    monkeypatch.setattr(process, "GRACE", 1.0 if deaf else 600.0)
    log = tmp_path / "log"
    code = CHILD.format(pipe=path, deaf=deaf) + "started.wait()"
    assert process.run(["-c", code], log, 600, lambda line: None, once(log, "is there")).status is None
    assert read() == b""


@needs_pipes
def test_what_a_stage_leaves_behind_is_ended_too(tmp_path, pipe):
    path, read = pipe
    code = CHILD.format(pipe=path, deaf="")
    assert process.run(["-c", code], tmp_path / "log", 600, lambda line: None, lambda: False).status == 0
    assert read() == b""


def test_a_stage_that_is_stopped_may_tell_what_it_has(tmp_path):
    tell = f"try:\n    print('ready', flush=True)\n    {FOREVER}\nexcept KeyboardInterrupt:\n    print('so far: 7')"
    log, lines = tmp_path / "log", []
    process.run(["-c", tell], log, 600, lines.append, once(log, "ready"))
    assert log.read_text() == "ready\nso far: 7\n"
    assert lines == ["ready", "so far: 7"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_running_stage_and_what_became_of_it_is_written(run, capsys, number, status):
    kills = python(f"import os; os.kill(os.getppid(), {int(number)}); {FOREVER}")
    before = signal.getsignal(number)
    found, rows = run({"one": python("1"), "two": kills, "three": python("3")})
    assert found == status
    assert [(name, row["status"]) for name, row in rows.items()] == [("one", "ok"), ("two", "failed")]
    assert rows["two"]["why"] == "interrupted"
    assert "the same command with --from two" in capsys.readouterr().err
    assert signal.getsignal(number) is before


def chosen(*flags: str) -> list[str]:
    return [stage.name for stage in day.read_options(["--device", "cpu", "--tiny", *flags]).stages]


def test_stages_are_chosen_by_name_or_from_one_on_and_the_long_ones_are_asked_for():
    short = [stage.name for stage in STAGES if not stage.long]
    assert chosen() == short
    assert chosen("--long") == list(stages.NAMES)
    assert chosen("--only", "network", "dense") == ["dense", "network"]
    assert chosen("--only", "ciresan-5") == ["ciresan-5"]
    assert chosen("--from", "sizes") == short[short.index("sizes") :]
    assert chosen("--from", "ciresan-5") == ["ciresan-5"]


def test_stages_of_an_earlier_call_stay_and_those_run_again_are_replaced(run):
    made = {"one": python("1"), "two": python("import sys; sys.exit(3)"), "three": python("3")}
    run(made)
    status, rows = run(made | {"two": python("2")}, "--only", "two")
    assert status == 0
    assert {name: row["status"] for name, row in rows.items()} == dict.fromkeys(made, "ok")


def test_the_list_has_every_stage_with_its_limit_and_what_it_tells(capsys):
    assert day.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(stages.NAMES)
    for stage, line in zip(STAGES, lines, strict=True):
        assert stages.duration(stage.limit) in line
        assert line.endswith(stage.tells)


def test_every_claim_of_the_page_names_a_stage_that_tells_and_every_stage_tells_of_a_claim():
    page = (process.ROOT / "docs" / "gpu.md").read_text("utf-8")
    claims = page.partition("## What waits to be confirmed")[2].partition("\n## ")[0]
    rows = [line.split("|") for line in claims.splitlines() if line.startswith("| ")][1:]
    named = [re.findall(r"`([\w.-]+)`", row[2]) for row in rows]
    assert all(named)
    assert all(row[3].strip() for row in rows)
    assert {name for names in named for name in names} == set(stages.NAMES)


@pytest.mark.parametrize(
    ("seconds", "text"), [(59, "59 s"), (60, "1 min"), (3540, "59 min"), (3600, "1 h 00 min"), (5700, "1 h 35 min")]
)
def test_seconds_are_written_as_minutes_and_hours(seconds, text):
    assert stages.duration(seconds) == text


def test_without_a_gpu_one_line_says_how_to_dry_run(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        day.main([])
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.endswith("expected a CUDA device, and torch finds none; a dry run: --device cpu --tiny\n")


def test_a_stage_for_more_gpus_than_there_are_is_left_out(options, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(day, "workers", lambda device: 1)
    options.device = torch.device("cuda")
    row = day.take(Stage("many", "python -c 1", 60, "a claim", gpus=2), options, 60, ON)
    assert (row["status"], row["why"]) == ("left out", "expected 2 GPUs, got 1")


def test_tests_are_counted_and_those_that_fail_are_told_as_they_go_if_they_are_stopped_too(options, tmp_path, capsys):
    pytest.importorskip("xdist")
    file = tmp_path / "test_some.py"
    file.write_text(
        "import pytest, time\n"
        "@pytest.mark.parametrize('x', ['a b'])\n"
        "def test_wrong(x): assert 0\n"
        "def test_right(): pass\n"
        "def test_hangs(): time.sleep(9999)\n"
    )
    stage = Stage("tests", f"{stages._TESTS.replace('{workers}', '1')} {file}", 600, "a claim")
    log = tmp_path / "tests.log"

    class Stop:
        @property
        def signal(self) -> bool:
            return log.exists() and "PASSED" in log.read_text()

    row = day.take(stage, options, 600, Stop())
    (name,) = row["failures"]
    assert name.endswith("test_some.py::test_wrong[a b]")
    assert row["outcomes"] == {"FAILED": 1, "PASSED": 1}
    assert f"FAILED {name}\n" in capsys.readouterr().out
    assert row["status"] == "failed"
    # pytest was let to tell why it failed.
    assert "1 failed, 1 passed" in log.read_text()


@pytest.mark.parametrize("stage", STAGES, ids=stages.NAMES)
def test_the_command_of_a_stage_exists_and_knows_its_flags(stage, options, capsys):
    words = shlex.split(day.command_of(stage, options))
    assert words[0] == "python"
    if words[1:3] == ["-m", "benchmarks"]:
        assert words[3] in COMMANDS
        with pytest.raises(SystemExit):
            benchmark([*words[3:], "--help"])
        known = re.findall(r"--[\w-]+", capsys.readouterr().out)
        assert {word for word in words if word.startswith("--")} <= set(known)
    told = day.command_of(stage, options, told=True)
    assert str(options.logs) not in told
    assert str(process.ROOT) not in told


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("expected MNIST in /home/me/data/MNIST/raw or a mirror", "expected MNIST in raw or a mirror"),
        ("~/data/x.gz: no file", "x.gz: no file"),
        ("https://example.org/a/b and 3/4", "https://example.org/a/b and 3/4"),
    ],
)
def test_folders_of_the_machine_are_left_out_of_what_is_kept(text, expected):
    assert day.without_folders(text) == expected


@pytest.mark.usefixtures("forget")
def test_the_dry_run_runs_the_stages_and_keeps_their_rows_apart_from_results(tmp_path, capsys):
    pytest.importorskip("sklearn")
    flags = ["--device", "cpu", "--tiny", "--logs", str(tmp_path), "--only", "doctor", "graph"]
    assert day.main(flags) == 0
    (path,) = tmp_path.glob("*.json")
    runs = json.loads(path.read_text())
    assert runs.keys() == {"day", "cuda-graph"}
    assert all(run["settings"]["quick"] and run["settings"]["tiny"] for run in runs.values())
    documented = set(re.findall(r"\w+", day.__doc__))
    for row in runs["day"]["rows"]:
        assert row.keys() <= documented
        assert row["status"] == "ok"
    assert str(tmp_path) not in path.read_text()
    graphs = runs["cuda-graph"]["rows"]
    assert all(("left_out" in row) is row["cuda_graph"] for row in graphs)
    assert graphs[1]["left_out"] == "expected a GPU for --cuda-graph, got cpu"
    assert str(path) in capsys.readouterr().out


def test_tests_take_no_more_processes_than_fit_on_the_gpu(monkeypatch):
    small = SimpleNamespace(total_memory=8 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: small)
    monkeypatch.setattr(day.machine, "cores", lambda: 64)
    assert day.workers(torch.device("cuda")) == 4
    assert day.workers(torch.device("cpu")) == day.MOST_WORKERS
    monkeypatch.setattr(day.machine, "cores", lambda: 2)
    assert day.workers(torch.device("cuda")) == 2
