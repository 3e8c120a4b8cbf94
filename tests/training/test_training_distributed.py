"""torchrun train.py: several processes learn what one does, and none is lost without a word."""

import re

import pytest
import torch

pytest.importorskip("tyro")
pytest.importorskip("torchvision")

from ranks import needs_gloo
from runs import run, weights

pytestmark = needs_gloo

# 1,374 images: the last batch has 2, so that of four processes two have no image.
FLAGS = ("--dataset", "digits", "--hidden", "20", "--batch-size", "196", "--epochs", "8", "--elastic-alpha", "8")
SGD = ("--optimizer", "sgd", "--lr", "0.05")


# The second process fails at the tenth step; the first one has no torchrun to wait for.
GRACE = """
from manual_mlp.training import distributed
distributed._GRACE = 0.5
"""
FAILS = f"""{GRACE}
take = loop.Trainer._step
def step(self, *rest):
    if self.step == 9 and self.processes.rank:
        raise OSError("gone")
    return take(self, *rest)
loop.Trainer._step = step
"""

# In mid-epoch: the first process gets its torchrun a Ctrl-C, and waits until that comes back.
CTRL_C = """
import time
from manual_mlp.training.interrupt import Interrupt
take, note, noted = loop.Trainer._step, Interrupt._note, []
def noting(self, *rest):
    noted.append(True)
    note(self, *rest)
def step(self, *rest):
    if self.step == 10 and not rank and not noted:
        os.kill(os.getppid(), signal.SIGINT)
        while not noted:
            time.sleep(0.01)
    return take(self, *rest)
Interrupt._note, loop.Trainer._step = noting, step
"""

# In mid-epoch too, the second process dies.
DIES = """
take = loop.Trainer._step
def step(self, *rest):
    if self.step == 10 and rank:
        os.kill(os.getpid(), signal.SIGKILL)
    return take(self, *rest)
loop.Trainer._step = step
"""

# Status 9 where the process group is gone with the networks.
OUTLIVED = """
import gc, weakref
fit, leave, group = loop.Trainer.fit, os._exit, []
def fitting(*args):
    group.append(weakref.ref(torch.distributed.group.WORLD))
    return fit(*args)
def leaving(code):
    gc.collect()
    leave(code or (9 if group[0]() is None else 0))
loop.Trainer.fit, os._exit = fitting, leaving
"""


def close(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(value, second[name], rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def alone(train):
    """A run of one process."""
    return train.whole(*FLAGS, *SGD)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_agree_with_one_and_one_of_them_logs_and_saves(train, alone, processes):
    folder = train.at / str(processes)
    assert train(*FLAGS, *SGD, "--name", folder.name, processes=processes)[0] == 0
    close(weights(folder), weights(alone))
    assert len(list(folder.glob("events.*"))) == 1


def test_batches_smaller_than_the_number_of_processes_leave_some_of_them_without_an_image(train):
    flags = ("--dataset", "digits", "--hidden", "20", "--batch-size", "3", "--held-out", "1400", "--epochs", "2", *SGD)
    for processes in (1, 4):
        assert train(*flags, "--name", f"small-{processes}", "--check-every", "5", processes=processes)[0] == 0
    close(weights(train.at / "small-4"), weights(train.at / "small-1"))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_processes_learn_in_low_precision_with_dropout(train, precision):
    flags = (*FLAGS, "--precision", precision, "--dropout", "0.2", "--name", precision)
    assert train(*flags, processes=2)[0] == 0


def test_a_process_group_outlives_the_networks(train):
    # The last one to hold it waits for gloo's threads: torch 2.11 hangs if that is a network.
    assert train(*FLAGS, "--name", "outlived", "--epochs", "1", before=OUTLIVED, processes=2)[0] == 0


def test_an_exception_in_one_process_ends_all(train):
    status, err = train(*FLAGS, "--name", "one-fails", before=FAILS, processes=2)
    assert status == 1
    assert err[0].startswith("error: process 0 of 2 lost another one: ")
    assert train("--resume", train.at / "one-fails")[0] == 0


def test_ctrl_c_then_resume_with_another_number_of_processes_is_the_run_of_one(train, alone, tmp_path):
    _, out, err = run(*FLAGS, *SGD, "--logdir", tmp_path, "--name", "run", processes=2, before=CTRL_C)
    assert "interrupted: these are the results so far" in out, err
    assert out.count("test accuracy") == out.count("epoch 1:") == 1
    assert "epoch 3:" not in out
    assert train("--resume", tmp_path / "run", processes=4)[0] == 0
    close(weights(tmp_path / "run"), weights(alone))


def test_a_process_that_dies_ends_the_run_with_its_reason_and_resume_goes_on(train, tmp_path):
    flags = ("--dataset", "digits", "--hidden", "20", "--epochs", "4", "--logdir", tmp_path, "--name", "run")
    status, out, err = run(*flags, processes=2, before=DIES)
    assert (status, out.count("epoch 1:"), "epoch 2:" in out) == (1, 1, False)
    root = err[err.index("Root Cause") :]
    assert re.search(r"rank +: 1 .*Signal 9 \(SIGKILL\) received by PID \d+", root, re.DOTALL)
    # The other one waits for nothing: torchrun's first signal ends it.
    assert "forcefully" not in err
    assert train("--resume", tmp_path / "run", processes=2)[0] == 0


def test_a_loss_that_diverges_in_processes_is_the_reason_torchrun_reports(train, tmp_path, every_case):
    flags = (*FLAGS, "--optimizer", "sgd", "--lr", "1e30", "--logdir", tmp_path, "--name")
    reason = r"DivergedError: expected a finite loss, got (nan|inf) in epoch 1 at step \d+: try a lower --lr"
    # torchrun reads it in the file that it names to each process.
    told = f"os.environ['TORCHELASTIC_ERROR_FILE'] = {str(tmp_path)!r} + '/told' + os.environ['RANK']"
    status, err = train(*flags, "forks", processes=2, before=told + GRACE)
    assert (status, err[0].partition(" got ")[0]) == (1, "error: expected a finite loss,")
    assert re.search(reason, (tmp_path / "told0").read_text())
    if every_case:
        status, _, err = run(*flags, "run", processes=2)
        assert status == 1
        assert re.search(reason, err[err.index("Root Cause") :])
