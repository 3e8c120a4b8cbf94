"""A run's folder may come from anybody: what is in it is data, and what it is linked to stays as it is."""

import hashlib
import json
import os
import pickle
import shutil

import pytest
import torch

pytest.importorskip("tyro")
pytest.importorskip("torchvision")

from safetensors.torch import load_file, save_file

from manual_mlp.__main__ import main as command
from manual_mlp.training import load_run, state
from manual_mlp.training.errors import InputError
from manual_mlp.training.packed import pack, unpack
from runs import same, weights

FLAGS = ("--dataset", "digits", "--hidden", "20", "--batch-size", "64", "--epochs", "3")
# Two epochs, then a kill inside of the save of the third: there is something to go on with, and to sweep.
KILLED = "saves = []\nwrite = state.files.write\ndef deadly(path, data):\n    saves.append(path.name)\n"
KILLED += "    if saves.count('manifest.json') == 3:\n        os.kill(os.getpid(), 9)\n    return write(path, data)\n"
KILLED += "state.files.write = deadly"


@pytest.fixture(scope="module")
def whole(train):
    """A run that was left in peace."""
    return train.whole(*FLAGS)


@pytest.fixture(scope="module")
def killed(train):
    """A run that was killed when it had come to its last epoch."""
    assert train(*FLAGS, "--name", "killed", before=KILLED)[0] == -9
    return train.at / "killed"


@pytest.fixture
def folder(killed, tmp_path):
    """A copy of it, as a stranger sends it."""
    return shutil.copytree(killed, tmp_path / "sent")


def sign(folder, edit):
    """Change a manifest, and let its SHA-256 be right."""
    path = folder / "manifest.json"
    sets = json.loads(path.read_text())["sets"]
    sets = edit(sets) or sets
    digest = hashlib.sha256(json.dumps(sets).encode()).hexdigest()
    path.write_text(json.dumps({"sets": sets, "sha256": digest}, indent=2) + "\n")


