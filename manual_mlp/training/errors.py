"""The two ways a training run is refused or ends badly."""


class InputError(ValueError):
    """What was asked cannot be done: bad flag, bad file, missing device."""


class DivergedError(RuntimeError):
    """The loss is no longer a finite number."""


def first_line(error: Exception) -> str:
    """Return what an error says, short enough for a line of ours."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
