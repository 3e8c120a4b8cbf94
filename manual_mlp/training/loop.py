"""The training loop."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from tqdm import tqdm

from manual_mlp.modules import MLP
from manual_mlp.training import build, checkpoint, restore, state
from manual_mlp.training.check import GradientCheck
from manual_mlp.training.config import Config
from manual_mlp.training.data import Data, Split
from manual_mlp.training.distributed import ALONE, Processes
from manual_mlp.training.errors import DivergedError
from manual_mlp.training.feed import Feed, seed_at
from manual_mlp.training.graph import StepGraph, require
from manual_mlp.training.interrupt import Interrupt
from manual_mlp.training.log import Log
from manual_mlp.training.metrics import Meter, Metrics, mean
from manual_mlp.training.trace import profiler

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_DRY_RUN_STEPS = 4
_EVALUATION_BATCH = 4096


@dataclass(frozen=True)
class Result:
    """What training came to.

    Attributes:
        steps, epochs: taken in all, before a resume too.
        seconds: of the loop, validation and logging included, since the start or the resume.
        gradient_error: largest difference of the manual gradient from autograd's, over `checks` batches.
    """

    steps: int
    epochs: int
    seconds: float
    gradient_error: float
    checks: int


class Trainer:
    """Fit a model to data as a Config says, each step by :func:`manual_mlp.backprop`.

    Args:
        processes: those that share the work; each takes its share of every batch.

    Raises:
        InputError: the model cannot be compiled here, its step cannot be captured, or a flag does not fit the images.
    """

    def __init__(self, model: MLP, data: Data, config: Config, processes: Processes = ALONE) -> None:
        self.model, self.data, self.config, self.processes = model, data, config, processes
        self.device = next(model.parameters()).device
        if config.cuda_graph:
            require(config, self.device, processes)
        self.epochs = 1 if config.dry_run else config.epochs
        steps = math.ceil(len(data.train) / config.batch_size)
        self.steps_per_epoch = min(steps, _DRY_RUN_STEPS) if config.dry_run else steps
        self.objective = build.Objective.of(config, data.classes)
        self.optimizer = build.make_optimizer(config, model)
        self.autocast = torch.autocast(self.device.type, _DTYPES[config.precision], config.precision != "fp32")
        # A low first scale: the very first steps would overflow, and be left out.
        self.scaler = torch.amp.GradScaler(self.device.type, init_scale=1024.0, enabled=config.precision == "fp16")
        self.network: nn.Module = model
        if config.compile:
            with self.autocast:
                self.network = build.compile_model(model, data.train.images[: config.batch_size])
        self.check = GradientCheck(model, self.objective, self.network)
        self.network = processes.wrap(self.network)
        self.feed = Feed(data, config)
        self.graph: StepGraph | None = None  # of a step, while fitting
        self.traced = config.profile and processes.first  # whether a trace is still to be written
        self.epoch, self.step, self.best = 0, 0, -1.0

    def fit(self, log: Log, interrupt: Interrupt, folder: Path | None = None) -> Result:
        """Train until the last epoch, or until the interrupt: then the epoch at hand is validated as far as it came.

        Args:
            folder: where a checkpoint goes after each epoch, and at the interrupt, if anywhere.

        Raises:
            DivergedError: the loss is not finite.
        """
        start = time.perf_counter()
        if self.config.cuda_graph:
            self.graph = StepGraph(self._update, self.optimizer, self.config.batch_size)
        per_epoch = min(len(self.data.train), self.steps_per_epoch * self.config.batch_size)
        # Into a file, a bar is a new line at every refresh: keep those rare.
        pause = 0.1 if sys.stderr.isatty() else 10.0
        with tqdm(
            total=self.epochs * per_epoch,
            initial=min(self.step * self.config.batch_size, self.epochs * per_epoch),
            unit=" images",
            unit_scale=True,
            dynamic_ncols=True,
            mininterval=pause,
            disable=not self.processes.first,
        ) as bar:
            stopped = False
            while self.epoch < self.epochs and not stopped:
                bar.set_description(f"epoch {self.epoch + 1}/{self.epochs}", refresh=False)
                train, stopped = self._epoch(log, interrupt, bar, folder)
                if not all(p.isfinite().all() for p in self.model.parameters()):
                    raise self._diverged("weight", math.nan, self.step)
                line = f"epoch {self.epoch + 1}: training {train}"
                whole = self.step == (self.epoch + 1) * self.steps_per_epoch
                better = not len(self.data.validation)  # without validation the last are the best
                if len(self.data.validation):
                    validation = self.evaluate(self.data.validation)
                    log.metrics(self.step, "validation", validation)
                    line += f", validation {validation}"
                    # An epoch that was cut short does not compete: a run that was never interrupted has none.
                    better = whole and validation.accuracy > self.best
                    if better:
                        self.best = validation.accuracy
                log.model(self.step, self.model, self.data.image_shape)
                if whole:
                    self.epoch += 1
                if folder is not None and self.processes.first:
                    state.save(folder, self.step, self.model.state_dict(), self.state_dict(), better)
                if self.processes.first:
                    bar.write(line, file=sys.stdout)
        self.graph = None  # and its memory is free
        seconds = time.perf_counter() - start
        return Result(self.step, self.epoch, seconds, float(self.check.worst), self.check.count)

    def resume(self, folder: Path) -> None:
        """Go on from the latest checkpoint of a run.

        Raises:
            InputError: there is none, it is damaged, or it is that of other settings.
        """
        weights, found = state.load(folder, state.most_bytes([p.shape for p in self.model.parameters()]))
        self.load_state_dict(found)
        restore.weights(self.model, weights)
        if self.processes.first:
            state.publish(folder)

    def state_dict(self) -> dict[str, Any]:
        """Return what it takes, beside the weights, to go on as if nothing had happened."""
        return {
            "config": checkpoint.fixed(self.config),
            "epoch": self.epoch,
            "step": self.step,
            "best": self.best,
            # The rest of what an optimizer knows comes from the flags.
            "optimizer": self.optimizer.state_dict()["state"],
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, found: dict[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned.

        Raises:
            InputError: it is that of other settings, or does not fit.
        """
        restore.require_config(found, checkpoint.fixed(self.config), checkpoint.fixed(Config()))
        self.epoch, self.step, self.best = restore.progress(found, self.epochs, self.steps_per_epoch)
        like = build.make_optimizer(self.config, nn.Linear(1, 1, device=self.device))
        restore.optimizer(self.optimizer, found, like, self.scaler.is_enabled())
        restore.scaler(self.scaler, found)

    @torch.no_grad()
    def evaluate(self, split: Split) -> Metrics:
        """Return the mean loss and the accuracy over a split."""
        self.model.eval()
        meter = Meter()
        for images, labels in split.batches(_EVALUATION_BATCH):
            with self.autocast:
                outputs = self.model(images)
                meter.add(self.objective.total(outputs, labels), outputs, labels)
        return meter.read()[0]

    def batches(self, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of the epoch at hand, from one on, as :meth:`Feed.batches` does."""
        return self.feed.batches(self.epoch, first)

    def _epoch(self, log: Log, interrupt: Interrupt, bar: tqdm[None], folder: Path | None) -> tuple[Metrics, bool]:
        """Take the steps of one epoch and log them window by window; tell whether the interrupt came."""
        self.model.train()
        windows: list[Metrics] = []
        stop = False
        meter, since = Meter(), time.perf_counter()
        with self._profiler(folder) as trace:
            first = self.step - self.epoch * self.steps_per_epoch
            batches = islice(self.batches(first), self.steps_per_epoch - first)
            for index, (images, labels) in enumerate(batches, start=first + 1):
                if index == 1:
                    log.images(self.step + 1, images, self.data)
                lr = self._step(images, labels, meter, log)
                bar.update(len(labels))
                if trace is not None:
                    trace.step()
                stop = self.processes.any(bool(interrupt.signal))
                if index % self.config.log_every == 0 or index == self.steps_per_epoch or stop:
                    metrics = self._read(meter)
                    rate = metrics.images / (time.perf_counter() - since)
                    norm = get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
                    log.metrics(self.step, "train", metrics)
                    log.scalars(
                        self.step, {"learning_rate": lr, "images_per_second": rate, "gradients/norm": float(norm)}
                    )
                    bar.set_postfix_str(str(metrics), refresh=False)
                    windows.append(metrics)
                    meter, since = Meter(), time.perf_counter()
                if stop:
                    break
        return mean(windows), stop

    def _step(self, images: Tensor, labels: Tensor, meter: Meter, log: Log) -> float:
        """Update the parameters with one batch and return its learning rate; the gradients stay until the next step."""
        count, every = len(labels), self.config.check_every
        mine = self.processes.share(count)
        images, labels = images[mine], labels[mine]
        if every and self.step % every == 0 and len(labels):
            with self.autocast:
                log.scalars(self.step + 1, {"gradients/max_abs_error": float(self.check(images, labels))})
        if self.config.dropout:
            torch.manual_seed(seed_at(self.config.seed, self.step, self.processes.rank))
        lr = build.learning_rate(self.config, self.step, self.epochs * self.steps_per_epoch)
        if self.device.type == "cuda":
            lr = torch.tensor(lr, dtype=torch.float32).item()  # as a graph has it: with one or without, it is the same
        loss, outputs = (self.graph or self._update)(images, labels, count, lr)
        self.step += 1
        meter.add(loss, outputs, labels)
        return lr

    def _update(self, images: Tensor, labels: Tensor, count: int, lr: float | Tensor) -> tuple[Tensor, Tensor]:
        """Update the parameters with this process's part of a batch; return its loss, summed, and its outputs.

        Args:
            count: images of the batch, over all processes.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        # DDP divides the sum of the gradients by the number of processes.
        scale = self.scaler.scale(torch.ones((), device=self.device)) if self.scaler.is_enabled() else 1.0
        with self.autocast:
            loss, outputs = self.objective.step(self.network, images, labels, scale * self.processes.count / count)
        self.scaler.unscale_(self.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss, outputs

    def _read(self, meter: Meter) -> Metrics:
        """Return the means over the images of all processes since the last reading."""
        metrics, losses = meter.read()
        if self.processes.count > 1:
            n = metrics.images
            mine = [metrics.loss * n, metrics.accuracy * n, n, *losses]
            loss, correct, images, *losses = self.processes.sum(mine)
            metrics = Metrics(loss / images, correct / images, round(images))
        for step, mean_loss in enumerate(losses, start=self.step - len(losses) + 1):
            if not math.isfinite(mean_loss):
                raise self._diverged("loss", mean_loss, step)
        return metrics

    def _diverged(self, what: str, value: float, step: int) -> DivergedError:
        return DivergedError(
            f"expected a finite {what}, got {value} in epoch {self.epoch + 1} at step {step}: "
            f"try a lower --lr (now {self.config.lr:g}) or --precision fp32 (now {self.config.precision})"
        )

    def _profiler(self, folder: Path | None) -> AbstractContextManager[torch.profiler.profile | None]:
        """Return what traces a few steps of the first epoch."""
        if not self.traced or folder is None:
            return nullcontext()
        self.traced = False
        steps = (self.epoch + 1) * self.steps_per_epoch - self.step
        return profiler(folder / "trace.json", steps, self.device)
