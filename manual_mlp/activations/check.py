"""Does a record tell the truth? Its derivatives against differences, and its shortcuts against its derivatives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

_STEP = 2.0**-13  # of a difference: exact in binary, and it leaves two thirds of float64's digits
_NOISE = 1e-9  # of a difference by rounding, times the size of what is subtracted if that is above 1
_ROUNDING = 1e-8  # of anything else, the same way


class Case(NamedTuple):
    """What a function of a record gave at every z, what it should have been, and how one knows."""

    of: str
    got: Tensor
    want: Tensor
    why: str
    allowed: Tensor | float = _ROUNDING


def check(activation: Any, z: Any = None) -> None:
    """Compare f′, f″ and the shortcuts of a record with f, as :meth:`manual_mlp.Activation.check` says."""
    if z is None:
        # Whole numbers, where many functions have their kinks, and places that are on no kink.
        z = torch.cat([torch.arange(-8.0, 9.0), torch.linspace(-8, 8, 255) + 0.0123])
    if isinstance(z, Tensor) and z.is_complex():
        raise ValueError(f"expected real points z, got {z.dtype}")
    z = torch.as_tensor(z, dtype=torch.float64).detach().reshape(-1)
    if not z.numel() or not z.isfinite().all():
        raise ValueError(f"expected finite points z, and at least one, got {z.tolist()}")
    for case in _cases(activation, z):
        _judge(activation, z, case)


def _judge(activation: Any, z: Tensor, case: Case) -> None:
    error = (case.got - case.want).abs() / (case.allowed * case.want.abs().clamp(min=1))
    wrong = ~(error <= 1)  # so that NaN is wrong
    if wrong.any():
        at = int(error.nan_to_num(torch.inf).argmax())
        place, want, got = (float(t[at]) for t in (z, case.want, case.got))
        raise ValueError(
            f"expected {case.of} of {activation} at z = {place:.6g} to be {want:.9g}, {case.why}, got {got:.9g}; "
            f"it differs at {int(wrong.sum())} of {len(z)} points"
        )


def _cases(activation: Any, z: Tensor) -> Iterator[Case]:
    """Ask the record all that it knows, the simplest first."""

    def ask(of: str, *arguments: Tensor, spoils: int | None = None) -> Any:
        return _asked(activation, of, arguments, spoils)

    y, df, d2f = ask("f", z), ask("df", z), ask("d2f", z)
    yield Case("f", y, torch.where(y.isfinite(), y, 0), "or any finite number")
    every_other = torch.zeros_like(z)
    every_other[::2], every_other[1::2] = ask("f", z[::2].clone()), ask("f", z[1::2].clone())
    yield Case("f", y, every_other, "as it is where other entries stand beside it")
    for of, function in (("df", "f"), ("d2f", "df")):
        slope, allowed = _difference(lambda at, name=function: ask(name, at), z)
        yield Case(of, {"df": df, "d2f": d2f}[of], slope, f"the central difference of {function}", allowed)
    kept, curvature = z, d2f
    if activation.df_y is not None:
        kept, curvature = y, ask("d2f_y", y)
        yield Case("df_y", ask("df_y", y), df, "as df is of this z")
        yield Case("d2f_y times df", curvature * df, d2f, "as d2f is of this z")
    yield from _shortcuts(activation, z, kept, df, curvature)


def _shortcuts(activation: Any, z: Tensor, kept: Tensor, df: Tensor, curvature: Tensor) -> Iterator[Case]:
    # What comes back, for the kernels: of both signs, and another at every z.
    turn = torch.arange(1, len(z) + 1, dtype=z.dtype)
    dy, q = turn.sin() + 0.1, 1.5 * turn.cos() - 0.1
    if activation.kernel is not None:
        yield Case("kernel", _asked(activation, "kernel", (dy, kept)), dy * df, "df times dy")
    if activation.kernel2 is not None:
        found = _asked(activation, "kernel2", (dy, q.clone(), kept), 1)
        if not isinstance(found, tuple) or len(found) != 3:
            raise ValueError(f"expected kernel2 of {activation} to return three tensors, got {type(found).__name__}")
        wanted = (dy * df, q * df, q * dy * curvature)
        for k, name in enumerate(("df times dy", "df times q", f"{'d2f' if kept is z else 'd2f_y'} times dy times q")):
            yield Case(f"kernel2, result {k + 1},", found[k], wanted[k], name)


def _asked(activation: Any, of: str, arguments: tuple[Tensor, ...], spoils: int | None = None) -> Any:
    """Call a function of the record, which may overwrite one of its arguments."""
    before = [t.clone() for t in arguments]
    with torch.enable_grad():
        found = getattr(activation, of)(*arguments)
    for k, (t, was) in enumerate(zip(arguments, before, strict=True)):
        if k != spoils and not torch.equal(t, was):
            raise ValueError(f"expected {of} of {activation} to leave its argument as it is, got another")
    for t in found if isinstance(found, tuple) else (found,):
        if not isinstance(t, Tensor) or (t.shape, t.dtype) != (arguments[0].shape, arguments[0].dtype):
            like = f"{arguments[0].dtype} of shape {tuple(arguments[0].shape)}"
            came = f"{t.dtype} of shape {tuple(t.shape)}" if isinstance(t, Tensor) else type(t).__name__
            raise ValueError(f"expected {of} of {activation} to return a tensor of {like}, as it was given, got {came}")
        if t.requires_grad:
            raise ValueError(f"expected {of} of {activation} without parameters that require grad, got some")
    return found


def _difference(g: Any, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return the slope of g, and how far off it may be: at a kink it may be any between those of both sides."""
    at, slopes, jumps = g(z), [], []
    for step in (_STEP, _STEP / 2):
        up, down = g(z + step), g(z - step)
        slopes.append((up - down) / (2 * step))
        jumps.append((up - 2 * at + down).abs() / step)
    # Half the step: a quarter of the error. The difference of both sides halves where there is no kink.
    slope = (4 * slopes[1] - slopes[0]) / 3
    kink = (2 * jumps[1] - jumps[0]).clamp(min=0) / 2
    off = 3 * (slopes[1] - slopes[0]).abs() + kink + _NOISE * at.abs().clamp(min=1)
    return slope, off / slope.abs().clamp(min=1)
