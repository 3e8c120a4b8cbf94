"""Checkpoints: whole after a kill at every moment of a save, a full disk and damage."""

import errno
import os
import re
import subprocess
import sys
import textwrap
from itertools import product
from pathlib import Path

import pytest
import torch

pytest.importorskip("safetensors")

from safetensors.torch import load_file

from manual_mlp.training import files, state
from manual_mlp.training.errors import InputError
from manual_mlp.training.packed import pack, unpack, unpack_tensors
from patience import SECONDS
from runs import weights

# Save the checkpoint of step 2 in a child that is killed at its n-th call, before or after it, for every n.
KILLED = """
    import os, sys
    from pathlib import Path
    import torch
    from manual_mlp.training import state

    folder, calls, stop = Path(sys.argv[1]), 0, 0

    def deadly(function):
        def call(*args, **options):
            global calls
            calls += 1
            if calls == stop:
                os.kill(os.getpid(), 9)
            found = function(*args, **options)
            calls += 1
            if calls == stop:
                os.kill(os.getpid(), 9)
            return found
        return call

    class Half:
        def __init__(self, file): self.file = file
        def __enter__(self): return self
        def __exit__(self, *error): self.file.close()
        def __getattr__(self, name): return getattr(self.file, name)
        def write(self, data):
            half = len(data) // 2
            deadly(lambda: (self.file.write(data[:half]), self.file.flush()))()
            self.file.write(data[half:])

    def save(at, number):
        state.save(at, number, {"w": torch.full((3000,), float(number))}, {"step": number}, best=number == 2)

    for stop in range(1, 1000):
        at = folder / str(stop)
        at.mkdir()
        save(at, 0)
        save(at, 1)
        child = os.fork()
        if not child:
            for name in ("fsync", "replace", "link", "unlink"):
                setattr(os, name, deadly(getattr(os, name)))
            opened = Path.open
            Path.open = lambda path, mode="r", *rest: (
                Half(opened(path, mode, *rest)) if mode == "xb" else opened(path, mode, *rest)
            )
            save(at, 2)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            break
    print(stop)
"""


def save(folder, step, best=True):
    state.save(folder, step, {"w": torch.full((3000,), float(step))}, {"step": step}, best)


def found(folder):
    """Return the step of the checkpoint, whose parts must agree."""
    w, rest = state.load(folder)
    assert (w["w"] == rest["step"]).all()
    return rest["step"]


def check_published(folder, last, best):
    assert (weights(folder)["w"] == last).all()
    assert (weights(folder, "best")["w"] == best).all()


