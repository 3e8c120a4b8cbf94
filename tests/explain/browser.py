"""A browser for the page, and what a reader finds there; without a browser its tests are skipped.

The tests name this as a plugin of theirs, for its fixtures, and import it too, hence: PYTEST_DONT_REWRITE.
"""

import base64
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from math import exp
from typing import Any

import pytest
import torch

from manual_mlp.explain import Explanation, Network, draw_network, explain

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 60_000  # milliseconds, which a busy machine does not outlast
NEAR = 2e-4  # what four decimals tell
NUMBER = re.compile(r"−?\d[\d,]*(?:\.\d+)?(?:e[+−]\d+)?")

# Every number that a page shows of a formula, by the formula and how it is written.
SHOWN = """(html) => {
  const page = html === null ? document : new DOMParser().parseFromString(html, "text/html");
  const trees = JSON.parse(page.getElementById("data").textContent).trees, found = {};
  const text = (cell) => cell.querySelector("input")?.value ?? cell.textContent;
  for (const part of page.querySelectorAll("output[data-x], table[data-x]")) {
    const { x, f = "", r = "", c = "" } = part.dataset, table = part.tagName === "TABLE";
    const rows = table && [...part.tBodies[0].rows].map((row) => [...row.cells].map(text).join(" | "));
    const shown = table ? [part.caption.textContent.trim(), ...rows].join("\\n") : part.textContent;
    (found[JSON.stringify([trees[x], table ? ["table", r, c] : f])] ??= []).push(shown);
  }
  return found;
}"""

# The cells of a step's matrix, and which of them have a class.
CELLS = """([step, name, nth]) => {
  const named = (table) => table.caption.firstChild.textContent.trim() === name;
  const table = [...document.querySelectorAll(`#step-${step} table.matrix`)].filter(named)[nth];
  const cell = (td) => ({ text: td.querySelector("input")?.value ?? td.textContent, kinds: [...td.classList] });
  const inside = ({ tagName }) => tagName === "TD";
  const rows = [...table.tBodies[0].rows].map((row) => [...row.cells].filter(inside).map(cell));
  return rows.filter((row) => row.length);
}"""

# Of every cell: what it shows, and where its number comes from.
REASONS = """() => {
  document.querySelectorAll("details").forEach((fold) => { fold.open = true; });
  return [...document.querySelectorAll("table.matrix[data-x] td")].filter((cell) => cell.offsetParent).map((cell) => {
    cell.dispatchEvent(new PointerEvent("pointerover", { bubbles: true, pointerType: "mouse" }));
    const why = document.getElementById("why"), lines = why.hidden ? [] : [...why.children];
    return [cell.querySelector("input")?.value ?? cell.textContent, lines.map((line) => line.textContent)];
  });
}"""
# Whether what has the focus can be seen: nothing lies upon its middle.
SEEN = """() => {
  const there = document.activeElement, { left, top, width, height } = there.getClientRects()[0];
  const upper = document.elementFromPoint(left + width / 2, top + height / 2);
  return [there.tagName, there.contains(upper), there.getAttribute("aria-label") ?? there.textContent.slice(0, 30)];
}"""


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """One browser for all tests."""
    playwright = pytest.importorskip("playwright.sync_api")
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    with playwright.sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no chromium: {error}")
        yield browser
        browser.close()


@contextmanager
def opened(
    browser: Any, address: str, script: bool = True, rights: tuple[str, ...] = (), **context: Any
) -> Iterator[Any]:
    """Open a page; at the end it has complained of nothing, and asked for nothing but its own file."""
    complaints: list[str] = []
    asked: list[str] = []
    reader = browser.new_context(java_script_enabled=script, permissions=list(rights), **context)
    try:
        reader.set_default_timeout(PATIENCE)
        page = reader.new_page()
        page.on("console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url.partition("#")[0]))
        page.goto(address)
        yield page
    finally:
        reader.close()
    assert not complaints, complaints
    assert set(asked) == {address.partition("#")[0]}, asked


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], str]:
    """Write the page of an explanation once, and tell its address."""
    written: dict[Any, str] = {}
    folder = tmp_path_factory.mktemp("pages")

    def save(explanation: Any) -> str:
        if explanation not in written:
            path = folder / f"{len(written)}.html"
            explanation.save(path)
            written[explanation] = path.as_uri()
        return written[explanation]

    return save


@pytest.fixture
def open_page(chromium: Any, saved: Callable[[Any], str]) -> Iterator[Callable[..., Any]]:
    """Open the page of an explanation, as :func:`opened` does."""
    with ExitStack() as stack:

        def open_page(
            explanation: Any, *, width: int = 1100, script: bool = True, dark: bool = False, hash: str = "", **more: Any
        ) -> Any:
            context = {"viewport": {"width": width, "height": 900}, "color_scheme": "dark" if dark else "light", **more}
            return stack.enter_context(opened(chromium, saved(explanation) + hash, script, **context))

        yield open_page


@pytest.fixture(scope="session")
def default() -> Explanation:
    return explain(draw_network())


@pytest.fixture
def page(open_page: Callable[..., Any], default: Explanation) -> Any:
    return open_page(default)


