"""Autocast and the gradient scaler: every error is held against torch's own."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from modes.mode import Map, Mode, first_order, head, leaves, second_order

Inputs = tuple[Tensor, ...]


def inside(run: Any, dtype: torch.dtype, f: Map, inputs: Inputs) -> Any:
    """Ask for the derivatives inside the region; float64, the truth, is not cast."""
    with torch.autocast(inputs[0].device.type, dtype):
        return run(f, inputs)


def outside(run: Any, dtype: torch.dtype, f: Map, inputs: Inputs) -> Any:
    """Leave the region before the derivatives are asked for."""

    def cast(*t: Tensor) -> Tensor:
        with torch.autocast(t[0].device.type, dtype):
            return f(*t)

    return run(cast, inputs)


def nested(dtype: torch.dtype, f: Map, inputs: Inputs) -> Any:
    """Call the layer with autocast on, off inside it, and on again."""
    region = partial(torch.autocast, inputs[0].device.type, dtype)
    t = leaves(inputs)
    with region():
        a = f(*t)
        with region(enabled=False):
            b = f(*t)
            with region():
                c = f(*t)
            loss = head(a) + head(b) + head(c)
            first = torch.autograd.grad(loss, t, retain_graph=True)
        again = torch.autograd.grad(loss, t)
    return a, b, c, first, again


def scaled(dtype: torch.dtype, f: Map, inputs: Inputs) -> Any:
    """Take two steps of gradient descent with a gradient scaler."""
    device, t = inputs[0].device.type, leaves(inputs)
    scaler = torch.amp.GradScaler(device, init_scale=1024.0)
    optimizer = torch.optim.SGD(t, lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        with torch.autocast(device, dtype):
            loss = head(f(*t))
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    return loss, [x.grad for x in t], [x.detach() for x in t], scaler.get_scale()


def low(name: str, run: Any) -> list[Mode]:
    return [
        Mode(f"{name}, {label}", partial(run, dtype), tolerance=None, dtype=torch.float32)
        for label, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16))
    ]


AUTOCAST = [
    *low("autocast, backward outside", partial(outside, first_order)),
    *low("autocast, backward inside", partial(inside, first_order)),
    *low("autocast on, off, on", nested),
    *low("autocast, second order outside", partial(outside, second_order)),
    *low("autocast, second order inside", partial(inside, second_order)),
    *low("GradScaler", scaled),
]
