"""Numbers that a reader gives: a network as a JSON object, which a file holds."""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manual_mlp import activations, losses
from manual_mlp.activations import Activation
from manual_mlp.activations.registry import of_spelled
from manual_mlp.explain.network import Network, check_shapes
from manual_mlp.explain.writing import unprotected

# Each argument of a Network that holds numbers, and its key.
_KEYS = {"h": "H", "x": "X", "v": "V", "c": "C", "w": "W", "b": "B", "target": "Y*"}
_KNOWN = (*_KEYS.values(), "T", "f", "loss")


def read_numbers(path: Path) -> Network:
    """Read a network from a file that holds a JSON object.

    Its keys are H, or X, V and C, of which H is made, or all four, which makes nothing of these three; W, B and Y*,
    which may be called T; and f and loss, if they are not sigmoid and squared-error. H, X, V, W and Y* are lists of
    rows, and a single row may stand alone; C and B are one row.

    Raises:
        ValueError: a file that cannot be read, or holds something else, in one line.

    Example::

        from pathlib import Path

        mine = Path("mine.json")
        mine.write_text('{"H": [1, 2], "W": [[3, 4], [5, 6]], "B": [0, 0], "Y*": [0, 1]}')
        assert read_numbers(mine).h.tolist() == [[1.0, 2.0]]
    """
    found = _object(path)
    unknown = [key for key in found if key not in _KNOWN]
    if unknown:
        raise ValueError(f"expected keys among {', '.join(_KNOWN)} in {path}, got {reprlib.repr(unknown[0])}")
    if "T" in found and "Y*" in found:
        raise ValueError(f"expected Y* or T in {path}, which are the same, got both")
    keys = _KEYS | ({"target": "T"} if "T" in found else {})
    _check_keys(path, found, keys)
    numbers = {
        name: _tensor(found[key], f"{key} of {path}", name in "cb") for name, key in keys.items() if key in found
    }
    f, loss = _activation(found.get("f", "sigmoid"), path), found.get("loss", "squared-error")
    if loss not in losses.flags():
        raise ValueError(f"expected loss of {path} among {', '.join(losses.flags())}, got {_said(loss)}")
    try:
        check_shapes(numbers, keys)
        network = (Network if "x" in numbers else Network.of_layer)(**numbers, activation=f, loss=loss)
    except ValueError as error:
        said = str(error).replace("'s target", f"'s {keys['target']}")
        raise ValueError(f"{said}, in {path}") from None
    if not all(t.isfinite().all() for t in (network.z1, network.cost_of(network.y), *network.gradients)):
        raise ValueError(f"expected numbers in {path} of which J and its derivatives are finite, got others")
    return network


def to_numbers(network: Network) -> dict[str, Any]:
    """Write a network as the object that :func:`read_numbers` reads; with H where it is given.

    Example::

        from manual_mlp.explain import draw_network

        assert to_numbers(draw_network(outputs=1))["loss"] == "squared-error"
    """
    numbers = {key: getattr(network, name) for name, key in _KEYS.items() if name != "h" or not network.linked}
    lists = {key: value.tolist() for key, value in numbers.items()}
    return lists | {"f": unprotected(network.name_of_f), "loss": network.loss}


def _object(path: Path) -> dict[str, Any]:
    def once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        for key, times in Counter(key for key, _ in pairs).most_common(1):
            if times > 1:
                raise ValueError(f"expected each key once in {path}, got {reprlib.repr(key)} {times} times")
        return dict(pairs)

    try:
        # Some editors begin a file with a mark, which JSON does not know.
        text = Path(path).read_text(encoding="utf-8-sig")
        # A whole number of many digits is no int that Python reads.
        found = json.loads(text, parse_int=float, object_pairs_hook=once)
    except OSError as error:
        raise ValueError(f"expected a file that can be read, got {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8 in {path}, got another byte at {error.start}") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"expected JSON in {path}, got something else in {where}: {error.msg}") from None
    except RecursionError:
        raise ValueError(f"expected rows of numbers in {path}, got lists in lists without end") from None
    if not isinstance(found, dict):
        raise ValueError(f"expected a JSON object in {path}, with keys such as W, got {_said(found)}")
    return found


def _check_keys(path: Path, found: dict[str, Any], keys: dict[str, str]) -> None:
    """Raise an error unless all numbers are there that a network needs."""
    missing = [keys[name] for name in ("w", "b", "target") if keys[name] not in found]
    if missing:
        raise ValueError(f"expected W, B and Y* in {path}, got no {' and no '.join(missing)}")
    missing = [key for key in "XVC" if key not in found]
    if len(missing) in (1, 2) or (missing and "H" not in found):
        wanted = "all or none of X, V and C beside H" if "H" in found else "H, or all of X, V and C,"
        raise ValueError(f"expected {wanted} in {path}, got no {' and no '.join(missing)}")


def _tensor(value: Any, where: str, one_row: bool) -> Tensor:
    """Make the tensor of a key's numbers.

    Shape:
        (R, C), or (C,) of one row.
    """
    if not isinstance(value, list):
        raise ValueError(f"expected a list of numbers in {where}, got {_said(value)}")
    rows = value if any(isinstance(row, list) for row in value) else [value]
    for r, row in enumerate(rows, 1):
        if not isinstance(row, list):
            raise ValueError(f"expected rows of numbers in {where}, got {_said(row)} for row {r}")
        wrong = [entry for entry in row if not (isinstance(entry, float) and math.isfinite(entry))]
        if wrong:
            finite = "finite " if isinstance(wrong[0], float) else ""
            raise ValueError(f"expected {finite}numbers in {where}, got {_said(wrong[0])} in row {r}")
        if not row:
            raise ValueError(f"expected numbers in {where}, got none in row {r}")
        if len(row) != len(rows[0]):
            raise ValueError(
                f"expected rows of the same length in {where}, got {len(rows[0])} in row 1 and {len(row)} in row {r}"
            )
    if one_row and len(rows) > 1:
        raise ValueError(f"expected one row of numbers in {where}, got {len(rows)} rows")
    return torch.tensor(rows[0] if one_row else rows, dtype=torch.float64)


def _activation(spelled: Any, path: Path) -> Activation:
    names = ", ".join(activations.names())
    try:
        if re.fullmatch(r"\w+\(.{0,99}\)", spelled):
            f = of_spelled(spelled)
            f.f(torch.zeros(1))  # an argument of the wrong kind is met here at the latest
            return f
        if spelled in activations.names():
            return activations.get(spelled)
    except (KeyError, SyntaxError, TypeError, ValueError, RuntimeError, MemoryError):
        pass
    raise ValueError(f"expected f of {path} among {names}, or with arguments as in elu(0.5), got {_said(spelled)}")


def _said(value: Any) -> str:
    """Write what stands in the place of numbers."""
    if isinstance(value, str):
        return reprlib.repr(value)
    return "a list" if isinstance(value, list) else "an object" if isinstance(value, dict) else json.dumps(value)
