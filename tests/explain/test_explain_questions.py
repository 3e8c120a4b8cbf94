"""The six questions are answered in numbers, the reader's own."""

import re

import pytest
import torch

from browser import enter, given, now, value
from manual_mlp.explain import draw_network, explain
from manual_mlp.explain.questions import questions

pytest_plugins = ("browser",)


def numbers_of(text):
    """Read what a sentence ends in: a number, or several between brackets."""
    _, _, last = text.rstrip(".").rpartition("= ")
    return torch.tensor([value(part) for part in last.strip("()").split(", ")], dtype=torch.float64)


def gradients(network):
    """J's derivatives by autograd: of one row by its B, H and W, and of all rows by W."""
    h, w, b = (x.clone().requires_grad_() for x in (network.h, network.w, network.b))
    y = network.f.f(h @ w + b)
    cost = 0.5 * (y - network.target).square()
    return h, w, b, cost


@pytest.mark.parametrize("sizes", [(4, 3, 2), (1, 1, 1), (8, 5, 4)], ids=str)
def test_each_answer_ends_in_what_autograd_finds(sizes):
    story = explain(draw_network(*sizes)).story
    (r, k, l), (_, inputs, outputs) = story.looked_at, story.network.shape  # noqa: E741
    h, w, b, cost = gradients(story.network)
    of_row = torch.autograd.grad(cost[r].sum(), (h, w, b), retain_graph=True)
    (of_all,) = torch.autograd.grad(cost.sum(), w)
    entrywise, shape, stood_up, product, felt, kronecker = (one.here.text for one in questions(story))
    assert shape == f"W is {inputs}×{outputs}, and so is ∂J/∂W."
    torch.testing.assert_close(numbers_of(entrywise.replace(", …", "")), of_row[2][:3], rtol=0, atol=6e-5)
    m = "₁₂₃₄₅₆₇₈".index(re.search("H([₁-₈])", felt)[1])
    for text, want in ((stood_up, of_row[1][k, l]), (product, of_all[k, l]), (felt, of_row[0][r, m])):
        assert numbers_of(text).item() == pytest.approx(want.item(), abs=6e-5)
    assert numbers_of(kronecker).item() == pytest.approx(of_row[2][l].item(), abs=6e-5)
    assert all(w[m].ne(0)), "an example of several outputs that one of them does not feel"


def test_they_are_answered_on_the_numbers_that_a_reader_types(page):
    before = page.locator("#questions dd output").all_text_contents()
    enter(page, given(page, "B", 0, 0), "−0.4")
    shown = page.locator("#questions dd output").all_text_contents()
    told = " ".join(one.here.text for one in questions(explain(now(page)).story))
    assert sum(text not in before for text in shown) >= 6
    assert [text for text in shown if text not in told] == []


def test_they_are_reached_and_answered_within_seven_hundred_words(page):
    texts = [page.locator(part).inner_text() for part in ("header", "#step-0", "#questions")]
    words = [word for text in texts for word in text.split() if re.search("[a-z]{2}", word)]
    assert 400 < len(words) <= 700  # under four minutes, at 200 words a minute
