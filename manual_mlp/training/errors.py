"""The two ways a training run is refused or ends badly."""


class InputError(ValueError):
    """What was asked cannot be done: bad flag, bad file, missing device."""


class DivergedError(RuntimeError):
    """The loss is no longer a finite number."""


def one_line(error: BaseException) -> str:
    """Return what an error says, on one line, whatever stands in it."""
    said = " ".join(str(error).split()) or type(error).__name__
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in said)


def first_line(error: BaseException) -> str:
    """Return what an error says, short enough for a line of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
