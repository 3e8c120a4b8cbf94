"""The command of the study kernels: its JSON, what it decides, and its refusals."""

import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec

import pytest

from benchmarks import kernels
from benchmarks.__main__ import main
from benchmarks.kernels import cases, decisions, model, tables
from benchmarks.kernels.forms import Form, Shape, Task
from patience import SECONDS

TRITON = find_spec("triton") is not None


@pytest.mark.processes
@pytest.mark.skipif(not TRITON, reason="needs Triton")
def test_a_tiny_run_on_a_cpu_writes_every_documented_field(tmp_path, every_case):
    # A row of each kind, or all.
    taken = cases.CASES if every_case else cases.QUICK
    code = f"import sys, benchmarks.kernels as k; k.CASES = k.CASES if {every_case} else k.QUICK"
    code += "; from benchmarks.__main__ import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "kernels", "--device", "cpu", "--tiny", "--json"]
    # What torch's compiler makes of a network is held elsewhere: here it makes nothing.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHDYNAMO_DISABLE": "1"}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [*command, "--results", str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (path,) = tmp_path.iterdir()
    run = json.loads(path.read_text())["kernels"]
    assert run["command"] == "python -m benchmarks kernels --device cpu --tiny --json"
    assert (run["settings"]["quick"], run["settings"]["tiny"]) == (True, True)
    assert not run["right"]["wrong"]
    assert not run["right"]["failed"]
    documented = set(re.findall(r"\w+", kernels.__doc__))
    assert run.keys() <= documented
    assert run["right"].keys() <= documented
    assert [row["kind"] for row in run["rows"]] == [case.kind for case in taken]
    for row in [*run["right"]["rows"], *run["rows"], *run["decisions"]]:
        assert row.keys() <= documented
    for row in run["rows"]:
        assert set(row["forms"]) <= set(row["providers"])
        assert {"torch", *row["forms"]} <= set(row["providers"])
        assert row["left_out"]["cuda graph"] == "it needs CUDA"
        for name, provider in row["providers"].items():
            assert provider.keys() <= documented
            assert provider["wrong"] is False, (row["case"], name)
            assert bool(provider["error"]) is (not row["dropout"])
    assert "nothing, as nothing ran on a card" in done.stdout
    assert "sums in registers or in memory?" in done.stdout


def test_every_command_but_this_one_goes_without_triton():
    code = (
        "import sys; sys.modules['triton'] = None; import benchmarks.kernels as k; from benchmarks.__main__ import main"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; sys.exit(main(['dense', '--help']))"], check=False, capture_output=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "cpu", "--threads", "1"], "expected neither --threads nor --malloc"),
        (["--device", "cpu", "--malloc", "default"], "expected neither --threads nor --malloc"),
        (["--dtype", "float32"], "unrecognized arguments: --dtype float32"),
    ],
)
def test_a_flag_that_changes_nothing_is_refused_in_one_line(arguments, message, capsys):
    assert message in refused(arguments, capsys)


def refused(arguments, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["kernels", *arguments])
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    return told


def test_without_triton_the_command_says_where_it_comes_from(monkeypatch, capsys):
    monkeypatch.setattr(kernels, "find_spec", lambda name: None)
    told = refused(["--device", "cpu"], capsys)
    assert "expected Triton 3.6 or newer, got none: it comes with torch for CUDA, or by pip install triton" in told


def test_a_process_that_has_triton_already_cannot_interpret(monkeypatch, capsys):
    monkeypatch.setattr(kernels, "find_spec", lambda name: True)
    monkeypatch.setitem(sys.modules, "triton", sys)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "expected a process of its own, or TRITON_INTERPRET=1" in refused(["--device", "cpu"], capsys)


