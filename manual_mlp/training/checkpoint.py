"""The folder of a run: made once, never overwritten, read back."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from manual_mlp.modules import MLP
from manual_mlp.training import files, sources, state
from manual_mlp.training.config import Config
from manual_mlp.training.data import Data
from manual_mlp.training.distributed import ALONE, Processes
from manual_mlp.training.errors import InputError, first_line
from manual_mlp.training.lock import writer
from manual_mlp.training.packed import unpack_tensors
from manual_mlp.training.restore import require_weights

_CONFIG = "config.json"
# What a resumed run may do in another way than the one it goes on with.
_MAY_CHANGE = ("data_dir", "device", "logdir", "name", "profile", "check_every", "log_every")
# What a resumed run does only where it is asked again.
_OF_A_CALL = ("resume", "dry_run", "cuda_graph")
_MOST = 2**20  # bytes of it
_DATA = ("dataset", "sizes", "mean", "std", "image_shape")


@contextmanager
def run_folder(config: Config, processes: Processes = ALONE) -> Iterator[Path]:
    """Make the folder `logdir/name`, or take that of the run to be resumed, and lock it; for a dry run a temporary one.

    Only the first of several processes makes, locks and uses it.

    Raises:
        InputError: it exists, it cannot be made or written, or another process is writing it.
    """
    if config.dry_run:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
        return
    folder = config.resume.absolute() if config.resume else config.logdir.absolute() / config.name
    if processes.first and config.resume is None:
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            raise InputError(f"expected a new --name, got {config.name}: {folder} exists") from None
        except OSError as error:
            raise InputError(f"expected a writable --logdir, got {config.logdir}: {error.strerror}") from None
    with writer(folder) if processes.first else nullcontext():
        # The others read nothing before the first has locked it.
        processes.any(False)
        state.require_files(folder)
        yield folder


def settings(config: Config, data: Data) -> dict[str, Any]:
    """Return the config, ready for JSON, with what is needed to use the model: layer sizes and normalisation."""
    sizes = [data.train.images.shape[1], *config.hidden, data.classes]
    found = {"sizes": sizes, "mean": data.mean, "std": data.std, "image_shape": list(data.image_shape)}
    return {**as_json(config), "dataset": data.name, **found}


def as_json(config: Config) -> dict[str, Any]:
    """Return the flags, ready for JSON."""
    values = dataclasses.asdict(config)
    return {
        key: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        for key, value in values.items()
    }


def fixed(config: Config) -> dict[str, Any]:
    """Return the flags that decide what is learnt, ready for JSON: a resumed run has the same.

    Not the data set: `auto` has become what was found, which :func:`require_same` compares.
    """
    others = (*_MAY_CHANGE, *_OF_A_CALL, "dataset")
    return {k: v for k, v in as_json(config).items() if k not in others}


def save_settings(folder: Path, values: dict[str, Any]) -> None:
    """Write `config.json`."""
    files.write(folder / _CONFIG, json.dumps(values, indent=2).encode() + b"\n")


def load_settings(folder: Path) -> dict[str, Any]:
    """Read `config.json`.

    Raises:
        InputError: it is not there, or damaged.
    """
    path = folder / _CONFIG
    try:
        found: dict[str, Any] = json.loads(files.read(path, _MOST))
        sizes = found.get("sizes") if isinstance(found, dict) else None
        if not (isinstance(sizes, list) and len(sizes) > 1 and all(type(n) is int and n > 0 for n in sizes)):
            raise ValueError("no settings of a run")
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"expected the folder of a run of train.py, got {folder}: {path.name}: {reason}") from None
    return found


def resumed(config: Config, given: AbstractSet[str]) -> Config:
    """Return the config of the run that `--resume` names; of the flags given, only some may differ from it.

    Args:
        given: the fields that the command line sets.

    Raises:
        InputError: there is no run, or a flag contradicts it.
    """
    assert config.resume is not None
    if config.dry_run:
        raise InputError("expected --resume without --dry-run, which has no run to go on with")
    saved = load_settings(config.resume)
    began = dataclasses.asdict(config)
    for name, asked in dataclasses.asdict(config).items():
        if name in _OF_A_CALL or name not in saved or (name in _MAY_CHANGE and name in given):
            continue
        value = data_dir(saved) if name == "data_dir" else saved[name]
        if isinstance(value, list):
            value = tuple(value)
        if isinstance(asked, Path) and isinstance(value, str):
            value = Path(value)
        if name in given and value != asked:
            raise InputError(
                f"expected --{name.replace('_', '-')} as {config.resume} began, {_shown(value)}, got {_shown(asked)}: "
                "leave it out, or begin another run"
            )
        began[name] = value
    try:
        return Config(**began)
    except InputError as error:
        raise InputError(f"{error}; it stands in {config.resume / _CONFIG}") from None


def data_dir(values: Mapping[str, Any]) -> Path:
    """Return where a run's images are: in `MANUAL_MLP_DATA`, in the folder it began with, or in the default one.

    The folder that its settings name is one to read from: what is missing there is not downloaded into it.

    Args:
        values: the settings.
    """
    saved, default = values["data_dir"], Config().data_dir
    if os.environ.get("MANUAL_MLP_DATA") or not isinstance(saved, str):
        return default
    return Path(saved) if sources.holds(str(values.get("dataset")), Path(saved)) else default


def require_same(config: Config, values: dict[str, Any]) -> None:
    """See that a run goes on with the images it began with.

    Args:
        values: what :func:`settings` returns now.

    Raises:
        InputError: they are others.
    """
    assert config.resume is not None
    saved = load_settings(config.resume)
    for key in _DATA:
        before, now = saved.get(key), values[key]
        # Another machine adds up the pixels in another order.
        near = isinstance(before, float) and isinstance(now, float) and math.isclose(before, now, rel_tol=1e-5)
        if before != now and not near:
            raise InputError(f"expected the images with which {config.resume} began, {key} {before}, got {now}")


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def load_model(folder: Path, best: bool = False) -> MLP:
    """Read the model of a run back, on the CPU.

    Its input are images `(*, height * width)` normalised with `mean` and `std` of the run's `config.json`.

    Args:
        best: whether to take the weights that were best on the validation images, not the last ones.

    Raises:
        InputError: there is no run, or its weights are missing, damaged, or of another network.
    """
    values, path = load_settings(folder), folder / (state.BEST if best else state.LAST)
    sizes = values["sizes"]
    shapes: dict[str, tuple[int, ...]] = {}
    for i, (columns, rows) in enumerate(itertools.pairwise(sizes)):
        shapes |= {f"layers.{i}.weight": (rows, columns), f"layers.{i}.bias": (rows,)}
    try:
        weights = unpack_tensors(state.published(folder, best, state.most_bytes(shapes.values())))
        # Before there is a network: it is as large as the file, whatever the settings say.
        require_weights(weights, shapes)
        model = MLP(sizes, values["activation"], values.get("output_activation"), dropout=values["dropout"])
        model.load_state_dict(weights)
    except InputError:
        raise
    except (OSError, LookupError, RuntimeError, TypeError, ValueError, MemoryError) as error:
        raise InputError(f"expected the weights of a run in {path}, got: {first_line(error)}") from None
    return model.eval()


def normalisation(folder: Path) -> tuple[float, float]:
    """Read mean and standard deviation of the pixels that a run was trained on.

    Raises:
        InputError: they are no such numbers.
    """
    values = load_settings(folder)
    found: list[Any] = [values.get(name) for name in ("mean", "std")]
    if not all(type(value) in (int, float) and abs(value) <= 1e6 for value in found) or found[1] < 1e-12:
        raise InputError(
            f"expected mean and std in the config.json of {folder}, two numbers up to 1e6, and std from 1e-12 up"
        )
    return float(found[0]), float(found[1])


def tensorboard_command(folder: Path) -> str:
    """Return the shell command that opens TensorBoard on a run, from any directory."""
    return f"{shlex.quote(sys.executable)} -m tensorboard.main --logdir {shlex.quote(str(folder.absolute()))}"