def test_a_kill_at_every_moment_of_a_save_leaves_a_whole_checkpoint(tmp_path):
    driver = [sys.executable, "-c", textwrap.dedent(KILLED), tmp_path]
    done = subprocess.run(driver, capture_output=True, text=True, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    stops = int(done.stdout)
    assert stops > 30
    steps = []
    for stop in range(1, stops):
        folder = tmp_path / str(stop)
        steps.append(found(folder))
        state.publish(folder)
        check_published(folder, steps[-1], 2 if steps[-1] == 2 else 0)
        # The next save goes on, and tidies up.
        save(folder, 3, best=False)
        assert found(folder) == 3
        assert not list(folder.glob(".*"))
        assert len(list((folder / "checkpoints").iterdir())) == 4 + (steps[-1] != 2)
    # One moment parts the old from the new.
    assert steps == sorted(steps)
    assert set(steps) == {1, 2}


def test_last_and_best_are_what_the_manifest_names(tmp_path):
    for step, best in enumerate([True, True, False, False, True, False]):
        save(tmp_path, step, best)
        check_published(
            tmp_path, step, max(i for i, b in enumerate([True, True, False, False, True]) if b and i <= step)
        )
    parts = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert [re.sub("-.*[.]", ".", name) for name in parts] == ["4.safetensors", "4.state", "5.safetensors", "5.state"]


@pytest.mark.parametrize("call", range(1, 9))
def test_a_full_disk_is_an_oserror_and_the_checkpoint_before_survives(tmp_path, monkeypatch, call):
    save(tmp_path, 0)
    save(tmp_path, 1)
    calls = 0

    def full(*args):
        nonlocal calls
        calls += 1
        if calls == call:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        save(tmp_path, 2)
    monkeypatch.undo()
    # From the sixth call on the manifest is in its place.
    assert found(tmp_path) == (2 if call >= 6 else 1)
    assert len(list((tmp_path / "checkpoints").iterdir())) == 4
    save(tmp_path, 3)
    assert found(tmp_path) == 3


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_a_file_that_may_not_grow_is_an_oserror_and_the_checkpoint_before_survives(tmp_path):
    import resource

    save(tmp_path, 1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert found(tmp_path) == 1
    check_published(tmp_path, 1, 1)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        *product(
            ("checkpoints/2-*.safetensors", "checkpoints/2-*.state"), ("truncated", "empty", "flipped", "missing")
        ),
        *product(("manifest.json",), ("truncated", "empty", "flipped")),
    ],
)
def test_damage_is_named_and_the_checkpoint_before_it_is_at_hand(tmp_path, file, damage):
    save(tmp_path, 1)
    save(tmp_path, 2)
    (path,) = tmp_path.glob(file)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes({"truncated": data[:-9], "empty": b"", "flipped": data}[damage])
    with pytest.raises(InputError, match=rf"{path.name}.*delete .*manifest.json to go on from the checkpoint before"):
        state.load(tmp_path)
    (tmp_path / "manifest.json").unlink()
    assert found(tmp_path) == 1
    save(tmp_path, 2)
    assert found(tmp_path) == 2
    check_published(tmp_path, 2, 2)


def test_a_flipped_bit_anywhere_in_a_manifest_is_noticed(tmp_path):
    save(tmp_path, 1)
    path = tmp_path / "manifest.json"
    data = path.read_bytes()
    for i in range(len(data)):
        flipped = bytearray(data)
        flipped[i] ^= 1 << i % 8
        path.write_bytes(flipped)
        with pytest.raises(InputError, match=r"expected the manifest of a checkpoint, got .*damaged"):
            state.load(tmp_path)


def test_best_weights_that_are_damaged_are_named_and_can_be_given_up(tmp_path):
    save(tmp_path, 1)
    save(tmp_path, 2, best=False)
    (part,) = tmp_path.glob("checkpoints/1-*.safetensors")
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(InputError, match=rf"{part.name}.*delete it to go on without these best weights"):
        state.load(tmp_path)
    part.unlink()
    assert found(tmp_path) == 2
    save(tmp_path, 3, best=False)
    check_published(tmp_path, 3, 3)


SAVING = """
    import sys
    from pathlib import Path
    import torch
    from manual_mlp.training import state

    for step in range(1, 100_000):
        state.save(Path(sys.argv[1]), step, {"w": torch.full((3000,), float(step))}, {"step": step}, step % 3 == 0)
"""


def test_who_reads_while_another_process_saves_gets_whole_weights(tmp_path):
    save(tmp_path, 0)
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(SAVING), tmp_path])
    try:
        seen = {False: [0.0], True: [0.0]}
        while len(set(seen[False])) < 100:
            for best, steps in seen.items():
                w = unpack_tensors(state.published(tmp_path, best))["w"]
                assert (w == w[0]).all()
                steps.append(w[0].item())
            assert child.poll() is None
    finally:
        child.kill()
        child.wait(SECONDS)
    for steps in seen.values():
        assert steps == sorted(steps)
    assert all(step % 3 == 0 for step in seen[True])