def data_of(page: Any) -> dict[str, Any]:
    return json.loads(page.locator("#data").text_content())


def network_of(state: dict[str, Any]) -> Network:
    """Make the network of a page's numbers."""
    x, v, c, w, b, target = (torch.tensor(state[name], dtype=torch.float64) for name in "XVCWBT")
    given = {"h": torch.tensor(state["H"], dtype=torch.float64)} if state.get("H") else {}
    return Network(x, v, c[0], w, b[0], target, state["f"], state["loss"], **given)


def now(page: Any) -> Network:
    """Make the network of the page's present numbers."""
    return network_of(state(page))


def state(page: Any) -> dict[str, Any]:
    return page.evaluate("explained.get()")


def value(text: str) -> float:
    return float(text.replace("−", "-").replace(",", ""))


def matrix(page: Any, step: int, name: str, nth: int = 0) -> torch.Tensor:
    """Read a matrix of a step."""
    rows = page.evaluate(CELLS, [step, name, nth])
    return torch.tensor([[value(cell["text"]) for cell in row] for row in rows], dtype=torch.float64)


def with_class(page: Any, kind: str, step: int, name: str, nth: int = 0) -> set[tuple[int, int]]:
    """List the cells of a step's matrix that have a class."""
    rows = page.evaluate(CELLS, [step, name, nth])
    return {(r, c) for r, row in enumerate(rows) for c, cell in enumerate(row) if kind in cell["kinds"]}


def at(page: Any, step: int, name: str, r: int, c: int, nth: int = 0) -> Any:
    """Find a cell of a step's matrix."""
    tables = page.locator(f"#step-{step} table.matrix").filter(
        has=page.locator("caption", has_text=re.compile(rf"^{re.escape(name)} \d*(×\d+)?$"))
    )
    body = tables.nth(nth).locator("tr:has(td)").nth(r)
    return body.locator("td").nth(c)


def given(page: Any, name: str, r: int, c: int) -> Any:
    """Find the first field of an entry that can be changed."""
    return page.get_by_label(f"{name}, row {r + 1}, column {c + 1}", exact=True).first


def enter(page: Any, field: Any, text: str) -> None:
    """Click on a field and put a text in the place of its number, all at once."""
    field.click()
    page.keyboard.insert_text(text) if text else page.keyboard.press("Delete")


def tool(page: Any, name: str) -> Any:
    return page.locator(".tools").get_by_role("button", name=name, exact=True)


def unfold(page: Any, step: int) -> None:
    """Open a step by its head, if it is folded."""
    if page.locator(f"#step-{step} > details:not([open])").count():
        page.locator(f"#step-{step} > details > summary").click()


def verdict(page: Any) -> str:
    return page.locator("#verdict").inner_text()


def written_state(explanation: Any) -> dict[str, Any]:
    """Read the numbers of an explanation's page without a browser."""
    found = re.search(r'id="data">(.*?)</script>', explanation.html(), re.DOTALL)
    assert found, "the page is not live"
    return json.loads(found[1])["state"]


def address_of(numbers: dict[str, Any]) -> str:
    """Write what a link to numbers ends in."""
    rest = {name: numbers[name] for name in numbers if name != "T"}
    return "#n=" + base64.b64encode(json.dumps({**rest, "Y*": numbers["T"]}).encode()).decode()


def numbers_in(address: str) -> dict[str, Any]:
    """Read what a link carries."""
    return json.loads(base64.b64decode(address.partition("#n=")[2]))


def apart(line: str, f: Callable[[float], float]) -> tuple[float, float]:
    """Compute what a line of terms comes to: how far it is from the line's result, and how far rounding may take it."""
    said, _, result = line.replace("−", "-").replace("·", "*").removeprefix("= ").rpartition(" = ")
    assert re.fullmatch(r"(exp|f|[-\d.e+*/() ])*", said), line
    parts = re.split(r"(\d+\.?\d*(?:e[-+]\d+)?)", said)  # every other one is a number

    def compute(nudged: int = -1) -> float:
        by = 0.5 * 10.0 ** -len(parts[nudged].partition(".")[2])
        nudges = [f"({part} + {by})" if n == nudged else part for n, part in enumerate(parts)]
        return float(eval("".join(nudges), {"exp": exp, "f": f}))

    rounded = [n for n in range(1, len(parts), 2) if re.search(r"\.\d{4}$|e", parts[n])]
    return abs(compute() - float(result)), sum(abs(compute(n) - compute()) for n in rounded) + 6e-5


def close(shown: torch.Tensor, truth: torch.Tensor) -> None:
    """Hold numbers of the page, of four decimals, to true ones."""
    torch.testing.assert_close(shown, truth, rtol=2e-3, atol=NEAR)


def is_of(page: Any, network: Network) -> None:
    """Hold what the page shows to the network: forward, and the gradients by autograd."""
    close(matrix(page, 0, "Z"), network.z[1:2])
    close(matrix(page, 0, "Y"), network.y[1:2])
    close(matrix(page, 5, "∂J/∂W"), network.gradients[1])
    close(matrix(page, 5, "∂J/∂B"), network.gradients[2][None])
