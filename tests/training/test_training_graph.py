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

from manual_mlp.training import build, loop
from manual_mlp.training.config import Config
from manual_mlp.training.data import load
from manual_mlp.training.distributed import Processes
from manual_mlp.training.errors import InputError
from manual_mlp.training.graph import StepGraph, require
from manual_mlp.training.interrupt import Interrupt
from manual_mlp.training.log import NoLog
from manual_mlp.training.loop import Trainer
from test_training_waits import require_no_wait

CPU = torch.device("cpu")
# 1374 images: 10 batches, and one of 94.
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
    "equal batches": {"batch_size": 229, "lr": 0.02},
}


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
        kwargs = kwargs or {}
        require_no_wait(func, args, kwargs)
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

    exact = build.learning_rate
    # On a GPU every learning rate is rounded to the graph's float32.
    monkeypatch.setattr(build, "learning_rate", lambda *args: torch.tensor(exact(*args)).item())
    monkeypatch.setattr(loop, "require", lambda *args: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Tape)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    return made


class Heard(NoLog):
    """Keep what a log is told."""

    def __init__(self):
        self.told = []

    def metrics(self, step, part, metrics):
        self.told.append((step, metrics.loss, metrics.accuracy))

    def scalars(self, step, values):
        self.told.append((step, *(value for name, value in values.items() if name != "images_per_second")))


def make(config, data):
    torch.manual_seed(config.seed)
    return Trainer(build.build_model(config, data, data.train.labels.device), data, config)


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


def equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_a_captured_step_learns_the_same_bits_as_one_that_is_not(digits, tapes, case):
    config = replace(BASE, **CASES[case])
    captured = make(replace(config, cuda_graph=True), digits)
    equal(learnt(captured), learnt(make(config, digits)))
    assert len(tapes) == 1
    assert captured.evaluate(digits.validation).accuracy > 0.6


class Noted(TorchDispatchMode):
    """Note the operations."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations.append(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("case", CASES)
def test_a_capture_runs_no_operation_that_the_step_before_it_did_not(digits, tapes, case):
    config = replace(BASE, **CASES[case])
    trainer, taken = make(config, digits), []

    def update(*args):
        with Noted() as noted:
            made = trainer._update(*args)
        taken.append(noted.operations)
        return made

    step = StepGraph(update, trainer.optimizer, config.batch_size)
    for images, labels in itertools.islice(digits.train.batches(config.batch_size), 4):
        step(images, labels, config.batch_size, 0.01)
    # A tensor that a tape holds is detached; that runs nothing.
    *_, last, captured = ([func for func in funcs if func is not torch.ops.aten.detach.default] for funcs in taken)
    assert captured == last
    assert len(taken) == 4


def test_a_step_in_several_tiles_is_captured_too(digits, tapes):
    captured, plain = make(replace(BASE, cuda_graph=True), digits), make(BASE, digits)
    captured.model.tile_rows = plain.model.tile_rows = 50
    equal(learnt(captured), learnt(plain))
    assert len(tapes) == 1


def test_a_captured_run_goes_on_where_it_stopped(digits, tapes, tmp_path):
    plain = replace(BASE, schedule="constant")
    config = replace(plain, cuda_graph=True)
    expected = learnt(make(config, digits))
    stopped = make(config, digits)
    stopped.epochs = 2
    with Watched(), NoLog() as log:
        stopped.fit(log, Interrupt(), tmp_path)
    resumed = make(plain, digits)
    resumed.resume(tmp_path)
    found = learnt(resumed)
    stopped.resume(tmp_path)
    stopped.epochs = 3
    again = learnt(stopped)
    for part in ("parameters", "optimizer", "gradients"):
        equal(found[part], expected[part])
        equal(again[part], expected[part])
    assert len(tapes) == 3


def test_a_run_without_a_full_batch_captures_nothing(digits, tapes):
    config = replace(BASE, batch_size=5000)
    equal(learnt(make(replace(config, cuda_graph=True), digits)), learnt(make(config, digits)))
    assert not tapes


def test_an_odd_batch_is_not_captured_and_leaves_its_own_gradients(digits, tapes):
    images, labels = next(digits.train.batches(128))
    trainer = make(BASE, digits)
    step = StepGraph(trainer._update, trainer.optimizer, 128)
    for _ in range(4):
        step(images, labels, 128, 0.0)
    parameters = list(trainer.model.parameters())
    held = [p.grad for p in parameters]
    expected = [grad.clone() for grad in held]
    step(images[:5], labels[:5], 5, 0.0)
    assert not any(torch.equal(p.grad, grad) for p, grad in zip(parameters, expected, strict=True))
    step(images, labels, 128, 0.0)
    assert all(p.grad is grad for p, grad in zip(parameters, held, strict=True))
    equal(held, expected)
    assert len(tapes) == 1


def test_each_step_returns_a_loss_of_its_own(digits, tapes):
    images, labels = next(digits.train.batches(128))
    trainer = make(BASE, digits)
    step = StepGraph(trainer._update, trainer.optimizer, 128)
    losses = [step(images, labels, 128, 0.01)[0] for _ in range(9)]
    assert all(after < before for before, after in itertools.pairwise(losses))


def by_a_stub(rates, fails=False):
    """Make a StepGraph of a step that notes what it is called with."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))], fused=True)

    def step(images, labels, count, lr):
        (group,) = optimizer.param_groups
        group["lr"] = lr
        rates.append((lr, group["capturable"]))
        if fails and len(rates) > 3:
            raise RuntimeError("operation not permitted\nlong story")
        return images.sum(), images

    return StepGraph(step, optimizer, 2), optimizer.param_groups[0]


