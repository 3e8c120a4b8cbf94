"""The flags of train.py: those of a Config, in groups and in words; and what is wrong with some that came."""

from __future__ import annotations

import ast
import inspect
import itertools
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import Field, fields, make_dataclass
from types import NoneType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from manual_mlp.nearest import nearest
from manual_mlp.training import recipes, values
from manual_mlp.training.config import GROUPS, Config

DESCRIPTION = """\
Train an MLP whose gradients are written by hand.
  python train.py                      train on MNIST, tell the test accuracy
  python train.py --recipe list        list networks of the literature
  python train.py --resume runs/NAME   go on with a run that was interrupted"""

_VERSION = "Print the versions of manual_mlp, torch and Python, and exit."
# What other trainers call them.
_ELSEWHERE = {
    "amp": "precision",
    "bs": "batch-size",
    "dtype": "precision",
    "gpu": "device",
    "layers": "hidden",
    "learning-rate": "lr",
    "output-dir": "logdir",
    "wd": "weight-decay",
    "widths": "hidden",
}


def as_tyro_reads_them(default: Config) -> type[Any]:
    """Make a dataclass that has, for each group, one of its flags: it starts from a config, whose values are shown."""
    import tyro

    hints, listed, groups = get_type_hints(Config), dict[Any, str](), list[Any]()
    for title, group in GROUPS.items():
        texts = _texts(group)
        flags = []
        for field in fields(group):
            value, hint = getattr(default, field.name), hints[field.name]
            shown = _shown(field, hint, value, texts.get(field.name, ""), listed.setdefault(hint, field.name))
            flags.append((field.name, Annotated[(hint, tyro.conf.arg(**shown))], value))
        groups.append((title, make_dataclass(title, flags)))
    version = Annotated[(bool, tyro.conf.arg(help=_VERSION, help_behavior_hint=""))]
    return make_dataclass("flags", [*groups, ("version", version, False)])


def config_of(read: Any) -> Config:
    """Make a config of what tyro has read.

    Raises:
        InputError: a value is out of range.
    """
    return Config(**{name: value for group in GROUPS for name, value in vars(getattr(read, group)).items()})


def _texts(group: type) -> dict[str, str]:
    """Read the text under each field."""
    texts = {}
    with suppress(OSError):  # where there is no source there are no texts
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(group))).body
        assert isinstance(tree, ast.ClassDef)
        for pair in itertools.pairwise(tree.body):
            match pair:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    texts[name] = " ".join(text.split())
    return texts


def _shown(field: Field[Any], hint: Any, value: object, text: str, first: str) -> dict[str, Any]:
    """Tell tyro how to show a flag.

    Args:
        first: the first field of this type, where names are listed.
    """
    shown: dict[str, Any] = {"help": text}
    if hint is bool:
        # A flag that is on is turned off by --no-flag, and the text says what typing that does.
        shown = {"help": field.metadata["no"] if value else text, "help_behavior_hint": "(default: off)"}
    elif names := choices(field.name, hint):
        told = f"{{{', '.join(names)}}}" if first == field.name else f"those of {first}"
        shown = {"help": f"{text} One of {told}.", "metavar": "NAME"}
    elif NoneType in get_args(hint):
        shown["metavar"] = get_args(hint)[0].__name__.upper()
    if "default" in field.metadata:
        shown["help_behavior_hint"] = f"(default: {field.metadata['default']})"
    return shown


def choices(name: str, hint: Any) -> tuple[str, ...]:
    """List the names that a flag takes, if it takes names."""
    return ("list", *recipes.RECIPES) if name == "recipe" else values.choices(hint)


def given(args: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield each flag with the words that follow it; those before the first flag follow an empty one."""
    flag, words = "", list[str]()
    for arg in args:
        if _is_flag(arg):
            yield flag, words
            flag, equals, word = arg.partition("=")
            words = [word] if equals else []
        elif arg != "--":
            words.append(arg)
    yield flag, words


def _is_flag(arg: str) -> bool:
    # A number may begin with a hyphen, and so may inf.
    is_short = re.match("-[a-zA-Z]", arg) is not None and values.read([arg], float) == arg
    return is_short or (arg.startswith("--") and arg != "--")


def field_of(flag: str) -> tuple[str, bool]:
    """Return the field that a flag would set, whether there is one or not, and False for the --no-flag of a switch."""
    name = flag.removeprefix("--").replace("-", "_")
    switch = name.removeprefix("no_")
    return (switch, False) if name != switch and switch in _switches() else (name, True)


def _switches() -> list[str]:
    return [name for name, hint in get_type_hints(Config).items() if hint is bool]


def without_idle_switches(args: Sequence[str], default: Config) -> list[str]:
    """Leave out switches that change nothing: tyro knows --flag alone where it is off, and --no-flag where it is on."""
    switches = {arg: field_of(arg) for arg in args if arg.startswith("--") and field_of(arg)[0] in _switches()}
    last = dict(switches[arg] for arg in args if arg in switches)
    changes = {(name, on) for name, on in last.items() if on is not getattr(default, name)}
    return [arg for arg in args if arg not in switches or switches[arg] in changes]


def fault(args: Sequence[str]) -> str | None:
    """Say what is wrong with flags that tyro has refused; None where nothing is found."""
    hints = get_type_hints(Config)
    for flag, words in given(args):
        name = field_of(flag)[0]
        hint = hints.get(name) if flag.startswith("--") else None
        if hint is None and flag not in ("", "-h", "--help", "--version"):
            return f"expected a flag, got {values.shown(flag)}{_meant(flag)}"
        most = _most_words(hint)
        if most != 0:
            if most and not words:
                return f"{values.wanted(name, hint)}, got nothing"
            value = values.read(words[:most], hint)
            if not values.fits(value, hint):
                return values.refusal(name, value, hint)
        if most is not None and len(words) > most:
            after = f" after {' '.join([flag, *words[:most]])}" if flag else ""
            return f"expected a flag{after}, got {values.shown(words[most])}"
    return None


def _most_words(hint: Any) -> int | None:
    """Tell how many words may follow a flag; None: any number."""
    if get_origin(hint) is tuple:
        return None if get_args(hint)[-1] is Ellipsis else len(get_args(hint))
    return 0 if hint in (None, bool) else 1


def _meant(flag: str) -> str:
    name = flag.lstrip("-").replace("_", "-")
    known = [*get_type_hints(Config), "help", "version", *[f"no_{switch}" for switch in _switches()]]
    found = _ELSEWHERE.get(name) or nearest(name, [each.replace("_", "-") for each in known])
    return f"; did you mean --{found}?" if found else "; --help lists them"