def timed(kind: str, us: dict[str, float], captured: bool = True) -> dict[str, object]:
    """Make a row whose forms took so long, and a tenth less where they were captured."""
    every = us | ({cases.captured_name(name): 0.9 * value for name, value in us.items()} if captured else {})

    def ratios(mine: float) -> dict[str, list[float]]:
        return {name: [value / mine, value / mine - 0.05, value / mine + 0.05] for name, value in every.items()}

    providers = {name: {"median_us": value, "ratios": ratios(value)} for name, value in every.items()}
    about = {"kind": kind, "case": kind, "sizes": [64] * 6, "rows": 1 << 17, "floor_us": 3.0}
    return about | {"providers": providers}


@pytest.mark.parametrize(
    ("memory", "answer"),
    [
        (80.0, cases.REGISTERS),
        (51.0, f"{cases.REGISTERS}, or as good: {cases.MEMORY}"),
        (30.0, cases.MEMORY),
    ],
)
def test_the_quickest_form_is_named_unless_the_interval_holds_both(memory, answer):
    (first, *_) = decisions.decide([timed("step", {cases.REGISTERS: 50.0, cases.MEMORY: memory})])
    assert (first["question"], first["answer"]) == ("sums in registers or in memory?", answer)
    # Launches are left out where both forms were captured.
    assert first["us"] == {cases.REGISTERS: 45.0, cases.MEMORY: 0.9 * memory}


@pytest.mark.parametrize(("half", "answer"), [(90.0, "its chain of products"), (52.0, "its instructions")])
def test_half_a_tile_tells_what_a_block_waits_for(half, answer):
    rows = [timed("step", {cases.REGISTERS: 50.0, cases.HALF_TILE: half}, captured=False)]
    (found,) = decisions.decide(rows)
    assert found["answer"] == f"{answer}: {half / 50:.2f} times the time"


def test_what_did_not_run_decides_nothing():
    assert decisions.decide([]) == []
    assert decisions.decide([timed("backward", {cases.FIELD: 9.0})]) == []
    assert decisions.decide([timed("step", {cases.HALF_TILE: 9.0})]) == []


def test_the_rate_of_the_cache_is_what_is_added_there_over_the_time():
    rows = [timed("step", {cases.MEMORY: 100.0}, captured=False), timed("sums", {cases.REGISTERS: 4.0}, captured=False)]
    rate, sums = decisions.decide(rows)
    # A tile of 64 rows adds 5 · 65 · 64 numbers of four bytes.
    assert rate["answer"] == f"{(1 << 17) / 64 * 5 * 65 * 64 * 4 / 100e-6 / 1e12:.2f} TB/s or more"
    assert sums["answer"] == "4.0 µs, 75% of a copy's rate"
    assert "4.0" in tables.decided([sums])


def test_the_model_takes_the_greatest_limit_and_the_launches():
    variant = cases.Variant("infer", Shape((64, 64)), Task(), Form(tile=128, warps=8))
    found = {"registers": 64, "shared_kb": 40.0, "instructions": 100, "barriers": 1, "serialised": False}
    limits = model.microseconds(found, variant, rows=132 * 4 * 128)
    # Four blocks by registers, so that each takes a tile: 100 instructions of 8 warps, of which a cycle issues four.
    assert limits["blocks"] == 4
    assert limits["issue"] == pytest.approx(4 * 100 * 8 / 4 / 1.755e3)
    assert limits["tensor"] == pytest.approx(4 * 128 * 64 * 64 / 2048 / 1.755e3)
    assert limits["chain"] == pytest.approx((180 + 30 + 1500 + 200) / 1.755e3)
    assert limits["memory"] == pytest.approx(132 * 4 * 128 * 2 * 128 / 3.0e6)
    assert limits["us"] == pytest.approx(limits["memory"] + 2.5)


def test_every_form_of_every_case_is_known_and_a_cut_network_is_three_kernels():
    for case in cases.CASES:
        for form in case.forms:
            assert case.form(form)._replace(tf32=False) == cases.FORMS[form]
    (cut,) = [case for case in cases.CASES if case.kind == "cut"]
    assert [variant.kernel for variant in cut.variants(cases.CUT)] == ["infer", "step", "step"]
    assert {case.kind for case in cases.QUICK} == {case.kind for case in cases.CASES}
