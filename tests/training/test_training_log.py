"""What TensorBoard finds in a run: everything is read back from its event files."""

import io
import itertools
import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("tensorboard")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")

import numpy as np
from PIL import Image
from sklearn.metrics import accuracy_score, average_precision_score, confusion_matrix
from tensorboard.backend.event_processing import plugin_event_accumulator
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.util.tensor_util import make_ndarray

from manual_mlp import MLP, losses
from manual_mlp.training import build, checkpoint, figures, report
from manual_mlp.training.augment import Deformation
from manual_mlp.training.config import Config
from manual_mlp.training.data import Split
from manual_mlp.training.distributed import Processes
from manual_mlp.training.errors import DivergedError
from manual_mlp.training.git import git_state
from manual_mlp.training.interrupt import Interrupt
from manual_mlp.training.log import Log, open_log
from manual_mlp.training.loop import Trainer
from manual_mlp.training.trace import profiler
from patience import SECONDS

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
STEPS, EPOCHS = 22, 3
CONFIG = Config(dataset="digits", hidden=(32, 16), epochs=EPOCHS, batch_size=64, check_every=5, rotation=20.0)


def read(folder):
    events = EventAccumulator(
        str(folder), size_guidance=dict.fromkeys(("scalars", "images", "tensors", "histograms"), 0)
    )
    events.Reload()
    return events


def text(events, tag):
    (event,) = events.Tensors(f"{tag}/text_summary")
    return event.tensor_proto.string_val[0].decode()


def picture(event):
    return np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))


def plugin(events, tag):
    metadata = events.SummaryMetadata(tag)
    return HParamsPluginData.FromString(metadata.plugin_data.content)


