"""From the command line to a Config, and from an error to one line."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import itertools
import sys
from collections.abc import Iterator, Sequence

from manual_mlp.training import checkpoint, recipes
from manual_mlp.training.config import Config
from manual_mlp.training.distributed import LostError
from manual_mlp.training.errors import DivergedError, InputError, one_line

_EXTRA = ("matplotlib", "safetensors", "sklearn", "tensorboard", "torchvision", "tqdm", "tyro")


def parse(args: Sequence[str] | None = None) -> Config:
    """Read the flags, those of the process by default.

    Raises:
        InputError: a flag is unknown or its value is nonsense, or the extra `train` is not installed.
    """
    missing = [module for module in _EXTRA if importlib.util.find_spec(module) is None]
    if missing:
        raise InputError(
            f"expected the packages for training, got no {', '.join(missing)}: pip install 'manual_mlp[train]'"
        )
    import tyro

    args = sys.argv[1:] if args is None else list(args)
    # A flag that is on by default is turned off by --no-flag.
    given = {arg[2:].split("=")[0].replace("-", "_").removeprefix("no_") for arg in args if arg.startswith("--")}
    default = _of_recipe(args)
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            config = tyro.cli(Config, args=args, default=default, config=(tyro.conf.FlagCreatePairsOff,))
    except SystemExit as exit:
        if not exit.code:
            raise
        # What a Config says, without the frame that tyro draws around it, in which long words are broken.
        said = exit.__context__
        raise said if isinstance(said, InputError) else InputError(_one_line(complaint.getvalue())) from None
    return config if config.resume is None else checkpoint.resumed(config, given)


def _of_recipe(args: Sequence[str]) -> Config:
    """Return the config that the other flags override: that of a recipe, if one is named.

    Raises:
        InputError: there is no recipe of that name.
        SystemExit: the list was asked for, and has been printed.
    """
    names = [after for before, after in itertools.pairwise(args) if before == "--recipe"]
    names += [arg.partition("=")[2] for arg in args if arg.startswith("--recipe=")]
    if not names:
        return Config()
    name = names[-1]
    if name == "list":
        print(recipes.listed())
        sys.exit(0)
    if name not in recipes.RECIPES:
        raise InputError(f"expected --recipe among list, {', '.join(recipes.RECIPES)}, got {name}")
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
