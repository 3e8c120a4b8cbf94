"""What TensorBoard shows of a run."""

from __future__ import annotations

import io
import json
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, wraps
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, ParamSpec

import torch
from PIL import Image
from torch import Tensor

from manual_mlp.modules import MLP
from manual_mlp.training import figures, files, report
from manual_mlp.training.data import Data, Split
from manual_mlp.training.distributed import Processes
from manual_mlp.training.git import git_state
from manual_mlp.training.metrics import Metrics

P = ParamSpec("P")

_PARTS = ("train", "validation", "test")
_LAYOUT = {
    "curves": {kind: ["Multiline", [f"{kind}/{part}" for part in _PARTS]] for kind in ("loss", "accuracy")},
    "steps": {tag: ["Multiline", [tag]] for tag in ("learning_rate", "gradients/norm", "gradients/max_abs_error")},
}
# What does not bear on the result.
_ASIDE = ("data_dir", "device", "logdir", "name", "profile", "dry_run", "check_every", "log_every", "image_shape")
_FLUSH = 10  # seconds until TensorBoard can see a number
_SHARE = 0.01  # of the time that histograms, and pictures, may take
_BUCKETS = 64
_PICTURES = 64
_POINTS = 400  # test images in the projector: a sprite of 20 x 20
_PROJECTOR = ("00000", "last_hidden_layer")  # its folder: of a step, and of a tag


def _spoken(method: Callable[Concatenate[Log, P], None]) -> Callable[Concatenate[Log, P], None]:
    """Let a log end at what a method cannot write, and not the run."""

    @wraps(method)
    def speak(log: Log, /, *args: P.args, **options: P.kwargs) -> None:
        try:
            if not log.lost:
                method(log, *args, **options)
        except OSError as error:
            log.end(error)

    return speak


