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
NOISY = ["+", "-", "/", "@", "**", "exp", "ln", "log1p", "expm1", "tanh", "sin", "cos", "sqrt", "sigmoid", "softplus"]
NOISY += ["Phi", "phi", "sum", "sum0", "sum1", "softmax", "lse", "inv"]
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
        if (isinstance(tree, list) and tree[0] == "pair") or is_nearly_singular(
            scope, tree
        ):  # a pair is for a sentence, and has no value
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


# What is shown.


def entry(drawn, state, name):
    rows = state[name]
    r = drawn.randrange(len(rows))
    c = drawn.randrange(len(rows[r]))
    return rows[r], c


def change_numbers(drawn, state):
    for name in "XVCWB":
        row, c = entry(drawn, state, name)
        row[c] += round(drawn.gauss(0, 0.3), 3)


def change_f_and_j(drawn, state):
    state["f"] = drawn.choice(activations.names())
    state["loss"] = drawn.choice([flag for flag in losses.flags() if len(state["B"][0]) > 1 or flag != "cross-entropy"])
    state["T"] = target(drawn, len(state["T"]), len(state["B"][0]), state["loss"])


def change_rows(drawn, state):
    rows = drawn.choice([n for n in range(1, 9) if n != len(state["T"])])
    state["X"] = (state["X"] + numbers(drawn, 8, len(state["V"])))[:rows]
    state["T"] = (state["T"] + target(drawn, 8, len(state["B"][0]), state["loss"]))[:rows]


def throw_mistake(drawn, state):
    state["mistakes"] = [drawn.choice([*MISTAKES])]


def give_h(drawn, state):
    state["H"] = numbers(drawn, len(state["T"]), len(state["W"]))


def unit(text):
    """Return what one more in a number's last digit is; 0 for a whole number."""
    digits, _, power = text.partition("e")
    return 10.0 ** (int(power.replace("−", "-") or 0) - len(digits.partition(".")[2])) if "." in digits else 0.0


def reads_alike(live, told):
    """Tell whether two texts have the same words and numbers; one of the last digit is let off."""
    if NUMBER.sub("#", live) != NUMBER.sub("#", told):
        return False
    for a, b in zip(NUMBER.findall(live), NUMBER.findall(told), strict=True):
        apart = abs(value(a) - value(b))
        nothing = max(abs(value(a)), abs(value(b))) < 1e-11  # what rounding leaves of a zero
        if not (a == b or nothing or (unit(a) == unit(b) and apart <= 1.01 * unit(a))):
            return False
    return True


@pytest.mark.parametrize(
    ("size", "changes"),
    [
        (PAGES[0], (change_f_and_j, change_numbers)),
        (PAGES[1], (change_numbers,)),
        (PAGES[1], (change_rows, throw_mistake)),
        (PAGES[1], (give_h, change_f_and_j, change_numbers)),
        (PAGES[2], (change_rows, change_numbers)),
        (PAGES[3], (throw_mistake, change_f_and_j)),
        (PAGES[4], (change_numbers, give_h)),
        (PAGES[6], (change_numbers, change_rows)),
        (PAGES[7], (throw_mistake, change_numbers)),
    ],
    ids=lambda given: "×".join(str(part) if isinstance(part, int) else getattr(part, "__name__", "") for part in given),
)
def test_after_an_edit_the_page_reads_as_the_one_that_python_writes_of_the_same_numbers(size, changes, open_page):
    page = open_page(page_of(size))
    data, drawn = data_of(page), random.Random(f"{size} {changes[0].__name__}")
    for _ in range(200):
        state = data_of(page)["state"]
        for change in changes:
            change(drawn, state)
        story = story_of(state, data)
        # Both look at the same entries.
        if far_from_kinks(story.network) and replace(story, focus=None).looked_at == story.looked_at:
            break
    else:
        pytest.fail("no edit leaves the entries that are looked at as they are")
    page.evaluate(MAKE, [state])
    live = page.evaluate(SHOWN, None)
    told = page.evaluate(SHOWN, explain(story.network, story.formulas).html())
    both = live.keys() & told.keys()
    assert len(both) > 0.9 * len(live)
    wrong = [
        (key, ours, theirs)
        for key in both
        for ours, theirs in zip(live[key], told[key], strict=False)
        if not reads_alike(ours, theirs)
    ]
    assert wrong == []
    # What is shown in several places is the same there, but for the name of a matrix.
    assert all(len({text.partition("\n")[2] if "table" in key else text for text in live[key]}) == 1 for key in live)


# Numbers that are large.


@pytest.mark.parametrize(
    ("f", "loss", "scales"),
    [
        ("relu", "squared-error", {"T": 1000}),
        ("relu", "squared-error", {"X": 1e4}),
        ("identity", "squared-error", {"X": 1e4, "W": 1e4}),
        ("identity", "cross-entropy", {"W": 1e4}),
        ("tanh", "squared-error", {"W": 1e4, "T": 1e4}),
        ("softplus", "binary-cross-entropy", {"W": 1e4}),
        ("silu", "squared-error", {"V": 1e4}),
        ("sigmoid", "cross-entropy", {"X": 1e4, "V": 1e4, "C": 1e4, "W": 1e4, "B": 1e4}),
    ],
)
def test_large_numbers_are_computed_as_python_does_and_fail_no_check(f, loss, scales, open_page):
    page = open_page(page_of(PAGES[1]))
    data = data_of(page)
    state = data["state"] | {"f": f, "loss": loss}
    for name, scale in scales.items():
        state[name] = [[scale * number for number in row] for row in state[name]]
    (found,) = page.evaluate(MAKE, [state])
    scope = story_of(found["state"], data).scope
    assert [*differences(scope, data["trees"], found["values"])] == []
    assert found["failed"] == []
