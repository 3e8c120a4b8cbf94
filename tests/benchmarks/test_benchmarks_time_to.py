"""The time to an accuracy: its rows, and the loops that are compared."""

import json
import re
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("torchvision")

from benchmarks import command, cuda_graph, time_to
from benchmarks.__main__ import main
from manual_mlp import MLP
from manual_mlp.training.config import Config
from manual_mlp.training.data import Data, Split
from manual_mlp.training.errors import InputError
from mnist import path_of, write_mnist


@pytest.fixture
def told(monkeypatch):
    """Let the runs be told: accuracy and seconds of each provider."""
    called = []

    def run(provider, seed, options):
        called.append((provider, seed))
        seconds = {"manual_mlp": 2.0, "torch": 3.0, "DataLoader": 20.0}[provider]
        return {"accuracy": 97.9 + 0.1 * seed, "seconds": seconds + seed, "ready": 1.5}

    monkeypatch.setattr(time_to, "in_a_process", run)
    return called


def test_a_row_has_mean_accuracy_median_seconds_and_the_ratio(told, tmp_path, capsys):
    flags = [
        "--time-to",
        "98",
        "--seeds",
        "3",
        "--providers",
        "manual_mlp",
        "torch",
        "--json",
        "--results",
        str(tmp_path),
    ]
    assert time_to.main(flags) == 0
    (path,) = tmp_path.iterdir()
    ours, torchs = json.loads(path.read_text())["time-to-98"]["rows"]
    assert ours["accuracy"] == pytest.approx([98.0, 97.9, 98.1])
    assert ours["seconds"] == [3.0, 2.0, 4.0]
    assert ours["ratio"] == pytest.approx(4 / 3, rel=1e-3)
    assert torchs["ratio"] == 1
    assert ours["settings"]["hidden"] == [256]
    assert "98.00 [97.90, 98.10]" in capsys.readouterr().out


def test_a_missed_goal_is_status_1(told):
    assert time_to.main(["--time-to", "98", "--seeds", "1", "--providers", "manual_mlp"]) == 1


def test_the_providers_take_turns_and_the_slow_one_has_few_seeds(told):
    time_to.main(["--time-to", "98", "--seeds", "4", "--providers", "torch", "DataLoader"])
    assert told[:4] == [("torch", 0), ("DataLoader", 0), ("torch", 1), ("DataLoader", 1)]
    assert told.count(("torch", 3)) == 1
    assert ("DataLoader", 3) not in told


def test_the_plain_loop_trains_the_same_network_with_the_same_schedule():
    torch.manual_seed(0)
    images = torch.randn(60, 6)
    labels = images.argmax(1)
    split = Split(images, labels)
    data = Data("noise", split, split, lambda: split, (2, 3), 0.0, 1.0)
    config = Config(hidden=(32,), epochs=30, batch_size=20, lr=0.02, warmup=0.0)
    model = MLP([6, 32, 10])
    before = F.cross_entropy(model(images), labels).item()
    assert time_to.plain_loop(model, config, time_to.in_memory(data, config)) > 0
    assert F.cross_entropy(model(images), labels).item() < 0.7 * before


@pytest.mark.parametrize("brief", [[], ["--tiny"]])
def test_a_process_trains_what_it_is_told(tmp_path, brief):
    flags = ["--time-to", "98", "--threads", "1", "--device", "cpu", "--data-dir", str(write_mnist(tmp_path)), *brief]
    found = time_to.in_a_process("manual_mlp", 3, time_to.read_options(flags))
    assert 0 <= found["accuracy"] <= 100
    # Of a real clock: they are there, and how long they are is what the command is for.
    assert found["seconds"] > 0
    assert found["ready"] > 0


def test_without_images_the_command_says_in_one_line_what_it_needs(monkeypatch, capsys):
    done = SimpleNamespace(returncode=2, stderr="expected mnist in a folder or a network to download it\n")
    monkeypatch.setattr(time_to.subprocess, "run", lambda *args, **kwargs: done)
    assert main(["train", "--time-to", "98", "--device", "cpu"]) == 2
    said = "python -m benchmarks train: expected mnist in a folder or a network to download it\n"
    assert capsys.readouterr().err == said


