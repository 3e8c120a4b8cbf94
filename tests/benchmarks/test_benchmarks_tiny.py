"""Dry runs: every command, with all its cases and providers, in seconds."""

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks import compile as compile_command
from benchmarks import dense, machine, native_rows, network, output, peers, second_order, train, transforms
from benchmarks.__main__ import main
from benchmarks.compile import graphs
from benchmarks.compile import rows as compile_rows
from benchmarks.network import studies
from benchmarks.tiny import shrunk
from manual_mlp.engines import native

TRAINING = {"time_to": ["--time-to", "98"], "literature": ["--table"], "accuracy": ["--accuracy", "mnist", "digits"]}
# What a dry run on a CPU has not got: fields of a GPU, of two threads, of --huge; and words that are no field.
ABSENT = {"host_us", "input_bytes", "manual_mlp", "no_grad", "functional_call", "cross_entropy"}


def fields(value: object) -> Iterator[str]:
    """List the names in a run, however deep."""
    for name, item in value.items() if isinstance(value, dict) else ():
        yield name
        yield from fields(item)
    for item in value if isinstance(value, list) else ():
        yield from fields(item)


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the compiler do nothing but count: making code takes minutes."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **given: real(f, **given) if "backend" in given else f)
    count_all = graphs.count_all
    monkeypatch.setattr(graphs, "count_all", lambda device: count_all(["Linear"], device))


def dry_run(folder: Path, *arguments: str) -> str:
    """Run a command; return its JSON as text, and hold what every dry run is."""
    assert main([*arguments, "--device", "cpu", "--tiny", "--json", "--results", str(folder)]) == 0
    (path,) = folder.iterdir()
    text = path.read_text()
    assert str(folder) not in text
    assert machine.platform.node() not in text
    (run,) = json.loads(text).values()
    assert run["settings"]["quick"] is run["settings"]["tiny"] is True
    return text


# How many rows a whole run has, on one thread and under one malloc.
ROWS = {
    "dense": 2 * len(dense.CASES),
    "second-order": len(second_order.KINDS) * len(second_order.WIDTHS),
    "transforms": 2 * (2 * len(transforms.TRANSFORMS) - 1),
    "output": len(output.CUDA_CASES),
    "network": len(network.CASES),
    "native": len(native_rows.ROWS),
    "compile": len(compile_rows.ROWS),
    "dropout": 4,
    "train": len(train.CASES) * len(train.OPTIMISERS),
}


@pytest.mark.usefixtures("brief", "compiling")
@pytest.mark.filterwarnings("ignore:`torch.jit.script")
@pytest.mark.parametrize("command", ROWS)
def test_a_dry_run_of_every_command_has_every_row_and_every_field_that_its_docstring_names(tmp_path, command):
    if command == "native" and native.doors is None:
        pytest.skip(f"native is off: {native.why()}")
    module = importlib.import_module(f"benchmarks.{command.replace('-', '_')}")
    (run,) = json.loads(dry_run(tmp_path, command)).values()
    found = set(fields(run))
    assert set(re.findall(r"[a-z0-9]+(?:_[a-z0-9]+)+", module.__doc__)) - ABSENT <= found
    assert {"gflops", "copy_gbs", "empty_call_us", "launch_us"} <= found
    assert "host_us" not in found
    assert len(run["rows"]) == ROWS[command]
    if command in ("network", "train"):
        named = {name for row in run["rows"] for name in (*row["providers"], *row["left_out"])}
        assert named == set(module.PROVIDERS)
    for row in run["rows"]:
        assert row["threads"] == 1
        assert row["malloc"] == "default"
        if command != "transforms":
            assert row["products_us"] == pytest.approx(row["flops"] / 1e3, rel=1e-3)  # at the 1 GFLOP/s of these tests
            for provider in row["providers"].values():
                assert provider["products_share"] == pytest.approx(row["products_us"] / provider["median_us"], rel=1e-3)