class Log:
    """Write the events of a run into its folder; closing it, on any exit, writes all that is pending.

    A log that cannot be written ends, with a line on stderr; the run does not.

    What is written after the checkpoint of a step bears a later step: TensorBoard then forgets it when the run goes on
    from there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.begun, self.lost = folder, 0, False
        self._due = {"images": 0.0, "model": 0.0}

    @cached_property
    def writer(self) -> Any:
        from torch.utils.tensorboard import SummaryWriter

        self._threads, threading.excepthook = threading.excepthook, self._of_thread
        # TensorBoard takes a second start as a restart: so the first, too, says that it is one.
        return SummaryWriter(str(self.folder), purge_step=self.begun, flush_secs=_FLUSH)

    def __enter__(self) -> Log:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if "writer" in vars(self):
            try:
                self.writer.close()
            except OSError as failure:
                self.end(failure)
            threading.excepthook = self._threads

    def end(self, error: OSError) -> None:
        """Write nothing more, and say why."""
        if not self.lost:
            reason = error.strerror or error
            print(f"WARNING: the log in {self.folder} ends here ({reason}); the run goes on", file=sys.stderr)
        self.lost = True

    def _of_thread(self, raised: threading.ExceptHookArgs) -> None:
        """Keep silent of a full disk in the thread that writes the events: the next event raises it here."""
        if not isinstance(raised.exc_value, OSError):
            self._threads(raised)

    @_spoken
    def start(self, settings: Mapping[str, object], model: MLP, data: Data, step: int = 0) -> None:
        """Write what is known before the first step: settings, hyperparameters, state of git, graph and layout.

        Args:
            step: after which a run is resumed; what was logged later is dropped.
        """
        self.begun = step + 1 if step else 0
        block = "\n".join("    " + line for line in json.dumps(settings, indent=2).splitlines())
        self.writer.add_text("config", block, self.begun)
        self.writer.add_text("git", git_state(Path(__file__).parent), self.begun)
        if not step:
            self.writer.add_custom_scalars(_LAYOUT)
            for summary in _hparams(settings)[:2]:
                self.writer.file_writer.add_summary(summary, 0)
            with warnings.catch_warnings():
                # The writer would trace by itself, with a check that imports for a second. It warns of a second trace.
                warnings.simplefilter("ignore")
                trace: Any = torch.jit.trace
                images = data.train.images[:1]
                self.writer.add_graph(trace(model.to_sequential().eval(), images, check_trace=False), images)
        self.writer.flush()

    @_spoken
    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers by tag."""
        for tag, value in values.items():
            self.writer.add_scalar(tag, value, step)

    def metrics(self, step: int, part: str, metrics: Metrics) -> None:
        """Write loss and accuracy of `train`, `validation` or `test`."""
        self.scalars(step, {f"loss/{part}": metrics.loss, f"accuracy/{part}": metrics.accuracy})

    @_spoken
    def images(self, step: int, images: Tensor, data: Data) -> None:
        """Write a batch of training images as the network sees them, unless the last was just written."""
        with self._now_and_then("images") as now:
            if now:
                pictures = _pixels(images[:_PICTURES], data)
                self._picture("training_images", figures.grid(pictures).numpy(), step)

    @_spoken
    def model(self, step: int, model: MLP, image_shape: tuple[int, int]) -> None:
        """Write histograms and filters, unless the last ones were just written; flush."""
        with self._now_and_then("model") as now:
            if now:
                self._parameters(step, model, image_shape)
        self.writer.flush()

    @_spoken
    def finish(
        self, step: int, model: MLP, test: Split, data: Data, metrics: Metrics, settings: Mapping[str, object]
    ) -> None:
        """Write how the test images fared: metrics, mistakes, confusion matrix, curves by class and projector.

        Args:
            step: the last one; a checkpoint of it may exist, so this comes after it.
        """
        step += 1
        self.metrics(step, "test", metrics)
        self._parameters(step, model, data.image_shape)
        found = report.Predictions.of(model, test, str(settings["loss"]))
        pictures = _pixels(test.images, data)
        self.writer.add_text("report", found.by_class(), step)
        self.writer.add_text("misclassified", found.mistakes(), step)
        worst = found.wrong[: figures.MISTAKES]
        drawn = {
            "misclassified": figures.mistakes(pictures[worst], [found.caption(i) for i in worst.tolist()]),
            "confusion_matrix": figures.confusion(found.labels, found.predicted, data.classes),
        }
        for tag, picture in drawn.items():
            self._picture(tag, picture, step)
        for i, probability in enumerate(found.probabilities.T):
            self.writer.add_pr_curve(f"precision_recall/{i}", found.labels == i, probability, step)
        self._projector(found, pictures)
        self.writer.file_writer.add_summary(_hparams(settings)[2], step)
        self.writer.flush()

    @contextmanager
    def _now_and_then(self, what: str) -> Iterator[bool]:
        """Tell whether it is time for something, which is then to take a small share of the time."""
        now = time.perf_counter() >= self._due[what]
        start = time.thread_time()
        yield now
        if now:
            self._due[what] = time.perf_counter() + (time.thread_time() - start) / _SHARE

    def _parameters(self, step: int, model: MLP, image_shape: tuple[int, int]) -> None:
        """Write histograms of all weights and gradients, and the first layer's filters as pictures."""
        for name, parameter in model.named_parameters():
            self._histogram(f"weights/{name}", parameter.detach(), step)
            if parameter.grad is not None:
                self._histogram(f"gradients/{name}", parameter.grad, step)
        filters = next(model.parameters()).detach()[:_PICTURES].float().cpu().view(-1, *image_shape)
        self._picture("filters", figures.grid(figures.stretched(filters)).numpy(), step)

    def _picture(self, tag: str, picture: Any, step: int) -> None:
        """Write a picture: ten times as quick as add_image, which gives grey ones three colours.

        Shape:
            picture: an array `(height, width)` or `(height, width, 3)`, uint8.
        """
        from tensorboard.compat.proto.summary_pb2 import Summary

        file = io.BytesIO()
        Image.fromarray(picture).save(file, "png", compress_level=1)
        height, width, *colours = picture.shape
        image = Summary.Image(
            height=height, width=width, colorspace=sum(colours) or 1, encoded_image_string=file.getvalue()
        )
        self.writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

    def _histogram(self, tag: str, values: Tensor, step: int) -> None:
        """Write a histogram: torch's own, ten times as quick as add_histogram's."""
        values = values.flatten().float().cpu()
        low, high, total, squares = torch.stack([*values.aminmax(), values.sum(), values.dot(values)]).tolist()
        if not abs(low) + abs(high) < torch.inf:
            return
        margin = 0.0 if low < high else 0.5
        counts = torch.histc(values, _BUCKETS, low - margin, high + margin)
        edges = torch.linspace(low - margin, high + margin, _BUCKETS + 1, dtype=torch.float64)[1:]
        self.writer.add_histogram_raw(
            tag, low, high, len(values), total, squares, edges.tolist(), counts.tolist(), step
        )

    def _projector(self, found: report.Predictions, pictures: Tensor) -> None:
        """Write the last hidden layer's activations as points with their images, in place of what a run before left."""
        from torch.utils.tensorboard import SummaryWriter

        names = [[str(value) for value in pair] for pair in zip(found.labels, found.predicted, strict=True)]
        # The writer follows links. So it writes elsewhere.
        with tempfile.TemporaryDirectory() as temporary, SummaryWriter(temporary) as writer:
            writer.add_embedding(
                found.hidden[:_POINTS],
                names[:_POINTS],
                figures.squares(pictures[:_POINTS]).unsqueeze(1),
                tag=_PROJECTOR[1],
                metadata_header=["true", "predicted"],
            )
            made, folder = Path(temporary).joinpath(*_PROJECTOR), files.subfolder(self.folder, *_PROJECTOR)
            for file in made.iterdir():
                files.write(folder / file.name, file.read_bytes())
            config = "projector_config.pbtxt"
            files.write(self.folder / config, (Path(temporary) / config).read_bytes())


class NoLog(Log):
    """Write nothing."""

    def __init__(self) -> None:
        pass

    def _nothing(self, *args: Any, **kwargs: Any) -> None:
        pass

    start = scalars = metrics = images = model = finish = _nothing


def open_log(folder: Path, processes: Processes) -> Log:
    """Return a log, or one that writes nothing in all processes but the first."""
    return Log(folder) if processes.first else NoLog()


def _pixels(images: Tensor, data: Data) -> Tensor:
    """Undo the normalisation.

    Shape:
        images: `(N, height * width)`. Output: `(N, height, width)` in [0, 1], on the CPU.
    """
    return images.cpu().mul(data.std).add(data.mean).clamp(0, 1).view(-1, *data.image_shape)


def _hparams(settings: Mapping[str, object]) -> tuple[Any, Any, Any]:
    """Return the summaries of an experiment, of its start and of its end."""
    from torch.utils.tensorboard import summary

    values = {
        key: value if isinstance(value, int | float | str) else " ".join(map(str, value))
        for key, value in settings.items()
        if key not in _ASIDE and isinstance(value, int | float | str | list | tuple)
    }
    shown = [f"{kind}/{part}" for part in ("validation", "test") for kind in ("accuracy", "loss")]
    make: Any = summary.hparams
    start_and_end: tuple[Any, Any, Any] = make(values, dict.fromkeys(shown))
    return start_and_end
