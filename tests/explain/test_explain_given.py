"""Numbers of the reader's own: an H that is given, and the file that holds them."""

import json
import re
from dataclasses import replace

import pytest
import torch

from manual_mlp import activations
from manual_mlp.explain import Network, draw_network
from manual_mlp.explain.given import read_numbers, to_numbers
from shown import same

ARRAYS = ("x", "v", "c", "w", "b", "target")
SMALL = {"H": [[1, 2], [-1, 1]], "W": [[0.5, -0.3], [0.1, 0.4]], "B": [0.2, -0.1], "Y*": [[1, 0], [0, 1]]}


@pytest.fixture
def held(net):
    """The network of the default numbers, with an H of its own."""
    return Network(**{name: getattr(net, name) for name in ARRAYS}, h=torch.arange(12).reshape(4, 3))


@pytest.fixture
def read(tmp_path):
    """Write a file, and read the network that it holds."""
    path = tmp_path / "own.json"

    def read(numbers):
        path.write_text(numbers if isinstance(numbers, str) else json.dumps(numbers), encoding="utf-8")
        return read_numbers(path)

    read.path = path
    return read


def refused(read, numbers):
    with pytest.raises(ValueError, match="expected ") as error:
        read(numbers)
    said = str(error.value)
    assert "\n" not in said
    assert said.startswith("expected ")
    assert str(read.path) in said
    return said.replace(str(read.path), "FILE")


# A network whose H is given.


def test_h_is_made_by_the_hidden_layer_or_given(net, held):
    assert net.linked
    assert torch.equal(net.h, torch.sigmoid(net.x @ net.v + net.c))
    assert not held.linked
    assert held.h.tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert held.h.dtype == torch.float64
    assert torch.equal(held.z, held.h @ net.w + net.b)
    assert torch.equal(held.z1, net.z1)
    # Of X, V and C the cost is still that of what they make.
    everything = (net.x, net.v, net.c, net.w, net.b)
    assert torch.equal(held.whole_cost(*everything), net.cost_of(net.y))
    same(held.gradients[0], torch.autograd.functional.jacobian(lambda h: net.cost(h, net.w, net.b), held.h), 1e-12)


def test_a_replacement_makes_a_linked_h_anew_and_keeps_a_given_one(net, held):
    assert net.h is net.h
    moved = replace(net, x=net.x + 1)
    assert moved.linked
    assert torch.equal(moved.h, torch.sigmoid(moved.x @ net.v + net.c))
    assert torch.equal(replace(net, activation="tanh").h, torch.tanh(net.z1))
    for change in ({"w": net.w + 1}, {"x": net.x + 1}, {"activation": "tanh"}):
        kept = replace(held, **change)
        assert not kept.linked
        assert torch.equal(kept.h, held.h)
    assert torch.equal(replace(held, h=held.h + 1).h, held.h + 1)
    assert not replace(net, h=held.h).linked
    assert torch.equal(replace(held, given_h=None).h, net.h)


def test_a_given_h_is_a_copy_that_fits(net, held):
    given = held.h.clone()
    own = replace(net, h=given)
    given += 1
    assert torch.equal(own.h, held.h)
    with pytest.raises(ValueError, match=r"expected h \(4, 3\) for x \(4, 5\) and w \(3, 2\), got \(4, 2\)"):
        replace(net, h=given[:, :2])
    with pytest.raises(ValueError, match="finite numbers in h"):
        replace(net, h=given / 0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"v": (3, 5)}, "expected v (5, 3) for x (4, 5) and w (3, 2), got (3, 5)"),
        ({"v": (5, 4)}, "expected v (5, 3) for x (4, 5) and w (3, 2), got (5, 4)"),
        ({"w": (4, 2)}, "expected w (3, 2) for v (5, 3) and b (2,), got (4, 2)"),
        ({"w": (2, 3)}, "expected w (3, 2) for v (5, 3) and b (2,), got (2, 3)"),
        ({"w": (2,)}, "expected w (3, 2) for v (5, 3) and b (2,), got (2,)"),
        ({"w": (3, 0)}, "expected numbers in w, got none: its shape is (3, 0)"),
        ({"c": (4,)}, "expected c (3,) for w (3, 2), got (4,)"),
        ({"b": (1, 2)}, "expected b (2,) for w (3, 2), got (1, 2)"),
        ({"target": (3, 2)}, "expected target (4, 2) for x (4, 5) and w (3, 2), got (3, 2)"),
        ({"x": (5,)}, "expected x (4, 5) for target (4, 2) and v (5, 3), got (5,)"),
        ({"h": (4, 3), "x": (3, 5)}, "expected x (4, 5) for h (4, 3) and v (5, 3), got (3, 5)"),
        ({"w": (4, 2), "c": (9, 9)}, "expected v (5, 4) for x (4, 5) and w (4, 2), got (5, 3)"),
    ],
)
def test_the_argument_that_does_not_fit_the_others_is_named(net, changes, expected):
    with pytest.raises(ValueError, match=re.escape(expected) + "$"):
        replace(net, **{name: torch.zeros(shape) for name, shape in changes.items()})


