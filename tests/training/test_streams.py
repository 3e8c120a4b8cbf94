"""Whatever stdout and stderr are, a command does its work, and there is no traceback."""

import io
import os
import subprocess
import sys

import pytest

pytest.importorskip("tyro")
pytest.importorskip("torchvision")

from manual_mlp import streams
from manual_mlp.training import load_run
from manual_mlp.training.recipes import RECIPES
from runs import SCRIPT, SECONDS

PYTHON = (sys.executable, "-W", "error")
FLAGS = ("--dataset", "digits", "--epochs", "3", "--hidden", "8")
TRAIN = (*PYTHON, SCRIPT, *FLAGS, "--name", "run")
LIST = (*PYTHON, SCRIPT, "--recipe", "list")
EXPLAIN = (*PYTHON, "-m", "manual_mlp", "explain")
# What a shell makes of the streams. GONE: the reader of stdout has ended long before anything is written.
CLOSED, GONE, FULL = "<&- >&- 2>&-", "> >(true)", ">/dev/full 2>/dev/full"

# A bar that fails where it should tell of an epoch: what has been done is on the disk.
SPEECHLESS = """
def write(line, **options):
    raise OSError("no voice at " + line.partition(":")[0])
loop.tqdm.write = staticmethod(write)
"""


def rest(redirect):
    """Leave a way to where all cases are asked for: each run takes seconds, and others go that way too."""
    return pytest.param(redirect, marks=pytest.mark.rest)


def call(command, redirect="", cwd=None, **environment):
    """Run a command in bash: exit status, stdout, stderr."""
    done = subprocess.run(
        ["bash", "-c", f'exec "$@" {redirect}', "bash", *map(str, command)],
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parent), **environment},
        cwd=cwd,
        timeout=SECONDS,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr.decode()


@pytest.fixture(scope="module")
def trained(train):
    """A finished run."""
    return train.whole(*FLAGS)


def weights(folder):
    return (folder / "last.safetensors").read_bytes()


@pytest.mark.parametrize("redirect", [CLOSED, GONE, FULL, *(rest(each) for each in ("2>&-", ">/dev/full"))])
def test_training_goes_on_to_its_end_whatever_the_streams_are(trained, tmp_path, redirect):
    status, _, err = call(TRAIN, redirect, tmp_path)
    assert status == 0
    assert "Traceback" not in err
    assert "Error" not in err
    assert weights(tmp_path / "runs/run") == weights(trained)
    assert load_run(tmp_path / "runs/run", best=True)


