"""The page's script and Python find the same numbers, whatever a reader makes of those that are given."""

import math
import random
import re
from dataclasses import replace
from functools import cache
from itertools import product

import pytest
import torch

from browser import NUMBER, SHOWN, data_of, network_of, opened, value
from manual_mlp import activations, losses
from manual_mlp.explain import MISTAKES, Formulas, draw_network, explain
from manual_mlp.explain.blocks import Refused
from manual_mlp.explain.evaluate import Scope, evaluate
from manual_mlp.explain.formulas import CHAIN
from manual_mlp.explain.story import Story

pytest_plugins = ("browser",)

RIGHT = Formulas()
# Inputs, outputs, rows, f and J of a page.
PAGES = (
    (1, 1, 1, "sigmoid", "squared-error"),
    (3, 2, 4, "sigmoid", "squared-error"),
    (4, 3, 1, "tanh", "cross-entropy"),
    (2, 5, 6, "gelu", "binary-cross-entropy"),
    (7, 12, 7, "softplus", "cross-entropy"),
    (1, 4, 2, "relu", "squared-error"),
    (6, 1, 3, "sin", "binary-cross-entropy"),
    (3, 3, 3, "silu", "squared-error"),
    (2, 2, 8, "lecun_tanh", "cross-entropy"),
)
EDITS = 25  # of each page
KINKS = torch.tensor([-3.0, -1.0, 0.0, 1.0, 3.0, 6.0], dtype=torch.float64)
NOISY = "+ - / @ ** exp ln log1p expm1 tanh sin cos sqrt sigmoid softplus Phi phi sum sum0 sum1 softmax lse inv".split()
ALONE = {"neg", "T", *NOISY[5:]}  # of one argument

MAKE = """(states) => states.map((state) => {
  explained.set({ H: undefined, mistakes: [], ...state });
  const failed = document.querySelectorAll("#checks li.failed:not([hidden])");
  return {
    state: explained.get(), values: explained.values(), verdict: document.getElementById("verdict").textContent,
    failed: [...failed].map((item) => item.textContent),
  };
})"""


@cache
def page_of(size):
    inputs, outputs, rows, f, loss = size
    return explain(draw_network(inputs, outputs, rows, f, loss))


def numbers(drawn, rows, columns, scale=1.0):
    return [[round(drawn.gauss(0, scale), 3) for _ in range(columns)] for _ in range(rows)]


def target(drawn, rows, outputs, loss):
    if loss != "cross-entropy":
        return [[round(drawn.random(), 2) for _ in range(outputs)] for _ in range(rows)]
    if drawn.random() < 0.7:
        right = [drawn.randrange(outputs) for _ in range(rows)]
        return [[float(i == k) for i in range(outputs)] for k in right]
    sizes = [[1 + drawn.random() for _ in range(outputs)] for _ in range(rows)]
    return [[size / math.fsum(row) for size in row] for row in sizes]


