"""The site: its links lead somewhere, every public name has a page and an example, and it needs no network."""

import importlib
import inspect
import os
import re
import runpy
import subprocess
import sys
import textwrap
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch

import manual_mlp
from patience import SECONDS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *PAGES, ROOT / "benchmarks" / "results" / "README.md"]
API = sorted((DOCS / "api").glob("*.rst"))
PUBLIC = ("manual_mlp", "manual_mlp.activations", "manual_mlp.explain", "manual_mlp.training")
# It is made by a command, and lies beside the pages once they are built.
LIVE = "explain.html"


def without_code(text: str) -> str:
    return re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.MULTILINE | re.DOTALL)


def anchors(text: str) -> set[str]:
    """Name the headings as GitHub does."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#+ (.*)$", without_code(text), re.MULTILINE):
        shown = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
        slug = re.sub(r"[^\w\- ]", "", shown).replace(" ", "-")
        times = found[slug] = found.get(slug, -1) + 1
        found |= {f"{slug}-{times}": 0} if times else {}
    return set(found)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_of_a_document_leads_to_a_file_and_to_a_heading_or_line_of_it(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(document.read_text("utf-8"))):
        scheme, _, path, _, fragment = urlsplit(link)
        if scheme:
            assert scheme in ("https", "mailto"), link
            continue
        target = (document.parent / unquote(path)).resolve() if path else document
        if target == ROOT / LIVE:
            assert re.fullmatch(r"(step-\d+)?", fragment), link
            continue
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if fragment and target.suffix == ".md":
            assert unquote(fragment) in anchors(target.read_text("utf-8")), link
        elif fragment:
            lines = re.fullmatch(r"L(\d+)(?:-L\d+)?", fragment)
            assert int(lines[1]) <= len(target.read_text("utf-8").splitlines()), link


def test_headings_are_named_as_github_names_them() -> None:
    text = "# (F1) The pre-activation, `z`\n\n```\n# no heading\n```\n\n## Why f′?\n## Why f′?\n"
    assert anchors(f"{text}### [Letters](x.md) & more\n") == {
        "f1-the-pre-activation-z",
        "why-f",
        "why-f-1",
        "letters--more",
    }


def test_the_table_of_contents_lists_every_document_once() -> None:
    trees = re.findall(r"^```\{toctree\}\n(.*?)^```$", (DOCS / "index.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    listed = [line for tree in trees for line in tree.splitlines() if re.fullmatch(r"[\w/-]+", line)]
    there = [path.relative_to(DOCS).with_suffix("").as_posix() for path in (*PAGES, *API)]
    assert sorted(listed) == sorted(set(there) - {"index"})


def entries() -> dict[str, str]:
    """Find what the pages of the API show, by its whole name, and the text that stands under each directive."""
    found = {}
    for page in API:
        module = ""
        for kind, name, body in re.findall(r"^\.\. ([\w:]+):: (\S+)\n((?:(?: .*)?\n)*)", page.read_text("utf-8"), re.M):
            if kind == "currentmodule":
                module = name
            elif kind in ("autofunction", "autoclass", "automodule", "py:data"):
                found[name if name.startswith("manual_mlp.") else f"{module}.{name}"] = textwrap.dedent(body)
    return found


def shown(name: str) -> object:
    module, _, last = name.rpartition(".")
    return getattr(importlib.import_module(module), last)


ENTRIES = entries()
NAMES = [f"{module}.{name}" for module in PUBLIC for name in importlib.import_module(module).__all__]
# What has no docstring of its own has its example on the page.
WRITTEN = {name: body.partition("Example::\n")[2] for name, body in ENTRIES.items() if "Example::" in body}


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_on_a_page_of_the_reference_with_an_example(name: str) -> None:
    thing, last = shown(name), name.rpartition(".")[2]
    # A class that is known by two names is shown under one.
    assert name in ENTRIES or any(shown(one) is thing for one in ENTRIES if one.endswith(f".{last}"))
    if isinstance(thing, manual_mlp.Activation) or not (inspect.ismodule(thing) or callable(thing)):
        assert name in WRITTEN
    else:
        assert "Example::\n" in inspect.getdoc(thing)


@pytest.mark.parametrize("name", ENTRIES)
def test_what_the_reference_shows_is_there(name: str) -> None:
    assert shown(name) is not None


@pytest.mark.parametrize("name", WRITTEN)
def test_an_example_of_the_reference_runs(name: str) -> None:
    exec(compile(textwrap.dedent(WRITTEN[name]), name, "exec"), {"torch": torch, "manual_mlp": manual_mlp})


def test_the_example_of_the_first_page_runs_and_ends_in_a_check() -> None:
    (example,) = re.findall(r"^```python\n(.*?)^```$", (DOCS / "index.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    assert example.splitlines()[-1].startswith("assert")
    exec(compile(example, "index.md", "exec"), {})


def test_ci_builds_the_site_and_a_warning_stops_it() -> None:
    assert "make docs" in (ROOT / ".ci" / "run").read_text("utf-8").splitlines()
    recipe = re.search(r"^docs:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)[1]
    assert "--fail-on-warning" in recipe
    assert "nitpicky = True" in (DOCS / "conf.py").read_text("utf-8").splitlines()


class Page(HTMLParser):
    """What a page refers to, and the places in it that others may refer to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.places: set[str] = set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.places |= {given[name] for name in ("id", "name") if name in given}
        found = {given[name] for name in ("href", "src", "srcset", "poster", "data") if given.get(name)}
        if tag in ("a", "area"):
            self.links |= found
        elif tag not in ("use", "mglyph"):
            self.loaded |= found


