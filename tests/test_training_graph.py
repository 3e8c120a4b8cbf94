"""A step as a CUDA graph. Without a GPU, what is captured is replayed operation by operation, in the same memory."""

import itertools
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytest.importorskip("torchvision")

from manual_mlp.training import build
from manual_mlp.training.config import Config
from manual_mlp.training.data import load
from manual_mlp.training.distributed import Processes
from manual_mlp.training.errors import InputError
from manual_mlp.training.graph import StepGraph, require
from manual_mlp.training.interrupt import Interrupt
from manual_mlp.training.log import NoLog
from manual_mlp.training.loop import Trainer

CPU = torch.device("cpu")
# 1647 images: 12 batches, and one of 111.
BASE = Config(dataset="digits", hidden=(32, 16), epochs=3, batch_size=128, check_every=7, log_every=5)
CASES = {
    "adamw": {},
    "adam": {"optimizer": "adam", "activation": "gelu"},
    "sgd": {"optimizer": "sgd", "lr": 0.1},
    "sgd without momentum": {"optimizer": "sgd", "lr": 1.0, "momentum": 0.0},
    "bf16": {"precision": "bf16", "shift": 0.0},
    "fp16": {"precision": "fp16"},
    "squared error": {"loss": "squared-error", "output_activation": "tanh"},
    "binary cross-entropy": {"loss": "binary-cross-entropy", "lr": 0.02},
    "distorted": {"rotation": 10.0, "scaling": 0.1},
    "dropout": {"dropout": 0.2},
}
# A GPU waits for these, and a capture fails at them.
WAITS = ("_local_scalar_dense", "nonzero", "item", "equal")


class Watched(TorchDispatchMode):
    """Do nothing but watch: as on a GPU, no loss looks at its targets then."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Tape(TorchDispatchMode):
    """What stands for a CUDAGraph: a capture leaves everything as it was, and a replay runs on the same tensors."""

    def __init__(self):
        super().__init__()
        self.calls, self.written = [], {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in WAITS, f"{func} waits for the device"
        kwargs = kwargs or {}
        for i, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                for t in tree_leaves(args[i] if i < len(args) else kwargs.get(argument.name)):
                    if isinstance(t, torch.Tensor):
                        self.written.setdefault((t.data_ptr(), t.shape, t.stride()), (t, t.clone()))
        made = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, made))
        return made

    @contextmanager
    def capture(self):
        drawn = torch.get_rng_state()
        with self:
            yield
        torch.set_rng_state(drawn)
        with torch.no_grad():
            for tensor, before in reversed(self.written.values()):
                tensor.copy_(before)

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, made in self.calls:
            for old, new in zip(tree_leaves(made), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.fixture
def tapes(monkeypatch):
    made = []

    def capture(tape):
        made.append(tape)
        return tape.capture()

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Tape)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    return made


@pytest.fixture(scope="module")
def digits():
    return load("digits", Path("unused"), CPU)


class Heard(NoLog):
    """Keep what a log is told."""

    def __init__(self):
        self.told = []

    def metrics(self, step, part, metrics):
        self.told.append((step, metrics.loss, metrics.accuracy))

    def scalars(self, step, values):
        self.told.append((step, *(value for name, value in values.items() if name != "images_per_second")))


def learnt(trainer):
    """Train; return what was logged, and what parameters, optimizer and scaler hold, with the last gradients."""
    with Watched(), Heard() as log:
        trainer.fit(log, Interrupt())
    return {
        "log": log.told,
        "parameters": [p.detach() for p in trainer.model.parameters()],
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "gradients": [p.grad for p in trainer.model.parameters()],
    }


def make(config, data, rows):
    """Make a trainer that captures batches of so many rows; 0: none."""
    torch.manual_seed(config.seed)
    device = data.train.labels.device
    trainer = Trainer(build.build_model(config, data, device), data, replace(config, cuda_graph=False))
    trainer.update = StepGraph(trainer.update, trainer.optimizer, rows)
    return trainer


@pytest.mark.parametrize("case", CASES)
def test_a_captured_step_learns_the_same_bits_as_one_that_is_not(digits, tapes, case):
    config = replace(BASE, **CASES[case])
    captured = make(config, digits, config.batch_size)
    torch.testing.assert_close(learnt(captured), learnt(make(config, digits, 0)), rtol=0, atol=0)
    assert len(tapes) == 1
    assert captured.evaluate(digits.validation).accuracy > 0.6


def test_an_odd_batch_is_not_captured_and_leaves_its_own_gradients(digits, tapes):
    trainer = make(BASE, digits, BASE.batch_size)
    images, labels = digits.train.images[:128], digits.train.labels[:128]
    for _ in range(4):
        trainer.update(images, labels, 128, 0.0)
    held = [p.grad for p in trainer.model.parameters()]
    expected = [grad.clone() for grad in held]
    trainer.update(images[:5], labels[:5], 5, 0.0)
    assert not any(torch.equal(p.grad, grad) for p, grad in zip(trainer.model.parameters(), expected, strict=True))
    trainer.update(images, labels, 128, 0.0)
    assert all(p.grad is grad for p, grad in zip(trainer.model.parameters(), held, strict=True))
    torch.testing.assert_close(held, expected, rtol=0, atol=0)
    assert len(tapes) == 1


def test_what_a_captured_step_returns_is_the_loss_of_that_step(digits, tapes):
    trainer = make(BASE, digits, BASE.batch_size)
    images, labels = next(digits.train.batches(128))
    losses = [trainer.update(images, labels, 128, 0.01)[0] for _ in range(9)]
    assert all(after < before for before, after in itertools.pairwise(losses))


@pytest.mark.parametrize(
    ("device", "count", "flags", "message"),
    [
        ("cpu", 1, {}, "expected a GPU for --cuda-graph, got --device cpu"),
        ("cuda:0", 2, {}, "expected --cuda-graph in one process, without --compile, with adamw, adam or sgd"),
        ("cuda:0", 1, {"compile": True}, "without --compile"),
        ("cuda:0", 1, {"optimizer": "rmsprop"}, "with adamw, adam or sgd"),
    ],
)
def test_what_cannot_be_captured_is_refused(device, count, flags, message):
    with pytest.raises(InputError, match=message):
        require(replace(BASE, cuda_graph=True, **flags), torch.device(device), Processes(count=count))


def test_a_trainer_on_a_cpu_refuses_a_cuda_graph(digits):
    config = replace(BASE, cuda_graph=True)
    with pytest.raises(InputError, match="expected a GPU for --cuda-graph, got --device cpu"):
        Trainer(build.build_model(config, digits, CPU), digits, config)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("case", CASES)
def test_a_gpu_replays_what_it_would_have_computed(case):
    device = build.pick_device("auto")
    data = load("digits", Path("unused"), device)
    config = replace(BASE, **CASES[case])
    captured = make(config, data, config.batch_size)
    torch.testing.assert_close(learnt(captured), learnt(make(config, data, 0)), rtol=0, atol=0)
    assert captured.update.replay is not None
    assert captured.evaluate(data.validation).accuracy > 0.6