def draw(size, n, mistakes=()):
    """Draw the numbers of an edit, the n-th of all pages'; no pre-activation stands at a kink."""
    inputs, outputs, *_ = size
    drawn, names = random.Random(f"{size} {n}"), activations.names()
    flags = [flag for flag in losses.flags() if outputs > 1 or flag != "cross-entropy"]
    f, loss, rows = names[n % len(names)], flags[(n + 2 * (n // len(names))) % len(flags)], 1 + n % 8
    while True:
        scale = 3.0 if n % 5 == 4 else 1.0
        state = {
            "X": numbers(drawn, rows, inputs + 2),
            "V": numbers(drawn, inputs + 2, inputs, (inputs + 2) ** -0.5),
            "C": numbers(drawn, 1, inputs, 0.3),
            "W": numbers(drawn, inputs, outputs, scale * inputs**-0.5),
            "B": numbers(drawn, 1, outputs, 0.3),
            "T": target(drawn, rows, outputs, loss),
            "f": f,
            "loss": loss,
            "mistakes": list(mistakes),
        }
        if n % 3 == 1:
            state["H"] = numbers(drawn, rows, inputs, scale)
        if far_from_kinks(network_of(state)):
            return state


def far_from_kinks(network):
    found = torch.cat([network.z1.reshape(-1), network.z.reshape(-1)])
    return float((found[:, None] - KINKS).abs().min()) > 1e-4 * max(1.0, float(network.h.abs().max()))


def drawn_edits(size):
    """Draw all edits of a page: every third with a mistake, the eight in turn, and now and then with two."""
    first, names = EDITS * PAGES.index(size), list(MISTAKES)
    found = []
    for n in range(first, first + EDITS):
        thrown = [names[n // 3 % 8], names[n // 24 % 8]][: 1 + (n % 4 == 0)] if n % 3 == 2 else []
        found.append(draw(size, n, dict.fromkeys(thrown)))
    return found


@pytest.fixture(scope="module", params=PAGES, ids=lambda size: "×".join(map(str, size[:3])))
def edited(request, chromium, saved):
    """A page's data, and what it made of each edit."""
    with opened(chromium, saved(page_of(request.param))) as page:
        return data_of(page), page.evaluate(MAKE, drawn_edits(request.param))


def story_of(state, data):
    """Tell the story of a page's numbers, mistakes and all, in Python."""
    formulas = RIGHT
    for name in state["mistakes"]:
        made = MISTAKES[name].formulas
        formulas = replace(formulas, **{field: getattr(made, field) for field in made.changed})
    row, *rest = data["focus"]
    return Story(network_of(state), formulas, focus=(min(row, len(state["T"]) - 1), *rest))


def noisy(scope, seed):
    """Return the scope whose operations are each off by a 10⁻¹²."""
    random_numbers = torch.Generator().manual_seed(seed)

    def off(name, letters):
        def compute(*values):
            made = evaluate([name, *letters], dict(zip(letters, values, strict=True)).__getitem__)
            return made * (1 + 1e-12 * torch.randn(made.shape, generator=random_numbers, dtype=made.dtype))

        return letters, ["call", compute, *letters]

    operations = {name: off(name, ("a",) if name in ALONE else ("a", "b")) for name in NOISY}
    return Scope(scope.given, scope.definitions, {**scope.functions, **operations})


def is_nearly_singular(scope, tree):
    """Tell whether an inverse of the tree is of a matrix that has hardly one."""
    if not isinstance(tree, list):
        return False
    if tree[0] == "inv":
        found = scope.compute(tree[1])
        return isinstance(found, Refused) or not float(torch.linalg.cond(found)) < 1e3
    return any(is_nearly_singular(scope, part) for part in tree[1:])


def differences(scope, trees, values):
    """List the trees of which the page has other values than Python: more than 10⁻⁹ off, and more than rounding is."""
    others = [noisy(scope, seed) for seed in range(2)]
    for tree, got in zip(trees, values, strict=True):
        if (isinstance(tree, list) and tree[0] == "pair") or is_nearly_singular(scope, tree):  # a pair is for a sentence, and has no value
            continue
        want = scope.compute(tree)
        if isinstance(want, Refused) or got is None:
            if not (isinstance(want, Refused) and got is None):
                yield tree, got, want
            continue
        got = torch.tensor(got, dtype=torch.float64)
        same = got.shape == want.shape and torch.isclose(got, want, rtol=1e-9, atol=0, equal_nan=True)
        if same is not False and not same.all():
            lost = max(float((other.compute(tree) - want).abs().nan_to_num().max()) for other in others)
            same = torch.isclose(got, want, rtol=1e-9, atol=lost, equal_nan=True)
        if same is False or not same.all():
            yield tree, got, want


def test_the_edits_meet_every_activation_with_every_loss_every_mistake_and_any_number_of_rows():
    states = [state for size in PAGES for state in drawn_edits(size)]
    assert len(states) > 200
    assert {(state["f"], state["loss"]) for state in states} == set(product(activations.names(), losses.flags()))
    assert {name for state in states for name in state["mistakes"]} == set(MISTAKES)
    assert {len(state["T"]) for state in states} == set(range(1, 9))
    assert {"H" in state for state in states} == {True, False}
    assert max(len(state["mistakes"]) for state in states) == 2


def test_the_page_has_every_activation_that_has_a_name(edited):
    data, _ = edited
    assert set(data["activations"]) == set(activations.names())


def test_after_any_edit_every_value_of_the_page_is_pythons(edited):
    data, made = edited
    for found in made:
        scope = story_of(found["state"], data).scope
        assert [*differences(scope, data["trees"], found["values"])] == [], found["state"]


def test_after_any_edit_without_a_mistake_no_check_fails(edited):
    for found in edited[1]:
        if not found["state"]["mistakes"]:
            assert re.fullmatch(r"All \d\d checks passed, in this page\.", found["verdict"]), found


def harm(state, data):
    """Return how far the thrown mistakes move a derivative, beside its largest entry or 1."""
    scope, worst = story_of(state, data).scope, 0.0
    for name in CHAIN:
        got, want = scope[name], scope[f"{name}_"]
        if isinstance(got, Refused) or got.shape != want.shape:
            return math.inf
        worst = max(worst, float((got - want).abs().max()) / max(1.0, float(want.abs().max())))
    return worst


def test_a_mistake_fails_a_check_wherever_it_does_harm(edited):
    data, made = edited
    for found in made:
        if found["state"]["mistakes"]:
            off = harm(found["state"], data)
            if off > 1e-5:
                assert found["failed"], found["state"]
                assert re.fullmatch(r"\d+ of \d+ checks failed, in this page\.", found["verdict"])
            elif off < 1e-13:
                assert found["failed"] == []
