"""What a config means, the gradient check and the loop, on the embedded digits."""

import functools
import math
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("torchvision")

import manual_mlp
from manual_mlp import explicit
from manual_mlp.engines import native
from manual_mlp.training import build, feed
from manual_mlp.training.check import GradientCheck
from manual_mlp.training.config import Config
from manual_mlp.training.data import Split, load
from manual_mlp.training.errors import DivergedError, InputError
from manual_mlp.training.interrupt import Interrupt
from manual_mlp.training.log import Log
from manual_mlp.training.loop import Trainer

CPU = torch.device("cpu")
BASE = Config(dataset="digits", hidden=(32, 16), epochs=2, batch_size=64, check_every=7)


@pytest.fixture
def fit(digits, tmp_path):
    def run(config, interrupt=None, folder=None):
        torch.manual_seed(config.seed)
        trainer = Trainer(build.build_model(config, digits, CPU), digits, config)
        with Log(tmp_path) as log:
            result = trainer.fit(log, interrupt or Interrupt(), folder)
        return trainer, result

    return run


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(fit):
    config = replace(BASE, dropout=0.2, shift=0.2)
    first, second = (weights(fit(config)[0]) for _ in range(2))
    other = weights(fit(replace(config, seed=1))[0])
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_checking_gradients_does_not_change_what_is_learnt(fit):
    config = replace(BASE, dropout=0.2)
    assert torch.equal(weights(fit(config)[0]), weights(fit(replace(config, check_every=0))[0]))


def test_every_image_is_trained_on_in_every_epoch(fit, digits):
    trainer, result = fit(BASE)
    assert result.steps == 2 * math.ceil(len(digits.train) / 64)
    assert trainer.step == result.steps


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "rmsprop", "sgd"])
def test_every_optimizer_learns(fit, digits, optimizer):
    trainer, _ = fit(replace(BASE, optimizer=optimizer, lr=0.2 if optimizer == "sgd" else 0.004))
    assert trainer.evaluate(digits.validation).accuracy > 0.6


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "rmsprop", "sgd"])
def test_an_optimizer_steps_saves_and_loads_as_torchs_own(optimizer):
    config = replace(BASE, optimizer=optimizer, betas=(0.7, 0.8), momentum=0.6, weight_decay=0.1)
    kind = {"adamw": "AdamW", "adam": "Adam", "rmsprop": "RMSprop", "sgd": "SGD"}[optimizer]
    options = {"adamw": {"betas": (0.7, 0.8)}, "adam": {"betas": (0.7, 0.8)}, "rmsprop": {}}
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Linear(3, 2, dtype=torch.float64) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    own = build.make_optimizer(config, ours)
    groups = [{"params": [theirs.weight], "weight_decay": 0.1}, {"params": [theirs.bias], "weight_decay": 0.0}]
    expected = getattr(torch.optim, kind)(
        groups, config.lr, **options.get(optimizer, {"momentum": 0.6, "nesterov": True})
    )
    assert isinstance(own, getattr(torch.optim, kind))
    for step in range(6):
        for model, by in ((ours, own), (theirs, expected)):
            by.zero_grad()
            model(torch.full((1, 3), 1.0 + step, dtype=torch.float64)).square().sum().backward()
            by.step()
        if step == 2:
            saved = own.state_dict()
            own = build.make_optimizer(config, ours)
            own.load_state_dict(saved)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=1e-12, atol=1e-12)


def test_a_flag_that_is_newer_than_a_run_must_have_its_default(digits):
    trainer, other = (
        Trainer(build.build_model(BASE, digits, CPU), digits, config)
        for config in (BASE, replace(BASE, betas=(0.5, 0.5)))
    )
    saved = trainer.state_dict()
    del saved["config"]["betas"]
    trainer.load_state_dict(saved)
    with pytest.raises(InputError, match=r"expected betas \[0.9, 0.99\] as in the checkpoint, got \[0.5, 0.5\]"):
        other.load_state_dict(saved)


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "rmsprop", "sgd"])
def test_a_run_in_float16_whose_first_steps_were_left_out_goes_on(digits, tmp_path, monkeypatch, optimizer):
    step = build.Objective.step

    def overflows(self, network, *rest):
        found = step(self, network, *rest)
        for parameter in network.parameters():
            parameter.grad.fill_(math.inf)
        return found

    monkeypatch.setattr(build.Objective, "step", overflows)
    config = replace(BASE, precision="fp16", optimizer=optimizer, check_every=0)
    first, second = (Trainer(build.build_model(config, digits, CPU), digits, config) for _ in range(2))
    before = weights(first)
    interrupt = Interrupt()
    interrupt.signal = signal.SIGINT
    with Log(tmp_path) as log:
        first.fit(log, interrupt, tmp_path)
    assert torch.equal(weights(first), before)
    second.resume(tmp_path)
    assert (second.step, second.scaler.get_scale()) == (1, first.scaler.get_scale())


