"""No step of training waits for a GPU. Without one, meta tensors stand for it: they have no values to wait for."""

import sys
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

pytest.importorskip("torchvision")

from manual_mlp.training import build, feed
from manual_mlp.training.config import Config
from manual_mlp.training.data import Split
from manual_mlp.training.interrupt import Interrupt
from manual_mlp.training.log import NoLog
from manual_mlp.training.loop import Trainer
from manual_mlp.training.metrics import Meter

CPU, META = torch.device("cpu"), torch.device("meta")
# 1374 images: 10 batches, and one of 94.
BASE = Config(dataset="digits", hidden=(32, 16), batch_size=128, check_every=0, log_every=5)
EVERYTHING = {
    "rotation": 10.0,
    "scaling": 0.1,
    "shear": 5.0,
    "translation": 1.5,
    "elastic_alpha": 8.0,
    "shift": 0.2,
    "input_dropout": 0.2,
}
# RMSprop in fp16 is none of them: torch has no fused one, and GradScaler asks the others whether the step overflowed.
CASES = {
    "adamw": {},
    "everything": EVERYTHING,
    "everything in bf16": {**EVERYTHING, "precision": "bf16"},
    "shifted in bf16": {"shift": 0.2, "precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "adam": {"optimizer": "adam"},
    "sgd": {"optimizer": "sgd", "lr": 0.1},
    "rmsprop": {"optimizer": "rmsprop", "lr": 0.001},
    "dropout": {"dropout": 0.2},
    "squared error": {"loss": "squared-error", "output_activation": "tanh"},
    "binary cross-entropy": {"loss": "binary-cross-entropy"},
}
# A GPU waits for these, and a capture fails at them; and at a mask as an index.
WAITS = ("_local_scalar_dense", "nonzero", "equal", "masked_select", "_unique2", "unique_dim", "unique_consecutive")
COPIES = ("_to_copy", "copy_")
INDEXED = ("index", "index_put", "index_put_")


def require_no_wait(func, args, kwargs):
    """Fail at an operation that needs the values, or takes them from one device to another."""
    name, leaves = func.overloadpacket.__name__, tree_leaves((args, kwargs))
    devices = {leaf.device if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves}
    devices = {device for device in devices if isinstance(device, torch.device)}
    assert name not in WAITS, f"{func} waits for the device"
    assert not (name in COPIES and len(devices) > 1), f"{func} waits for a copy between {devices}"
    types = {getattr(index, "dtype", None) for index in args[1]} if name in INDEXED else set()
    assert torch.bool not in types, f"{func} waits for a mask"


class NoWait(TorchDispatchMode):
    """Let nothing wait for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        require_no_wait(func, args, kwargs or {})
        return func(*args, **(kwargs or {}))


@pytest.fixture
def made_for(monkeypatch):
    """Let training take meta tensors for a GPU's; note the devices that generators are made for."""
    devices = []

    class Generator(torch.Generator):
        def __new__(cls, device="cpu"):
            devices.append(torch.device(device))
            return super().__new__(cls, "cpu")

    def on_cpu(function):
        return lambda device, *args, **options: function("cpu", *args, **options)

    tensor = torch.tensor

    def copied(data, dtype=None, device="cpu", **options):
        return tensor(data, dtype=dtype, **options).to(device)

    # As for a GPU: Python's numbers are put into the host's memory first.
    monkeypatch.setattr(torch, "tensor", copied)
    monkeypatch.setattr(torch.Tensor, "new_tensor", lambda self, data: copied(data, self.dtype, self.device))
    monkeypatch.setattr(torch, "_fused_sgd_", lambda *args, **options: None)  # it knows no meta tensors
    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(torch, "autocast", on_cpu(torch.autocast))
    monkeypatch.setattr(torch.amp, "GradScaler", on_cpu(torch.amp.GradScaler))
    monkeypatch.setattr(sys.modules["torch.optim.optimizer"], "_get_fused_kernels_supported_devices", lambda: ["meta"])
    return devices


def make(config, digits, device):
    train = Split(digits.train.images.to(device), digits.train.labels.to(device))
    data = replace(digits, train=train)
    return Trainer(build.build_model(config, data, device), data, config)


def steps(trainer):
    """Yield after each step of an epoch, the first of which comes with what is copied once."""
    for images, labels in trainer.batches():
        trainer._step(images, labels, Meter(), NoLog())
        yield


@pytest.mark.parametrize("case", CASES)
def test_no_step_waits_for_the_device_or_for_a_copy(digits, made_for, monkeypatch, case):
    monkeypatch.setattr(feed, "_DEFORMED", 256)  # blocks of two batches
    training = steps(make(replace(BASE, **CASES[case]), digits, META))
    next(training)
    with NoWait():
        assert len(list(training)) == 10
    # The first one is that of the order.
    assert made_for == [CPU, *[META] * 6]


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: x.index_put_((x > 0,), torch.ones_like(x)),
        lambda x: x.unique(),
        lambda x: x.equal(x),
        lambda x: x.cpu(),
        lambda x: x.tolist(),
        lambda x: x.copy_(torch.zeros(3)),
        lambda x: torch.zeros(3).to(x.device),
        lambda x: x.new_tensor((1.0, 2.0)),
        lambda x: torch.tensor(1.0, device=x.device),
    ],
)
def test_what_makes_a_gpu_wait_is_seen(made_for, wait):
    with pytest.raises(AssertionError, match="waits for"), NoWait():
        wait(torch.zeros(3, device=META))


def test_an_epoch_waits_for_the_device_where_the_log_is_due_and_no_sooner(digits, made_for):
    trainer = make(replace(BASE, **EVERYTHING), digits, META)
    with pytest.raises(NotImplementedError, match="no data"):
        trainer._epoch(NoLog(), Interrupt(), tqdm(disable=True), None)
    assert trainer.step == BASE.log_every


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("case", CASES)
def test_a_gpu_is_not_waited_for(digits, monkeypatch, case):
    monkeypatch.setattr(feed, "_DEFORMED", 256)
    torch.use_deterministic_algorithms(False)  # as train.py runs
    training = steps(make(replace(BASE, **CASES[case]), digits, build.pick_device("auto")))
    next(training)
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert len(list(training)) == 10
    finally:
        torch.cuda.set_sync_debug_mode("default")