def test_who_reads_what_is_replaced_meanwhile_reads_again(tmp_path, monkeypatch):
    save(tmp_path, 0)
    read, steps = files.read, [2, 1]

    def late(path, most=None):
        data = read(path, most)
        # Two saves, each of which replaces it: what was read is no more known.
        while path.name == "last.safetensors" and steps:
            save(tmp_path, steps.pop())
        return data

    monkeypatch.setattr(files, "read", late)
    assert (unpack_tensors(state.published(tmp_path))["w"] == 2).all()


def test_a_deep_network_is_not_too_long_for_its_own_bound(tmp_path):
    deep = {f"layers.{i}.{kind}": torch.ones(1) for i in range(2500) for kind in ("weight", "bias")}
    moments = {i: {name: torch.ones(1) for name in ("step", "exp_avg", "exp_avg_sq")} for i in range(5000)}
    state.save(tmp_path, 1, deep, {"optimizer": moments}, best=True)
    assert state.load(tmp_path, state.most_bytes([(1,)] * 5000))
    with pytest.raises(InputError, match=r"it has \d+ bytes, more than"):
        state.load(tmp_path, state.most_bytes([]) // 8)


def test_a_kill_between_the_manifest_and_what_is_published_leaves_weights_that_can_be_read(tmp_path, monkeypatch):
    save(tmp_path, 0)
    save(tmp_path, 1)
    monkeypatch.setattr(state, "publish", lambda folder: None)
    save(tmp_path, 2)
    for best in (False, True):
        assert (unpack_tensors(state.published(tmp_path, best))["w"] == 1).all()
    monkeypatch.undo()
    state.publish(tmp_path)
    check_published(tmp_path, 2, 2)


@pytest.mark.parametrize(
    "tree",
    [
        {},
        {"step": 3, "best": -1.0, "none": None, "flag": True, "text": "größe\n"},
        {0: {"exp": torch.ones(2, 3), "step": torch.tensor(4.0)}, 1: {}},
        {"list": [1, [2.5, (3, torch.zeros(0))]], "tuple": (), "betas": (0.9, 0.99)},
        {
            "dict": {"tensor": "0"},
            "tensor": {"list": 3},
            "plain": torch.arange(5),
            "0": torch.ones(1, dtype=torch.bool),
        },
        {"float": 0.1 + 0.2, "large": 10**30, "inf": float("inf")},
    ],
)
def test_packed_values_come_back_as_they_were(tree):
    def same(a, b):
        if isinstance(a, torch.Tensor):
            return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
        if isinstance(a, dict):
            return type(b) is dict and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
        if isinstance(a, list | tuple):
            return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
        return type(a) is type(b) and a == b

    assert same(tree, unpack(pack(tree)))


def test_files_left_by_a_kill_are_swept_and_others_stay(tmp_path):
    save(tmp_path, 1)
    (token,) = {path.name.split("-")[1] for path in (tmp_path / "checkpoints").iterdir()}
    left = [".manifest.json.0123456789abcdef.tmp", f"checkpoints/9-{token}-01234567.state"]
    kept = [".model.onnx.0123456789abcdef.tmp", ".manifest.json.tmp", ".manifest.json.0123456789abcdeg.tmp", "x.tmp"]
    kept += [f"checkpoints/9-{token}-01234567.pt", f"checkpoints/9-{token}-0123.state", "checkpoints/9-.state"]
    for name in left + kept:
        (tmp_path / name).write_bytes(b"?")
    save(tmp_path, 2)
    assert not any((tmp_path / name).exists() for name in left)
    assert all((tmp_path / name).exists() for name in kept)


def test_no_checkpoint_yet_is_said(tmp_path):
    with pytest.raises(InputError, match=r"expected a checkpoint in .*, got none: the run ended before its first one"):
        state.load(tmp_path)


def test_a_file_system_without_links_gets_copies(tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    save(tmp_path, 1)
    save(tmp_path, 2, best=False)
    check_published(tmp_path, 2, 1)
    assert load_file(Path(tmp_path) / "last.safetensors").keys() == {"w"}