def test_a_layer_is_made_into_a_network():
    h, w, b, target = (torch.tensor(SMALL[key]) for key in ("H", "W", "B", "Y*"))
    made = Network.of_layer(h, w, b, target, "tanh", "binary-cross-entropy")
    assert not made.linked
    assert made.name_of_f == "tanh"
    assert made.loss == "binary-cross-entropy"
    for name, given in (("h", h), ("w", w), ("b", b), ("target", target)):
        assert torch.equal(getattr(made, name), given.double()), name
    # The layer below is the one that draw_network draws first.
    assert made.x.shape == (2, 4)
    drawn = draw_network(2, 2, 2, "tanh", seed=0)
    assert torch.equal(made.x, drawn.x)
    assert torch.equal(made.v, drawn.v)
    assert torch.equal(made.c, drawn.c)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"h": (4, 4)}, "expected h (4, 3) for target (4, 2) and w (3, 2), got (4, 4)"),
        ({"w": (3,)}, "expected w (3, 2) for h (4, 3) and b (2,), got (3,)"),
        ({"b": (3,)}, "expected b (2,) for w (3, 2), got (3,)"),
        ({"b": ()}, "expected b (2,) for w (3, 2), got ()"),
        ({"target": (5, 2)}, "expected target (4, 2) for h (4, 3) and w (3, 2), got (5, 2)"),
        ({"h": (0, 3)}, "expected numbers in h, got none"),
        ({"h": (4, 3000), "w": (3000, 2)}, "expected (inputs + 2) · inputs of at most 1,048,576"),
    ],
)
def test_a_layer_that_does_not_fit_is_an_error_of_its_own_arguments(changes, expected):
    shapes = {"h": (4, 3), "w": (3, 2), "b": (2,), "target": (4, 2)} | changes
    with pytest.raises(ValueError, match=re.escape(expected)) as error:
        Network.of_layer(**{name: torch.zeros(shape) for name, shape in shapes.items()})
    assert not re.search(r"\b[xvc]\b", str(error.value))


# The file.


def test_a_file_with_h_is_a_layer(read):
    found = read(SMALL)
    assert not found.linked
    assert found.name_of_f == "sigmoid"
    assert found.loss == "squared-error"
    for name, key in (("h", "H"), ("w", "W"), ("b", "B"), ("target", "Y*")):
        assert getattr(found, name).tolist() == SMALL[key]
    # The numbers of section 7 of docs/derivation.md.
    same(found.gradients[2], torch.tensor([0.052024, 0.062773], dtype=torch.float64), 1e-6)


def test_a_file_with_a_layer_below_makes_h_of_it(read, net):
    given = {name: getattr(net, name).tolist() for name in ARRAYS}
    numbers = {
        "X": given["x"],
        "V": given["v"],
        "C": given["c"],
        "W": given["w"],
        "B": given["b"],
        "T": given["target"],
    }
    found = read(numbers | {"f": "leaky_relu(0.3)", "loss": "binary-cross-entropy"})
    assert found.linked
    assert found.f == activations.leaky_relu(0.3)
    assert found.loss == "binary-cross-entropy"
    assert torch.equal(found.h, torch.nn.functional.leaky_relu(net.z1, 0.3))
    both = read(numbers | {"H": [[0, 1, 2]] * 4})
    assert both.h.tolist() == [[0, 1, 2]] * 4
    assert torch.equal(both.x, net.x)


