"""Does it fit? Asked once, at a door: "expected X, got Y", with the values."""

import operator
from collections.abc import Sequence
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from manual_mlp.formulas.layer import Layer
from manual_mlp.precision import FLOATS, autocasting
from manual_mlp.transforms import PLAIN, has_class

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
    if type(input) not in PLAIN or input.layout is not torch.strided or input.is_nested:
        return False
    if not input.numel() or not input.dim() or (mixed and input.dtype is torch.float64):
        return False
    width, dtype, on_cpu, on_meta = input.size(-1), input.dtype, input.is_cpu, input.is_meta
    for w, b, _, _ in layers:
        if type(w) not in PLAIN or type(b) not in PLAIN or w.dim() != 2 or w.size(1) != width or not w.size(0):
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


def check_smoothing(label_smoothing: float) -> None:
    """Raise an error unless targets can be smoothed so."""
    if not hasattr(label_smoothing, "__float__"):
        raise TypeError(f"expected label_smoothing to be a number, got {label_smoothing!r}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"expected label_smoothing from 0 to 1, got {label_smoothing}")


def ignored_class(ignore_index: SupportsIndex | None) -> int:
    """Return the class that counts for nothing, or raise an error unless it can name one."""
    if ignore_index is None:
        return -100
    try:
        if not isinstance(ignore_index, bool):
            return operator.index(ignore_index)
    except TypeError:
        pass
    raise TypeError(f"expected ignore_index to be an int or None, got {ignore_index!r}")


def check_class_weight(weight: Tensor | None, classes: int, dtype: torch.dtype | None = None) -> None:
    """Raise an error unless there is a weight for each class, of a dtype or of any."""
    if weight is None:
        return
    _check_real("weight", weight, mask=True)
    if tuple(weight.shape) != (classes,):
        raise ValueError(f"expected weight ({classes},), one for each class, got {tuple(weight.shape)}")
    if dtype is not None and weight.dtype is not dtype:
        raise TypeError(f"expected weight of dtype {dtype}, as the layer's, got {weight.dtype}")


def check_cross_entropy(
    input: Tensor,
    classes: int,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: SupportsIndex | None = None,
    label_smoothing: float = 0.0,
) -> None:
    """Raise an error unless these fit logits (*, V) of a layer's input, or logits themselves."""
    ignored = ignored_class(ignore_index)
    check_smoothing(label_smoothing)
    _check_classes(input, classes, target, ignored)
    if weight is not None:
        check_class_weight(weight, classes, None if target.is_floating_point() or autocasting(input) else input.dtype)
    _check_beside(input, target=target, weight=weight)


def check_binary_cross_entropy(
    input: Tensor, d_out: int, target: Tensor, weight: Tensor | None = None, pos_weight: Tensor | None = None
) -> None:
    """Raise an error unless these fit logits (*, V) of a layer's input, or logits themselves."""
    _check_float("target", target)
    _check_shape(input, target, d_out)
    _check_beside(input, target=target)
    _check_broadcast("weight", weight, target, mask=True)
    _check_broadcast("pos_weight", pos_weight, target)


def check_squared_error(input: Tensor, d_out: int, target: Tensor) -> None:
    """Raise an error unless the target fits the output (*, D_out) of a layer's input, or the output itself."""
    _check_real("target", target, mask=True)
    _check_shape(input, target, d_out)
    _check_beside(input, target=target)


def check_gradient(gradient: Any, like: Tensor) -> None:
    """Raise an error unless it is None, a number, or a real tensor on the device of the output."""
    if isinstance(gradient, Tensor):
        if gradient.is_complex() or gradient.dtype is torch.bool:
            raise TypeError(f"expected gradient of a real dtype, got {gradient.dtype}")
        if gradient.layout is not torch.strided:
            raise TypeError(f"expected gradient of layout torch.strided, got {gradient.layout}")
        if gradient.device != like.device:
            raise ValueError(f"expected gradient on {like.device}, got {gradient.device}")
    elif not (gradient is None or isinstance(gradient, (int, float))):
        raise TypeError(f"expected gradient to be a tensor, a number or None, got {gradient!r}")


def _check_broadcast(name: str, t: Tensor | None, target: Tensor, mask: bool = False) -> None:
    if t is None:
        return
    _check_real(name, t, mask)
    _check_beside(target, **{name: t})
    pairs = zip(reversed(t.shape), reversed(target.shape), strict=False)
    if t.dim() > target.dim() or any(size not in (1, whole) for size, whole in pairs):
        raise ValueError(f"expected {name} to broadcast to {tuple(target.shape)}, got {tuple(t.shape)}")


def _check_classes(input: Tensor, classes: int, target: Tensor, ignore_index: int) -> None:
    if not isinstance(target, Tensor) or not (target.is_floating_point() or target.dtype in (torch.int64, torch.uint8)):
        expected = "a tensor of int64 or uint8 classes, or of probabilities"
        raise TypeError(f"expected target to be {expected}, got {_kind(target)}")
    if target.is_floating_point():
        _check_shape(input, target, classes)
        if ignore_index >= 0:
            raise ValueError(f"expected no ignore_index for a target of probabilities, got {ignore_index}")
    elif target.shape != input.shape[:-1]:
        raise ValueError(f"expected target {tuple(input.shape[:-1])} of classes, got {tuple(target.shape)}")


def _check_shape(input: Tensor, target: Tensor, d_out: int) -> None:
    shape = (*input.shape[:-1], d_out)
    if target.shape != shape:
        raise ValueError(f"expected target {shape}, got {tuple(target.shape)}")


def _check_real(name: str, t: Tensor, mask: bool = False) -> None:
    if not isinstance(t, Tensor) or t.is_complex() or (t.dtype is torch.bool and not mask):
        raise TypeError(f"expected {name} to be a tensor of real numbers, got {_kind(t)}")


def _check_float(name: str, t: Tensor) -> None:
    if not isinstance(t, Tensor) or not t.is_floating_point():
        raise TypeError(f"expected {name} to be a floating-point tensor, got {_kind(t)}")


def _kind(t: Any) -> str:
    return str(t.dtype) if isinstance(t, Tensor) else type(t).__name__


def _check_beside(input: Tensor, **others: Tensor | None) -> None:
    for name, t in others.items():
        if t is None:
            continue
        if t.device != input.device:
            raise ValueError(f"expected {name} on {input.device}, got {t.device}")
        if t.layout is not torch.strided and not has_class(t):
            raise TypeError(f"expected {name} of layout torch.strided, got {t.layout}")


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