def sha(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def part(folder, kind="weights", of="last"):
    return folder / "checkpoints" / json.loads((folder / "manifest.json").read_text())["sets"][of][kind][0]


def put(folder, kind, data):
    """Let a checkpoint hold other bytes, and its manifest their SHA-256."""
    part(folder, kind).unlink()
    part(folder, kind).write_bytes(data)

    def edit(sets):
        sets["last"][kind][1] = hashlib.sha256(data).hexdigest()
        if kind == "weights" and sets["best"]["weights"][0] == sets["last"]["weights"][0]:
            sets["best"]["weights"][1] = sets["last"]["weights"][1]

    sign(folder, edit)


def content(folder):
    """Return all files under a folder, and all links."""
    return {
        path: os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def one_line(main, *flags):
    """Run train.py, which is to refuse in one line; return that."""
    status, out, err = main(*flags)
    assert status == 2, err
    assert "test accuracy" not in out
    assert err.startswith("error: expected ")
    assert err.count("\n") == 1
    return err


NAMES = [
    "{outside}",
    "../{name}",
    "x/../../{name}",
    "..",
    ".",
    "",
    ".hidden",
    "a\0b",
    "a\nb",
    "ä",
    "x" * 300,
    7,
    None,
    [],
]


@pytest.mark.parametrize("bad", NAMES, ids=repr)
@pytest.mark.parametrize("at", ["last weights", "last state", "best weights"])
def test_a_name_in_a_manifest_leads_nowhere_else(main, folder, tmp_path, at, bad):
    of, kind = at.split()
    outside = tmp_path / "outside.safetensors"
    shutil.copy(part(folder, kind, of), outside)
    if isinstance(bad, str):
        bad = bad.format(outside=outside, name=outside.name)
    sign(folder, lambda sets: sets[of][kind].__setitem__(0, bad))
    before = content(tmp_path)
    assert "manifest.json, which is damaged" in one_line(main, "--resume", folder)
    with pytest.raises(InputError, match="damaged"):
        load_run(folder)
    assert command(["export", str(folder), "--to", "sequential", "--output", str(tmp_path / "net.pt")]) == 2
    assert content(tmp_path) == {**before, folder / "writer.lock": b""}


@pytest.mark.parametrize(
    "edit",
    [
        lambda sets: sets.pop("best") and None,
        lambda sets: sets["last"].pop("state") and None,
        lambda sets: sets["best"].update(weights="ab"),
        lambda sets: sets["last"]["weights"].append(1),
        lambda sets: sets["last"]["weights"].__setitem__(1, None),
        lambda sets: sets.update(last=[]),
        lambda sets: sets.update(replaced=3),
        lambda sets: sets.update(replaced={"last": 3}),
        lambda sets: sets.update(run=[]),
        lambda sets: sets.update(extra={}),
        lambda sets: sets["last"].update(extra=5),
        lambda sets: sets["best"].update(more=[]),
        lambda sets: sets.update(run={"token": 1, "more": 2}),
        lambda sets: [sets],
    ],
)
def test_a_manifest_that_lacks_what_is_read_of_it_is_damaged(main, folder, edit):
    sign(folder, edit)
    assert "manifest.json, which is damaged" in one_line(main, "--resume", folder)
    with pytest.raises(ValueError, match="damaged"):
        load_run(folder)


def test_checkpoints_may_be_a_link_to_a_folder_with_other_things_in_it(train, whole, folder, tmp_path):
    scratch = tmp_path / "scratch"
    shutil.move(folder / "checkpoints", scratch)
    (folder / "checkpoints").symlink_to(scratch)
    foreign = plant(scratch)
    assert train("--resume", folder)[0] == 0
    assert same(weights(folder), weights(whole))
    assert same(weights(folder, "best"), weights(whole, "best"))
    assert (folder / "checkpoints").is_symlink()
    assert {path: data for path, data in content(scratch).items() if path in foreign} == foreign


def plant(parts):
    """Put into a folder of checkpoints what a user, or another program, has there."""
    for name in (".ipynb_checkpoints", "@eaDir", "44.safetensors.d", "0-0123456789abcdef-01234567.state"):
        (parts / name).mkdir()
        (parts / name / "44.safetensors").write_bytes(b"mine")
    for name in ("notes.txt", "44.safetensors", "44.pt", ".manifest.json", ".44.safetensors", "9-best.safetensors"):
        (parts / name).write_bytes(b"mine")
    for name in (".manifest.json.0123456789abcdef.tmp", "44-0123456789abcdef-01234567.safetensors"):
        (parts / name).write_bytes(b"another run's")
    os.mkfifo(parts / "pipe")
    (parts / "link").symlink_to(parts.parent / "nowhere")
    return {
        path: data for path, data in content(parts).items() if data in (b"mine", b"another run's") or path.is_symlink()
    }


def test_what_else_lies_in_checkpoints_harms_nothing_and_stays(train, whole, folder):
    foreign = plant(folder / "checkpoints")
    assert len(foreign) == 13
    assert train("--resume", folder)[0] == 0
    assert same(weights(folder), weights(whole))
    assert {path: data for path, data in content(folder).items() if path in foreign} == foreign


def test_two_runs_in_one_folder_of_checkpoints_do_each_other_no_harm(train, whole, killed, tmp_path):
    first = shutil.copytree(killed, tmp_path / "first")
    scratch = tmp_path / "scratch"
    shutil.move(first / "checkpoints", scratch)
    (first / "checkpoints").symlink_to(scratch)
    # A copy names the same files as the first, and none of them is its own.
    second = shutil.copytree(first, tmp_path / "second", symlinks=True)
    before = content(scratch)
    assert train("--resume", second)[0] == 0
    assert before.items() <= content(scratch).items()
    assert same(weights(second), weights(whole))
    assert train("--resume", first)[0] == 0
    assert same(weights(first), weights(whole))
    for run in (first, second):
        state.load(run)
        assert train("--resume", run)[0] == 0


LINKS = (
    "last.safetensors",
    "best.safetensors",
    "projector_config.pbtxt",
    "trace.json",
    "00000",
    "00000/last_hidden_layer",
)


@pytest.mark.parametrize("name", LINKS)
def test_a_link_is_not_followed_for_writing(train, whole, folder, tmp_path, name):
    outside = tmp_path / "outside"
    path = folder / name
    if "00000" in name:
        (outside / "last_hidden_layer").mkdir(parents=True)
        for file in ("tensors.tsv", "last_hidden_layer/tensors.tsv", "last_hidden_layer/mine"):
            (outside / file).write_text("mine")
    else:
        outside.write_text("mine")
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(outside)
    before = content(outside) if outside.is_dir() else outside.read_text()
    assert train("--resume", folder, "--profile")[0] == 0
    assert (content(outside) if outside.is_dir() else outside.read_text()) == before
    assert path.is_symlink() == ("00000" in name)
    assert same(weights(folder), weights(whole))


def test_what_else_lies_in_the_projectors_folder_stays(train, folder):
    points = folder / "00000/last_hidden_layer"
    points.mkdir(parents=True)
    for name in ("mine", "tensors.tsv"):
        (points / name).write_text("mine")
    assert train("--resume", folder)[0] == 0
    assert (points / "mine").read_text() == "mine"
    assert (points / "tensors.tsv").read_text().count("\n") > 100


@pytest.mark.parametrize("name", ["config.json", "manifest.json", "weights", "state"])
@pytest.mark.parametrize("kind", ["link", "dangling", "pipe", "folder"])
def test_a_file_that_is_none_is_refused_in_one_line(main, folder, tmp_path, name, kind):
    path = folder / name if name.endswith("json") else part(folder, name)
    path.rename(tmp_path / "outside") if kind == "link" else path.unlink()
    if kind in ("link", "dangling"):
        path.symlink_to(tmp_path / "outside")
    else:
        os.mkfifo(path) if kind == "pipe" else path.mkdir()
    before = content(tmp_path)
    assert ("it is a link" if kind in ("link", "dangling") else "no file") in one_line(main, "--resume", folder)
    assert content(tmp_path) == {**before, folder / "writer.lock": b""} or name == "config.json"
    if name.endswith("json"):
        with pytest.raises(ValueError, match=r"it is (a link|no file)"):
            load_run(folder)


@pytest.mark.parametrize("best", [False, True])
@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "flipped", "cut", "other", "huge"])
def test_load_run_and_export_refuse_weights_that_are_not_those_of_the_manifest(folder, tmp_path, capsys, best, kind):
    path = folder / ("best.safetensors" if best else "last.safetensors")
    data = bytearray(path.read_bytes())
    path.unlink()
    if kind == "link":
        (tmp_path / "outside").write_bytes(data)
        path.symlink_to(tmp_path / "outside")
    elif kind in ("pipe", "folder"):
        os.mkfifo(path) if kind == "pipe" else path.mkdir()
    elif kind == "other":  # whole, and of another run
        save_file({name: value + 1 for name, value in weights(folder, "best" if not best else "last").items()}, path)
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(2**43)
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data if kind == "flipped" else data[:-8])
    with pytest.raises(ValueError, match=r"^expected (the weights of a run in )?.*safetensors") as caught:
        load_run(folder, best)
    assert "\n" not in str(caught.value)
    for to in ("sequential", "torch-export"):
        output = tmp_path / ("net.pt" if to == "sequential" else "net.pt2")
        arguments = ["export", str(folder), "--to", to, "--output", str(output), *(["--best"] if best else [])]
        assert command(arguments) == 2
        assert capsys.readouterr().err == f"error: {caught.value}\n"
        assert not output.exists()


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (
            lambda w: {**w, "layers.0.weight": w["layers.0.weight"].T.contiguous()},
            "layers.0.weight (20, 64), torch.float32, got (64, 20)",
        ),
        (
            lambda w: {**w, "layers.0.bias": w["layers.0.bias"].long()},
            "layers.0.bias (20,), torch.float32, got (20,), torch.int64",
        ),
        (lambda w: {name: value for name, value in w.items() if name != "layers.1.bias"}, "layers.1.bias, got layers"),
        (lambda w: {**w, "layers.2.bias": w["layers.1.bias"]}, "layers.2.bias"),
        (lambda w: {}, "expected layers.0.weight"),
        (
            lambda w: {**w, "layers.0.bias": w["layers.0.bias"].double()},
            "layers.0.bias (20,), torch.float32, got (20,)",
        ),
        (lambda w: {**w, "layers.0.bias": w["layers.0.bias"] / 0}, "expected finite numbers in layers.0.bias"),
    ],
)
def test_weights_with_a_right_digest_that_do_not_fit_are_refused_in_one_line(main, folder, edit, expected):
    found = {name: value.clone() for name, value in edit(load_file(part(folder))).items()}
    save_file(found, folder / "new.safetensors")
    data = (folder / "new.safetensors").read_bytes()
    put(folder, "weights", data)
    for name in ("last", "best"):
        (folder / f"{name}.safetensors").unlink()
        (folder / f"{name}.safetensors").write_bytes(data)
    sign(folder, lambda sets: sets["best"].update(weights=sets["last"]["weights"]))
    assert expected in one_line(main, "--resume", folder)
    for best in (False, True):
        with pytest.raises(ValueError, match=r"^expected the weights of a run in \S+, got: expected "):
            load_run(folder, best)


