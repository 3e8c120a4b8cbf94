"""Do a target and the options of a loss fit? Asked once, at a door: "expected X, got Y", with the values."""

import operator
from math import inf
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling

from manual_mlp import activations
from manual_mlp.activations import IDENTITY, Activation
from manual_mlp.checks import check_tensor
from manual_mlp.formulas.cross_entropy import Options
from manual_mlp.precision import autocasting
from manual_mlp.transforms import constant, has_class


def _is_number(given: object) -> bool:
    # Of a number that torch 2.11's compiler has made symbolic the second question cannot be asked.
    return isinstance(given, (int, float)) or hasattr(given, "__float__")


def check_smoothing(label_smoothing: float) -> None:
    """Raise an error unless targets can be smoothed so."""
    if not _is_number(label_smoothing):
        raise TypeError(f"expected label_smoothing to be a number, got {label_smoothing!r}")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"expected label_smoothing from 0 to 1, got {label_smoothing}")


def check_z_loss(z_loss: float) -> None:
    """Raise an error unless it can weigh a square."""
    if not _is_number(z_loss):
        raise TypeError(f"expected z_loss to be a number, got {z_loss!r}")
    if not 0 <= z_loss < inf:
        raise ValueError(f"expected z_loss from 0 up, and finite, got {z_loss}")


def capping(softcap: float | None) -> Activation:
    """Find what caps the logits, or raise an error unless there is a cap that can be reached."""
    if softcap is None:
        return IDENTITY
    if not _is_number(softcap):
        raise TypeError(f"expected softcap to be a number or None, got {softcap!r}")
    if is_dynamo_compiling():
        from torch.fx.experimental.symbolic_shapes import guard_scalar

        # A cap that changes is compiled for anew.
        softcap = guard_scalar(softcap)
    if not 0 < softcap < inf:
        raise ValueError(f"expected softcap above 0, and finite, got {softcap}")
    _find(float(softcap))
    return _CAPS[float(softcap)]


_CAPS: dict[float, Activation] = {}


@constant
def _find(cap: float) -> None:
    # The compiler cannot make a record while it traces, and reads one only where it is kept.
    _CAPS.setdefault(cap, activations.softcap(cap))


def shift_of(shift: bool | int) -> int:
    """Return the positions to shift by, or raise an error unless it can be some."""
    if not isinstance(shift, int):
        raise TypeError(f"expected shift to be an int or a bool, got {shift!r}")
    if shift < 0:
        raise ValueError(f"expected shift from 0 up, got {shift}")
    return int(shift)


def shifted(
    shift: bool | int, input: Tensor, target: Tensor, row_weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Compare each position of a sequence with the target of a later one, where there is one."""
    by = shift_of(shift)
    if not by:
        return input, target, row_weight
    given = {"input": input, "target": target} | ({} if row_weight is None else {"row_weight": row_weight})
    for name, t in given.items():
        check_tensor(name, t)
    if input.dim() < 2:
        raise ValueError(f"expected input (*, T, D) where targets are shifted, got {tuple(input.shape)}")
    leading, last = input.shape[:-1], input.shape[-2]
    if by >= last:
        raise ValueError(f"expected shift from 0 to {last - 1} for input {tuple(input.shape)}, got {by}")
    for name, t in list(given.items())[1:]:
        if t.shape[: len(leading)] != leading:
            raise ValueError(f"expected {name} {tuple(leading)} before it is shifted, got {tuple(t.shape)}")
    later = [None if t is None else t.narrow(len(leading) - 1, by, last - by) for t in (target, row_weight)]
    return input.narrow(-2, 0, last - by), later[0], later[1]  # type: ignore[return-value]


def check_torchs_options(options: Any) -> None:
    """Raise an error unless these are None, or torch's options, whose sums are no narrower than ours."""
    if options is None:
        return
    if not all(hasattr(options, name) for name in ("batch_chunk_size", "chunking_method", "acc_dtype")):
        raise TypeError(f"expected options to be torch.nn.LinearCrossEntropyOptions or None, got {options!r}")
    if options.acc_dtype not in (None, torch.float32, torch.float64):
        why = "gradients are added up in float32 at least"
        raise ValueError(f"expected options with acc_dtype None or torch.float32, for {why}, got {options.acc_dtype}")


def chunk_rows_of(options: Any, chunk_rows: int | None, input: Tensor, weight: Tensor) -> int | None:
    """Return the rows to hold at once, as torch's options or ours ask for them; None where neither does."""
    if options is None:
        return chunk_rows
    check_torchs_options(options)
    if options.acc_dtype is torch.float64 and input.dtype is not torch.float64:
        got = f"{options.acc_dtype} for input of dtype {input.dtype}"
        raise ValueError(f"expected options with acc_dtype None or torch.float32, got {got}")
    rows, method = options.batch_chunk_size, options.chunking_method
    if method is None and rows is None:
        rows = max(1, input.shape[:-1].numel())
    if method is not None and method != "auto":
        by_method = _by_aspect_ratio(method, input, weight)
        if rows is not None and rows != by_method:
            raise ValueError(
                f"expected options of one size of chunks, got {rows} rows and {method!r}: {by_method} rows"
            )
        rows = by_method
    if rows is not None and chunk_rows is not None and rows != chunk_rows:
        raise ValueError(f"expected chunk_rows {rows} or None, as the options ask for {rows} rows, got {chunk_rows}")
    return chunk_rows if rows is None else rows


def _by_aspect_ratio(method: str, input: Tensor, weight: Tensor) -> int:
    """Return how many rows of logits take the memory of the input, to a power of two, by the number of the method."""
    n, (classes, d_in) = input.shape[:-1].numel(), weight.shape
    fitting = -(-n // max(1, -(-classes // max(1, d_in))))
    power = 1 << max(0, fitting - 1).bit_length()
    return max(1, min(power // int(method.partition(":")[2] or 1), n))


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


def check_cross_entropy(input: Tensor, classes: int, target: Tensor, **options: Any) -> None:
    """Raise an error unless these fit logits (*, V) of a layer's input, or logits themselves."""
    weight, ignored, label_smoothing, row_weight, z_loss = Options(**options)
    ignore_index = ignored_class(ignored)
    check_smoothing(label_smoothing)
    check_z_loss(z_loss)
    _check_classes(input, classes, target, ignore_index)
    if weight is not None:
        check_class_weight(weight, classes, None if target.is_floating_point() or autocasting(input) else input.dtype)
    if row_weight is not None:
        _check_real("row_weight", row_weight, mask=True)
        if row_weight.shape != input.shape[:-1]:
            expected = f"row_weight {tuple(input.shape[:-1])}, one for each row"
            raise ValueError(f"expected {expected}, got {tuple(row_weight.shape)}")
    _check_beside(input, target=target, weight=weight, row_weight=row_weight)


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


def check_whole(y: Tensor, linear: nn.Module) -> None:
    """Raise an error if a layer whose weight is cut returns only a part of the classes, and does not say so."""
    weight = getattr(linear, "weight", None)
    if isinstance(weight, Tensor) and has_class(weight) and not has_class(y) and y.shape[-1:] != weight.shape[:1]:
        raise ValueError(
            f"expected linear to return logits of all {len(weight)} classes, got {y.shape[-1]} of them; "
            "ColwiseParallel(output_layouts=Replicate()) returns all, and distribute_module with parameters alone "
            "leaves them cut"
        )