def test_the_optimizer_is_capturable_and_its_rate_a_tensor_in_the_capture_and_the_step_before_it_alone(tapes):
    rates = []
    step, group = by_a_stub(rates)
    for lr in (0.5, 0.25, 0.125, 0.0625, 0.03125):
        step(torch.ones(2, 3), torch.zeros(2), 2, lr)
        assert (group["lr"], group["capturable"]) == (lr, False)
        assert isinstance(group["lr"], float)
    assert rates[:2] == [(0.5, False), (0.25, False)]
    (last, before), (captured, during) = rates[2:]
    assert before
    assert during
    assert last.item() == 0.125
    assert last.dtype == captured.dtype == torch.float32


def test_a_step_that_cannot_be_captured_is_an_error_in_one_line_and_leaves_the_optimizer_alone(tapes):
    step, group = by_a_stub([], fails=True)
    batch = torch.ones(2, 3), torch.zeros(2), 2, 0.5
    for _ in range(3):
        step(*batch)
    with pytest.raises(
        InputError, match=r"^expected a step that --cuda-graph can capture, got: operation not permitted$"
    ):
        step(*batch)
    assert (group["lr"], group["capturable"]) == (0.5, False)


@pytest.mark.parametrize(
    ("device", "count", "flags", "message"),
    [
        ("cpu", 1, {}, "expected a GPU for --cuda-graph, got cpu"),
        ("cuda:0", 2, {}, "expected one process for --cuda-graph, got 2"),
        ("cuda:0", 1, {"compile": True}, "expected --cuda-graph or --compile, got both"),
        (
            "cuda:0",
            1,
            {"optimizer": "rmsprop"},
            "expected --optimizer adamw, adam or sgd for --cuda-graph, got rmsprop",
        ),
    ],
)
def test_what_cannot_be_captured_is_refused(device, count, flags, message):
    with pytest.raises(InputError, match=f"^{message}$"):
        require(replace(BASE, cuda_graph=True, **flags), torch.device(device), Processes(count=count))


def test_a_trainer_on_a_cpu_refuses_a_cuda_graph(digits):
    config = replace(BASE, cuda_graph=True)
    with pytest.raises(InputError, match="expected a GPU for --cuda-graph, got cpu"):
        make(config, digits)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("case", CASES)
def test_a_gpu_replays_what_it_would_have_computed(case):
    data = load("digits", Path("unused"), build.pick_device("auto"))
    config = replace(BASE, **CASES[case])
    captured = make(replace(config, cuda_graph=True), data)
    torch.testing.assert_close(learnt(captured), learnt(make(config, data)), rtol=1e-4, atol=1e-5)
    assert captured.evaluate(data.validation).accuracy > 0.6
