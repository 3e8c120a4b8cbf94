"""The config.json of a run that somebody else wrote: every value may be anything."""

import contextlib
import json
import shutil

import pytest

pytest.importorskip("tyro")
pytest.importorskip("torchvision")

from manual_mlp.__main__ import main as command
from manual_mlp.training import checkpoint, load_run, sources
from manual_mlp.training.config import Config
from manual_mlp.training.errors import InputError
from mnist import write_mnist

FLAGS = ("--dataset", "digits", "--hidden", "20", "--batch-size", "64", "--epochs", "1")
ANYTHING = [
    None,
    True,
    -1,
    3,
    10**40,
    0.5,
    float("nan"),
    "",
    "x",
    "a\0b",
    "/",
    [],
    [[]],
    ["x"],
    [10**6, 10**6],
    {},
    {"a": 1},
]
SIZES = [None, 3, [], [64], [64, -1], [64, True], [64, 1.5, 10], ["64", "10"], [64, [20], 10], "64 10", {"0": 64}]


@pytest.fixture(scope="module")
def finished(train):
    return train.whole(*FLAGS)


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "sent")


def edit(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def lines(err):
    """Return what stderr has, but for the progress bar."""
    return [line for line in err.replace("\r", "\n").splitlines() if line.strip() and "images/s" not in line]


@pytest.mark.parametrize(("turn", "value"), list(enumerate(ANYTHING)), ids=map(repr, ANYTHING))
def test_a_setting_of_any_kind_is_taken_or_refused_in_one_line(main, finished, tmp_path, every_case, turn, value):
    names = sorted(json.loads((finished / "config.json").read_text()))
    # In turn, so that of any five values in a row each setting has one.
    for name in names if every_case else names[turn % 5 :: 5]:
        if value is True and name == "compile":  # of which torch has its own to say
            continue
        folder = shutil.copytree(finished, tmp_path / name)
        edit(folder, **{name: value})
        status, _, err = main("--resume", folder)
        found = lines(err)
        assert (status, len(found)) in ((0, 0), (2, 1)), (name, value, err)
        assert all(line.startswith("error: expected ") for line in found), (name, value, err)
        with contextlib.suppress(InputError):  # and nothing else
            load_run(folder)
        shutil.rmtree(folder)


@pytest.mark.parametrize("sizes", SIZES, ids=repr)
def test_sizes_that_are_none_are_refused_in_one_line(main, folder, sizes, tmp_path, capsys):
    edit(folder, sizes=sizes)
    status, _, err = main("--resume", folder)
    assert status == 2
    assert err == f"error: expected the folder of a run of train.py, got {folder}: config.json: no settings of a run\n"
    for arguments in (["export", folder, "--to", "sequential"], ["explain", "--checkpoint", folder]):
        assert command(list(map(str, arguments))) == 2
        assert capsys.readouterr().err == err
    with pytest.raises(ValueError, match="no settings of a run"):
        load_run(folder)


@pytest.mark.parametrize("value", [None, "x", [1], float("nan"), float("inf"), True, {}, 10**40, 10**400], ids=repr)
@pytest.mark.parametrize("name", ["mean", "std"])
def test_a_mean_and_a_std_that_are_no_numbers_are_refused(folder, name, value):
    edit(folder, **{name: value})
    with pytest.raises(ValueError, match=r"^expected mean and std in the config.json of \S+, two numbers up to 1e6"):
        load_run(folder)


@pytest.mark.parametrize("std", [0.0, -1.0, 1e-13])
def test_a_std_that_is_none_is_refused(folder, std, capsys):
    edit(folder, std=std)
    with pytest.raises(ValueError, match="std from 1e-12 up"):
        load_run(folder)
    assert command(["explain", "--checkpoint", str(folder)]) == 2
    assert "std from 1e-12 up" in capsys.readouterr().err


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xfe", b"[" * 100_000, b'{"sizes": [64, 10]}' + b" " * 2**20, b"null", b'"a"']
)
def test_settings_that_are_no_json_of_a_run_are_refused_in_one_line(main, folder, data):
    (folder / "config.json").write_bytes(data)
    status, _, err = main("--resume", folder)
    assert status == 2
    assert err.startswith(f"error: expected the folder of a run of train.py, got {folder}: config.json: ")
    assert err.count("\n") == 1


def test_images_are_not_downloaded_into_a_folder_that_the_settings_name(main, folder, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(sources, "_complete", lambda name, at: asked.append(at) or 1 / 0)
    monkeypatch.delenv("MANUAL_MLP_DATA", raising=False)
    edit(folder, dataset="mnist", data_dir=str(tmp_path / "elsewhere"))
    with pytest.raises(ZeroDivisionError):
        main("--resume", folder)
    assert asked == [Config().data_dir / "MNIST/raw"]
    assert not (tmp_path / "elsewhere").exists()


def test_the_images_a_run_began_with_are_found_again_where_they_are(tmp_path, monkeypatch):
    monkeypatch.delenv("MANUAL_MLP_DATA", raising=False)
    there = write_mnist(tmp_path)
    began = {"dataset": "mnist", "data_dir": str(there)}
    assert checkpoint.data_dir(began) == there
    assert checkpoint.data_dir({**began, "data_dir": str(tmp_path / "gone")}) == Config().data_dir
    monkeypatch.setenv("MANUAL_MLP_DATA", "mine")
    assert str(checkpoint.data_dir(began)) == "mine"