@pytest.mark.parametrize(("initial", "deviations"), [("normal", (1, 1)), ("scaled-normal", (1 / 8, 1))])
def test_first_weights_are_normal_and_scaled_by_the_inputs_of_their_layer(digits, initial, deviations):
    torch.manual_seed(0)
    first = build.build_model(replace(BASE, hidden=(1000,), initial=initial), digits, CPU).layers[0]
    for parameter, deviation in zip((first.weight, first.bias), deviations, strict=True):
        assert parameter.std().item() == pytest.approx(deviation, rel=0.1)
        assert parameter.mean().item() == pytest.approx(0, abs=0.1 * deviation)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_learns_and_keeps_float32_parameters(fit, digits, precision):
    trainer, result = fit(replace(BASE, precision=precision))
    assert trainer.evaluate(digits.validation).accuracy > 0.6
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    assert result.gradient_error < 0.01


def test_squared_error_learns_and_has_dropout(fit, digits):
    trainer, _ = fit(replace(BASE, loss="squared-error", dropout=0.1))
    assert trainer.evaluate(digits.validation).accuracy > 0.6


def test_squared_error_is_half_the_squared_distance_from_one_hot_per_image():
    objective = build.Objective("squared_error", 3, 0.0)
    outputs = torch.tensor([[1.0, 2.0, 3.0], [0.0, 1.0, 0.0]])
    first = ((1 - 0) ** 2 + (2 - 0) ** 2 + (3 - 1) ** 2) / 2
    assert objective.total(outputs, torch.tensor([2, 1])).item() == pytest.approx(first + 0)


def test_label_smoothing_spreads_its_share_over_all_classes():
    outputs, labels = torch.randn(5, 4), torch.tensor([0, 3, 1, 2, 2])
    target = torch.full((5, 4), 0.2 / 4)
    target[range(5), labels] += 0.8
    expected = {
        "cross_entropy": -(target * F.log_softmax(outputs, 1)).sum(),
        "squared_error": (outputs - target).pow(2).sum() / 2,
        "binary_cross_entropy": -(target * F.logsigmoid(outputs) + (1 - target) * F.logsigmoid(-outputs)).sum(),
    }
    for loss, total in expected.items():
        torch.testing.assert_close(build.Objective(loss, 4, 0.2).total(outputs, labels), total)


@pytest.mark.parametrize("loss", ["cross_entropy", "squared_error", "binary_cross_entropy"])
def test_a_step_takes_the_gradients_of_the_loss_that_is_reported(loss):
    model, objective = manual_mlp.MLP([5, 7, 4], "tanh"), build.Objective(loss, 4, 0.2)
    images, labels = torch.randn(6, 5), torch.tensor([0, 3, 1, 2, 2, 1])
    total, outputs = objective.step(model, images, labels, 0.5)
    reported = objective.total(model(images), labels)
    torch.testing.assert_close(total, reported.detach())
    torch.testing.assert_close(outputs, model(images).detach())
    expected = torch.autograd.grad(0.5 * reported, list(model.parameters()))
    torch.testing.assert_close([p.grad for p in model.parameters()], list(expected))


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 1000])
def test_the_learning_rate_rises_to_its_peak_and_falls_to_zero(steps):
    config = Config(lr=0.5)
    rates = [build.learning_rate(config, step, steps) for step in range(steps)]
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(0.5)
    assert min(rates) > 0
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert build.learning_rate(config, steps, steps) == 0


def test_a_constant_learning_rate_stays():
    assert {build.learning_rate(Config(lr=0.5, schedule="constant"), step, 9) for step in range(9)} == {0.5}