def test_one_row_may_be_a_flat_list(read):
    found = read({"H": [1, 2], "W": [[0.5], [0.25]], "B": [0.5], "Y*": [1], "f": "identity"})
    assert found.shape == (1, 2, 1)
    assert found.y.tolist() == [[1.5]]
    assert read({**SMALL, "B": [[0.2, -0.1]]}).b.tolist() == SMALL["B"]


def test_a_file_may_begin_with_a_mark_of_its_editor(read):
    assert read("\ufeff" + json.dumps(SMALL)).h.tolist() == SMALL["H"]


@pytest.mark.parametrize("loss", ["squared-error", "cross-entropy", "binary-cross-entropy"])
@pytest.mark.parametrize("f", ["sigmoid", activations.leaky_relu(0.3), activations.gelu("tanh"), "relu6"])
@pytest.mark.parametrize("given", [False, True])
def test_what_is_written_is_read_again(read, loss, f, given):
    drawn = draw_network(activation=f, loss=loss, seed=3)
    own = replace(drawn, h=drawn.h + 1 / 3) if given else drawn
    numbers = to_numbers(own)
    assert list(numbers) == (["H"] if given else []) + ["X", "V", "C", "W", "B", "Y*", "f", "loss"]
    found = read(numbers)
    assert found.linked == own.linked
    assert (found.f, found.loss) == (own.f, own.loss)
    for name in (*ARRAYS, "h"):
        assert torch.equal(getattr(found, name), getattr(own, name)), name
    assert to_numbers(found) == numbers


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"W": [[1, 2], ["a", 3]]}, "expected numbers in W of FILE, got 'a' in row 2"),
        ({"W": [[1, 2], [True, 3]]}, "expected numbers in W of FILE, got true in row 2"),
        ({"H": [[1, None], [1, 3]]}, "expected numbers in H of FILE, got null in row 1"),
        ({"H": [[1, [2]], [1, 3]]}, "expected numbers in H of FILE, got a list in row 1"),
        ({"H": [[1, {}], [1, 3]]}, "expected numbers in H of FILE, got an object in row 1"),
        ({"Y*": [[1, float("nan")], [1, 3]]}, "expected finite numbers in Y* of FILE, got NaN in row 1"),
        ({"Y*": [[1, 2], [-float("inf"), 3]]}, "expected finite numbers in Y* of FILE, got -Infinity in row 2"),
        ({"W": [[1, 10**400], [1, 2]]}, "expected finite numbers in W of FILE, got Infinity in row 1"),
        ({"B": [1, "x" * 999]}, "expected numbers in B of FILE, got 'xxxxxxxxxxxx...xxxxxxxxxxxxx' in row 1"),
        ({"B": [1, "two\nlines"]}, r"expected numbers in B of FILE, got 'two\nlines' in row 1"),
        ({"B": 3}, "expected a list of numbers in B of FILE, got 3.0"),
        ({"B": "0.2, -0.1"}, "expected a list of numbers in B of FILE, got '0.2, -0.1'"),
        ({"B": [[1, 2], [3, 4]]}, "expected one row of numbers in B of FILE, got 2 rows"),
        ({"W": {"1": [1, 2]}}, "expected a list of numbers in W of FILE, got an object"),
        ({"W": []}, "expected numbers in W of FILE, got none in row 1"),
        ({"W": [[]]}, "expected numbers in W of FILE, got none in row 1"),
        ({"W": [[1, 2], []]}, "expected numbers in W of FILE, got none in row 2"),
        ({"W": [[1, 2], [3]]}, "expected rows of the same length in W of FILE, got 2 in row 1 and 1 in row 2"),
        ({"W": [[1, 2], 3]}, "expected rows of numbers in W of FILE, got 3.0 for row 2"),
        ({"Q": 1}, "expected keys among H, X, V, C, W, B, Y*, T, f, loss in FILE, got 'Q'"),
        ({"T": [[1, 0], [0, 1]]}, "expected Y* or T in FILE, which are the same, got both"),
        ({"X": [[1], [2]]}, "expected all or none of X, V and C beside H in FILE, got no V and no C"),
        ({"f": "sine"}, "got 'sine'"),
        ({"f": "relu(1, 2)"}, "got 'relu(1, 2)'"),
        ({"f": "leaky_relu(alpha)"}, "got 'leaky_relu(alpha)'"),
        ({"f": "leaky_relu('a')"}, "got \"leaky_relu('a')\""),
        ({"f": "softplus('a')"}, "got \"softplus('a')\""),
        ({"f": "relu(); 1"}, "got 'relu(); 1'"),
        ({"f": 3}, "got 3.0"),
        ({"f": ["relu"]}, "got a list"),
        ({"loss": "l1"}, "expected loss of FILE among cross-entropy, squared-error, binary-cross-entropy, got 'l1'"),
        ({"loss": None}, "got null"),
        (
            {"loss": "cross-entropy", "Y*": [[1, 2], [1, 0]]},
            "expected rows of probabilities for the cross-entropy's Y*",
        ),
        ({"W": [[1], [2]], "B": [1], "Y*": [[1], [1]], "loss": "cross-entropy"}, "at least 2 outputs"),
        ({"W": [[1, 2]]}, "expected H (2, 1) for Y* (2, 2) and W (1, 2), got (2, 2), in FILE"),
        ({"B": [1, 2, 3]}, "expected B (2,) for W (2, 2), got (3,), in FILE"),
        ({"Y*": [0, 1]}, "expected Y* (2, 2) for H (2, 2) and W (2, 2), got (1, 2), in FILE"),
        ({"H": [[1] * 2000] * 2, "W": [[1, 2]] * 2000}, "expected (inputs + 2) · inputs of at most 1,048,576"),
        ({"W": [[1e308, 1], [1e308, 1]], "f": "identity"}, "of which J and its derivatives are finite"),
    ],
)
def test_numbers_that_are_wrong_are_an_error_in_words(read, change, expected):
    assert expected in refused(read, SMALL | change)


