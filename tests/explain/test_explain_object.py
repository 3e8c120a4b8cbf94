"""What `explain` returns: printed it is text, in a notebook the live page; it is saved, and it checks itself."""

import html
import re

import pytest
import torch

from faces import Parsed, tree
from manual_mlp.explain import MISTAKES, Network, draw_network, explain
from manual_mlp.explain.engine import Explanation
from shown import same

LAYER = ([[0.5, 0.6, 0.8]], [[0.1, -0.5], [-0.9, -0.4], [0.8, 0.2]], [-0.1, 0.3], [[1.0, 0.0]])


def test_it_is_a_sequence_of_its_steps(steps):
    assert isinstance(steps, Explanation)
    assert len(steps) == len(list(steps)) == 14
    assert [step.number for step in steps[3:5]] == [3, 4]
    assert steps[-1].number == 13


def test_printed_it_is_the_text_and_its_repr_is_one_line(steps):
    assert str(steps) == steps.text()
    assert steps.text().endswith(f"{steps.verdict}\n")
    assert "0. The question, and what its signs mean" in str(steps)
    assert repr(steps) == f"<Explanation of a layer 3 -> 2, sigmoid(), squared-error, 4 rows: {steps.verdict}>"


def test_in_a_notebook_it_is_the_live_page_in_a_frame_of_its_own(steps):
    shown = steps._repr_html_()
    frame = re.fullmatch(r'<iframe srcdoc="([^"]*)" [^>]*></iframe>', shown)
    assert html.unescape(frame[1]) == steps.html()
    assert 'id="data"' in steps.html()


def test_it_is_saved_and_a_path_that_cannot_be_written_is_told(steps, tmp_path):
    steps.save(tmp_path / "page.html", "about this page")
    text = (tmp_path / "page.html").read_text("utf-8")
    Parsed(text)
    assert "".join(tree(text).find("./body/footer").itertext()) == "about this page"
    assert len(text.encode()) <= 400_000
    for path, reason in ((tmp_path, "Is a directory"), (tmp_path / "no" / "page.html", "No such file or directory")):
        expected = f"expected a path that can be written, got {path}: {reason}"
        with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
            steps.save(path)
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_it_checks_itself(steps, net):
    assert steps.check() is steps
    wrong = explain(net, MISTAKES["slope-forgotten"].formulas)
    with pytest.raises(ValueError, match=r"step 3, ∂Y/∂B in full: δ of the row = the sum over i, by the full matrix: "):
        wrong.check()
    assert wrong.note.startswith("Told with a mistake, slope-forgotten: δ = ∂J/∂Y, instead of")
    assert str(wrong).startswith(wrong.note)


@pytest.mark.parametrize(
    ("arguments", "error", "expected"),
    [
        ({"network": [[1.0]]}, TypeError, "expected network to be a Network, as draw_network makes one, got list"),
        ({"formulas": "slope"}, TypeError, "expected formulas to be Formulas, got str"),
        (
            {"mistaken": ("slope", "bias-not-summed", 3)},
            ValueError,
            f"expected mistaken among {', '.join(MISTAKES)}, got slope, 3; did you mean slope-forgotten?",
        ),
    ],
)
def test_a_wrong_argument_is_told_by_its_name(net, arguments, error, expected):
    with pytest.raises(error, match=f"^{re.escape(expected)}$"):
        explain(**{"network": net, **arguments})


def test_a_layer_of_ones_own_is_explained_whose_h_is_given():
    found = explain(Network.of_layer(*LAYER, activation="tanh")).check()
    assert not found.story.network.linked
    h, w, b, target = (torch.tensor(t, dtype=torch.float64, requires_grad=True) for t in LAYER)
    wanted = torch.autograd.grad(0.5 * (torch.tanh(h @ w + b) - target).square().sum(), (w, b, h))
    for name, value in zip(("dW", "dB", "dH"), wanted, strict=True):
        same(found.story.value(name), value.view(-1, value.shape[-1]))
    assert "has been given by hand" in " ".join(str(found).split())
    assert "∂J/∂V, by autograd" not in str(found)
    assert "takes J from" not in str(found)
    assert "<script" in found.html()


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 2, 1), (2, 1, 3), (3, 2, 1)])
def test_sentences_agree_with_ones(sizes):
    found = explain(draw_network(*sizes))
    said = " ".join(f"{found} {' '.join(Parsed(found.html()).words().split())}".split())
    assert not re.search(r"(?<![\d,.])1 (numbers|rows|checks|entries|outputs|inputs)\b", said)
    assert not re.search(r"\b([2-9]|\d\d) (number|row|check|entry)\b(?! of)", said)


def test_a_large_page_is_made_and_stands_still_and_says_so():
    text = explain(draw_network(200, 30, 50)).check().html()
    Parsed(text)
    assert tree(text).find(".//section[@id='step-13']") is not None
    assert "With so many numbers this page stands still" in text
    assert len(text.encode()) < 700_000
    assert "<script" not in text
