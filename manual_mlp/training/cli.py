"""From the command line to a Config, and from an error to one line."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import sys
from collections.abc import Iterator, Sequence

from manual_mlp import doctor
from manual_mlp.nearest import did_you_mean
from manual_mlp.training import checkpoint, flags, recipes, values
from manual_mlp.training.config import Config
from manual_mlp.training.distributed import LostError
from manual_mlp.training.errors import DivergedError, InputError, one_line

_EXTRA = ("matplotlib", "safetensors", "sklearn", "tensorboard", "torchvision", "tqdm", "tyro")


def parse(args: Sequence[str] | None = None) -> Config:
    """Read the flags, those of the process by default.

    Raises:
        InputError: a flag is unknown or its value is nonsense, or the extra `train` is not installed.
        SystemExit: help, the version or the list of recipes was asked for, and has been printed.
    """
    args = sys.argv[1:] if args is None else list(args)
    if "--version" in args:
        print(doctor.version())
        sys.exit(0)
    missing = [module for module in _EXTRA if importlib.util.find_spec(module) is None]
    if missing:
        raise InputError(f"expected the packages for training, got no {', '.join(missing)}: pip install '.[train]'")
    import tyro

    named = {flags.field_of(flag)[0] for flag, _ in flags.given(args)}
    default = _of_recipe(args)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            read = tyro.cli(
                flags.as_tyro_reads_them(default),
                prog="train.py",
                args=flags.without_idle_switches(args, default),
                description=flags.DESCRIPTION,
                # A flag that is on by default is turned off by --no-flag.
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
            )
    except SystemExit as exit:
        if not exit.code:
            raise
        raise InputError(flags.fault(args) or _one_line(complaint.getvalue())) from None
    config = flags.config_of(read)
    return config if config.resume is None else checkpoint.resumed(config, named)


def _of_recipe(args: Sequence[str]) -> Config:
    """Return the config that the other flags override: that of a recipe, if one is named.

    Raises:
        InputError: there is no recipe of that name.
        SystemExit: the list was asked for, and has been printed.
    """
    names = [words for flag, words in flags.given(args) if flag == "--recipe"]
    if not names:
        return Config()
    name = " ".join(names[-1][:1])
    if name == "list":
        print(recipes.listed())
        sys.exit(0)
    if name not in recipes.RECIPES:
        known = ("list", *recipes.RECIPES)
        got = values.shown(name) if names[-1] else "nothing"
        raise InputError(f"expected --recipe among {', '.join(known)}, got {got}{did_you_mean(name, known)}")
    return Config(recipe=name, **recipes.RECIPES[name].flags)


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Print what went wrong as one line on stderr.

    The exit status is 2 for bad input, 1 for a loss that diverged, a disk that failed or a process that ended.
    """
    try:
        yield
    except (InputError, DivergedError, LostError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2 if isinstance(error, InputError) else 1)


def _one_line(box: str) -> str:
    """Return the first paragraph of tyro's framed message."""
    # Where stdout is not UTF-8, there is a line under the title, and no frame.
    inside = [line.strip("│ ") for line in box.strip().splitlines()[1:]]
    inside = inside[1:] if _index_of_rule(inside) == 0 else inside
    paragraph = " ".join(inside[: _index_of_rule(inside)])
    return paragraph.removeprefix("Error parsing Config: ") or box.strip()


def _index_of_rule(lines: list[str]) -> int:
    return next((i for i, line in enumerate(lines) if line.startswith(("─", "╰", "---"))), len(lines))
