"""The training loop."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from tqdm import tqdm

from manual_mlp.modules import MLP
from manual_mlp.training import recipe
from manual_mlp.training.check import GradientCheck
from manual_mlp.training.config import Config
from manual_mlp.training.data import Data, Split, shift
from manual_mlp.training.errors import DivergedError
from manual_mlp.training.interrupt import Interrupt
from manual_mlp.training.log import Log
from manual_mlp.training.metrics import Meter, Metrics, mean

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_DRY_RUN_STEPS = 4
_WINDOW = 50  # steps between two readings of loss and accuracy
_EVALUATION_BATCH = 4096


@dataclass(frozen=True)
class Result:
    """What training came to.

    Attributes:
        seconds: of the whole loop, validation and logging included.
        gradient_error: largest difference of the manual gradient from autograd's, over `checks` batches.
    """

    steps: int
    seconds: float
    gradient_error: float
    checks: int


class Trainer:
    """Fit a model to data as a Config says.

    Raises:
        InputError: the model cannot be compiled here.
    """

    def __init__(self, model: MLP, data: Data, config: Config) -> None:
        self.model, self.data, self.config = model, data, config
        self.device = next(model.parameters()).device
        self.epochs = 1 if config.dry_run else config.epochs
        steps = math.ceil(len(data.train) / config.batch_size)
        self.steps_per_epoch = min(steps, _DRY_RUN_STEPS) if config.dry_run else steps
        self.loss = recipe.make_loss(config, data.classes)
        self.optimizer = recipe.make_optimizer(config, model)
        self.schedule = recipe.make_schedule(self.optimizer, self.epochs * self.steps_per_epoch)
        self.autocast = torch.autocast(self.device.type, _DTYPES[config.precision], config.precision != "fp32")
        # A low first scale: should the very first step overflow, the schedule would warn of a step left out.
        self.scaler = torch.amp.GradScaler(self.device.type, init_scale=1024.0, enabled=config.precision == "fp16")
        self.forward: recipe.Forward = model
        if config.compile:
            with self.autocast:
                self.forward = recipe.compile_model(model, data.train.images[: config.batch_size])
        self.check = GradientCheck(model, self.loss, self.forward)
        self.generator = torch.Generator().manual_seed(config.seed)
        self.shift = round(config.shift * data.image_shape[1])  # pixels
        self.step = 0

    def fit(self, log: Log, interrupt: Interrupt) -> Result:
        """Train for all epochs, or until the interrupt: then the epoch at hand is validated as far as it came.

        Raises:
            DivergedError: the loss is not finite.
        """
        start = time.perf_counter()
        images = self.epochs * min(len(self.data.train), self.steps_per_epoch * self.config.batch_size)
        # Into a file, a bar is a new line at every refresh: keep those rare.
        pause = 0.1 if sys.stderr.isatty() else 10.0
        with tqdm(total=images, unit=" images", unit_scale=True, dynamic_ncols=True, mininterval=pause) as bar:
            for epoch in range(1, self.epochs + 1):
                bar.set_description(f"epoch {epoch}/{self.epochs}", refresh=False)
                train = self._epoch(epoch, log, interrupt, bar)
                validation = self.evaluate(self.data.validation)
                log.metrics(self.step, "validation", validation)
                log.model(self.step, self.model, self.data.image_shape)
                bar.write(f"epoch {epoch}: training {train}, validation {validation}", file=sys.stdout)
                if interrupt.signal:
                    break
        seconds = time.perf_counter() - start
        return Result(self.step, seconds, float(self.check.worst), self.check.count)

    @torch.no_grad()
    def evaluate(self, split: Split) -> Metrics:
        """Return the mean loss and the accuracy over a split."""
        self.model.eval()
        meter = Meter()
        for images, labels in split.batches(_EVALUATION_BATCH):
            with self.autocast:
                outputs = self.model(images)
                meter.add(self.loss(outputs, labels), outputs, labels)
        return meter.read()[0]

    def _epoch(self, epoch: int, log: Log, interrupt: Interrupt, bar: tqdm[None]) -> Metrics:
        """Take the steps of one epoch and log them window by window."""
        self.model.train()
        windows: list[Metrics] = []
        meter, since = Meter(), time.perf_counter()
        batches = islice(self.data.train.batches(self.config.batch_size, self.generator), self.steps_per_epoch)
        for index, (images, labels) in enumerate(batches, start=1):
            lr = self.schedule.get_last_lr()[0]
            self._step(images, labels, meter, log)
            bar.update(len(labels))
            if index % _WINDOW == 0 or index == self.steps_per_epoch or interrupt.signal:
                metrics = self._read(meter, epoch)
                rate = metrics.images / (time.perf_counter() - since)
                log.metrics(self.step, "train", metrics)
                norm = get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
                log.scalars(
                    self.step, {"learning_rate": float(lr), "images_per_second": rate, "gradients/norm": float(norm)}
                )
                bar.set_postfix_str(str(metrics), refresh=False)
                windows.append(metrics)
                meter, since = Meter(), time.perf_counter()
            if interrupt.signal:
                break
        return mean(windows)

    def _step(self, images: Tensor, labels: Tensor, meter: Meter, log: Log) -> None:
        """Update the parameters with one batch; their gradients stay until the next step."""
        images = self._shifted(images)
        check_every = self.config.check_every
        if check_every and self.step % check_every == 0:
            with self.autocast:
                log.scalars(self.step, {"gradients/max_abs_error": float(self.check(images, labels))})
        self.optimizer.zero_grad()
        with self.autocast:
            outputs = self.forward(images)
            loss = self.loss(outputs, labels)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        self.scaler.unscale_(self.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        self.step += 1
        meter.add(loss, outputs, labels)

    def _shifted(self, images: Tensor) -> Tensor:
        if not self.shift:
            return images
        blank = -self.data.mean / self.data.std  # a black pixel, once normalised
        return shift(images, self.data.image_shape, self.shift, blank, self.generator)

    def _read(self, meter: Meter, epoch: int) -> Metrics:
        metrics, losses = meter.read()
        for step, loss in enumerate(losses, start=self.step - len(losses) + 1):
            if not math.isfinite(loss):
                raise DivergedError(
                    f"expected a finite loss, got {loss} in epoch {epoch} at step {step}: "
                    f"try a lower --lr (now {self.config.lr:g}) or --precision fp32 (now {self.config.precision})"
                )
        return metrics
