"""The link that carries the numbers of the live page, and those that carry what the page cannot compute."""

import pytest

from browser import address_of, data_of, enter, given, is_of, now, state, tool, written_state
from manual_mlp import Activation, activations
from manual_mlp.explain import draw_network, explain

pytest_plugins = ("browser",)


def test_a_link_carries_the_numbers_and_stays_while_one_walks_through_the_steps(page, open_page, default):
    enter(page, given(page, "W", 0, 0), "−7.25")
    page.select_option(".tools select[name=f]", "tanh")
    page.locator("#questions a[href='#step-4']").first.click()
    other = open_page(default, hash=page.evaluate("location.hash"))
    assert state(other) == state(page)
    assert float(now(other).w[0, 0]) == -7.25
    is_of(other, now(page))


@pytest.mark.parametrize("rights", [(), ("clipboard-read", "clipboard-write")], ids=["refused", "granted"])
def test_a_link_is_copied_or_where_that_is_refused_stands_in_the_address(open_page, default, rights):
    page = open_page(default, rights=rights)
    enter(page, given(page, "W", 0, 0), "4.5")
    tool(page, "copy link").click()
    page.wait_for_function("document.getElementById('said').textContent")
    assert page.locator("#said").inner_text() == ("copied" if rights else "the address of this page has them now")
    link = page.evaluate("navigator.clipboard.readText()") if rights else page.url
    assert state(open_page(default, hash="#" + link.partition("#")[2])) == state(page)


@pytest.mark.parametrize(
    "spoilt",
    [
        *({"f": "nobody"}, {"f": "toString"}, {"loss": "valueOf"}, {"mistakes": ["constructor"]}, {"mistakes": ["no"]}),
        *({"W": [[1, 2]] * 4}, {"X": [[1, 2, 3, 4, "5"]] * 4}, {"B": [[1, 1e7]]}, {"T": []}, {"T": [[0, 1]] * 9}),
        *({"H": [[1, 2]] * 4}, {"V": None}),
    ],
    ids=str,
)
def test_a_link_to_what_the_page_cannot_compute_is_told_and_changes_nothing(open_page, default, spoilt):
    before = written_state(default)
    page = open_page(default, hash=address_of(before | spoilt))
    assert "do not fit this page" in page.locator("#said").inner_text()
    assert state(page) == before


@pytest.mark.parametrize("hash", ["#n=nonsense", "#n=e30=", "#n=" + "A" * 50, "#n=%"])
def test_a_spoilt_link_is_told_and_changes_nothing(open_page, default, hash):
    page = open_page(default, hash=hash)
    assert "do not fit this page" in page.locator("#said").inner_text()
    assert state(page) == data_of(page)["state"]


def test_the_numbers_of_another_size_are_refused(open_page, default, page):
    enter(page, given(page, "W", 0, 0), "5")
    other = open_page(explain(draw_network(2, 2, 3)), hash=page.evaluate("location.hash"))
    assert "do not fit this page" in other.locator("#said").inner_text()


def test_a_link_to_a_step_opens_it(open_page, default):
    page = open_page(default, hash="#step-9")
    assert page.locator("#step-9 > details").get_attribute("open") is not None
    page.locator("#step-9 a.tag").first.click()
    assert page.locator("#proof-O2").is_visible()
    page.locator("#proof-O2 a").click()
    assert page.locator("#step-9").is_visible()


def test_a_name_in_any_script_is_linked_too(open_page, default, forget):
    @activations.register
    def größe_λ():
        """A function.

        f = z/(1 + |z|)
        f′ = 1/(1 + |z|)²
        """
        return Activation(f=lambda z: z / (1 + z.abs()), df=lambda z: (1 + z.abs()) ** -2.0, d2f=lambda z: 0 * z)

    named = explain(draw_network(activation="größe_λ"))
    page = open_page(named)
    enter(page, given(page, "W", 0, 0), "4.5")
    assert state(open_page(named, hash=page.evaluate("location.hash"))) == state(page)
