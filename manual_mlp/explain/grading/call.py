"""A learner's function, called with tensors or with NumPy arrays, and its results as tensors with names."""

from __future__ import annotations

import contextlib
import difflib
import dis
import functools
import inspect
import itertools
import re
import traceback
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from manual_mlp.explain.blocks import Refused
from manual_mlp.explain.network import Network

Backward = Callable[[Any, Any, Any, Any], Any]
# In the order of the derivation: a later step rests on those before it.
STEPS = ("Z", "Y", "dY", "delta", "dB", "dW", "dH")
LAYOUTS = ("textbook", "torch")

_QUANTITIES = {
    "Z": "z logit logits preactivation preactivations net",
    "Y": "y yhat ypred pred prediction predictions out output outputs a p probs probabilities",
    "B": "b bias biases",
    "W": "w weight weights",
    "H": "h hidden x input inputs",
}
_OTHERS = {"δ": "delta", "error": "delta", "err": "delta", "de": "dY", "dz": "delta", "deltas": "delta"}
_MARKS = re.compile(r"^(gradient|gradof|grad|d(?:[jlce]|loss|cost)d|∂[jlc]∂|d|∂|g)?(.+?)(gradient|grad)?$")


@dataclass(frozen=True, eq=False)
class Answer:
    """Hold what a learner's function returned.

    Attributes:
        results: by their names, in the order of the derivation, as float64.
        dtypes: in which they came; of a list that of its least precise number.
        after: H, W, B and target after the call, W in the textbook's layout.
        changed: the names of those that have other numbers, or another shape, than before.
        arrays: whether a result was a NumPy array.
        shared: the pairs of results that are one tensor.
    """

    results: dict[str, Tensor]
    dtypes: dict[str, torch.dtype]
    after: dict[str, Tensor]
    changed: tuple[str, ...]
    arrays: bool
    shared: tuple[tuple[str, str], ...] = ()


def ask(fn: Backward, network: Network, layout: str, arrays: bool = False) -> Answer | Refused:
    """Call the function on copies, and give its results their names.

    Raises:
        TypeError, ValueError: what it returned are no results.
    """
    w = network.w.mT if layout == "torch" else network.w
    before = {"H": network.h, "W": w, "B": network.b, "target": network.target}
    given = {name: value.clone(memory_format=torch.contiguous_format) for name, value in before.items()}
    try:
        arguments: list[Any] = [value.numpy() if arrays else value for value in given.values()]
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), _default_dtype_kept():
            # NumPy's functions take a tensor, and mention what torch will have to change for that.
            warnings.filterwarnings("ignore", "__array_wrap__ must accept", DeprecationWarning)
            found = fn(*arguments)
    except (Exception, SystemExit) as error:  # whatever a learner's code raises is an answer to the learner
        return Refused(f"{type(error).__name__}: {error}{_where(error, fn)}")
    named = _named(found)
    read = {name: _read(name, named[name]) for name in STEPS if name in named}
    results = {name: value for name, (value, _) in read.items()}
    if "dB" in results and results["dB"].shape == (1, len(network.b)):
        results["dB"] = results["dB"][0]  # the textbook's B is a row
    after = {name: value.detach().clone() for name, value in given.items()}
    changed = tuple(name for name, value in after.items() if not torch.equal(value, before[name]))
    if layout == "torch" and after["W"].dim() == 2:
        after["W"] = after["W"].mT
    came_as_array = any(_is_array(value) for value in named.values())
    return Answer(
        results, {name: dtype for name, (_, dtype) in read.items()}, after, changed, came_as_array, _shared(named)
    )


