"""The command: its JSON, its results, its refusals, and what it runs with."""

import ast
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import command, layers, machine
from benchmarks import dense as dense_command
from benchmarks.__main__ import COMMANDS, main
from briefly import BRIEF


@pytest.mark.usefixtures("brief")
def test_json_has_the_documented_fields(tmp_path, capsys):
    assert main(["dense", *BRIEF, "5x7x4-first", "--json", "--results", str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    assert re.fullmatch(r"[a-z0-9-]+-\d{4}-\d\d-\d\d\.json", path.name)
    run = json.loads(path.read_text())["dense"]
    assert run.keys() == {"command", "date", "machine", "settings", "load", "ceilings", "rows"}
    assert run["command"].startswith("python -m benchmarks dense --seconds 0.001 --threads 1")
    assert {"device", "cpu", "cores", "python", "torch"} <= run["machine"].keys()
    assert run["ceilings"]["default"]["1"].keys() == {
        "gflops",
        "gflops_float32",
        "copy_gbs",
        "empty_call_us",
        "launch_us",
    }
    assert [(row["case"], row["activation"]) for row in run["rows"]] == [
        (case, f) for case in ("5×7→4", "5×7→4 first") for f in ("relu", "gelu")
    ]
    documented = set(re.findall(r"\w+", dense_command.__doc__))
    for row in run["rows"]:
        assert row["providers"].keys() == set(layers.PROVIDERS)
        assert row.keys() <= documented
        for provider in row["providers"].values():
            assert provider.keys() <= documented
            assert provider["wrong"] is False
            assert provider["error"].keys() == {"output", "dweight", "dbias"} | (
                {"dinput"} if row["input_grad"] else set()
            )
            assert provider["kept_bytes"].keys() == {
                "input",
                "weight",
                "bias",
                "output",
                "other",
                "total",
                "attributes",
            }
            assert len(provider["ratio"]) == len(provider["extra_us"]) == 3
    text = path.read_text()
    assert str(tmp_path) not in text
    assert machine.platform.node() not in text
    assert "torch/ours" in capsys.readouterr().out


def test_rows_of_every_malloc_share_the_checks_of_the_first():
    rows = [
        {"providers": {"torch": {"median_us": 1.0, "error": {"output": 2.0}}}},
        {"providers": {"torch": {"median_us": 3.0}}},
    ]
    command.share_checks(rows, 2)
    assert rows[1]["providers"]["torch"] == {"median_us": 3.0, "error": {"output": 2.0}}


def test_saving_keeps_what_other_commands_wrote(tmp_path):
    options = command.parser("dense", "").parse_args(["--quick", "--results", str(tmp_path)])
    options.device = torch.device("cpu")
    command.save("dense", {"rows": [1]}, options)
    path = command.save("train", {"rows": [2]}, options)
    command.save("dense", {"rows": [3]}, options)
    asked = "python -m benchmarks dense --quick"
    assert json.loads(path.read_text()) == {
        "dense": {"command": asked, "rows": [3]},
        "train": {"command": asked, "rows": [2]},
    }


@pytest.mark.parametrize("given", [["--results", "a folder/b"], ["--results=a folder/b"], ["--res", "a folder/b"]])
def test_the_command_that_is_saved_names_no_folder(given):
    options = command.parser("dense", "").parse_args([*given, "--quick", "--threads", "1", "2"])
    assert str(options.results) == "a folder/b"
    assert options.command == "python -m benchmarks dense --quick --threads 1 2"


def test_layout_is_json_to_five_digits_with_a_row_on_one_line():
    run = {"dense": {"empty": [], "ceilings": {"default": {1: 0.1234567}}, "rows": [{"a": [1, 2.0]}, {"b": None}]}}
    text = command.layout(run)
    expected = {"empty": [], "ceilings": {"default": {"1": 0.12346}}, "rows": [{"a": [1, 2.0]}, {"b": None}]}
    assert json.loads(text) == {"dense": expected}
    assert '{"a": [1, 2.0]},\n' in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], f"expected a command, one of {', '.join(COMMANDS)}, got nothing"),
        (["dens"], f"expected a command, one of {', '.join(COMMANDS)}, got 'dens'; did you mean dense?"),
        (["dense", "--threads", "0"], "expected a whole number from 1 up, got '0'"),
        (["dense", "--device", "cpu", "--threads", "100000"], "expected at most"),
        (["dense", "--seconds", "nan"], "expected a positive number of seconds, got 'nan'"),
        (["dense", "--case", "64x784"], "expected NxD_INxD_OUT or NxD_INxD_OUT-first, got '64x784'"),
        (["output", "--case", "64x784"], "expected NxDxV[-bias][-DTYPE][-saturated], got '64x784'"),
        (["output", "--case", "5x7x4-int8"], "expected NxDxV[-bias][-DTYPE][-saturated], got '5x7x4-int8'"),
        (["output", "--case", "5x0x4"], "expected NxDxV[-bias][-DTYPE][-saturated], got '5x0x4'"),
        (["output", "--dtype", "float64"], "unrecognized arguments: --dtype float64"),
        (["dense", "--activation", "rleu"], "invalid choice: 'rleu'"),
        (["dense", "--dtype", "int8"], "invalid choice: 'int8'"),
        (["dense", "--tiny", "--quick"], "argument --quick: not allowed with argument --tiny"),
        (["dense", "--quik"], "unrecognized arguments: --quik"),
        (["dense", "--json", "--results", __file__], "expected a directory"),
        (["network", "--case", "64-64"], "expected SIZESxROWS[-ACTIVATION][-LOSS][-DTYPE]"),
        (["network", "--case", "64x32"], "got '64x32'"),
        (["network", "--case", "64-64x32-rleu"], "got '64-64x32-rleu'"),
        (["network", "--providers", "jax"], "invalid choice: 'jax'"),
        (["network", "--studies", "tiles"], "invalid choice: 'tiles'"),
        (["network", "--dtype", "float64"], "unrecognized arguments: --dtype float64"),
        (["train", "--optimiser", "Lion"], "invalid choice: 'Lion'"),
        (["transforms", "--transform", "vjp"], "invalid choice: 'vjp'"),
        (["report", "--results", "/nowhere"], "--results: expected a folder with *.json, got /nowhere"),
        (["report", "--documents", "/nowhere"], "--documents: expected a file, got /nowhere"),
        (["report", "--from", __file__, "--print"], "expected results as JSON, got"),
        (["report", "--chek"], "unrecognized arguments: --chek"),
    ],
)
def test_bad_arguments_give_one_clear_line_and_status_2(arguments, message, capsys):
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = stop.code
    out, err = capsys.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err