def without(name):
    return lambda s: {key: value for key, value in s.items() if key != name}


def of_first(name, make):
    """Change one value of the first parameter's state in the optimizer."""
    return lambda s: {
        **s,
        "optimizer": {**s["optimizer"], 0: {**s["optimizer"][0], name: make(s["optimizer"][0][name])}},
    }


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        *((without(name), name) for name in ("config", "epoch", "step", "best", "optimizer", "scaler")),
        (lambda s: {**s, "config": [1]}, "config"),
        (lambda s: {**s, "config": {**s["config"], "lr": torch.zeros(2)}}, "lr"),
        (lambda s: {**s, "step": -1}, "step"),
        (lambda s: {**s, "step": 10**30}, "step"),
        (lambda s: {**s, "step": True}, "step"),
        (lambda s: {**s, "step": torch.zeros(3)}, "step"),
        (lambda s: {**s, "epoch": 1.5}, "epoch"),
        (lambda s: {**s, "epoch": s["epoch"] + 1}, "epoch"),
        (lambda s: {**s, "best": float("nan")}, "best"),
        (lambda s: {**s, "best": "0.9"}, "best"),
        (lambda s: {**s, "scaler": {"scale": 1.0}}, "scaler"),
        (lambda s: {**s, "optimizer": []}, "optimizer"),
        (lambda s: {**s, "optimizer": {0: s["optimizer"][0]}}, "optimizer"),
        (lambda s: {**s, "optimizer": {**s["optimizer"], 4: {}}}, "optimizer"),
        (lambda s: {**s, "optimizer": {**s["optimizer"], 0: {}}}, "state of step, exp_avg, exp_avg_sq"),
        (of_first("exp_avg", lambda t: t[:-1]), "exp_avg (20, 64), torch.float32 in the checkpoint, got (19, 64)"),
        (of_first("exp_avg_sq", lambda t: t.double()), "exp_avg_sq (20, 64), torch.float32"),
        (of_first("step", lambda t: 3), "step (), torch.float32"),
        (of_first("exp_avg", lambda t: None), "exp_avg (20, 64)"),
        *((of_first("step", lambda t, at=at: t * 0 + at), "step 44") for at in (-1.0, 0.0, 43.5, 45.0)),
        (of_first("step", lambda t: t / 0), "finite step"),
        (of_first("exp_avg", lambda t: t * float("nan")), "finite exp_avg"),
        (of_first("exp_avg_sq", lambda t: t - 1), "exp_avg_sq from 0 up"),
        (lambda s: {**s, "optimizer": {}}, "optimizer with a state for each of 4 parameters"),
        (lambda s: {**s, "config": {**s["config"], "lr": "a\nb\x1b[31m" + 1000 * "x"}}, "expected lr 'a\\nb"),
        (lambda s: "not a dict", "no packed values"),
    ],
)
def test_a_state_with_a_right_digest_that_does_not_fit_is_refused_in_one_line(main, folder, edit, expected):
    put(folder, "state", pack(edit(unpack(part(folder, "state").read_bytes()))))
    before = weights(folder)
    assert expected in one_line(main, "--resume", folder)
    assert same(weights(folder), before)


