"""What a checkpoint holds, looked at before it is taken over: a digest tells that it is whole, not that it fits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from manual_mlp.training.errors import InputError
from manual_mlp.training.values import shown


def require_weights(found: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """See that there are the weights of a network, finite and in float32 as they were trained, and no others.

    Raises:
        ValueError: there are others.
    """
    if found.keys() != shapes.keys():
        raise ValueError(f"expected {', '.join(shapes)}, got {', '.join(found)}")
    for name, shape in shapes.items():
        tensor = found[name]
        if tensor.shape != shape or tensor.dtype != torch.float32:
            raise ValueError(f"expected {name} {shape}, torch.float32, got {_shown(tensor)}")
        if not tensor.isfinite().all():
            raise ValueError(f"expected finite numbers in {name}, got others")


def weights(model: nn.Module, found: Mapping[str, Tensor]) -> None:
    """Let a model have the weights of a checkpoint.

    Raises:
        InputError: they are those of another model.
    """
    try:
        require_weights(found, {name: tuple(value.shape) for name, value in model.state_dict().items()})
    except ValueError as error:
        raise InputError(f"{error} in the checkpoint") from None
    model.load_state_dict(found)


def require_config(found: Mapping[str, Any], config: Mapping[str, Any], default: Mapping[str, Any]) -> None:
    """See that the flags are those that a checkpoint was made with.

    Args:
        default: for a flag that is newer than the run.

    Raises:
        InputError: one is another.
    """
    _require(isinstance(found.get("config"), dict), "config, flags by name,", found.get("config"))
    began = {**default, **found["config"]}
    for name, value in config.items():
        if repr(began[name]) != repr(value):  # a checkpoint may have anything there
            raise InputError(f"expected {name} {_shown(began[name])} as in the checkpoint, got {_shown(value)}")


def progress(found: Mapping[str, Any], epochs: int, steps_per_epoch: int) -> tuple[int, int, float]:
    """Return how far a run had come: epochs, steps, and the best accuracy.

    Raises:
        InputError: it cannot have come there.
    """
    epoch, step, best = (_of(found, name) for name in ("epoch", "step", "best"))
    _require(
        type(step) is int and 0 <= step <= epochs * steps_per_epoch, f"step up to {epochs * steps_per_epoch}", step
    )
    _require(epoch == step // steps_per_epoch, f"epoch {step // steps_per_epoch} at step {step}", epoch)
    _require(isinstance(best, float) and -1 <= best <= 1, "best, an accuracy,", best)
    return epoch, step, best


def optimizer(own: torch.optim.Optimizer, found: Mapping[str, Any], like: torch.optim.Optimizer, scaled: bool) -> None:
    """Let an optimizer have the state of a checkpoint.

    Args:
        like: one of its kind, over any two parameters: its first step shows what there is for each.
        scaled: whether a gradient scaler may have left out steps, the very first ones above all.

    Raises:
        InputError: it is that of other parameters, or of another optimizer.
    """
    for p in _parameters(like):
        p.grad = torch.zeros_like(p)
    like.step()
    kinds = like.state[_parameters(like)[0]]
    state, parameters, steps = _of(found, "optimizer"), _parameters(own), _of(found, "step")
    if state == {} and (scaled or not steps or not kinds):
        return
    complete = isinstance(state, dict) and set(state) == set(range(len(parameters)))
    _require(complete, f"optimizer with a state for each of {len(parameters)} parameters", state)
    for i, parameter in enumerate(parameters):
        _require(
            isinstance(state[i], dict) and state[i].keys() == kinds.keys(), f"state of {', '.join(kinds)}", state[i]
        )
        for name, kind in kinds.items():
            value = state[i][name]
            if isinstance(kind, Tensor):
                # Fused optimizers read and write as far as the parameter reaches.
                shape = parameter.shape if kind.dim() else kind.shape
                fits = isinstance(value, Tensor) and value.shape == shape and value.dtype == kind.dtype
                _require(fits, f"{name} {tuple(shape)}, {kind.dtype}", value)
                _require(bool(value.isfinite().all()), f"finite {name}", "others")
                if "sq" in name:  # squares
                    _require(bool((value >= 0).all()), f"{name} from 0 up", float(value.min()))
                if name == "step":
                    taken = value.item()
                    fits = taken == int(taken) and (0 <= taken <= steps if scaled else taken == steps)
                    _require(fits, f"{name} {steps}", taken)
            else:
                _require(type(value) is type(kind), f"{name} {kind}", value)
    own.load_state_dict({"state": state, "param_groups": own.state_dict()["param_groups"]})


def scaler(own: torch.amp.GradScaler, found: Mapping[str, Any]) -> None:
    """Let a gradient scaler have the state of a checkpoint.

    Raises:
        InputError: it is none of a scaler.
    """
    state, kinds = _of(found, "scaler"), own.state_dict()
    _require(
        isinstance(state, dict) and state.keys() == kinds.keys(), f"scaler of {', '.join(kinds) or 'nothing'}", state
    )
    for name, kind in kinds.items():
        value = state[name]
        if name == "scale":
            fits = isinstance(value, float) and 0 < value <= torch.finfo(torch.float32).max
        elif name == "_growth_tracker":
            fits = type(value) is int and 0 <= value < kinds["growth_interval"]
        else:  # a constant
            fits = type(value) is type(kind) and value == kind
        _require(fits, f"scaler's {name}, such as {kind},", value)
    if state:
        own.load_state_dict(state)


def _of(found: Mapping[str, Any], name: str) -> Any:
    return found.get(name)


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _require(holds: bool, expected: str, value: Any) -> None:
    if not holds:
        raise InputError(f"expected {expected} in the checkpoint, got {_shown(value)}")


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)}, {value.dtype}"
    return shown(value)
