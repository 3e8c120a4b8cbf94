"""What torch.func offers."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import (
    functional_call,
    functionalize,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    linearize,
    stack_module_state,
    vjp,
    vmap,
)

from modes.mode import Map, Mode, as_module, cotangent, every, head, heads, leaves, scalar, tangents

Inputs = tuple[Tensor, ...]


def gradient(f: Map) -> Callable[..., Any]:
    return lambda *t: grad(scalar(f), every(t))(*t)


def tangent(f: Map) -> Callable[..., Any]:
    return lambda *t: jvp(f, t, tangents(t))[1]


def by_all(transform: Callable[..., Any], f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *t: transform(f, every(t))(*t)


def to_vjp(f: Map, inputs: Inputs) -> Any:
    y, pull = vjp(f, *inputs)
    return y, pull(cotangent(y))


def to_linearize(f: Map, inputs: Inputs) -> Any:
    with warnings.catch_warnings():
        # torch warns about the graph that it builds itself.
        warnings.filterwarnings("ignore", "Attempted to insert a get_attr Node")
        y, push = linearize(f, *inputs)
    return y, push(*tangents(inputs)), push(*inputs)


def batch(t: Tensor) -> Tensor:
    return torch.stack([t, t.cos(), -t])


def over(f: Callable[..., Any], *batched: int) -> Callable[..., Any]:
    """Map f over a new leading dimension of some inputs, of all where none is named."""

    def mapped(*t: Tensor) -> Any:
        chosen = batched or every(t)
        given = (batch(x) if k in chosen else x for k, x in enumerate(t))
        return vmap(f, tuple(0 if k in chosen else None for k in every(t)))(*given)

    return mapped


def over_rows(f: Callable[..., Any]) -> Callable[..., Any]:
    """Map f over the rows of the layer's input, so that it sees one row, without a batch dimension."""
    return lambda h, *rest: vmap(lambda row: f(row, *rest))(h)


def over_last(f: Map) -> Callable[..., Any]:
    return lambda *t: vmap(f, -1, -1)(*(batch(x).movedim(0, -1) for x in t))


def mixed(f: Map) -> Callable[..., Any]:
    """Take the forward derivative by the input, of the forward derivative by the weight."""

    def run(h: Tensor, w: Tensor, *rest: Tensor) -> Any:
        return jvp(lambda h: jvp(lambda w: f(h, w, *rest), (w,), (w.cos(),))[1], (h,), (h.cos(),))

    return run


def backward_through(transform: Callable[[Map], Callable[..., Any]]) -> Callable[[Map, Inputs], Any]:
    """Differentiate, by plain backward mode, what a transform has computed."""

    def run(f: Map, inputs: Inputs) -> Any:
        t = leaves(inputs)
        y = transform(f)(*t)
        return y, torch.autograd.grad(heads(y if isinstance(y, tuple) else (y,)), t)

    return run


def called_functionally(f: Map, inputs: Inputs) -> Any:
    module = as_module(f, inputs)
    params = {name: p.detach() + 0.1 for name, p in module.named_parameters()}

    def loss(params: dict[str, Tensor], h: Tensor) -> Tensor:
        return head(functional_call(module, params, (h,)))

    first = grad(loss, (0, 1))(params, inputs[0])
    second = hessian(loss)(params, inputs[0])
    return [*first[0].values(), first[1]], [list(row.values()) for row in second.values()]


def ensemble(f: Map, inputs: Inputs) -> Any:
    """Run three modules at once, by their stacked parameters; torch.vmap over the models, shared input."""
    modules = [as_module(f, tuple(scale * t for t in inputs)) for scale in (1.0, -0.5, 0.7)]
    params, buffers = stack_module_state(modules)

    def model(params: dict[str, Tensor], h: Tensor) -> Tensor:
        return functional_call(modules[0], (params, buffers), (h,))  # type: ignore[no-any-return]

    y = vmap(model, (0, None))(params, inputs[0])
    gradients = torch.autograd.grad(head(y), list(params.values()))
    each = vmap(grad(scalar(model), (0, 1)), (0, None))(params, inputs[0])
    return y, gradients, list(each[0].values()), each[1]


