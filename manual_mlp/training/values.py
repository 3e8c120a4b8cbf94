"""Whether a value is what a field's type says, whoever made it: the command line, Python, or a file."""

from __future__ import annotations

import reprlib
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from manual_mlp.nearest import did_you_mean

_LONGEST = 100  # characters of a value that an error shows
_BREAKING = ("Cc", "Cs", "Zl", "Zp")  # control characters, halves of letters, and what ends a line

_WORDS = {
    bool: "True or False",
    int: "a whole number below 2**63",
    float: "a number",
    str: "text in UTF-8 without control characters",
    Path: "a path in UTF-8 without control characters",
    NoneType: "None",
}
_MANY = {int: "whole numbers below 2**63", float: "numbers"}


def fits(value: object, hint: Any) -> bool:
    """Tell whether a value is of a type, and of a size that torch can take.

    Args:
        hint: bool, int, float, str, Path, None, a Literal, a union or a tuple.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return isinstance(value, str) and value in args
    if origin in (Union, UnionType):
        return any(fits(value, each) for each in args)
    if origin is tuple:
        hints = args[:1] * len(value) if args[-1] is Ellipsis and isinstance(value, tuple) else args
        return isinstance(value, tuple) and len(value) == len(hints) and all(map(fits, value, hints))
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    if hint is int:
        return isinstance(value, int) and -(2**63) <= value < 2**63
    if hint is float:
        return isinstance(value, float) or fits(value, int)
    if hint in (str, Path):
        return isinstance(value, hint) and not any(unicodedata.category(letter) in _BREAKING for letter in str(value))
    return isinstance(value, hint)


def described(hint: Any) -> str:
    """Say in words what a type wants."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return f"one of {', '.join(args)}"
    if origin in (Union, UnionType):
        return " or ".join(map(described, args))
    if origin is tuple:
        return f"a tuple of {'' if args[-1] is Ellipsis else f'{len(args)} '}{_MANY[args[0]]}"
    return _WORDS[hint]


def choices(hint: Any) -> tuple[str, ...]:
    """List the names of a Literal, or of one in a union."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return tuple(name for each in get_args(hint) for name in choices(each))


def read(words: Sequence[str], hint: Any) -> object:
    """Make a value of the words that follow a flag; what cannot be made stays text, which fits no such type.

    Args:
        hint: as for :func:`fits`, but for bool.
    """
    args = get_args(hint)
    if get_origin(hint) is tuple:
        return tuple(read([word], args[0]) for word in words)
    text = " ".join(words)
    if NoneType in args and text == "None":
        return None
    kind = str if choices(hint) else next(each for each in args or (hint,) if each is not NoneType)
    try:
        value: object = kind(text)
    except ValueError:
        return text
    return value


def wanted(name: str, hint: Any) -> str:
    """Begin the error of a field whose value is not what its type says."""
    return f"expected --{name.replace('_', '-')} to be {described(hint)}"


def refusal(name: str, value: object, hint: Any, quoted: bool = False) -> str:
    """Say that a field's value is not what its type says."""
    return f"{wanted(name, hint)}, got {shown(value, quoted)}{did_you_mean(value, choices(hint))}"


def shown(value: object, quoted: bool = False) -> str:
    """Show a value on a line of an error: short, and without characters that would break it.

    Args:
        quoted: whether text is shown as such, where it may be taken for what it is not.
    """
    if isinstance(value, tuple):
        value, quoted = " ".join(shown(each, quoted) for each in value), False
    if isinstance(value, Path):
        value = str(value)
    try:
        text = reprlib.repr(value) if quoted or isinstance(value, list | dict | set) else str(value)
    except ValueError:  # Python writes no number of so many digits
        text = f"a {type(value).__name__} too long to write"
    text = text if text and text.isprintable() else ascii(text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text)} characters)"
