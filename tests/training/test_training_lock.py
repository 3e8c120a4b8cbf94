"""A run's folder has one writer at a time, who is named to a second one."""

import errno
import json
import os
import re
import shutil
import signal
import socket
import stat
from contextlib import contextmanager

import pytest

pytest.importorskip("fcntl")
pytest.importorskip("tyro")
pytest.importorskip("torchvision")

import fcntl

from manual_mlp.training import load_run
from manual_mlp.training.errors import InputError
from manual_mlp.training.lock import writer
from runs import same, weights

# Python 3.12 warns of a fork beside torch's threads: this one only locks, and waits.
pytestmark = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")

FLAGS = ("--dataset", "digits", "--hidden", "20", "--batch-size", "64", "--epochs", "3")


@contextmanager
def held(folder):
    """Let another process hold the lock, and yield its number; afterwards it is killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        with writer(folder):
            os.write(writing, b"held")
            signal.pause()
        os._exit(0)
    try:
        assert os.read(reading, 4) == b"held"
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)


def refused(folder):
    with pytest.raises(InputError) as caught, writer(folder):
        pass
    return str(caught.value)


def test_a_second_writer_is_told_who_the_first_is_since_when_and_how_to_go_on(tmp_path):
    with held(tmp_path) as process:
        said = refused(tmp_path)
    since = r"since \d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}"
    expected = f"expected a run that no other process writes, got {tmp_path}, which is written by process {process} on "
    assert said.startswith(expected + socket.gethostname())
    assert re.search(rf"{since}: wait until that has ended, or end it, and --resume again$", said)


def test_a_killed_writer_holds_nothing_and_one_that_ended_is_not_named(tmp_path):
    with held(tmp_path):
        pass
    with writer(tmp_path):
        assert f'"process": {os.getpid()}' in (tmp_path / "writer.lock").read_text()
    assert (tmp_path / "writer.lock").read_bytes() == b""
    with writer(tmp_path):
        pass


def test_a_process_refuses_itself_a_second_time(tmp_path):
    with writer(tmp_path):
        assert f"process {os.getpid()}" in refused(tmp_path)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"{",
        b"[]",
        b'{"host": "a", "process": "b", "since": "c"}',
        b'{"host": "a\\nerror: b", "process": 1, "since": "c"}',
        b"[" * 5000,
        b"\xff" * 10000,
    ],
)
def test_a_holder_that_says_nonsense_is_a_process_that_has_not_said_which(tmp_path, said):
    with held(tmp_path):
        (tmp_path / "writer.lock").write_bytes(said)
        found = refused(tmp_path)
    assert "which is written by a process that has not said which: wait" in found
    assert "\n" not in found


@pytest.mark.parametrize("code", ["ENOLCK", "ENOSYS", "EOPNOTSUPP", "EINVAL"])
def test_where_files_cannot_be_locked_that_is_said_and_the_run_goes_on(tmp_path, monkeypatch, capsys, code):
    def refuse(*_):
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    monkeypatch.setattr(fcntl, "flock", refuse)
    reason = os.strerror(getattr(errno, code))
    expected = f"WARNING: see to it that no other process writes {tmp_path} meanwhile: it cannot be locked, {reason}"
    with writer(tmp_path):
        assert capsys.readouterr().err == expected + "\n"
        with writer(tmp_path):
            assert capsys.readouterr().err.startswith(
                f"{expected}; process {os.getpid()} on {socket.gethostname()} since"
            )


def test_a_writer_on_another_host_that_did_not_say_that_it_ended_is_told_of(tmp_path, capsys):
    said = {"host": "elsewhere", "process": 7, "since": "2026-01-02 03:04:05 +0000"}
    for host, told in (("elsewhere", True), (socket.gethostname(), False)):
        (tmp_path / "writer.lock").write_text(json.dumps({**said, "host": host}))
        with writer(tmp_path):
            pass
        expected = f"WARNING: see to it that no other process writes {tmp_path} meanwhile: process 7 on elsewhere "
        expected += "since 2026-01-02 03:04:05 +0000 did not say that it has ended\n"
        assert capsys.readouterr().err == (expected if told else "")


@pytest.mark.parametrize("kind", ["link", "hard link", "dangling", "pipe", "folder", "text"])
def test_a_lock_that_is_no_file_of_ours_is_refused_and_nothing_is_written_through_it(tmp_path, kind):
    outside, lock = tmp_path / "outside", tmp_path / "writer.lock"
    if kind in ("link", "hard link"):
        outside.write_text("mine")
    if kind == "hard link":
        os.link(outside, lock)
    elif kind == "text":
        lock.write_text("mine")
    elif kind in ("link", "dangling"):
        lock.symlink_to(outside)
    else:
        os.mkfifo(lock) if kind == "pipe" else lock.mkdir()
    assert re.match(rf"expected (the folder of a run that|a file of the run's own).* got {lock}", refused(tmp_path))
    assert outside.exists() == (kind in ("link", "hard link"))
    assert not outside.exists() or outside.read_text() == "mine"
    assert kind != "text" or lock.read_text() == "mine"


def test_who_deletes_the_lock_does_not_get_past_it(tmp_path, monkeypatch):
    with held(tmp_path):
        (tmp_path / "writer.lock").unlink()
        assert "which is written by a process that has not said which: wait" in refused(tmp_path)
        (tmp_path / "writer.lock").unlink()
    # Where a folder has no lock, as on a network's file system, the file's holds.
    flock = fcntl.flock

    def of_files(descriptor, how):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EBADF, "Bad file descriptor")
        flock(descriptor, how)

    with held(tmp_path) as process:
        monkeypatch.setattr(fcntl, "flock", of_files)
        assert f"which is written by process {process} on" in refused(tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    assert "No such file or directory" in refused(tmp_path / "nowhere")


@pytest.fixture(scope="module")
def whole(train):
    """A run that nobody disturbed."""
    return train.whole(*FLAGS)


@pytest.fixture
def stopped(train, tmp_path):
    """A run that was killed after its first epoch."""
    name = tmp_path.name
    dies = "save = state.save\ndef once(*args):\n    save(*args)\n    os.kill(os.getpid(), 9)\nstate.save = once"
    assert train(*FLAGS, "--name", name, before=dies)[0] == -9
    return train.at / name


def test_a_run_that_is_being_written_is_not_resumed_and_can_be_read(train, main, whole, stopped, tmp_path):
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    with held(stopped) as process:
        locked = (stopped / "writer.lock").read_bytes()
        for call in (lambda: train("--resume", stopped), lambda: main("--resume", stopped)[::2]):
            status, err = call()
            line = err[-1] if isinstance(err, list) else err.splitlines()[-1]
            assert status == 2
            assert line.startswith(f"error: expected a run that no other process writes, got {stopped}, which is")
            assert f"process {process} on" in line
        assert load_run(stopped)
        assert load_run(stopped, best=True)
        assert (stopped / "writer.lock").read_bytes() == locked
    after = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    assert {**after, stopped / "writer.lock": b""} == {**before, stopped / "writer.lock": b""}
    assert train("--resume", stopped)[0] == 0
    assert same(weights(stopped), weights(whole))


def test_several_processes_hold_one_lock_and_are_refused_together(train, whole, stopped, tmp_path):
    with held(stopped) as process:
        status, err = train("--resume", stopped, processes=2)
    assert status == 2
    assert f"which is written by process {process} on" in err[0]
    assert "test accuracy" not in train.said()
    copy = shutil.copytree(stopped, tmp_path / "copy")
    assert train("--resume", copy, processes=2)[0] == 0
    assert (copy / "writer.lock").read_bytes() == b""


def test_a_new_run_is_locked_from_its_first_moment(train):
    seen = "fit = loop.Trainer.fit\ndef spied(self, log, interrupt, folder):\n"
    seen += "    assert str(os.getpid()) in (folder / 'writer.lock').read_text()\n"
    seen += "    return fit(self, log, interrupt, folder)\nloop.Trainer.fit = spied"
    assert train(*FLAGS, "--name", "new", before=seen)[0] == 0
