"""Checkpoints that survive a kill: a set of files belongs together by a manifest that is renamed into place last."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from manual_mlp.training import files
from manual_mlp.training.errors import InputError
from manual_mlp.training.packed import pack, pack_tensors, unpack, unpack_tensors

_MANIFEST, _BEFORE = "manifest.json", "manifest.before.json"
_MOST = 2**20  # bytes of a manifest
_PARTS = "checkpoints"  # a folder of the run's, or a link to one, with the files of the two latest sets
LAST, BEST = "last.safetensors", "best.safetensors"
# What a run writes beside them, and may leave half done.
_WRITTEN = (_MANIFEST, _BEFORE, LAST, BEST, "config.json", "trace.json", "projector_config.pbtxt")
# No path, and nothing hidden.
_NAME, _DIGEST, _TOKEN = re.compile(r"\w[\w.-]{0,99}", re.ASCII), re.compile("[0-9a-f]{64}"), re.compile("[0-9a-f]{16}")


class _EarlierError(InputError):
    """A checkpoint is of a version that pickled."""


def save(folder: Path, step: int, weights: dict[str, Tensor], state: dict[str, Any], best: bool) -> None:
    """Write a checkpoint; until its last moment the one before is what :func:`load` finds, and it is kept.

    Args:
        folder: of the run.
        weights: of the model.
        state: whatever else is needed to go on, in what :func:`manual_mlp.training.packed.pack` takes.
        best: whether these weights are the best so far; so they are, too, where those were deleted.

    Raises:
        OSError: the disk is full, or not writable; what was there before still is.
    """
    parts = folder / _PARTS
    if not parts.is_symlink():
        parts.mkdir(exist_ok=True)
    before = _latest(folder)
    run = _run(folder, before)
    # A name that nobody else has: other runs, and whatever else, may lie in the same folder.
    name = f"{step}-{run['token']}-{secrets.token_hex(4)}"
    try:
        last = {
            "weights": _write_part(parts / f"{name}.safetensors", pack_tensors(weights)),
            "state": _write_part(parts / f"{name}.state", pack(state)),
        }
        keeps = not best and before is not None and files.is_file(parts / before["best"]["weights"][0])
        found = {"last": last, "best": before["best"] if before and keeps else {"weights": last["weights"]}, "run": run}
        if before:
            # What last.safetensors and best.safetensors hold until publish() has replaced them.
            found["replaced"] = {kind: before[kind]["weights"][1] for kind in ("last", "best")}
        files.write(folder / _MANIFEST, _as_json(found))
        if before:
            files.write(folder / _BEFORE, _as_json(before))
    except BaseException:
        with suppress(InputError):  # a damaged manifest, whose files then stay
            _sweep(folder)
        raise
    _sweep(folder)
    publish(folder)


def require_files(folder: Path) -> None:
    """See that nothing but a file is where a run writes one.

    Raises:
        InputError: there is.
    """
    for name in _WRITTEN:
        path = folder / name
        if os.path.lexists(path) and not (path.is_symlink() or path.is_file()):
            raise InputError(f"expected a file, or nothing, at {path}, got a folder, or what is no file")


def publish(folder: Path) -> None:
    """Let `last.safetensors` and `best.safetensors` be what the manifest names; a kill may have come before that."""
    found = _existing(folder)
    for name, kind in ((LAST, "last"), (BEST, "best")):
        part, path = folder / _PARTS / found[kind]["weights"][0], folder / name
        if not files.is_file(part) or (files.is_file(path) and os.path.samefile(path, part)):
            continue

        def link(temporary: Path, part: Path = part) -> None:
            try:
                os.link(part, temporary)
            except OSError:  # a file system without links, or another one
                files.write_new(temporary, files.read(part))

        files.replace(path, link)


def load(folder: Path, most: int | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the latest checkpoint: weights and state.

    Args:
        most: bytes that a file of it may have.

    Raises:
        InputError: there is none, or a file of it is missing or damaged; how to go on all the same.
    """
    try:
        found = _existing(folder)
        weights, state = (_read(folder / _PARTS, found["last"][part], most) for part in ("weights", "state"))
    except InputError as error:
        manifest = folder / _MANIFEST
        if isinstance(error, _EarlierError) or not (manifest.exists() and (folder / _BEFORE).exists()):
            raise
        raise InputError(f"{error}; delete {manifest} to go on from the checkpoint before this one") from None
    best = found["best"]["weights"]
    if files.is_file(folder / _PARTS / best[0]):
        try:
            _read(folder / _PARTS, best, most)
        except InputError as error:
            raise InputError(f"{error}; delete it to go on without these best weights") from None
    try:
        return unpack_tensors(weights), unpack(state)
    except ValueError as error:
        raise InputError(f"expected the weights and the state of a run in {folder / _PARTS}, got: {error}") from None


def most_bytes(shapes: Iterable[Sequence[int]]) -> int:
    """Return how long a file of a checkpoint can be, for parameters of these shapes: with two moments of each."""
    return 2**20 + sum(2**11 + 16 * math.prod(shape) for shape in shapes)


