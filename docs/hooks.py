"""What Sphinx has to be told of this project: links out of docs/, formulas as MathML, docstrings, the live page."""

import contextlib
import io
import os
import posixpath
import re
import shutil
from collections.abc import Iterable, Iterator
from html import escape, unescape
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging

from manual_mlp.__main__ import main as command
from manual_mlp.activations.registry import ENTRIES

DOCS = Path(__file__).parent
ROOT = DOCS.parent
# A link out of docs/, in Markdown. Pictures are found by Sphinx itself.
OUTSIDE = re.compile(r"\]\((?:\.\./)+(?!\S+\.(?:png|svg)\))([^)\s#]+)(#[^)\s]*)?\)")
# What a page would load from another machine; a link that one follows is none of that.
LOADED = re.compile(
    r"""<(?:script|img|iframe|source|video|embed)\b[^>]*\bsrc(?:set)?="(?:https?:)?//[^"]*"|"""
    r"""<link\b[^>]*\bhref="(?:https?:)?//[^"]*"|url\(['"]?(?:https?:)?//[^)]*\)|@import[^;]*//[^;]*"""
)
# How a file is shown; one with another ending is copied as it is.
LEXERS = {".py": "python", ".cpp": "cpp", ".h": "cpp", ".css": "css", ".js": "javascript", ".toml": "toml", ".md": "md"}
LEXERS |= {".sh": "bash", ".cff": "yaml", "": "text"}
MATHML = ' xmlns="http://www.w3.org/1998/Math/MathML"'  # which HTML knows
LIVE = "explain.html"
BACK = '<p class="soft"><a href="index.html">manual_mlp</a> · <a href="derivation.html">the derivation</a></p>'
PROOFS = "docs/derivation.md", '<a href="derivation.html">docs/derivation.md</a>'


# Links out of docs/: a file of the repository has a page of its own, and explain.html lies beside the others.


def page_of(path: str) -> str:
    """Name the page, or the file, of the site that shows a file or a folder of the repository."""
    target = ROOT / path
    if target.is_dir():
        return posixpath.join("source", path.strip("/"), "index.html")
    return posixpath.join("source", path) + (".html" if target.suffix in LEXERS else "")


def linked(text: str) -> str:
    """Turn the links out of docs/ into links of the site."""

    def put(found: re.Match[str]) -> str:
        path, fragment = found.groups(default="")
        page = path if path == LIVE else page_of(path)
        line = re.sub("^#L(?=[0-9])", "#L-", fragment)
        return f"](place:{page}{line})" if fragment else f"](site:{page})"

    return OUTSIDE.sub(put, text)


def on_source(app: Sphinx, docname: str, source: list[str]) -> None:
    if Path(app.env.doc2path(docname)).suffix == ".md":
        source[0] = linked(source[0])


def targets() -> Iterator[str]:
    """Find the files and folders that the documents link to, and the files in those folders."""
    for document in sorted(DOCS.glob("*.md")):
        for path, _ in OUTSIDE.findall(document.read_text("utf-8")):
            if path != LIVE:
                yield path.strip("/")
            if (ROOT / path).is_dir():
                yield from (posixpath.join(path, file.name) for file in files_in(ROOT / path))


def files_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.is_file() and file.suffix in LEXERS)


def on_pages(app: Sphinx) -> Iterable[tuple[str, dict[str, Any], str]]:
    """Make the pages of the files and folders that are linked to."""
    for path in dict.fromkeys(targets()):
        target, page = ROOT / path, page_of(path)
        if not target.exists():
            raise ExtensionError(f"expected a file of the repository, got {path}")
        title = f"<h1>{escape(path)}</h1>"
        if target.is_dir():
            items = "".join(f'<li><a href="{file.name}.html">{file.name}</a></li>' for file in files_in(target))
            yield page.removesuffix(".html"), {"title": path, "body": f"{title}<ul>{items}</ul>"}, "page.html"
        elif page.endswith(".html"):
            lexer = LEXERS[target.suffix]
            code = app.builder.highlighter.highlight_block(target.read_text("utf-8"), lexer, lineanchors="L")
            yield page.removesuffix(".html"), {"title": path, "body": title + code}, "page.html"
        else:
            (Path(app.outdir) / page).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(target, Path(app.outdir) / page)


# Formulas, which a browser typesets by itself.


