"""A name that is not known is answered with the one that was meant, if it is clear."""

import pytest
import torch

from manual_mlp import MLP, Dense, activations, backprop
from manual_mlp.losses import LOSSES, by_flag, flags
from manual_mlp.nearest import did_you_mean, nearest

KNOWN = ("relu", "leaky_relu", "relu6", "gelu", "gelu_tanh", "elu", "sigmoid", "logsigmoid", "tanh", "sin")


@pytest.mark.parametrize(
    ("got", "meant"),
    [
        *[("rleu", "relu"), ("gleu", "gelu"), ("tahn", "tanh"), ("sigmod", "sigmoid"), ("sine", "sin")],
        # As torch and other libraries write them.
        *[("ReLU", "relu"), ("LeakyReLU", "leaky_relu"), ("gelu-tanh", "gelu_tanh"), ("SIGMOID", "sigmoid")],
        # The beginning of a name: of several, the first.
        *[("log", "logsigmoid"), ("lea", "leaky_relu"), ("s", "sigmoid"), ("gelu_", "gelu")],
        *[("", None), ("softmax", None), ("xyz", None), ("9", None), (None, None), (3, None), (torch.nn.ReLU(), None)],
        *[("r" * 10**6, None), ("relu\0", "relu"), ("\udcff", None)],
    ],
    ids=lambda value: repr(value)[:20],
)
def test_the_nearest_name_is_the_one_that_was_meant(got: object, meant: str | None) -> None:
    assert nearest(got, KNOWN) == meant
    assert did_you_mean(got, KNOWN) == ("" if meant is None else f"; did you mean {meant}?")


@pytest.mark.parametrize("name", activations.names())
def test_a_slip_in_any_activation_is_put_right(name: str) -> None:
    for slip in (name[0] + name, name + name[-1], name.upper(), name.replace("_", "-"), f"{name} "):
        assert nearest(slip, activations.names()) == name


def test_what_stands_before_a_name_is_no_part_of_it() -> None:
    assert did_you_mean("--sed", ("--seed", "--html"), "--") == "; did you mean --seed?"
    assert did_you_mean("seed", ("--seed", "--html"), "--") == "; did you mean --seed?"
    assert did_you_mean("--nonsense", ("--seed", "--html"), "--") == ""


def test_every_door_of_a_name_says_which_was_meant() -> None:
    mlp, images, labels = MLP([3, 4]), torch.randn(2, 3), torch.tensor([0, 1])
    for call, meant in (
        (lambda: activations.get("rleu"), "relu"),
        (lambda: Dense(3, 4, "gleu"), "gelu"),
        (lambda: MLP([3, 5, 4], "SiLU"), "silu"),
        (lambda: MLP([3, 5, 4], output_activation="sofplus"), "softplus"),
        (lambda: backprop(mlp, images, labels, "cross-entropy"), "cross_entropy"),
        (lambda: backprop(mlp, images, labels, "square_error"), "squared_error"),
        (lambda: by_flag("cross_entropy"), "cross-entropy"),
    ):
        with pytest.raises(ValueError, match=rf"^expected an? \w+ among .*, got '.*'; did you mean {meant}\?$"):
            call()
    with pytest.raises(TypeError, match=r"got label_smoothin; did you mean label_smoothing\?$"):
        backprop(mlp, images, labels, label_smoothin=0.1)


@pytest.mark.parametrize("flag", flags())
def test_a_loss_is_found_by_its_flag(flag: str) -> None:
    assert by_flag(flag) is LOSSES[flag.replace("-", "_")]