HALF = (*FLAGS, "--precision", "fp16", "--optimizer", "sgd", "--momentum", "0")


@pytest.fixture(scope="module")
def half(train):
    """A run in float16, whose scaler has a state, and whose optimizer has none."""
    assert train(*HALF, "--name", "half", before=KILLED)[0] == -9
    return train.at / "half"


def test_a_run_whose_optimizer_has_no_state_goes_on(train, half):
    folder = shutil.copytree(half, half.parent / "half-resumed")
    assert train("--resume", folder)[0] == 0
    assert same(weights(folder), weights(train.whole(*HALF)))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("scale", value) for value in (0.0, -1.0, float("nan"), float("inf"), 1e300, 10**400, 1, None)),
        *(("_growth_tracker", value) for value in (-1, 10**12, 10**30, 1.5, True)),
        *(("growth_interval", value) for value in (0, 10**30)),
        ("backoff_factor", 0.0),
        ("growth_factor", 1e308),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_scaler_with_a_right_digest_that_does_not_fit_is_refused_in_one_line(main, half, tmp_path, name, value):
    folder = shutil.copytree(half, tmp_path / "sent")
    found = unpack(part(folder, "state").read_bytes())
    put(folder, "state", pack({**found, "scaler": {**found["scaler"], name: value}}))
    assert f"expected scaler's {name}" in one_line(main, "--resume", folder)