def test_a_process_without_images_ends_with_status_2_and_the_reason(tmp_path, monkeypatch):
    # Another size than the labels': found without a network.
    folder = write_mnist(tmp_path)
    path_of(folder, "train-labels").write_bytes(b"")
    flags = ["--time-to", "98", "--threads", "1", "--device", "cpu", "--data-dir", str(folder)]
    with pytest.raises(InputError, match="train-labels"):
        time_to.in_a_process("manual_mlp", 0, time_to.read_options(flags))


def test_in_memory_every_image_comes_once():
    split = Split(torch.arange(50.0)[:, None], torch.arange(50))
    data = Data("numbers", split, split, lambda: split, (1, 1), 0.0, 1.0)
    epoch = time_to.in_memory(data, Config(batch_size=8))
    found = torch.cat([labels for _, labels in epoch()])
    assert sorted(found.tolist()) == list(range(50))
    assert not torch.equal(found, torch.cat([labels for _, labels in epoch()]))


@pytest.mark.parametrize("flags", [["--time-to", "97"], ["--time-to", "98", "--seeds", "0"], ["--seeds", "3"]])
def test_bad_options_have_status_2(flags):
    with pytest.raises(SystemExit) as exit:
        time_to.main(flags)
    assert exit.value.code == 2


def test_a_tiny_run_trains_once_on_the_embedded_digits_and_has_no_goal(tmp_path):
    pytest.importorskip("sklearn")
    flags = ["--time-to", "98", "--tiny", "--threads", "1", "--device", "cpu", "--json", "--results", str(tmp_path)]
    assert time_to.main([*flags, "--providers", "torch", "--data-dir", str(tmp_path / "none")]) == 0
    run = json.loads(next(tmp_path.glob("*.json")).read_text())["time-to-98"]
    assert run["settings"]["quick"]
    assert run["settings"]["tiny"]
    assert [(row["provider"], row["seeds"], row["reached"]) for row in run["rows"]] == [("torch", 1, False)]


@pytest.fixture
def graphs(monkeypatch):
    """Tell the seconds and accuracy of each run of ``--cuda-graph``, a seed later a second more; list the runs."""
    asked = []

    def fit(config, device):
        asked.append((config.hidden, config.cuda_graph, config.seed, config.epochs))
        if config.cuda_graph and config.precision == "bf16":
            raise InputError("expected a GPU")
        trainer = SimpleNamespace(step=7, evaluate=lambda split: SimpleNamespace(accuracy=0.9 + 0.01 * config.seed))
        return trainer, SimpleNamespace(read_test=lambda: None), (2.0 if config.cuda_graph else 6.0) + config.seed

    monkeypatch.setattr(cuda_graph.literature, "fit", fit)
    return asked


def test_with_and_without_a_graph_the_same_seeds_take_turns_and_the_first_runs_do_not_count(graphs, tmp_path, capsys):
    flags = ["--cuda-graph", "--seeds", "3", "--device", "cpu", "--json", "--results", str(tmp_path)]
    assert cuda_graph.main(flags) == 0
    small = [run[1:] for run in graphs if run[0] == (128,)]
    assert small[:2] == [(False, 0, 1), (True, 0, 1)]
    assert small[2:] == [(graph, seed, 4) for seed in range(3) for graph in (False, True)]
    rows = json.loads(next(tmp_path.glob("*.json")).read_text())["cuda-graph"]["rows"]
    documented = set(re.findall(r"\w+", cuda_graph.__doc__))
    assert all(row.keys() <= documented for row in rows)
    without, captured = rows[:2]
    assert (without["cuda_graph"], captured["cuda_graph"]) == (False, True)
    assert captured["flags"] == "--hidden 128 --batch-size 64"
    assert captured["seconds"] == [3, 2, 4]
    assert captured["accuracy"] == [91, 90, 92]
    assert captured["ratio"] == pytest.approx(7 / 3, rel=1e-3)
    assert without["ratio"] == 1
    assert [row["case"] for row in rows if "left_out" in row] == ["bf16", "wide"]
    assert "expected a GPU" in capsys.readouterr().out


def test_a_graph_that_is_refused_on_a_gpu_is_status_1(graphs, monkeypatch):
    monkeypatch.setattr(command, "pick_device", lambda flags, options: setattr(options, "device", torch.device("cuda")))
    assert cuda_graph.main(["--cuda-graph", "--seeds", "1"]) == 1