def test_biases_do_not_decay(digits):
    config = replace(BASE, weight_decay=0.5)
    for optimizer in ("adamw", "adam", "rmsprop", "sgd"):
        model = build.build_model(config, digits, CPU)
        for group in build.make_optimizer(replace(config, optimizer=optimizer), model).param_groups:
            assert group["weight_decay"] == (0.5 if group["params"][0].dim() == 2 else 0)


def test_the_gradient_check_finds_the_manual_gradient_right_and_leaves_no_trace(digits):
    model = manual_mlp.MLP([64, 7, 5, 10], "tanh", dropout=0.5)
    check = GradientCheck(model, build.Objective.of(BASE, 10))
    state = torch.get_rng_state()
    error = check(digits.train.images[:9], digits.train.labels[:9])
    assert error < 1e-6
    assert all(p.grad is None for p in model.parameters())
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("factor", [1.5, math.nan])
def test_the_gradient_check_shows_a_wrong_manual_gradient(digits, monkeypatch, factor):
    model = manual_mlp.MLP([64, 7, 10], "tanh")
    check = GradientCheck(model, build.Objective.of(BASE, 10))
    right = explicit.backward
    monkeypatch.setattr(explicit, "backward", lambda layers, trace, dy, *rest: right(layers, trace, factor * dy, *rest))
    with native.without():
        error = check(digits.train.images[:9], digits.train.labels[:9])
    assert not error < 1e-3
    assert not check.worst < 1e-3


def test_gradients_are_checked_every_so_many_steps(fit):
    assert fit(BASE)[1].checks == math.ceil(44 / 7)
    assert fit(replace(BASE, check_every=0))[1].checks == 0


def test_a_loss_that_diverges_ends_the_run_and_says_where(fit):
    with pytest.raises(DivergedError, match=r"expected a finite loss, got (nan|inf) in epoch 1 at step 2: .*--lr"):
        fit(replace(BASE, lr=1e30, optimizer="sgd"))


def test_a_last_step_that_spoils_the_weights_ends_the_run_before_they_are_saved(fit, tmp_path):
    # With one step an epoch, the loss is that of the first weights.
    config = replace(BASE, lr=3e38, schedule="constant", optimizer="sgd", batch_size=2000, weight_decay=100.0)
    with pytest.raises(DivergedError, match=r"expected a finite weight, got nan in epoch 1 at step 1: .*--lr"):
        fit(config, folder=tmp_path)
    assert not (tmp_path / "manifest.json").exists()


@pytest.mark.parametrize("batch_size", [64, 100, 5000])
def test_batches_have_every_image_once_in_an_order_of_seed_and_epoch(digits, batch_size):
    def labels(seed, epoch):
        trainer = Trainer(build.build_model(BASE, numbered, CPU), numbered, replace(config, seed=seed))
        trainer.epoch = epoch
        return torch.cat([labels for _, labels in trainer.batches()])

    config = replace(BASE, batch_size=batch_size, shift=0.0)
    numbered = replace(digits, train=Split(digits.train.images, torch.arange(len(digits.train))))
    orders = {at: labels(*at) for at in [(0, 0), (0, 1), (1, 0), (1, 1)]}
    for order in orders.values():
        assert torch.equal(order.sort().values, numbered.train.labels)
    assert len({tuple(order.tolist()) for order in orders.values()}) == 4
    assert torch.equal(labels(0, 1), orders[0, 1])


@pytest.mark.parametrize(
    "flags", [{"shift": 0.2, "rotation": 10.0, "elastic_alpha": 8.0}, {"shift": 0.0}, {"input_dropout": 0.2}]
)
@pytest.mark.parametrize("first", [0, 1, 6, 7, 13, 20, 21])
def test_batches_from_the_middle_are_those_that_would_have_come(monkeypatch, device, first, flags):
    # Blocks of 7 batches.
    monkeypatch.setattr(feed, "_GATHERED", 460)
    monkeypatch.setattr(feed, "_DEFORMED", 460)
    config, data = replace(BASE, **flags), load("digits", Path("unused"), torch.device(device))
    trainer = Trainer(build.build_model(config, data, data.train.labels.device), data, config)
    expected = list(trainer.batches())[first:]
    found = list(trainer.batches(first))
    assert len(expected) == 22 - first
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_each_image_is_shifted_in_its_own_way(digits):
    image = torch.zeros(8, 8)
    image[4, 3] = 1.0
    same = replace(digits, mean=0.0, std=1.0, train=Split(image.view(1, 64).expand(200, 64), torch.zeros(200).long()))
    config = replace(BASE, shift=0.2, batch_size=150)
    trainer = Trainer(build.build_model(config, same, CPU), same, config)
    images = torch.cat([images for images, _ in trainer.batches()]).view(-1, 8, 8)
    places = images.nonzero()
    assert len(places) == 200
    # Two pixels each way: 25 places.
    assert set(map(tuple, places[:, 1:].tolist())) == {(y, x) for y in range(2, 7) for x in range(1, 6)}


