"""The literature's MLPs: their records, and that each trains."""

import json
from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("torchvision")

from manual_mlp.training import build
from manual_mlp.training.config import Config
from manual_mlp.training.data import Data, Split
from manual_mlp.training.interrupt import Interrupt
from manual_mlp.training.log import NoLog
from manual_mlp.training.loop import Trainer
from manual_mlp.training.recipes import RECIPES, listed

CPU = torch.device("cpu")


@pytest.fixture
def rows():
    """Ten classes of 28×28 pixels that differ in a bright row."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (200,), generator=generator)
    images = 0.1 * torch.rand(200, 28, 28, generator=generator)
    images[torch.arange(200), 4 + 2 * labels] = 1
    split = Split(images.flatten(1), labels)
    return Data("rows", split, Split(images[:0].flatten(1), labels[:0]), lambda: split, (28, 28), 0.0, 1.0)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_a_config_and_learns(name, rows):
    # After 8 epochs the recipe with dropout has learnt 13 to 76 % by seed, whether the masks are ours or F.dropout's.
    flags = {**RECIPES[name].flags, "epochs": 16, "batch_size": 10, "check_every": 0}
    if len(flags["hidden"]) > 2:
        flags["hidden"] = (64,) * len(flags["hidden"])  # of the widest, the depth must do
    config = Config(recipe=name, **flags)
    torch.manual_seed(0)
    trainer = Trainer(build.build_model(config, rows, CPU), rows, config)
    before = trainer.evaluate(rows.train)
    with NoLog() as log:
        trainer.fit(log, Interrupt())
    after = trainer.evaluate(rows.train)
    assert after.loss < before.loss
    # Turned by 15 degrees, neighbouring rows are hard to tell apart; Nielsen's quadratic cost begins slowly.
    assert after.accuracy > (0.2 if any(word in name for word in ("ciresan", "nielsen", "elastic")) else 0.5)


def test_a_recipe_names_fields_of_the_config_and_what_its_source_fixes():
    known = {field.name for field in fields(Config)}
    for name, recipe in RECIPES.items():
        assert set(recipe.flags) <= known, name
        assert {"hidden", "epochs", "held_out"} <= set(recipe.flags), name
        assert recipe.flags["shift"] == 0, name
        # Only the recipes that say so distort.
        distorts = any(recipe.flags.get(key) for key in ("rotation", "elastic_alpha"))
        assert distorts == any(word in name for word in ("distorted", "affine", "elastic", "ciresan")), name


def test_the_figures_are_those_of_the_sources():
    reported = {name: recipe.reported for name, recipe in RECIPES.items()}
    assert reported["lecun-300"] == 4.7
    assert reported["lecun-500-150-distorted"] == 2.45
    assert (reported["simard"], reported["simard-affine"], reported["simard-elastic"]) == (1.6, 1.1, 0.7)
    assert RECIPES["nielsen-30"].reported_error == pytest.approx(4.58)
    assert RECIPES["nielsen-30"].flags["held_out"] == 10_000


def test_the_list_has_a_line_for_each_with_figure_and_source():
    lines = listed().splitlines()
    assert len(lines) == len(RECIPES)
    for (name, recipe), line in zip(RECIPES.items(), lines, strict=True):
        assert line.startswith(name)
        assert f"{recipe.reported:g} % {recipe.metric}" in line
        assert line.endswith(recipe.source)


def test_the_table_judges_a_recipe_once_and_on_what_its_source_reports(monkeypatch, rows):
    from benchmarks import literature

    judged = []
    monkeypatch.setattr(literature, "load", lambda *args: rows)
    monkeypatch.setattr(Trainer, "fit", lambda self, log, interrupt: SimpleNamespace(seconds=1.0))
    monkeypatch.setattr(Trainer, "evaluate", lambda self, split: judged.append(split) or SimpleNamespace(accuracy=0.98))
    options = literature.read_options(["--table", "--device", "cpu"])
    error, seconds = literature.train("simard", 0, options)
    assert (round(error, 9), seconds) == (2.0, 1.0)
    literature.train("nielsen-100-cross-entropy", 0, options)
    assert judged[0] is rows.train
    assert judged[1] is rows.validation
    assert len(judged) == 2


def test_the_table_has_a_row_for_each_recipe_and_tells_what_is_reached(monkeypatch, capsys, tmp_path):
    from benchmarks import literature, machine, report

    asked = []

    def train(name, seed, options):
        asked.append((name, seed, options.epochs))
        return {"nielsen-30": 4.7, "simard": 1.61}[name] + 0.1 * (seed - 1), 10.0 + seed

    monkeypatch.setattr(literature, "train", train)
    options = f"--seeds 3 --epochs 2 --json --device cpu --results {tmp_path}".split()
    assert literature.main(["--table", "--recipes", "simard", *options[2:]]) == 1  # five seeds: overwritten below
    assert literature.main(["--table", "--recipes", "nielsen-30", *options]) == 0
    status = literature.main(["--table", "--recipes", "simard", *options])
    assert status == 1
    assert asked[5:] == [(name, seed, 2) for name in ("nielsen-30", "simard") for seed in range(3)]
    (path,) = tmp_path.glob("*.json")
    nielsen, simard = json.loads(path.read_text())["literature"]["rows"]
    assert nielsen["error"] == pytest.approx([4.7, 4.6, 4.8])
    assert (nielsen["reached"], simard["reached"]) == (True, False)  # a single run's figure may be missed by 0.3
    assert (simard["seconds"], simard["epochs"], simard["of_epochs"]) == ([11, 10, 12], 2, 10)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    table = report.TABLES["literature"][1](report.newest([path])["literature"])
    here = f"{machine.brief(machine.cpu_name())}, {torch.get_num_threads()}"
    assert table.splitlines()[2:] == [
        f"| `simard` | Simard 2003 | 800 | 1.60 | 1.61 [1.51, 1.71] | 3 | 2 of 10 | 11 | {here} |",
        f"| `nielsen-30` | Nielsen 2015 | 30 | 4.58 | 4.70 [4.60, 4.80] | 3 | 2 of 30 | 11 | {here} |",
    ]
    assert ["simard", "1.60", "1.61", "[1.51,", "1.71]", "3", "2", "of", "10", "11", "missed"] in lines