def test_an_error_speaks_of_the_keys_that_the_file_has(read, net):
    numbers = {key: value for key, value in SMALL.items() if key != "Y*"}
    assert refused(read, numbers | {"T": [[1, 2, 3]]}).startswith("expected T (2, 2) for H (2, 2)")
    assert "cross-entropy's T" in refused(read, numbers | {"T": [[1, 2], [3, 4]], "loss": "cross-entropy"})
    below = to_numbers(net)
    assert "expected V (5, 3) for X (4, 5) and W (3, 2), got (1, 3)" in refused(read, below | {"V": [1, 2, 3]})
    assert "expected C (3,) for W (3, 2), got (2,)" in refused(read, below | {"C": [1, 2]})


@pytest.mark.parametrize(
    ("left_out", "expected"),
    [
        ("W", "expected W, B and Y* in FILE, got no W"),
        ("B", "expected W, B and Y* in FILE, got no B"),
        ("Y*", "expected W, B and Y* in FILE, got no Y*"),
        ("H", "expected H, or all of X, V and C, in FILE, got no X and no V and no C"),
    ],
)
def test_a_key_that_is_missing_is_an_error_in_words(read, left_out, expected):
    assert refused(read, {key: value for key, value in SMALL.items() if key != left_out}) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "expected JSON in FILE, got something else in line 1, column 1: Expecting value"),
        ('{"H": [1,\n 2', "expected JSON in FILE, got something else in line 2, column 3"),
        ("H = 1", "line 1, column 1"),
        ("[1, 2]", "expected a JSON object in FILE, with keys such as W, got a list"),
        ("null", "got null"),
        ('"W"', "got 'W'"),
        ("7", "got 7.0"),
        ('{"W": [1], "W": [2]}', "expected each key once in FILE, got 'W' 2 times"),
        ("[" * 200_000, "expected rows of numbers in FILE, got lists in lists"),
        ('{"W": ' + "1" * 9999 + ', "H": 1, "B": 1, "Y*": 1}', "expected a list of numbers in H of FILE"),
    ],
)
def test_a_file_that_holds_no_object_is_an_error_in_words(read, text, expected):
    assert expected in refused(read, text)


def test_a_file_that_cannot_be_read_is_an_error_in_words(tmp_path):
    for path, reason in ((tmp_path / "missing.json", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(ValueError, match="expected a file that can be read, got ") as error:
            read_numbers(path)
        assert str(error.value).endswith(f"{path}: {reason}")
    path = tmp_path / "latin.json"
    path.write_bytes(b'{"W": "\xe9"}')
    with pytest.raises(ValueError, match=r"expected UTF-8 in .*latin\.json, got another byte at 7"):
        read_numbers(path)