def test_training_replaces_a_letter_that_the_streams_lack(trained, tmp_path):
    status, out, err = call((*TRAIN[:-1], "größe"), cwd=tmp_path, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert status == 0, err
    assert b"gr??e" in out
    assert out.decode("ascii").splitlines()[-1].startswith("test accuracy")
    assert weights(tmp_path / "runs/größe") == weights(trained)


def test_an_epoch_is_saved_before_it_is_told_of(train):
    assert train(*FLAGS, "--name", "speechless", before=SPEECHLESS) == (1, ["error: no voice at epoch 1"])
    assert load_run(train.at / "speechless")


def test_a_log_that_cannot_be_written_ends_and_the_run_does_not(train, tmp_path):
    # A file may have 60 kB: a checkpoint has less, the events of so many epochs have more.
    longer = ("--epochs", "20", "--log-every", "1")
    status, out, err = call(("bash", "-c", 'ulimit -f 60; exec "$@"', "bash", *TRAIN, *longer), cwd=tmp_path)
    assert status == 0, err
    assert out.splitlines()[-1].startswith(b"test accuracy")
    assert "Traceback" not in err
    warning = f"WARNING: the log in {tmp_path / 'runs/run'} ends here (File too large); the run goes on"
    assert err.count("WARNING") == err.count(warning) == 1
    whole = train.whole(*FLAGS, *longer)
    assert weights(tmp_path / "runs/run") == weights(whole)
    assert sum(path.stat().st_size for path in whole.glob("events.*")) > 60_000


@pytest.mark.parametrize("redirect", [CLOSED, rest(GONE), rest(FULL)])
def test_a_run_is_exported_whatever_the_streams_are(trained, tmp_path, redirect):
    command = (*PYTHON, "-m", "manual_mlp", "export", trained, "--to", "sequential", "--output", tmp_path / "net.pt")
    status, _, err = call(command, redirect)
    assert (status, err) == (0, "")
    assert (tmp_path / "net.pt").stat().st_size > 0


@pytest.mark.each_value
@pytest.mark.parametrize("redirect", [CLOSED, GONE, FULL])
@pytest.mark.parametrize("command", [LIST, EXPLAIN, (*TRAIN, "--help")], ids=["list", "explain", "help"])
def test_what_only_speaks_ends_well_whatever_the_streams_are(command, redirect):
    status, _, err = call(command, redirect)
    assert (status, err) == (0, "")


def test_recipes_are_listed_in_ascii_with_question_marks():
    status, out, err = call(LIST, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (status, err) == (0, "")
    assert "Cire?an" in out.decode("ascii")
    assert [line.split()[0] for line in out.decode().splitlines()] == list(RECIPES)


@pytest.mark.each_value
@pytest.mark.parametrize("redirect", [CLOSED, FULL])
@pytest.mark.parametrize(
    "command",
    [
        (*TRAIN, "--lr", "nan"),
        (*EXPLAIN, "--loss", "none"),
        (*EXPLAIN, "--break", "mean-for-sum"),
        (*EXPLAIN, "--seed"),
    ],
    ids=["train", "choice", "mistake", "argument"],
)
def test_the_exit_status_of_an_error_is_the_same_whatever_the_streams_are(command, redirect):
    expected = 1 if "--break" in command else 2
    status, _, err = call(command, redirect)
    assert status == expected
    assert "Traceback" not in err


def test_what_was_opened_first_is_not_written_into_by_who_writes_to_a_closed_stderr(tmp_path):
    code = "from manual_mlp import streams; streams.forgive()\nimport os\n"
    code += f"file = open({str(tmp_path / 'file')!r}, 'w')\nassert file.fileno() > 2\nos.write(2, b'a warning')\n"
    code += "child = 'import os; [os.fstat(i) for i in range(3)]'\n"
    code += "import subprocess, sys\nsubprocess.run([sys.executable, '-c', child], check=True)\n"
    assert call((sys.executable, "-c", code), CLOSED)[0] == 0
    assert (tmp_path / "file").read_text() == ""


class Pipe(io.RawIOBase):
    """Take a few bytes at a time, or refuse."""

    def __init__(self, *answers):
        self.answers, self.taken = list(answers), b""

    def writable(self):
        return True

    def fileno(self):
        return sys.__stderr__.fileno()

    def write(self, data):
        answer = self.answers.pop(0) if self.answers else len(data)
        if isinstance(answer, OSError):
            raise answer
        if answer is not None:
            self.taken += bytes(data[:answer])
        return answer


def forgiving(monkeypatch, pipe, encoding="utf-8", errors="strict"):
    stream = io.TextIOWrapper(io.BufferedWriter(pipe), encoding, errors)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "__stdout__", stream)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    streams.forgive()
    return sys.stdout


def test_a_stream_that_takes_little_at_a_time_gets_all(monkeypatch):
    pipe = Pipe(3, None, 2, None)
    stream = forgiving(monkeypatch, pipe)
    print("a line of words", flush=True)
    assert pipe.taken == b"a line of words\n"
    assert stream.encoding == "utf-8"


def test_what_a_stream_refuses_is_dropped_and_the_next_line_is_written(monkeypatch):
    pipe = Pipe(OSError(28, "No space left on device"), OSError(32, "Broken pipe"), None, None)
    forgiving(monkeypatch, pipe, "latin-1")
    for line in ("first", "second", "third", "fourth: é, ∂ and \udcff"):
        print(line, flush=True)
    assert pipe.taken == "fourth: é, ? and ?\n".encode("latin-1")


def test_a_pipe_that_is_full_for_a_moment_gets_all_and_one_that_stays_full_is_waited_for_once(monkeypatch):
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    taken, waits, select = [], [], streams.select.select

    def drained(*arguments):
        waits.append(arguments[-1])
        if len(waits) == 1:  # a reader comes
            taken.append(os.read(reading, 2**20))
        return select(*arguments[:-1], 0)

    monkeypatch.setattr(streams.select, "select", drained)
    with io.FileIO(writing, "w") as pipe:
        stream = forgiving(monkeypatch, pipe)
        stream.write("x" * 100_000 + "\n")  # more than a pipe holds
        stream.flush()
        taken.append(os.read(reading, 2**20))
        assert b"".join(taken) == b"x" * 100_000 + b"\n"
        for _ in range(5):
            stream.write("y" * 100_000 + "\n")
            stream.flush()
        assert [wait > 0 for wait in waits] == [True, True, *[False] * (len(waits) - 2)]
        assert len(waits) >= 6
        os.read(reading, 2**20)
        print("heard again", flush=True)
        assert os.read(reading, 2**20) == b"heard again\n"
    os.close(reading)


def test_letters_are_written_as_a_user_asks(monkeypatch):
    pipe = Pipe()
    forgiving(monkeypatch, pipe, "ascii", "backslashreplace")
    print("größe", flush=True)
    assert pipe.taken == rb"gr\xf6\xdfe" + b"\n"


def test_streams_that_somebody_has_replaced_are_left_alone(monkeypatch):
    own = io.StringIO()
    monkeypatch.setattr(sys, "stdout", own)
    streams.forgive()
    assert sys.stdout is own
