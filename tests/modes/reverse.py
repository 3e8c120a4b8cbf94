"""What torch.autograd offers: reverse mode, its functional form, and dual numbers."""

from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad, functional, grad

from modes.mode import Map, Mode, Run, backward, cotangent, head, heads, leaves, scalar, second_order, tangents

Inputs = tuple[Tensor, ...]


def backward_twice(f: Map, inputs: Inputs, retain_graph: bool) -> Any:
    t = leaves(inputs)
    y = head(f(*t))
    y.backward(retain_graph=retain_graph)
    y.backward()
    return [x.grad for x in t]


def third_order(f: Map, inputs: Inputs) -> Any:
    t = leaves(inputs)
    first = grad(scalar(f)(*t), t, create_graph=True)
    second = grad(heads(first), t, create_graph=True)
    return second, grad(heads(second), t)


def with_respect_to_dy(f: Map, inputs: Inputs) -> Any:
    t = leaves(inputs)
    y = f(*t)
    dy = cotangent(y.detach()).requires_grad_()
    first = grad(y, t, dy, create_graph=True)
    second = grad(heads(first) + head(y), (*t, dy), create_graph=True)
    return first, second, grad(heads(second), (*t, dy))


def several(t: Tensor) -> Tensor:
    return torch.stack([t, t.cos(), t.square()])


def batched(f: Map, inputs: Inputs) -> Any:
    y = f(*(t := leaves(inputs)))
    return grad(y, t, several(cotangent(y)), is_grads_batched=True)


def batched_then_differentiated(f: Map, inputs: Inputs) -> Any:
    y = f(*(t := leaves(inputs)))
    first = grad(y, t, several(cotangent(y)), is_grads_batched=True, create_graph=True)
    return first, grad(heads(first) + head(y), t)


def batched_at_second_order(f: Map, inputs: Inputs) -> Any:
    t = leaves(inputs)
    first = grad(scalar(f)(*t), t, create_graph=True)
    return grad(first, t, [several(cotangent(g)) for g in first], is_grads_batched=True)


def frozen_subsets(f: Map, inputs: Inputs, create_graph: bool) -> Any:
    """Freeze every subset of the first four inputs."""
    results = []
    for asked in product([True, False], repeat=min(4, len(inputs))):
        t = [x.detach().clone().requires_grad_(asks) for x, asks in zip(inputs, asked, strict=False)]
        y = f(*t, *inputs[4:])
        if not any(asked):
            results.append(y)
            continue
        t = [x for x in t if x.requires_grad]
        results.append(grad(head(y), t, create_graph=create_graph))
        if create_graph:
            results.append(grad(heads(results[-1]), t))
    return results


def asked_subsets(f: Map, inputs: Inputs, create_graph: bool) -> Any:
    """Ask for every subset of the first four gradients, where all inputs require grad."""
    t = leaves(inputs)
    y = scalar(f)(*t)
    results = []
    for asked in product([True, False], repeat=min(4, len(inputs))):
        some = [x for x, asks in zip(t, asked, strict=False) if asks]
        if some:
            results.append(grad(y, some, create_graph=create_graph, retain_graph=True))
            if create_graph:
                results.append(grad(heads(results[-1]), some, retain_graph=True))
    return results


def of_functional(name: str, asks: str, **options: Any) -> Run:
    """Call a function of torch.autograd.functional.

    ``asks`` says of what: "f", or "scalar" with the head, and what it gets: a tangent or a cotangent.
    """
    call = getattr(functional, name)

    def run(f: Map, inputs: Inputs) -> Any:
        if asks == "tangent of f":
            return call(f, inputs, tangents(inputs), **options)
        if asks == "cotangent of f":
            return call(f, inputs, cotangent(f(*inputs)), **options)
        if asks == "tangent":
            return call(scalar(f), inputs, tangents(inputs), **options)
        return call(f if asks == "f" else scalar(f), inputs, **options)

    return run


def dual(f: Map, inputs: Inputs) -> Any:
    with forward_ad.dual_level():
        y = f(*map(forward_ad.make_dual, inputs, tangents(inputs)))
        return tuple(forward_ad.unpack_dual(y))


