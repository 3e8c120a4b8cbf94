"""train.py --resume: nothing is lost. `--kills 20` kills a run so many times."""

import json
import random
import re
import shutil
import signal
import sys
import time

import pytest

pytest.importorskip("tyro")
pytest.importorskip("torchvision")

from mnist import write_mnist
from runs import finish, read_until, same, start, weights

DIGITS = ("--dataset", "digits", "--batch-size", "64", "--check-every", "50", "--log-every", "7")
DEFORMED = ("--dropout", "0.2", "--rotation", "10", "--elastic-alpha", "8", "--shift", "0.1")

DEADLY = """
def deadly(name):
    function = getattr(os, name)
    def call(*args, **options):
        deadly.calls += 1
        if deadly.calls == {stop}:
            os.kill(os.getpid(), {signal})
        return function(*args, **options)
    setattr(os, name, call)
deadly.calls = 0
for name in ("fsync", "replace", "link"):
    deadly(name)
"""

AT_STEP = """
take = loop.Trainer._step
def step(self, *args):
    if self.step == {stop}:
        os.kill(os.getpid(), {signal})
    return take(self, *args)
loop.Trainer._step = step
"""


# A stop is not where validation is best: cut short, an epoch scores higher than any whole one.
TOO_GOOD = """
evaluate = loop.Trainer.evaluate
def praised(self, split):
    metrics = evaluate(self, split)
    return dataclasses.replace(metrics, accuracy=1.0) if self.step % self.steps_per_epoch else metrics
loop.Trainer.evaluate = praised
import dataclasses
"""


@pytest.mark.parametrize("stops", [(9,), (30,), (9, 30, 50), (22, 44)])
def test_best_after_interrupts_is_that_of_the_run_that_was_not_interrupted(train, stops):
    flags = (*DIGITS, "--epochs", "3", "--hidden", "20", "--lr", "0.05")
    name = "best-" + "-".join(map(str, stops))
    whole, folder = train.whole(*flags), train.at / name
    for stop in stops:
        signals = AT_STEP.format(stop=stop - 1, signal=int(signal.SIGINT))
        begin = ("--resume", folder) if folder.exists() else (*flags, "--name", name)
        assert train(*begin, before=TOO_GOOD + signals)[0] == 130
    assert train("--resume", folder, before=TOO_GOOD)[0] == 0
    for kind in ("last", "best"):
        assert same(weights(folder, kind), weights(whole, kind))


def test_a_terminal_that_is_closed_ends_a_run_like_ctrl_c_and_not_under_nohup(train):
    flags = (*DIGITS, "--epochs", "2", "--hidden", "20")
    heard, unheard = (f"signal.signal(signal.SIGHUP, signal.{way})\n" for way in ("SIG_DFL", "SIG_IGN"))
    hangup = AT_STEP.format(stop=9, signal=int(signal.SIGHUP))
    assert train(*flags, "--name", "closed", before=heard + hangup)[0] == 128 + signal.SIGHUP
    assert train("--resume", train.at / "closed")[0] == 0
    assert train(*flags, "--name", "nohup", before=unheard + hangup)[0] == 0
    assert same(weights(train.at / "closed"), weights(train.at / "nohup"))


def contest(rivals):
    """Wait until one of several processes is left, which holds the run; of the others, count those that were refused.

    Who is not refused has come to the end of the run.
    """
    ended = []
    while len(ended) < len(rivals) - 1:
        ended += [rival for rival in rivals if rival not in ended and rival.poll() is not None]
        time.sleep(0.01)
    refused = 0
    for rival in ended:
        status, out, err = finish(rival)
        if status:
            assert status == 2, err
            assert re.search(r"written by process (\d+) on", err.splitlines()[-1])[1] in {str(r.pid) for r in rivals}
            refused += 1
        else:
            assert "test accuracy" in out
    return refused, [rival for rival in rivals if rival not in ended]


