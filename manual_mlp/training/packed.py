"""Tensors and plain values as the bytes of a safetensors file: nothing in them is code."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_PLAIN = "plain"  # the name of the tensor that holds, in JSON, what is no tensor


def pack_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Write tensors by name."""
    from safetensors.torch import save

    return save({name: value.detach().cpu().contiguous() for name, value in tensors.items()})


def pack(tree: dict[Any, Any]) -> bytes:
    """Write a dict of tensors, of what JSON knows, and of dicts, lists and tuples of them."""
    found: dict[str, Tensor] = {}
    plain = json.dumps(_plain(tree, found)).encode()
    return pack_tensors({**found, _PLAIN: torch.frombuffer(bytearray(plain), dtype=torch.uint8)})


def unpack_tensors(data: bytes) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file.

    Raises:
        ValueError: it is none.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(data)
    except (SafetensorError, KeyError, RuntimeError, OverflowError, MemoryError) as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None


def unpack(data: bytes) -> dict[Any, Any]:
    """Read what :func:`pack` has written of a tree.

    Raises:
        ValueError: it is none.
    """
    found = unpack_tensors(data)
    try:
        tree = _tree(json.loads(bytes(found[_PLAIN].tolist())), found)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"no packed values: {type(error).__name__} {error}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"no packed values: expected a dict, got {type(tree).__name__}")
    return tree


def _plain(value: Any, found: dict[str, Tensor]) -> Any:
    """Return a value for JSON, in which a container tells its kind, and a tensor the name under which it is found."""
    if isinstance(value, Tensor):
        name = str(len(found))
        found[name] = value
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[_plain(key, found), _plain(entry, found)] for key, entry in value.items()]}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_plain(entry, found) for entry in value]}
    return value


def _tree(value: Any, found: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return found[content]
    if kind == "dict":
        return {_tree(key, found): _tree(entry, found) for key, entry in content}
    return {"list": list, "tuple": tuple}[kind](_tree(entry, found) for entry in content)
