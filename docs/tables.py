"""Write the tables of the documents that the code itself knows: ``python docs/tables.py``, or ``--check``.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``, each a line of its own, and keeps their margin.
"""

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from manual_mlp import activations, losses
from manual_mlp.activations.registry import ENTRIES, Entry, parameters_of

ROOT = Path(__file__).parents[1]
DOCUMENTS = ROOT / "README.md", ROOT / "docs" / "derivation.md", ROOT / "docs" / "gpu.md"
MARKED = re.compile(r"^( *)<!-- table: ([\w-]+) -->\n(.*?)^ *<!-- end -->$", re.MULTILINE | re.DOTALL)


def names() -> str:
    """List the activations known by name."""
    return ", ".join(f"`{name}`" for name in activations.names()) + "."


def loss_names() -> str:
    """List the losses known by name, with the options of each."""
    told = [
        f"`{name}`" + (f" ({', '.join(loss.options)})" if loss.options else "") for name, loss in losses.LOSSES.items()
    ]
    return ", ".join(told) + "."


def of_z() -> str:
    """Lay out f, f′ and f″ of each activation, as the docstring of its factory has them."""
    return _table(("f", "f(z)", "f′(z)", "f″(z)", "where"), ("f", "f′", "f″", "where"), ENTRIES.values())


def of_y() -> str:
    """Lay out f′ and its derivative for the activations that compute them from y."""
    kept = [entry for entry in ENTRIES.values() if entry.default.df_y is not None]
    return _table(("f", "f′", "∂f′/∂y"), ("f′ of y", "∂f′/∂y"), kept)


def stages() -> str:
    """Lay out the stages of the day on a GPU."""
    sys.path.append(str(ROOT))  # of a script it is docs/
    from benchmarks.day.stages import markdown

    return markdown()


TABLES: dict[str, Callable[[], str]] = {
    "activations": names,
    "losses": loss_names,
    "of-z": of_z,
    "of-y": of_y,
    "stages": stages,
}


def rewritten(text: str) -> str:
    """Put the tables between their markers."""

    def put(found: re.Match[str]) -> str:
        margin, name, _ = found.groups()
        lines = [f"<!-- table: {name} -->", *TABLES[name]().splitlines(), "<!-- end -->"]
        return "\n".join(margin + line for line in lines)

    return MARKED.sub(put, text)


def main(arguments: list[str]) -> int:
    """Rewrite the documents; with ``--check`` change nothing, and return 1 if one is not up to date."""
    late = [path for path in DOCUMENTS if rewritten(path.read_text("utf-8")) != path.read_text("utf-8")]
    for path in late:
        if "--check" not in arguments:
            path.write_text(rewritten(path.read_text("utf-8")), "utf-8")
        print(f"{path.relative_to(ROOT)} {'differs: make tables' if '--check' in arguments else 'rewritten'}")
    return int(bool(late) and "--check" in arguments)


def _table(titles: Sequence[str], keys: Sequence[str], entries: Iterable[Entry]) -> str:
    lines = [f"| {' | '.join(titles)} |", f"|{'---|' * len(titles)}"]
    for entry in entries:
        numbers = parameters_of(entry.default)
        given = f"({', '.join(numbers)})" if numbers else ""
        formulas = [entry.formulas.get(key, "").replace("|", r"\|") for key in keys]
        lines.append(f"| {' | '.join((f'`{entry.make.__name__}{given}`', *formulas))} |".replace("|  |", "| |"))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