def dual_over_reverse(f: Map, inputs: Inputs, create_graph: bool = False) -> Any:
    t = leaves(inputs)
    with forward_ad.dual_level():
        y = scalar(f)(*map(forward_ad.make_dual, t, tangents(t)))
        first = [forward_ad.unpack_dual(g) for g in grad(y, t, create_graph=create_graph)]
        products = [g.tangent for g in first]
        results = [g.primal for g in first], products
        return (*results, grad(heads(products), t)) if create_graph else results


def dual_cotangent(f: Map, inputs: Inputs, outside: bool, create_graph: bool = False) -> Any:
    """Give the backward pass a dual cotangent; the layer is called outside or inside the level."""
    t = leaves(inputs)
    y = f(*t) if outside else None
    with forward_ad.dual_level():
        y = f(*t) if y is None else y
        dy = forward_ad.make_dual(cotangent(y.detach()), cotangent(y.detach()).cos())
        first = [forward_ad.unpack_dual(g) for g in grad(y, t, dy, create_graph=create_graph)]
        primals, products = [g.primal for g in first], [g.tangent for g in first]
        if not create_graph:
            return primals, products
        # The product does not depend on every input, but the output does.
        return primals, products, grad(heads(products) + f(*t).sin().sum(), t)


def reverse_over_dual(f: Map, inputs: Inputs, create_graph: bool = False) -> Any:
    t = leaves(inputs)
    with forward_ad.dual_level():
        y = forward_ad.unpack_dual(f(*map(forward_ad.make_dual, t, tangents(t))))
        first = grad(head(y.tangent) + head(y.primal), t, create_graph=create_graph)
        return (first, grad(heads(first), t)) if create_graph else first


REVERSE = [
    Mode("backward", backward),
    Mode("backward twice, retain_graph", partial(backward_twice, retain_graph=True)),
    Mode(
        "backward twice, graph freed",
        partial(backward_twice, retain_graph=False),
        may_raise=True,
        instead=partial(backward_twice, retain_graph=True),
    ),
    Mode("create_graph, second order", second_order),
    Mode("create_graph, third order", third_order),
    Mode("create_graph, by dy too, third order", with_respect_to_dy),
    Mode("is_grads_batched", batched),
    Mode("is_grads_batched, create_graph", batched_then_differentiated),
    Mode("is_grads_batched at second order", batched_at_second_order),
    Mode("every frozen subset of inputs", partial(frozen_subsets, create_graph=False)),
    Mode("every frozen subset, create_graph", partial(frozen_subsets, create_graph=True)),
    Mode("every subset of gradients", partial(asked_subsets, create_graph=False)),
    Mode("every subset of gradients, create_graph", partial(asked_subsets, create_graph=True)),
]

FUNCTIONAL = [
    Mode("functional.jacobian", of_functional("jacobian", "f")),
    Mode("functional.jacobian, vectorize", of_functional("jacobian", "f", vectorize=True)),
    Mode(
        "functional.jacobian, vectorize, forward-mode",
        of_functional("jacobian", "f", vectorize=True, strategy="forward-mode"),
    ),
    Mode("functional.hessian", of_functional("hessian", "scalar")),
    Mode("functional.hessian, vectorize", of_functional("hessian", "scalar", vectorize=True)),
    Mode(
        "functional.hessian, vectorize, forward-mode",
        of_functional("hessian", "scalar", vectorize=True, outer_jacobian_strategy="forward-mode"),
    ),
    Mode("functional.jvp", of_functional("jvp", "tangent of f")),
    Mode("functional.vjp", of_functional("vjp", "cotangent of f")),
    Mode("functional.hvp", of_functional("hvp", "tangent")),
    Mode("functional.vhp", of_functional("vhp", "tangent")),
]

DUAL = [
    Mode("dual numbers", dual),
    Mode("dual numbers over reverse", dual_over_reverse),
    Mode("dual numbers over reverse, create_graph", partial(dual_over_reverse, create_graph=True)),
    Mode("dual cotangent, layer inside the level", partial(dual_cotangent, outside=False)),
    Mode("dual cotangent, layer outside the level", partial(dual_cotangent, outside=True)),
    Mode(
        "dual cotangent, layer inside the level, create_graph",
        partial(dual_cotangent, outside=False, create_graph=True),
    ),
    Mode(
        "dual cotangent, layer outside the level, create_graph",
        partial(dual_cotangent, outside=True, create_graph=True),
    ),
    Mode("reverse over dual numbers", reverse_over_dual),
    Mode("reverse over dual numbers, create_graph", partial(reverse_over_dual, create_graph=True)),
]
