"""The folder of a run: made once, never overwritten, read back."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from manual_mlp.modules import MLP
from manual_mlp.training.config import Config
from manual_mlp.training.data import Data
from manual_mlp.training.errors import InputError

_MODEL = "model.safetensors"
_CONFIG = "config.json"


@contextmanager
def run_folder(config: Config) -> Iterator[Path]:
    """Make the folder `logdir/name`; for a dry run a temporary one, which is removed.

    Raises:
        InputError: it exists, or it cannot be made.
    """
    if config.dry_run:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
        return
    folder = config.logdir.absolute() / config.name
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise InputError(f"expected a new --name, got {config.name}: {folder} exists") from None
    except OSError as error:
        raise InputError(f"expected a writable --logdir, got {config.logdir}: {error.strerror}") from None
    yield folder


def settings(config: Config, data: Data) -> dict[str, Any]:
    """Return the config, ready for JSON, with what is needed to use the model: layer sizes and normalisation."""
    values = {
        key: str(value) if isinstance(value, Path) else value for key, value in dataclasses.asdict(config).items()
    }
    sizes = [data.train.images.shape[1], *config.hidden, data.classes]
    return {**values, "dataset": data.name, "sizes": sizes, "mean": data.mean, "std": data.std}


def save_settings(folder: Path, values: dict[str, Any]) -> None:
    """Write `config.json`."""
    (folder / _CONFIG).write_text(json.dumps(values, indent=2) + "\n")


def save_model(folder: Path, model: MLP) -> Path:
    """Write `model.safetensors` and return its path."""
    from safetensors.torch import save_file

    path = folder / _MODEL
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path)
    return path


def load_model(folder: Path) -> MLP:
    """Read the model of a run back, on the CPU.

    Its input are images `(*, height * width)` normalised with `mean` and `std` of the run's `config.json`.
    """
    from safetensors.torch import load_file

    values = json.loads((folder / _CONFIG).read_text())
    model = MLP(values["sizes"], values["activation"], dropout=values["dropout"])
    model.load_state_dict(load_file(folder / _MODEL))
    return model.eval()


def tensorboard_command(folder: Path) -> str:
    """Return the shell command that opens TensorBoard on a run, from any directory."""
    return f"{shlex.quote(sys.executable)} -m tensorboard.main --logdir {shlex.quote(str(folder.absolute()))}"