@pytest.mark.parametrize("damage", ["cut", "empty", "other"])
def test_a_damaged_manifest_before_the_latest_harms_nothing(train, whole, folder, damage):
    path = folder / "manifest.before.json"
    path.write_bytes({"cut": path.read_bytes()[:-5], "empty": b"", "other": b"mine"}[damage])
    assert load_run(folder)
    assert train("--resume", folder)[0] == 0
    assert same(weights(folder), weights(whole))


@pytest.mark.parametrize("name", ["last.safetensors", "manifest.before.json", "trace.json", "projector_config.pbtxt"])
def test_a_folder_where_a_run_writes_a_file_is_refused_before_training(main, folder, name):
    path = folder / name
    path.unlink(missing_ok=True)
    path.mkdir()
    before = weights(folder, "best")
    assert f"expected a file, or nothing, at {path}" in one_line(main, "--resume", folder, "--profile")
    assert same(weights(folder, "best"), before)


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff" * 9, (2**63).to_bytes(8, "little"), b"\x80\x04]\x94."])
@pytest.mark.parametrize("kind", ["weights", "state"])
def test_bytes_with_a_right_digest_that_are_no_tensors_are_refused_in_one_line(main, folder, kind, data):
    put(folder, kind, data)
    assert "expected the weights and the state of a run in" in one_line(main, "--resume", folder)


def test_nothing_is_unpickled(main, folder, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("unpickled")

    pickled = pickle.dumps([1])
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert main("--resume", folder)[0] == 0
    assert load_run(folder)
    # As an earlier version wrote it.
    old = part(copy, "state").rename(copy / "checkpoints/44.pt")
    old.write_bytes(pickled)
    sign(copy, lambda sets: sets["last"].update(state=[old.name, sha(old)]))
    assert f"expected a checkpoint of this version, got {old}: an earlier one wrote it, as a pickle" in one_line(
        main, "--resume", copy
    )