def spelled(formula: str) -> str:
    """Spell a formula in the commands that docutils knows."""
    for brackets, side in (("([", "l"), (")]", "r")):
        formula = re.sub(rf"\\([Bb]ig)(?=[{re.escape(brackets)}])", rf"\\\1{side}", formula)
    return formula.replace(r"\dots", r"\ldots")


def typeset(formula: str, block: bool) -> str:
    """Write a formula in MathML."""
    made = tex2mathml(spelled(formula), as_block=block).replace(MATHML, "")
    # XML knows few of the names that HTML has for signs.
    whole = ElementTree.fromstring(re.sub(r"&(?!(?:lt|gt|amp);)\w+;", lambda found: unescape(found[0]), made))
    for node in list(whole.iter()):
        if node.tag in ("mover", "munderover") and node[-1].text in ("˙", "~"):
            letter = ElementTree.Element("mover", accent="false")
            letter.extend([node[0], node[-1]])
            # An index stands beside a letter that has an accent, and not below it.
            node.tag = "msub" if len(node) == 3 else "mrow"
            node[:] = [letter, *node[1:-1]]
        elif node.tag == "mo" and node.text == "'":
            node.text = "′"
            node.attrib |= {"lspace": "0", "rspace": "0"}
    return ElementTree.tostring(whole, encoding="unicode")


def visit_math(translator: Any, node: nodes.Element) -> None:
    block = isinstance(node, nodes.math_block)
    try:
        made = typeset(node.astext(), block)
    except MathError as error:
        logging.getLogger(__name__).warning("%s in %s", error, node.astext(), location=node)
        made = escape(node.astext())
    translator.body.append(f'<div class="formula">{made}</div>\n' if block else made)
    raise nodes.SkipNode


# Docstrings.


def on_docstring(_app: Sphinx, kind: str, name: str, thing: Any, _options: Any, lines: list[str]) -> None:
    """Set the formulas of an activation line by line."""
    entry = ENTRIES.get(name.rpartition(".")[2])
    if entry is None or entry.make is not thing or not entry.formulas:
        return
    signs = "|".join(map(re.escape, entry.formulas))
    at = [k for k, line in enumerate(lines) if re.match(rf"({signs})( =|(?<=where)) ", line)]
    lines[at[0] : at[-1] + 1] = [".. code-block:: text", "", *(f"   {lines[k]}" for k in at), ""]


def without_overloads(_app: Sphinx) -> None:
    """Show the one signature: the others differ in what is returned with return_stats."""
    analyzer = ModuleAnalyzer.for_module("manual_mlp.cross_entropy")
    analyzer.analyze()
    analyzer.overloads.clear()


class CommandHelp(Directive):
    """Show what a command says of itself: ``.. command-help:: build``."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        said = io.StringIO()
        before = os.environ.get("COLUMNS")
        os.environ["COLUMNS"] = "88"
        try:
            with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
                command([*self.arguments, "--help"])
        finally:
            os.environ.pop("COLUMNS")
            if before is not None:
                os.environ["COLUMNS"] = before
        return [nodes.literal_block(said.getvalue(), said.getvalue(), language="text", classes=["help"])]


# The live page, and what all pages need.


def on_finished(app: Sphinx, error: Exception | None) -> None:
    if error is not None or app.builder.name != "html":
        return
    page = Path(app.outdir) / LIVE
    with contextlib.redirect_stdout(io.StringIO()):
        if command(["explain", "--html", str(page)]):
            raise ExtensionError("expected an explanation whose checks pass")
    told, script, rest = page.read_text("utf-8").partition("<script")
    if told.count("<header>") != 1 or PROOFS[0] not in told:
        raise ExtensionError(f"expected a header in {LIVE}, and the name of the proofs, to put links into")
    told = told.replace("<header>", f"<header>{BACK}").replace(*PROOFS)
    page.write_text(f"{told}{script}{rest}", "utf-8")
    for path in Path(app.outdir).rglob("*"):
        if path.suffix in (".html", ".css"):
            found = LOADED.search(path.read_text("utf-8"))
            if found:
                raise ExtensionError(f"expected pages that need no network, got {found[0]} in {path}")


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect all of this."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
    app.add_directive("command-help", CommandHelp)
    app.connect("builder-inited", without_overloads)
    app.connect("source-read", on_source)
    app.connect("autodoc-process-docstring", on_docstring)
    app.connect("html-collect-pages", on_pages)
    app.connect("build-finished", on_finished)
    return {"parallel_read_safe": True}
