"""Checkpoints that survive a kill: a set of files belongs together by a manifest that is renamed into place last."""

from __future__ import annotations

import hashlib
import io
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from manual_mlp.training.errors import InputError

_MANIFEST, _BEFORE = "manifest.json", "manifest.before.json"
_PARTS = "checkpoints"  # a folder of the run's, with the files of the two latest sets
LAST, BEST = "last.safetensors", "best.safetensors"


def save(folder: Path, step: int, weights: dict[str, Tensor], state: dict[str, Any], best: bool) -> None:
    """Write a checkpoint; until its last moment the one before is what :func:`load` finds, and it is kept.

    Args:
        folder: of the run.
        weights: of the model.
        state: whatever else is needed to go on, in what ``torch.save`` writes without pickling classes.
        best: whether these weights are the best so far; so they are, too, where those were deleted.

    Raises:
        OSError: the disk is full, or not writable; what was there before still is.
    """
    from safetensors.torch import save as to_bytes

    parts = folder / _PARTS
    parts.mkdir(exist_ok=True)
    before = _manifest(_current(folder)) if _current(folder).exists() else None
    weights_name, state_name = f"{step}.safetensors", f"{step}.pt"
    try:
        weights_digest = write(
            parts / weights_name, to_bytes({name: value.contiguous() for name, value in weights.items()})
        )
        state_digest = write(parts / state_name, _pickled(state))
        last = {"weights": [weights_name, weights_digest], "state": [state_name, state_digest]}
        keeps = not best and before is not None and (parts / before["best"]["weights"][0]).exists()
        found = {"last": last, "best": before["best"] if before and keeps else {"weights": last["weights"]}}
        write(folder / _MANIFEST, _as_json(found))
        if before:
            write(folder / _BEFORE, _as_json(before))
    except BaseException:
        with suppress(InputError):  # a damaged manifest, whose files then stay
            _sweep(folder)
        raise
    _sweep(folder)
    publish(folder)


def publish(folder: Path) -> None:
    """Let `last.safetensors` and `best.safetensors` be what the manifest names; a kill may have come before that."""
    found = _manifest(_current(folder))
    for name, kind in ((LAST, "last"), (BEST, "best")):
        part, temporary = folder / _PARTS / found[kind]["weights"][0], folder / f".{name}"
        temporary.unlink(missing_ok=True)
        if not part.exists() or ((folder / name).exists() and os.path.samefile(folder / name, part)):
            continue
        try:
            os.link(part, temporary)
        except OSError:  # a file system without links
            temporary.write_bytes(part.read_bytes())
        os.replace(temporary, folder / name)


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the latest checkpoint: weights and state.

    Raises:
        InputError: there is none, or a file of it is missing or damaged; how to go on all the same.
    """
    from safetensors.torch import load as from_bytes

    try:
        found = _manifest(_current(folder))
        weights, state = (_read(folder / _PARTS, found["last"][part]) for part in ("weights", "state"))
    except InputError as error:
        manifest = folder / _MANIFEST
        if not (manifest.exists() and (folder / _BEFORE).exists()):
            raise
        raise InputError(f"{error}; delete {manifest} to go on from the checkpoint before this one") from None
    best = folder / _PARTS / found["best"]["weights"][0]
    if best.exists():
        try:
            _read(folder / _PARTS, found["best"]["weights"])
        except InputError as error:
            raise InputError(f"{error}; delete it to go on without these best weights") from None
    return from_bytes(weights), torch.load(io.BytesIO(state), weights_only=True)


def _current(folder: Path) -> Path:
    """Return the manifest that counts: the latest, or the one before where that was deleted."""
    return next((path for name in (_MANIFEST, _BEFORE) if (path := folder / name).exists()), folder / _MANIFEST)


def _manifest(path: Path) -> dict[str, Any]:
    """Read `last` and `best`: names and SHA-256 of weights and state."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(
            f"expected a checkpoint in {path.parent}, got none: the run ended before its first one; begin it again"
        ) from None
    try:
        found: dict[str, Any] = json.loads(content)["sets"]
        if _as_json(found) != content:
            raise ValueError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"expected the manifest of a checkpoint, got {path}, which is damaged") from None
    return found


def _as_json(sets: dict[str, Any]) -> bytes:
    """Write a manifest, with a SHA-256 of its own."""
    digest = hashlib.sha256(json.dumps(sets).encode()).hexdigest()
    return json.dumps({"sets": sets, "sha256": digest}, indent=2).encode() + b"\n"


def write(path: Path, data: bytes) -> str:
    """Write a file so that it is whole or not there, even after a power cut; return its SHA-256."""
    temporary = path.with_name(f".{path.name}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)
    return hashlib.sha256(data).hexdigest()


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _read(parts: Path, entry: tuple[str, str]) -> bytes:
    """Read a file by its name and SHA-256."""
    name, digest = entry
    path = parts / name
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"expected {path}, which the manifest names: {reason}") from None
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise InputError(f"expected {path} with SHA-256 {digest[:12]}…, got {found[:12]}…: the file is damaged")
    return data


def _pickled(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _sweep(folder: Path) -> None:
    """Delete what neither manifest names: of a save that did not end, or of an older set."""
    manifests = [_manifest(path) for name in (_MANIFEST, _BEFORE) if (path := folder / name).exists()]
    kept = {name for sets in manifests for parts in sets.values() for name, _ in parts.values()}
    for path in (folder / _PARTS).iterdir():
        if path.name not in kept:
            path.unlink(missing_ok=True)
