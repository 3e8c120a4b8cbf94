"""Does it fit? Asked once, at a door: "expected X, got Y", with the values."""

from collections.abc import Sequence

import torch
from torch import Tensor

from manual_mlp.formulas.layer import Layer
from manual_mlp.precision import FLOATS, autocasting
from manual_mlp.transforms import ORDINARY

REDUCTIONS = "none", "mean", "sum"


class MisfitError(ValueError, RuntimeError):
    """Shapes or devices do not fit together: what ``F.linear`` would raise, and said as an error of a value."""


class DtypeError(TypeError, RuntimeError):
    """Dtypes do not fit together: what ``F.linear`` would raise, and said as an error of a type."""


def looks_fit(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Look, with few questions, only for what ``F.linear`` itself would let pass."""
    try:
        return (
            weight.dim() == 2
            and input.is_floating_point()
            and input.layout is weight.layout is torch.strided
            and not input.is_nested
            and weight.is_meta is input.is_meta
            and (bias is None or (bias.dim() == 1 and bias.size(0) == weight.size(0)))
        )
    except AttributeError:
        return False


def check_tensor(name: str, t: Tensor) -> None:
    """Raise an error unless it is a tensor."""
    if not isinstance(t, Tensor):
        raise TypeError(f"expected {name} to be a tensor, got {type(t).__name__}")


def check_layer(input: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """Raise an error that says what was expected and what came, unless the three fit together."""
    if _fit_together(input, weight, bias):
        return
    given = {"input": input, "weight": weight} | ({} if bias is None else {"bias": bias})
    for name, t in given.items():
        check_tensor(name, t)
        if not t.is_floating_point():
            raise TypeError(f"expected {name} of a floating-point dtype, got {t.dtype}")
        if t.layout is not torch.strided or t.is_nested:
            got = "a nested tensor" if t.is_nested else t.layout
            raise TypeError(f"expected {name} of layout torch.strided, got {got}")
    if weight.dim() != 2:
        raise MisfitError(f"expected weight (D_out, D_in), got {tuple(weight.shape)}")
    d_out, d_in = weight.shape
    if input.dim() == 0 or input.shape[-1] != d_in:
        raise MisfitError(f"expected input (*, {d_in}) for weight ({d_out}, {d_in}), got {tuple(input.shape)}")
    if bias is not None and tuple(bias.shape) != (d_out,):
        raise MisfitError(f"expected bias ({d_out},) for weight ({d_out}, {d_in}), got {tuple(bias.shape)}")
    if len({t.device for t in given.values()}) > 1:
        raise MisfitError(f"expected one device, got {_list(given, 'device')}")
    if len({t.dtype for t in given.values()}) > 1 and not autocasting(input):
        raise DtypeError(f"expected one dtype, got {_list(given, 'dtype')}")


def network_fits(layers: Sequence[Layer], input: Tensor, mixed: bool = False, leaves: bool = False) -> bool:
    """Tell whether these are plain tensors that fit together, and none is empty.

    ``mixed`` allows more than one dtype; ``leaves`` refuses what was computed from what requires grad.
    """
    if type(input) not in ORDINARY or input.layout is not torch.strided or input.is_nested:
        return False
    if not input.numel() or not input.dim() or (mixed and input.dtype is torch.float64):
        return False
    width, dtype, on_cpu, on_meta = input.size(-1), input.dtype, input.is_cpu, input.is_meta
    for w, b, _, _ in layers:
        if type(w) not in ORDINARY or type(b) not in ORDINARY or w.dim() != 2 or w.size(1) != width or not w.size(0):
            return False
        width = w.size(0)
        if b is not None and (b.dim() != 1 or b.size(0) != width):
            return False
        for p in (w,) if b is None else (w, b):
            if p.layout is not torch.strided:
                return False
            if p.is_cpu is not on_cpu or (not on_cpu and p.is_meta is not on_meta):
                return False
            # Autocast leaves float64 alone.
            if (p.dtype is torch.float64 if mixed else p.dtype is not dtype) or (leaves and not p.is_leaf):
                return False
    return dtype in FLOATS


def check_options(reduction: str, chunk_rows: int | None = None) -> None:
    """Raise an error unless a loss can be reduced and chunked so."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"expected reduction 'none', 'mean' or 'sum', got {reduction!r}")
    check_rows("chunk_rows", chunk_rows)


def check_rows(name: str, rows: int | None) -> None:
    """Raise an error unless so many rows can be computed at once."""
    if rows is not None and (type(rows) is not int or rows < 1):
        raise ValueError(f"expected {name} to be an int from 1 up, or None, got {rows!r}")


def _fit_together(input: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Tell, with few questions, whether the three are as usual: nothing else has to be asked then."""
    try:
        (d_out, d_in), dtype, device = weight.shape, weight.dtype, weight.device
        return (
            input.shape[-1] == d_in
            and input.dtype is dtype
            and input.device == device
            and input.layout is weight.layout is torch.strided
            and dtype.is_floating_point
            and not input.is_nested
            and (
                bias is None
                or (
                    bias.shape == (d_out,)
                    and bias.dtype is dtype
                    and bias.device == device
                    and bias.layout is torch.strided
                )
            )
        )
    except (AttributeError, IndexError, RuntimeError, ValueError):  # no tensors, nested ones, or of other dimensions
        return False


def _list(given: dict[str, Tensor], attribute: str) -> str:
    return ", ".join(f"{name} {getattr(t, attribute)}" for name, t in given.items())