@pytest.mark.parametrize(
    ("line", "loads"),
    [
        ('<script src="https://cdn.example/a.js"></script>', True),
        ('<link rel="stylesheet" href="//cdn.example/a.css"/>', True),
        ('<img alt="a" src="http://example/a.png"/>', True),
        ("@import url(https://example/a.css);", True),
        ("body { background: url('//example/a.png') }", True),
        ('<a href="https://example/">followed, not loaded</a>', False),
        ('<script src="_static/a.js"></script><img src="data:image/png;base64,//8="/>', False),
    ],
)
def test_make_docs_stops_at_what_a_page_would_load_from_another_machine(line: str, loads: bool) -> None:
    for package in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(package)
    assert bool(runpy.run_path(str(DOCS / "hooks.py"))["LOADED"].search(line)) is loads


def test_the_site_builds_without_a_warning_and_all_its_links_lead_somewhere_without_a_network(tmp_path: Path) -> None:
    for package in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(package)
    site = tmp_path / "site"
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--quiet", "-d", tmp_path / "trees", DOCS, site]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    pages = {path: Page(path) for path in site.rglob("*.html")}
    built = {path.relative_to(site).with_suffix("").as_posix() for path in pages}
    assert built >= {path.relative_to(DOCS).with_suffix("").as_posix() for path in (*PAGES, *API)}
    for path, page in pages.items():
        for link in page.loaded | page.links:
            scheme, host, to, _, fragment = urlsplit(link)
            if scheme or host:
                assert link in page.links - page.loaded or scheme == "data", (path.name, link)
                continue
            target = (path.parent / unquote(to)).resolve() if to else path
            assert target.is_file(), (path.name, link)
            if fragment and target in pages:
                assert unquote(fragment) in pages[target].places, (path.name, link)
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//|@import", style.read_text("utf-8")), style.name
    # The live page itself, there and back.
    live, proofs = pages[site / LIVE], pages[site / "derivation.html"]
    assert {f"step-{k}" for k in range(14)} <= live.places
    assert {"index.html", "derivation.html"} <= live.links
    assert f"{LIVE}#step-3" in proofs.links
    assert '<script type="application/json" id="data">' in (site / LIVE).read_text("utf-8")
    assert "<math" in (site / "derivation.html").read_text("utf-8")
