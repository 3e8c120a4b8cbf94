"""Load a build into this process, and see that its loops run on torch's threads."""

from __future__ import annotations

import importlib.util
import os
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from manual_mlp.engines.native import cache

COMMAND = "python -m manual_mlp build"


class Missing(Exception):
    """There is no build that can be used; the message says why."""


def find() -> Any:
    """Load the newest build that fits and works: the user's own, and then what the package carries.

    Raises:
        Missing: there is none.
    """
    reasons = []
    try:
        paths = cache.fitting()
    except FileNotFoundError:
        paths = []
    except OSError as error:
        paths = []
        reasons.append(cache.short(error))
    for path in (*paths, *cache.carried()):
        module, reason = _attempt(path)
        if module is not None:
            return module
        reasons.append(reason)
    nothing = cache.misfit() or "not built for this torch, Python, machine and state of the sources"
    raise Missing("; ".join(reasons) or f"{nothing}: {COMMAND}")


def _attempt(path: Path) -> tuple[Any, str]:
    try:
        return load(path), ""
    except Missing as error:
        return None, str(error)


def load(path: Path) -> Any:
    """Load a build.

    Raises:
        Missing: it is damaged, not to be trusted or made for something else, or its loops run on too few threads.
    """
    try:
        if path.parent != cache.SOURCES / cache.CARRIED:
            cache.trust(path)
        if not cache.whole(path):
            raise ImportError("it is damaged")
        if cache.sanitized() and "asan" not in os.environ.get("LD_PRELOAD", ""):
            raise ImportError("ASan's runtime has to be preloaded")
        loader = ExtensionFileLoader(cache.MODULE, str(path))
        spec = importlib.util.spec_from_file_location(cache.MODULE, path, loader=loader)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
        ran, wanted = _threads(module)
    except Exception as error:
        raise Missing(cache.short(f"{path} cannot be loaded: {error}; {COMMAND} makes it anew")) from error
    if ran != wanted:
        raise Missing(
            f"a loop in C++ ran on {ran} of torch's {wanted} threads: OMP_DYNAMIC, OMP_THREAD_LIMIT or a second OpenMP"
        )
    return module


def _threads(module: Any) -> tuple[int, int]:
    """Return how many threads a loop ran on, and how many torch has."""
    found: list[tuple[int, int] | Exception] = []

    def ask() -> None:
        try:
            found.append((module.threads(), torch.get_num_threads()))
        except Exception as error:
            found.append(error)

    # OpenMP keeps the workers of a thread as long as that lives: a forked child of this one would wait for them, and a
    # child that loads would wait for its parent's.
    thread = Thread(target=ask)
    thread.start()
    thread.join()
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]