# Each maps f to a function of the inputs.
TRANSFORMS: dict[str, Callable[[Map], Callable[..., Any]]] = {
    "grad": gradient,
    "jvp": lambda f: lambda *t: jvp(f, t, tangents(t)),
    "jacrev": lambda f: by_all(jacrev, f),
    "jacfwd": lambda f: by_all(jacfwd, f),
    "hessian": lambda f: by_all(hessian, scalar(f)),
    "vmap over the input": lambda f: over(f, 0),
    "vmap over the weight": lambda f: over(f, 1),
    "vmap over the bias": lambda f: over(f, 2),
    "vmap over all": lambda f: over(f),
    "vmap over rows": over_rows,
    "vmap over the last dimension of all": over_last,
    "vmap(vmap)": lambda f: over(over(f, 0), 1),
    "vmap(grad) over rows": lambda f: over_rows(gradient(f)),
    "vmap(grad) over the weight": lambda f: over(gradient(f), 1),
    "vmap(grad) over all": lambda f: over(gradient(f)),
    "vmap(hessian) over rows": lambda f: over_rows(hessian(scalar(f))),
    "vmap(hessian) over all": lambda f: over(hessian(scalar(f), (0, 1))),
    "vmap(jvp)": lambda f: over(tangent(f)),
    "jvp(vmap)": lambda f: tangent(over(f)),
    "grad(vmap)": lambda f: gradient(over(f)),
    "grad(grad)": lambda f: by_all(grad, lambda *t: heads(gradient(f)(*t))),
    "grad(grad(grad))": lambda f: by_all(grad, lambda *t: heads(by_all(grad, lambda *t: heads(gradient(f)(*t)))(*t))),
    "jvp(grad)": lambda f: lambda *t: jvp(gradient(f), t, tangents(t)),
    "grad(jvp)": lambda f: by_all(grad, lambda *t: head(tangent(f)(*t)) + head(f(*t))),
    "jvp(jvp)": lambda f: lambda *t: jvp(tangent(f), t, t),
    "jvp by input of jvp by weight": mixed,
    "jacfwd(jacfwd)": lambda f: by_all(jacfwd, by_all(jacfwd, f)),
    "jacrev(jacrev)": lambda f: by_all(jacrev, by_all(jacrev, f)),
    "jacrev(jacfwd)": lambda f: by_all(jacrev, by_all(jacfwd, f)),
    "jacrev(jacfwd(jacfwd))": lambda f: jacrev(jacfwd(jacfwd(scalar(f))), 1),
    "jacfwd(jacrev(jacfwd))": lambda f: jacfwd(jacrev(jacfwd(scalar(f))), 1),
    "jacrev(jacrev(jacrev))": lambda f: jacrev(jacrev(jacrev(scalar(f))), 1),
    "functionalize": functionalize,
    "functionalize(grad)": lambda f: functionalize(gradient(f)),
}


def ask(transform: Callable[[Map], Callable[..., Any]]) -> Callable[[Map, Inputs], Any]:
    """Make a run of a transform."""
    return lambda f, inputs: transform(f)(*inputs)


FUNC = [
    *(Mode(name, ask(transform)) for name, transform in TRANSFORMS.items()),
    Mode("vjp", to_vjp),
    Mode("linearize", to_linearize),
    Mode("functional_call, grad and hessian", called_functionally),
    Mode("stack_module_state ensemble", ensemble),
    Mode("backward through vmap", backward_through(lambda f: over(f))),
    Mode("backward through grad", backward_through(gradient)),
    Mode("backward through vmap(grad)", backward_through(lambda f: over_rows(gradient(f)))),
    Mode("backward through jvp", backward_through(lambda f: lambda *t: jvp(f, t, tangents(t)))),
]