@pytest.mark.parametrize(
    ("load_", "others", "threads", "busy"), [(1.9, 0.0, 2, False), (9e9, 0.0, 2, True), (0.0, 9e9, 1, True)]
)
def test_busy_is_load_beyond_the_runs_own(load_, others, threads, busy):
    assert machine.busy(load_, others, threads) is busy


def test_a_slug_names_the_cpu_and_its_cores(monkeypatch):
    monkeypatch.setattr(machine, "cpu_name", lambda: "Intel(R) Xeon(R) Processor @ 2.70GHz")
    monkeypatch.setattr(machine, "cores", lambda: 2)
    assert machine.slug(torch.device("cpu")) == "intel-xeon-2-cores"


def test_the_tuned_malloc_is_set_in_a_fresh_process():
    if "tuned" not in machine.mallocs():
        pytest.skip("needs glibc")
    before = dict(machine.os.environ)
    seen = machine.under_malloc("tuned", machine.os.getenv, "MALLOC_MMAP_MAX_")
    assert seen == "0"
    assert dict(machine.os.environ) == before


def test_the_package_runs_with_torch_and_manual_mlp_alone():
    imported = set()
    # Some commands train on MNIST, which torchvision reads; one is about kernels in Triton.
    paths = set(Path(command.__file__).parent.rglob("*.py"))
    paths = {path for path in paths if path.stem not in ("time_to", "literature", "accuracy", "cuda_graph", "images")}
    for path in (path for path in paths if "kernels" not in path.parts):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.split(".")[0])
    assert imported - set(sys.stdlib_module_names) <= {"benchmarks", "manual_mlp", "torch"}


@pytest.mark.usefixtures("brief")
def test_dropout_is_timed_alone_and_in_a_step(capsys):
    arguments = ["dropout", "--rows", "8", "--width", "16", "--sizes", "9", "7", "3", "--seconds", "0.01"]
    assert main([*arguments, "--device", "cpu", "--threads", "1", "--malloc", "default"]) == 0
    printed = capsys.readouterr().out
    for row in ("forward", "backward", "step", "backprop"):
        assert row in printed
    with pytest.raises(SystemExit, match="2"):
        main(["dropout", "--sizes", "9"])
    assert "--sizes: expected two or more, got [9]" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["dropout", "--p", "1"])
    assert "--p: expected a share between 0 and 1, got 1.0" in capsys.readouterr().err


def test_a_run_that_is_stopped_keeps_the_rows_that_it_has(tmp_path):
    line = ["dense", "--device", "cpu", "--threads", "1", "--malloc", "default", "--seconds", "0.3", "--json"]
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks", *line, "--results", str(tmp_path)],
        cwd=command.RESULTS.parents[1],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        for told in process.stderr:
            if told.startswith("[2/"):
                process.send_signal(signal.SIGINT)
    assert process.returncode == 0
    (path,) = tmp_path.iterdir()
    run = json.loads(path.read_text())["dense"]
    assert run["settings"]["partial"] is True
    assert 2 <= len(run["rows"]) < 18
    assert all("error" in provider for row in run["rows"] for provider in row["providers"].values())


def test_where_results_cannot_be_written_nothing_is_measured(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for line in (["dense", "--tiny"], ["train", "--cuda-graph", "--tiny"], ["train", "--time-to", "98", "--tiny"]):
        with pytest.raises(SystemExit) as stopped:
            main([*line, "--device", "cpu", "--json", "--results", str(tmp_path / "file")])
        assert stopped.value.code == 2
        assert "--results: expected a directory, got the file" in capsys.readouterr().err


def test_one_kind_of_training_is_asked_for(capsys):
    assert main(["train", "--cuda-graph", "--time-to", "98"]) == 2
    assert capsys.readouterr().err.endswith("got --time-to, --cuda-graph\n")