def test_kill_9_at_any_moment_then_resume_is_the_run_that_was_not_killed(train, tmp_path, request, every_case):
    """`--kills 20` kills so many times. Two more processes want to go on with the run, each time."""
    flags = (*DIGITS, *DEFORMED, "--epochs", "60", "--hidden", "300")
    whole = {kind: weights(train.whole(*flags), kind) for kind in ("last", "best")}
    flags += ("--logdir", tmp_path)
    folder, kills, refused = tmp_path / "killed", request.config.getoption("--kills") or (3 if every_case else 1), 0
    draw = random.Random(kills)
    for _ in range(kills):
        if not (folder / "manifest.json").exists():
            rivals = [start(*flags, "--name", "killed")]
            read_until(rivals[0], "epoch 1:")
            rivals += [start("--resume", folder) for _ in range(2)]
        else:
            rivals = [start("--resume", folder) for _ in range(3)]
        told, holders = contest(rivals)
        refused += told
        time.sleep(draw.uniform(0, 2))
        for holder in holders:
            holder.kill()
            finish(holder)
        if told < 2:  # one of them has finished it
            assert all(same(weights(folder, kind), whole[kind]) for kind in whole)
            shutil.rmtree(folder)
    assert refused >= kills
    assert train(*(("--resume", folder) if folder.exists() else (*flags, "--name", "killed")))[0] == 0
    assert all(same(weights(folder, kind), whole[kind]) for kind in whole)


@pytest.mark.parametrize(
    "flags",
    [
        ("--optimizer", "adamw", *DEFORMED),
        ("--optimizer", "adam", "--precision", "bf16", "--dropout", "0.5"),
        ("--optimizer", "rmsprop", "--lr", "0.001", "--loss", "squared-error"),
        ("--optimizer", "sgd", "--lr", "0.05", "--precision", "fp16", *DEFORMED, "--held-out", "0"),
    ],
)
def test_a_run_stopped_in_mid_epoch_or_killed_inside_a_save_goes_on_bit_by_bit(train, flags):
    folder = train.at / f"run-{flags[1]}"
    flags = (*DIGITS, *flags, "--epochs", "3", "--hidden", "20")
    whole = weights(train.whole(*flags))
    status, _ = train(*flags, "--name", folder.name, before=AT_STEP.format(stop=9, signal=int(signal.SIGINT)))
    assert status == 130
    # In the third epoch's save, whose calls begin behind those of the second's.
    status, _ = train("--resume", folder, before=DEADLY.format(stop=16, signal=9))
    assert status == -9
    status, _ = train("--resume", folder, before=AT_STEP.format(stop=50, signal=int(signal.SIGTERM)))
    assert status == 143
    assert train("--resume", folder)[0] == 0
    assert same(weights(folder), whole)


def test_a_run_that_ended_before_its_first_checkpoint_says_so(train):
    assert train(*DIGITS, "--name", "early", before=AT_STEP.format(stop=3, signal=9))[0] == -9
    status, err = train("--resume", train.at / "early")
    folder = train.at / "early"
    expected = f"expected a checkpoint in {folder}, got none: the run ended before its first one; begin it again"
    assert (status, err) == (2, [f"error: {expected}"])


@pytest.fixture(scope="module")
def finished(train):
    """A finished run of two epochs."""
    return train.whole(*DIGITS, "--epochs", "2", "--hidden", "20", "--no-normalised")


def copied(folder, to):
    shutil.copytree(folder, to)
    return to


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--epochs", "4"], "expected --epochs as {} began, 2, got 4: leave it out, or begin another run"),
        (["--hidden", "20", "20"], "expected --hidden as {} began, 20, got 20 20: leave it out"),
        (["--seed=1"], "expected --seed as {} began, 0, got 1"),
        (["--dataset", "mnist"], "expected --dataset as {} began, digits, got mnist"),
        (["--recipe", "simard"], "expected --recipe as {} began, None, got simard"),
        (["--compile"], "expected --compile as {} began, False, got True"),
        (["--dry-run"], "expected --resume without --dry-run"),
    ],
)
def test_a_flag_that_contradicts_the_run_is_one_line_with_status_2(main, finished, flags, expected):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    status, _, err = main("--resume", finished, *flags)
    assert status == 2
    assert err.startswith("error: " + expected.format(finished))
    assert err.count("\n") == 1
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_a_default_that_was_turned_off_is_contradicted_too(main, finished, tmp_path):
    folder = copied(finished, tmp_path / "run")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "normalised": True}))
    status, _, err = main("--resume", folder, "--no-normalised")
    assert (status, err.split(":")[1]) == (2, f" expected --normalised as {folder} began, True, got False")


def test_a_finished_run_says_so_and_prints_its_test_accuracy(main, finished, tmp_path):
    folder = copied(finished, tmp_path / "run")
    # As if it had been killed before these were in their place.
    (folder / "last.safetensors").unlink()
    status, out, _ = main("--resume", folder, "--epochs", "2", "--hidden", "20")
    assert status == 0
    assert "resumed after epoch 2 of 2: the run was finished" in out
    assert out.splitlines()[-1].startswith("test accuracy")
    assert same(weights(folder), weights(finished))