def _shared(named: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """List the results that are stored in one place."""
    tensors = {name: named[name] for name in STEPS if isinstance(named.get(name), Tensor)}
    return tuple(
        (one, other)
        for one, other in itertools.combinations(tensors, 2)
        if tensors[one] is tensors[other]
        or (
            tensors[one].layout == tensors[other].layout == torch.strided
            and _place(tensors[one]) == _place(tensors[other])
        )
    )


def _place(value: Tensor) -> tuple[int, torch.Size]:
    return value.data_ptr(), value.shape


def _where(error: BaseException, fn: Backward) -> str:
    """Tell the line of the learner's own files that raised."""
    files = {function.__code__.co_filename for function in _functions(fn)}
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    if not lines:
        return ""
    return f" (line {lines[-1].lineno}{f': {lines[-1].line}' if lines[-1].line else ''})"


@contextlib.contextmanager
def _default_dtype_kept() -> Iterator[None]:
    before = torch.get_default_dtype()
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _named(found: Any) -> Mapping[str, Any]:
    """Give the results their names."""
    if found is None:
        raise TypeError(
            "expected a dict of results or a tuple, got NoneType: did you forget `return`? "
            "A function without it returns None."
        )
    if hasattr(found, "_asdict"):
        found = found._asdict()
    if isinstance(found, (tuple, list)):
        names = {2: ("dW", "dB"), 3: ("dH", "dW", "dB")}.get(len(found))
        if names is None:
            raise TypeError(f"expected (dW, dB) or (dH, dW, dB), got {len(found)} results: a dict names any of them")
        found = dict(zip(names, found, strict=True))
    if not isinstance(found, Mapping) or not found:
        single = ": return a dict, as in {'dW': dW}" if isinstance(found, Tensor) or _is_array(found) else ""
        raise TypeError(f"expected a dict of results or a tuple, got {type(found).__name__}{single}")
    unknown = [name for name in found if not isinstance(name, str) or name not in STEPS]
    if unknown:
        meant = [(str(name), _meant(str(name))) for name in unknown]
        asked = ", ".join(f"{name} (did you mean {right}?)" if right else name for name, right in meant)
        raise ValueError(f"expected results among {', '.join(STEPS)}, got {asked}")
    return found


def _meant(name: str) -> str:
    """Guess which result a name stands for, or return an empty string."""
    plain = "".join(c for c in name.lower() if c.isalpha() or c == "∂")
    if plain in _OTHERS:
        return _OTHERS[plain]
    marks = _MARKS.match(plain)
    before, core, behind = marks.groups() if marks else ("", plain, "")
    for quantity, words in _QUANTITIES.items():
        if core in words.split():
            derivative = bool(before or behind) or quantity in "BWH"
            return "delta" if derivative and quantity == "Z" else f"d{quantity}" if derivative else quantity
    return next(iter(difflib.get_close_matches(name, STEPS, 1)), "")


def _is_array(value: Any) -> bool:
    return hasattr(value, "__array__") and not isinstance(value, Tensor)


def _read(name: str, value: Any) -> tuple[Tensor, torch.dtype]:
    """Return a result as float64, and its own dtype."""
    try:
        tensor, dtype = _tensor(value)
        tensor = tensor.cpu()
        if not dtype.is_complex:
            tensor = tensor.to(torch.float64, copy=True).resolve_neg()
    except Exception as error:
        words = str(error).splitlines()
        raise TypeError(
            f"expected a tensor for {name}, got {type(value).__name__}: {words[0] if words else ''}"
        ) from None
    if dtype.is_complex:
        raise TypeError(f"expected real numbers for {name}, got {dtype}")
    return tensor, dtype


def _tensor(value: Any) -> tuple[Tensor, torch.dtype]:
    """Read numbers, however deep in lists, and tell their dtype: of several the least precise."""
    if isinstance(value, Tensor):
        value = value.detach()
        if value.is_quantized:
            return value.dequantize(), value.dtype
        return value.to_dense() if value.layout != torch.strided else value, value.dtype
    if isinstance(value, (list, tuple)) and value:
        if all(type(entry) in (int, float) for entry in value):
            wide = torch.float64 if any(type(entry) is float for entry in value) else torch.int64
            return torch.tensor(value, dtype=wide), wide
        parts = [_tensor(entry) for entry in value]
        dtypes = {dtype for _, dtype in parts}
        if any(dtype.is_complex for dtype in dtypes):
            return parts[0][0], torch.complex128
        stacked = torch.stack([part.to("cpu", torch.float64) for part, _ in parts])
        # Whole numbers among others are as good as exact.
        return stacked, coarsest({d for d in dtypes if d.is_floating_point} or dtypes)
    if type(value) is float:
        return torch.tensor(value, dtype=torch.float64), torch.float64
    if _is_array(value) and hasattr(value, "copy"):
        value = value.copy()  # a reversed array has strides that torch does not take
    tensor = torch.as_tensor(value)
    return tensor.detach(), tensor.dtype


def coarsest(dtypes: set[torch.dtype]) -> torch.dtype:
    """Return the least precise of some dtypes; whole numbers have no digits after the point."""
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps if dtype.is_floating_point else 1.0)


def mentions(fn: Backward, package: str) -> bool:
    """Tell whether a function, or one that it calls by name, uses a package."""
    todo, seen = list(_functions(fn)), set()
    while todo:
        function = todo.pop()
        if function in seen:
            continue
        seen.add(function)
        values = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
        for code in _codes(function.__code__):
            if any(
                op.opname == "IMPORT_NAME" and str(op.argval).split(".")[0] == package
                for op in dis.get_instructions(code)
            ):
                return True
            values += [function.__globals__[name] for name in code.co_names if name in function.__globals__]
        for value in values:
            if _package(value) == package:
                return True
            if isinstance(value, (types.FunctionType, types.MethodType)):
                todo += _functions(value)
    return False


def _functions(fn: Any) -> Iterator[types.FunctionType]:
    """List the Python functions that a callable consists of."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    if isinstance(fn, types.MethodType):
        fn = fn.__func__
    if isinstance(fn, types.FunctionType):
        fn = inspect.unwrap(fn)
        if isinstance(fn, types.FunctionType):
            yield fn
        return
    # The methods of an object that can be called.
    yield from (value for value in vars(type(fn)).values() if isinstance(value, types.FunctionType))


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _is_filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _package(value: Any) -> str:
    if isinstance(value, types.ModuleType):
        return value.__name__.split(".")[0]
    named = value if callable(value) and isinstance(getattr(value, "__module__", None), str) else type(value)
    return str(getattr(named, "__module__", "")).split(".")[0]