@pytest.mark.parametrize(
    ("name", "flags", "pixels"),
    [("mnist", {}, 1), ("fashion-mnist", {}, 0), ("fashion-mnist", {"shift": 0.1}, 3), ("mnist", {"shift": 0.0}, 0)],
)
def test_images_are_shifted_by_a_pixel_but_not_those_of_clothes(digits, name, flags, pixels):
    large = Split(torch.zeros(3, 28 * 28), torch.zeros(3).long())
    data = replace(digits, name=name, train=large, image_shape=(28, 28))
    assert Trainer(build.build_model(BASE, data, CPU), data, replace(BASE, **flags)).feed.shift == pixels


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_pixels_of_training_images_are_dropped_to_black(digits, precision):
    config = replace(BASE, shift=0.0, input_dropout=0.25, precision=precision)
    trainer = Trainer(build.build_model(config, digits, CPU), digits, config)
    source, black = digits.train, -digits.mean / digits.std
    for images, labels in trainer.batches():
        assert images.dtype == torch.float32
        shown = (images[0] - black).abs() > 1e-5
        # One of the images, with what is left of it lifted.
        lifted = black + (images[0] - black) * 0.75
        of_its_class = source.images[source.labels == labels[0]]
        assert ((of_its_class - lifted)[:, shown].abs().max(1).values < 1e-5).any()
    blank, share = (
        ((images - black).abs() < 1e-5).float().mean().item()
        for images in (source.images, torch.cat([images for images, _ in trainer.batches()]))
    )
    assert share == pytest.approx(blank + 0.25 * (1 - blank), abs=0.01)


def test_what_others_draw_does_not_change_what_is_learnt(fit):
    config = replace(BASE, dropout=0.2, check_every=1)
    expected = weights(fit(config)[0])

    def draw(self, *args):
        torch.rand(3)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Log, "model", draw)
        patch.setattr(Log, "scalars", draw)
        assert torch.equal(weights(fit(config)[0]), expected)


def test_the_first_signal_ends_the_epoch_after_the_step_and_validates(fit, capsys):
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)
        _, result = fit(BASE, interrupt)
    assert result.steps == 1
    assert interrupt.exit_status == 130
    assert "validation loss" in capsys.readouterr().out


def test_the_second_signal_acts_at_once():
    before = signal.getsignal(signal.SIGTERM)
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGTERM)
        assert interrupt.exit_status == 143
        assert signal.getsignal(signal.SIGTERM) == before
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


# torch 2.11 warns of its own compiler's doing.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_a_compiled_run_learns_what_an_eager_one_does(fit, monkeypatch):
    # The compiler's front end alone: it needs no C++ compiler.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    config = replace(BASE, epochs=1)
    compiled, result = fit(replace(config, compile=True))
    assert result.gradient_error < 1e-6
    torch.testing.assert_close(weights(compiled), weights(fit(config)[0]), rtol=1e-3, atol=1e-4)


def test_a_compiler_that_fails_is_an_error_in_one_line(digits, monkeypatch):
    def fail(model):
        raise RuntimeError("no C++ compiler\nlong story")

    monkeypatch.setattr(torch, "compile", fail)
    with pytest.raises(InputError, match=r"expected --compile to work on this machine, got: no C\+\+ compiler$"):
        Trainer(build.build_model(BASE, digits, CPU), digits, replace(BASE, compile=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_learns_in_every_precision(tmp_path):
    device = build.pick_device("auto")
    data = load("digits", Path("unused"), device)
    for precision in ("fp32", "bf16", "fp16"):
        config = replace(BASE, precision=precision)
        trainer = Trainer(build.build_model(config, data, device), data, config)
        with Log(tmp_path) as log:
            trainer.fit(log, Interrupt())
        assert trainer.evaluate(data.read_test()).accuracy > 0.6
