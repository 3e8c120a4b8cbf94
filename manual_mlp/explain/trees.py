"""The trees of a page, each by its number."""

from __future__ import annotations

import json

from manual_mlp.explain.expressions import Tree


class Trees:
    """Number the trees of a page, equal ones once."""

    def __init__(self) -> None:
        self.trees: list[Tree] = []
        self._numbers: dict[str, int] = {}

    def number(self, tree: Tree) -> int:
        """Return the number of a tree."""
        key = json.dumps(tree)
        if key not in self._numbers:
            self._numbers[key] = len(self.trees)
            self.trees.append(tree)
        return self._numbers[key]