@pytest.mark.parametrize("name", TRAINING)
def test_a_dry_run_trains_an_epoch_on_embedded_images_and_a_goal_missed_is_no_failure(tmp_path, monkeypatch, name):
    pytest.importorskip("torchvision")
    module, time_to = (importlib.import_module(f"benchmarks.{of}") for of in (name, "time_to"))

    def here(provider, seed, options):
        flags = {"data_dir": options.data_dir, **time_to.settings(options.time_to, tiny=True)}
        return time_to.train(provider, seed, options.device, flags, 0.0)

    monkeypatch.setattr(time_to, "in_a_process", here)
    monkeypatch.setenv("MANUAL_MLP_DATA", "/nowhere")
    (run,) = json.loads(dry_run(tmp_path, "train", *TRAINING[name])).values()
    words = set(re.findall(r"\w+", module.__doc__))
    for row in run["rows"]:
        assert row["seeds"] == 1
        assert row.get("epochs", row.get("settings", {}).get("epochs")) == 1
        assert row.keys() - {"date", "machine"} <= words
    if name == "literature":
        assert {row["recipe"] for row in run["rows"]} == set(module.RECIPES)
        assert not all(row["reached"] for row in run["rows"])
    if name == "time_to":
        assert [row["provider"] for row in run["rows"]] == list(module.PROVIDERS)
        assert not any(row["reached"] for row in run["rows"])


def test_the_images_of_a_dry_run_are_digits_in_mnists_files(tmp_path):
    pytest.importorskip("sklearn")
    from benchmarks import images
    from manual_mlp.training.sources import open_source

    images.write(tmp_path)
    for name in ("mnist", "fashion-mnist"):
        source = open_source(name, tmp_path)
        (pixels, labels), (tests, _) = source.train, source.read_test()
        assert (tuple(pixels.shape), len(tests)) == ((244, 28, 28), 100)
        assert set(labels.tolist()) == set(range(10))
        assert 0 < pixels.mean() < pixels.max() <= 1


def test_a_size_is_its_square_root_and_whatever_is_no_size_stays():
    assert shrunk(output.Case(4096, 4096, 128256, "bfloat16")) == output.Case(64, 64, 358, "bfloat16")
    assert shrunk(dense.Case(1, 784, 10, input_grad=False)) == dense.Case(1, 28, 3, input_grad=False)
    assert shrunk({"hidden": (2500, 500), "lr": 0.1, "held_out": 0}) == {"hidden": (50, 22), "lr": 0.1, "held_out": 0}


CASES = {
    "dense": dense.CASES,
    "output": output.CUDA_CASES,
    "peers": peers.CUDA_CASES,
    "network": network.CASES,
    "batches": [network.cases.NARROW._replace(rows=rows) for rows in studies.BATCHES],
    "second-order": [second_order.Case(kind, width) for kind in second_order.KINDS for width in second_order.WIDTHS],
    "train": train.CASES,
    "transforms": [transforms.Case("grad", sizes, "relu") for sizes in (transforms.LAYER, transforms.NET)],
}


@pytest.mark.parametrize("name", CASES)
def test_cases_that_differ_differ_in_a_dry_run_too(name):
    assert len({str(shrunk(case)) for case in CASES[name]}) == len(CASES[name])


@pytest.mark.parametrize("module", [native_rows, compile_rows])
def test_a_dry_run_has_every_row_under_the_name_of_its_own_size(module):
    small = module.rows_of(shrunk)
    assert len(small) == len(module.ROWS) == len({str(row) for row in small})
    assert not {row.case for row in small} & {row.case for row in module.ROWS}


@pytest.mark.usefixtures("brief", "compiling")
def test_a_wrong_gradient_fails_a_dry_run(monkeypatch):
    monkeypatch.setitem(
        native_rows.HEADS, "logistic", (native_rows.logistic, lambda *t: 1.01 * native_rows.logistic(*t))
    )
    assert compile_command.main(["--device", "cpu", "--tiny", "--only", "logistic", "--parts", "rows"]) == 1