def test_a_run_that_took_what_images_there_were_resumes(main, tmp_path, monkeypatch):
    monkeypatch.setenv("MANUAL_MLP_DATA", str(write_mnist(tmp_path)))
    flags = ("--batch-size", "8", "--hidden", "5", "--epochs", "1")
    assert main(*flags, "--logdir", tmp_path, "--name", "run")[0] == 0
    status, out, err = main("--resume", tmp_path / "run")
    assert status == 0, err
    assert "mnist: 22 training" in out


def test_a_resumed_run_keeps_the_settings_that_may_change(main, finished, tmp_path, monkeypatch):
    from manual_mlp.training import loop

    seen = []
    monkeypatch.setattr(loop.Trainer, "resume", lambda self, folder: seen.append(self.config) or sys.exit(3))
    assert main("--resume", finished)[0] == 3
    assert main("--resume", finished, "--log-every", "9")[0] == 3
    assert [(c.log_every, c.check_every, c.name) for c in seen] == [(7, 50, finished.name), (9, 50, finished.name)]


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        ({"lr": 1.0}, "expected lr 0.004 as in the checkpoint, got 1.0"),
        ({"hidden": [30]}, "expected the images with which"),
        ({"mean": 0.5}, "expected the images with which"),
        ({"epochs": "4"}, "expected --epochs to be a whole number below 2**63, got '4'"),
        ({"lr": -1}, "expected --lr to be a positive finite number, got -1"),
    ],
)
def test_settings_that_were_edited_are_one_line_with_status_2(main, finished, tmp_path, edit, expected):
    folder = copied(finished, tmp_path / "run")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, **edit}))
    status, _, err = main("--resume", folder)
    assert status == 2
    assert err.startswith("error: " + expected)
    assert err.count("\n") == 1


def test_a_folder_without_a_run_is_one_line_with_status_2(main, tmp_path):
    for name in ("nowhere", "."):
        status, _, err = main("--resume", tmp_path / name)
        assert status == 2
        assert err.startswith("error: expected the folder of a run of train.py, got")
        assert err.count("\n") == 1


def test_damage_is_one_line_with_status_2_and_the_checkpoint_before_it_goes_on(train, finished, tmp_path):
    folder = copied(finished, tmp_path / "run")
    (part,) = folder.glob("checkpoints/44-*.safetensors")
    part.write_bytes(part.read_bytes()[:-1])
    status, err = train("--resume", folder)
    assert status == 2
    assert err[0].startswith(f"error: expected {part} with SHA-256")
    (folder / "manifest.json").unlink()
    assert train("--resume", folder)[0] == 0
    assert same(weights(folder), weights(finished))


def test_a_full_disk_is_one_line_with_status_1_and_the_run_goes_on_once_there_is_room(train):
    flags = (*DIGITS, "--epochs", "3", "--hidden", "20")
    full = "import errno\ndef fsync(*_, made=[], real=os.fsync):\n    made.append(1)\n    "
    full += "if len(made) > 12: raise OSError(errno.ENOSPC, 'No space left on device')\nos.fsync = fsync"
    status, err = train(*flags, "--name", "full", before=full)
    assert (status, err) == (1, ["error: [Errno 28] No space left on device"])
    assert train("--resume", train.at / "full")[0] == 0
    assert same(weights(train.at / "full"), weights(train.whole(*flags)))


def test_a_loss_that_diverges_keeps_the_checkpoint_before_and_resumes(train):
    flags = (*DIGITS, "--epochs", "3", "--hidden", "20")
    nan = "take = loop.Trainer._step\ndef step(self, images, *rest):\n"
    nan += (
        "    return take(self, images * float('nan') if self.step == 50 else images, *rest)\nloop.Trainer._step = step"
    )
    status, err = train(*flags, "--name", "nan", before=nan)
    assert status == 1
    assert err[0].startswith("error: expected a finite loss, got nan in epoch 3 at step 51: try a lower --lr")
    assert train("--resume", train.at / "nan")[0] == 0
    assert same(weights(train.at / "nan"), weights(train.whole(*flags)))


def test_the_same_seed_twice_gives_the_same_weights(train):
    flags = (*DIGITS, *DEFORMED, "--epochs", "1", "--hidden", "20")
    assert train(*flags, "--name", "again")[0] == 0
    assert train(*flags, "--name", "other", "--seed", "1")[0] == 0
    assert same(weights(train.at / "again"), weights(train.whole(*flags)))
    assert not same(weights(train.at / "other"), weights(train.whole(*flags)))