@pytest.fixture(scope="module", autouse=True)
def _patient():
    """Wait for git as long as it takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[git_state.__module__], "_TIMEOUT", SECONDS)
        yield


def older(folder):
    """Put back the second in the names of event files, by which TensorBoard tells which is newer."""
    for path in folder.glob("events.out.tfevents.*"):
        head, second, tail = re.fullmatch(r"(events\.out\.tfevents\.)(\d+)(\..*)", path.name).groups()
        path.rename(folder / f"{head}{int(second) - 1:010d}{tail}")


def train(digits, folder, config=CONFIG, interrupt=None, resume=False, processes=None):
    """Train as train.py does; return trainer and test metrics."""
    torch.manual_seed(config.seed)
    trainer = Trainer(build.build_model(config, digits, CPU), digits, config)
    settings = checkpoint.settings(config, digits)
    if resume:
        older(folder)
    with open_log(folder, processes or Processes()) as log:
        if resume:
            trainer.resume(folder)
        log.start(settings, trainer.model, digits, trainer.step)
        result = trainer.fit(log, interrupt or Interrupt(), folder)
        test = digits.read_test()
        metrics = trainer.evaluate(test)
        log.finish(result.steps, trainer.model, test, digits, metrics, settings)
    return trainer, metrics


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory):
    """A finished run: folder, events, trainer, test metrics."""
    folder = tmp_path_factory.mktemp("run")
    trainer, metrics = train(digits, folder)
    return folder, read(folder), trainer, metrics


def test_every_curve_has_its_points(run):
    _, events, _, metrics = run
    ends = [STEPS * (i + 1) for i in range(EPOCHS)]
    for kind in ("loss", "accuracy"):
        for part in ("train", "validation"):
            assert [e.step for e in events.Scalars(f"{kind}/{part}")] == ends
        assert [e.value for e in events.Scalars(f"{kind}/test")] == [pytest.approx(getattr(metrics, kind))]
    for tag in ("learning_rate", "images_per_second", "gradients/norm"):
        assert [e.step for e in events.Scalars(tag)] == ends
    assert all(e.value > 0 for e in events.Scalars("images_per_second"))


def test_the_gradient_check_is_logged_at_the_step_whose_gradient_it_is(run):
    errors = run[1].Scalars("gradients/max_abs_error")
    assert [e.step for e in errors] == list(range(1, STEPS * EPOCHS + 1, 5))
    assert max(e.value for e in errors) < 1e-6


def test_a_custom_layout_draws_training_and_validation_together(run):
    (event,) = run[1].Tensors("custom_scalars__config__")
    layout = Layout.FromString(make_ndarray(event.tensor_proto).item())
    charts = {chart.title: list(chart.multiline.tag) for category in layout.category for chart in category.chart}
    assert charts["loss"] == ["loss/train", "loss/validation", "loss/test"]
    assert charts["accuracy"] == ["accuracy/train", "accuracy/validation", "accuracy/test"]
    assert {tag for tags in charts.values() for tag in tags} <= set(run[1].Tags()["scalars"])


def test_histograms_hold_every_weight_and_gradient(run):
    _, events, trainer, _ = run
    for name, parameter in trainer.model.named_parameters():
        for kind, values in (("weights", parameter.detach()), ("gradients", parameter.grad)):
            last = events.Histograms(f"{kind}/{name}")[-1].histogram_value
            counts = torch.tensor(last.bucket)
            assert last.num == counts.sum() == values.numel()
            assert (last.min, last.max) == (values.min(), values.max())
            assert last.sum == pytest.approx(values.sum().item(), rel=1e-3, abs=1e-5)
            assert last.sum_squares == pytest.approx(values.square().sum().item(), rel=1e-4)
            below = torch.tensor([(values <= limit).sum() for limit in last.bucket_limit])
            # An entry on an edge, but for rounding, may fall on either side.
            assert (counts.cumsum(0) - below).abs().max() <= 2


def test_a_histogram_of_equal_or_infinite_values_is_harmless(tmp_path):
    model = MLP([4, 3, 2])
    for p in model.parameters():
        p.data.fill_(0.5)
        p.grad = torch.full_like(p, torch.inf)
    with Log(tmp_path) as log:
        log.model(1, model, (2, 2))
    events = read(tmp_path)
    assert events.Histograms("weights/layers.0.weight")[0].histogram_value.num == 12
    assert not any(tag.startswith("gradients") for tag in events.Tags()["histograms"])


def test_hyperparameters_and_their_metrics_are_in_the_same_run(run):
    folder, events, _, _ = run
    assert [path.name for path in folder.rglob("events.*")] == [path.name for path in folder.glob("events.*")]
    start = plugin(events, "_hparams_/session_start_info").session_start_info.hparams
    assert start["lr"].number_value == CONFIG.lr
    assert start["hidden"].string_value == "32 16"
    assert start["optimizer"].string_value == "adamw"
    assert not {"device", "logdir", "name"} & set(start)
    experiment = plugin(events, "_hparams_/experiment").experiment
    assert {info.name.tag for info in experiment.metric_infos} <= set(events.Tags()["scalars"])
    assert plugin(events, "_hparams_/session_end_info").session_end_info.status == 1  # STATUS_SUCCESS


def test_the_graph_is_of_torchs_own_layers(run):
    nodes = {node.op for node in run[1].Graph().node}
    assert {"aten::linear", "aten::relu"} <= nodes or {"aten::addmm", "aten::relu"} <= nodes
    assert not any("Dense" in node.name for node in run[1].Graph().node)


@pytest.mark.parametrize("activation", ["lecun_tanh", "gelu", "softplus"])
def test_the_graph_of_other_networks_can_be_drawn_too(digits, tmp_path, activation):
    with Log(tmp_path) as log:
        log.start({}, MLP([64, 5, 10], activation, "tanh", dropout=0.5), digits)
    assert read(tmp_path).Graph().node


def test_training_images_are_the_batch_that_the_network_got(run, digits):
    _, events, _, _ = run
    first = events.Images("training_images")[0]
    torch.manual_seed(0)
    trainer = Trainer(build.build_model(CONFIG, digits, CPU), digits, CONFIG)
    batch = next(iter(trainer.batches()))[0][:64]
    got = picture(first)
    assert got.shape == (8 * 9 - 1, 8 * 9 - 1)
    expected = (batch[9] * digits.std + digits.mean).clamp(0, 1).view(8, 8) * 255  # second row, second column
    torch.testing.assert_close(torch.tensor(got[9:17, 9:17]).float(), expected, atol=0.51, rtol=0)
    plain = Deformation(0.0, 0.0, 0.0, 0.0, 0.0, 4.0)
    assert plain.is_identity
    assert not trainer.feed.deform.is_identity


def test_filters_are_those_of_the_first_layer_over_time(run):
    _, events, trainer, _ = run
    filters = events.Images("filters")
    assert len(filters) >= 2
    weight = trainer.model.layers[0].weight[0].detach().view(8, 8)
    expected = (weight - weight.min()) / (weight.max() - weight.min()) * 255
    torch.testing.assert_close(torch.tensor(picture(filters[-1])[:8, :8]).float(), expected, atol=0.51, rtol=0)
    assert (picture(filters[0]) != picture(filters[-1])).any()


def test_misclassified_images_are_drawn_and_listed_with_true_predicted_and_confidence(run, digits):
    _, events, trainer, metrics = run
    (event,) = events.Images("misclassified")
    assert picture(event).ndim == 3
    test = digits.read_test()
    probability = trainer.model.eval()(test.images).detach().softmax(1)
    lines = text(events, "misclassified").splitlines()
    wrong = round((1 - metrics.accuracy) * len(test))
    assert lines[0].startswith(f"{wrong} of {len(test)} test images")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[4:]]
    assert len(rows) == min(wrong, 100) > 1
    for row in rows:
        i, label, predicted = map(int, row[:3])
        assert (label, predicted) == (test.labels[i], probability[i].argmax())
        assert label != predicted
        assert float(row[3].rstrip(" %")) == pytest.approx(100 * probability[i].max().item(), abs=0.06)
    confidence = [float(row[3].rstrip(" %")) for row in rows]
    assert confidence == sorted(confidence, reverse=True)


def test_a_network_without_mistakes_is_drawn_too():
    empty = figures.mistakes(torch.zeros(0, 8, 8), [])
    assert (empty.ndim, empty.shape[2], empty.dtype) == (3, 3, np.uint8)


def test_the_confusion_matrix_is_drawn(run):
    (event,) = run[1].Images("confusion_matrix")
    drawn = picture(event)
    assert min(drawn.shape[:2]) > 400
    assert drawn.std() > 10


def test_the_report_agrees_with_the_accuracy_and_with_average_precision(run, digits):
    _, events, trainer, metrics = run
    test = digits.read_test()
    outputs = trainer.model.eval()(test.images).detach()
    predicted = outputs.argmax(1)
    assert accuracy_score(test.labels, predicted) == pytest.approx(metrics.accuracy)
    counts = confusion_matrix(test.labels, predicted)
    rows = {}
    for line in text(events, "report").splitlines()[2:]:
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        rows[name] = cells
    assert set(rows) == {*map(str, range(10)), "macro avg", "weighted avg"}
    assert float(rows["3"][1]) == pytest.approx(counts[3, 3] / counts[3].sum(), abs=1e-4)
    area = average_precision_score(test.labels == 3, outputs.softmax(1)[:, 3])
    assert float(rows["3"][3]) == pytest.approx(area, abs=1e-4)
    assert rows["weighted avg"][4] == str(len(test))


def test_every_class_has_a_precision_recall_curve(run, digits):
    _, events, _, _ = run
    labels = digits.read_test().labels
    for i in range(10):
        (event,) = events.Tensors(f"precision_recall/{i}")
        assert events.SummaryMetadata(f"precision_recall/{i}").plugin_data.plugin_name == "pr_curves"
        hits, _, _, missed, precision, recall = make_ndarray(event.tensor_proto)
        assert hits[0] + missed[0] == (labels == i).sum()
        assert ((precision >= 0) & (precision <= 1)).all()
        assert recall[0] == 1


def test_the_projector_has_activations_labels_and_sprites_of_the_last_hidden_layer(run, digits):
    folder, _, trainer, _ = run
    config = (folder / "projector_config.pbtxt").read_text()
    assert config.count("embeddings {") == 1
    part = folder / "00000" / "last_hidden_layer"
    for name in ("tensors.tsv", "metadata.tsv", "sprite.png"):
        assert f"00000/last_hidden_layer/{name}" in config
        assert (part / name).exists()
    test = digits.read_test()
    n = min(400, len(test))
    found = torch.tensor(np.loadtxt(part / "tensors.tsv"), dtype=torch.float32)
    expected = trainer.model.eval().to_sequential()[:-1](test.images[:n])
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-5)
    head, *lines = (part / "metadata.tsv").read_text().splitlines()
    assert head == "true\tpredicted"
    assert [int(line.split("\t")[0]) for line in lines] == test.labels[:n].tolist()
    with Image.open(part / "sprite.png") as sprite:
        assert min(sprite.size) >= 8 * int(n**0.5)


def test_config_and_git_state_are_text(run):
    _, events, _, _ = run
    assert json.loads(text(events, "config"))["hidden"] == [32, 16]
    assert text(events, "git") == git_state(ROOT) or "commit" in text(events, "git")


@pytest.mark.parametrize("loss", losses.flags())
@pytest.mark.parametrize("hidden", [(), (7,)])
def test_probabilities_of_every_loss_lie_between_0_and_1(digits, loss, hidden):
    found = report.Predictions.of(MLP([64, *hidden, 10], "tanh"), digits.validation, loss)
    assert found.probabilities.min() >= 0
    assert found.probabilities.max() <= 1
    assert found.hidden.shape == (len(digits.validation), hidden[0] if hidden else 64)
    assert set(found.wrong.tolist()) == set(np.flatnonzero(found.labels != found.predicted))


def test_a_class_without_images_is_no_error(digits):
    part = Split(digits.validation.images, digits.validation.labels.clamp(max=7))
    found = report.Predictions.of(MLP([64, 5, 10]), part, "cross-entropy")
    assert "| 9 | 0.0000 |" in found.by_class()
    assert figures.confusion(found.labels, found.predicted, 10).ndim == 3


def test_images_that_are_not_square_become_sprites():
    assert figures.squares(torch.ones(3, 5, 7)).shape == (3, 7, 7)
    assert figures.grid(torch.ones(9, 5, 7)).shape == (2 * 6 - 1, 8 * 8 - 1)


def points(folder):
    """Count the points of every time series of a run, by tag and step, as TensorBoard itself reads them."""
    events = plugin_event_accumulator.EventAccumulator(str(folder), tensor_size_guidance=defaultdict(int))
    events.Reload()
    return Counter((tag, event.step) for tag in events.Tags()["tensors"] for event in events.Tensors(tag))


class _Killed(Exception):
    pass


@pytest.mark.parametrize("at", [STEPS + 1, 2 * STEPS - 2, 2 * STEPS, 2 * STEPS + 7, 3 * STEPS])
def test_a_run_that_was_killed_and_resumed_has_the_curves_of_one_that_was_not(digits, run, tmp_path, monkeypatch, at):
    whole = EventAccumulator(str(run[0]))
    whole.Reload()
    step = Trainer._step

    def killed(self, *args):
        if self.step == at:
            raise _Killed
        return step(self, *args)

    if at == 3 * STEPS:  # after the last checkpoint, while the test set is looked at
        monkeypatch.setattr(Log, "_projector", lambda *args: (_ for _ in ()).throw(_Killed))
    else:
        monkeypatch.setattr(Trainer, "_step", killed)
    with pytest.raises(_Killed):
        train(digits, tmp_path)
    monkeypatch.undo()
    train(digits, tmp_path, resume=True)
    found = points(tmp_path)
    assert [key for key, count in found.items() if count != 1] == []
    events = read(tmp_path)
    for tag in whole.Tags()["scalars"]:
        assert [e.step for e in events.Scalars(tag)] == [e.step for e in whole.Scalars(tag)]
        if tag != "images_per_second":
            assert [e.value for e in events.Scalars(tag)] == [e.value for e in whole.Scalars(tag)]
    assert {tag for tag, _ in found} == {tag for tag, _ in points(run[0])}


def test_a_finished_run_that_is_resumed_stays_as_it_was(digits, tmp_path, capsys):
    train(digits, tmp_path)
    before = points(tmp_path)
    train(digits, tmp_path, resume=True)
    after = points(tmp_path)
    # A resumed run says with what; its gradients are those of no step.
    texts = {("config/text_summary", 3 * STEPS + 1): 1, ("git/text_summary", 3 * STEPS + 1): 1}
    last = {key: 1 for key in before if key[0].startswith("gradients/layers") and key[1] > 3 * STEPS}
    assert after == Counter(before) - Counter(last) + Counter(texts)
    assert (tmp_path / "projector_config.pbtxt").read_text().count("embeddings {") == 1
    assert "warning" not in capsys.readouterr().out


def test_a_run_can_be_seen_before_its_first_step(digits, tmp_path):
    log = Log(tmp_path)
    log.start(checkpoint.settings(CONFIG, digits), MLP([64, 5, 10]), digits)
    assert len(read(tmp_path).Tags()["tensors"]) >= 3  # the log is still open
    log.__exit__(None, None, None)


def test_a_diverged_run_keeps_its_events(digits, tmp_path):
    with pytest.raises(DivergedError):
        train(digits, tmp_path, replace(CONFIG, optimizer="sgd", lr=1e30))
    assert read(tmp_path).Scalars("gradients/max_abs_error")


def test_pictures_of_many_short_epochs_take_a_small_share_of_the_time(tmp_path, digits, monkeypatch):
    # Each picture takes 2 ms of this thread's time, hence 200 ms must pass until the next; an epoch takes 50 ms.
    wall, work, model = [0.0], itertools.count(step=0.002), MLP([64, 5, 10])
    clocks = SimpleNamespace(perf_counter=lambda: wall[0], thread_time=lambda: next(work))
    monkeypatch.setattr(sys.modules[Log.__module__], "time", clocks)
    with Log(tmp_path) as log:
        for step in range(1, 30):
            log.images(step, digits.train.images[:64], digits)
            log.model(step, model, (8, 8))
            wall[0] += 0.0501
    events = read(tmp_path)
    for pictures in ("filters", "training_images"):
        assert [event.step for event in events.Images(pictures)] == list(range(1, 30, 4))


def test_only_the_first_process_writes(digits, tmp_path):
    train(digits, tmp_path, processes=Processes(1, 2))
    assert not list(tmp_path.rglob("events*"))
    assert not (tmp_path / "projector_config.pbtxt").exists()


def git(folder, *words):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    options = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "core.hooksPath=/dev/null")
    subprocess.run(["git", "-C", folder, *options, *words], check=True, capture_output=True, env=environment)


def test_the_git_state_names_the_commit_and_what_is_changed(tmp_path, monkeypatch):
    git(tmp_path, "init", "--initial-branch", "trunk")
    assert git_state(tmp_path) == "commit `(initial)` on `trunk`, clean"
    (tmp_path / "file").write_text("a")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "first")
    clean = git_state(tmp_path)
    assert clean.startswith("commit `")
    assert len(clean.split("`")[1]) == 40
    assert clean.endswith(" on `trunk`, clean")
    (tmp_path / "file").write_text("b")
    assert git_state(tmp_path).startswith(clean.replace("clean", "dirty"))
    (tmp_path / "a new one").write_text("c")
    assert git_state(tmp_path).splitlines()[2:] == ["    .M file", "    ? a new one"]
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    assert "dirty" in git_state(tmp_path)


def test_without_a_repository_or_without_git_the_state_says_so(tmp_path, monkeypatch):
    assert git_state(tmp_path) == "not a git repository"
    assert git_state(tmp_path / "missing").startswith("state of git unknown")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_state(ROOT).startswith("state of git unknown: ")


@pytest.mark.parametrize("steps", [1, 2, 5, 19, 20, 40])
def test_a_trace_is_written_whatever_the_number_of_steps(tmp_path, steps):
    path = tmp_path / "trace.json"
    with profiler(path, steps, CPU) as trace:
        for _ in range(steps):
            torch.ones(3) + 1
            trace.step()
    names = [event.get("name") for event in json.loads(path.read_text())["traceEvents"]]
    assert names.count("aten::add") == (steps if steps < 20 else 15)


@pytest.mark.parametrize(
    "flags",
    [
        ("--batch-size", "2000", "--precision", "bf16", "--loss", "squared-error"),
        pytest.param((), marks=pytest.mark.rest),
    ],
)
def test_profile_writes_a_chrome_trace_without_a_warning_or_a_display(tmp_path, flags):
    environment = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "MPLBACKEND")}
    environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, "-W", "error", ROOT / "train.py", "--dataset", "digits", "--hidden", "16", "--epochs"]
    command += ["1", "--profile", "--logdir", tmp_path, "--name", "run", *flags]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr.lower() + done.stdout.lower()
    assert "ERROR" not in done.stderr
    assert json.loads((tmp_path / "run" / "trace.json").read_text())["traceEvents"]
    assert "confusion_matrix" in read(tmp_path / "run").Tags()["images"]