def published(folder: Path, best: bool = False, most: int | None = None) -> bytes:
    """Read `last.safetensors` or `best.safetensors`, whatever a process that trains is doing meanwhile.

    Args:
        most: bytes that it may have.

    Raises:
        OSError: it cannot be read.
        InputError: its SHA-256 is not that of the manifest.
    """
    path, kind = (folder / BEST, "best") if best else (folder / LAST, "last")
    seen = ""
    while True:
        data = files.read(path, most)
        digest = files.digest(data)
        found = _latest(folder)
        if found is None or digest in (found[kind]["weights"][1], found["replaced"].get(kind)):
            return data
        if digest == seen:
            raise InputError(
                f"expected {path} with a SHA-256 that the manifest names, got {digest[:12]}…: the file is damaged; "
                "--resume writes it anew"
            )
        seen = digest  # it may just have been replaced


def _latest(folder: Path) -> dict[str, Any] | None:
    """Read the manifest that counts, if there is one: the one before where the latest was deleted.

    Raises:
        InputError: it is damaged.
    """
    there = [path for name in (_MANIFEST, _BEFORE) if os.path.lexists(path := folder / name)]
    return _manifest(there[0]) if there else None


def _existing(folder: Path) -> dict[str, Any]:
    """Read the manifest that counts.

    Raises:
        InputError: it is damaged, or there is none.
    """
    found = _latest(folder)
    if found is None:
        raise InputError(
            f"expected a checkpoint in {folder}, got none: the run ended before its first one; begin it again"
        )
    return found


def _manifest(path: Path) -> dict[str, Any]:
    """Read a manifest: `last` and `best`, names and SHA-256 of weights and state; and which `run` names its files."""
    try:
        content = files.read(path, _MOST)
    except OSError as error:
        raise InputError(f"expected the manifest of a checkpoint, got {path}: {error.strerror}") from None
    try:
        found: dict[str, Any] = json.loads(content)["sets"]
        if _as_json(found) != content or not _is_complete(found):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(f"expected the manifest of a checkpoint, got {path}, which is damaged") from None
    return {"replaced": {}, "run": {}, **found}


def _is_complete(found: dict[str, Any]) -> bool:
    """Tell whether a manifest has all that is read of it, and no name in it leads anywhere else."""
    parts = [found["last"]["weights"], found["last"]["state"], found["best"]["weights"]]
    return (
        found.keys() <= {"last", "best", "replaced", "run"}
        and (len(found["last"]), len(found["best"])) == (2, 1)
        and all(len(part) == 2 and _NAME.fullmatch(part[0]) and _DIGEST.fullmatch(part[1]) for part in parts)
        and all(_DIGEST.fullmatch(digest) for digest in found.get("replaced", {}).values())
        and found.get("run", {}).keys() <= {"token", "folder"}
    )


def _run(folder: Path, before: dict[str, Any] | None) -> dict[str, Any]:
    """Return what marks the files that are written for this very folder.

    Of one that was copied, or moved to another disk, it does not know that it wrote what lies there: that stays.
    """
    number = folder.stat().st_ino
    known = before["run"] if before else {}
    if known.get("folder") == number and _TOKEN.fullmatch(str(known.get("token"))):
        return known
    return {"token": secrets.token_hex(8), "folder": number}


def _as_json(sets: dict[str, Any]) -> bytes:
    """Write a manifest, with a SHA-256 of its own."""
    digest = files.digest(json.dumps(sets).encode())
    return json.dumps({"sets": sets, "sha256": digest}, indent=2).encode() + b"\n"


def _write_part(path: Path, data: bytes) -> list[str]:
    """Write a file of a set, and return its name and SHA-256."""
    digest = files.write_new(path, data)
    files.sync_folder(path.parent)
    return [path.name, digest]


def _read(parts: Path, entry: tuple[str, str], most: int | None) -> bytes:
    """Read a file by its name and SHA-256."""
    name, digest = entry
    path = parts / name
    if path.suffix == ".pt":
        raise _EarlierError(
            f"expected a checkpoint of this version, got {path}: an earlier one wrote it, as a pickle; "
            "go on with that one, or begin again"
        )
    try:
        data = files.read(path, most)
    except (OSError, ValueError, MemoryError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"expected {path}, which the manifest names: {reason}") from None
    found = files.digest(data)
    if found != digest:
        raise InputError(f"expected {path} with SHA-256 {digest[:12]}…, got {found[:12]}…: the file is damaged")
    return data


def _sweep(folder: Path) -> None:
    """Delete, of what was written for this folder, what neither manifest names, and what a kill has left half done."""
    files.sweep(folder, _WRITTEN)
    manifests = [_manifest(path) for name in (_MANIFEST, _BEFORE) if os.path.lexists(path := folder / name)]
    if not manifests:
        return
    kept = {sets[kind][part][0] for sets in manifests for kind in ("last", "best") for part in sets[kind]}
    token = _run(folder, manifests[0])["token"]
    for path in (folder / _PARTS).iterdir():
        ours = re.fullmatch(rf"\d+-{token}-[0-9a-f]{{8}}\.(safetensors|state)", path.name)
        if ours and path.name not in kept and files.is_file(path):
            path.unlink(missing_ok=True)
