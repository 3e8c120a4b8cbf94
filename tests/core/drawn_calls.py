"""Ways to differentiate a layer that Hypothesis draws, as data: by autograd, and by torch.func."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils.checkpoint import checkpoint

from drawn_layers import LAYOUTS, Layer, st, subsets
from modes.functorch import TRANSFORMS
from modes.mode import Map
from modes.reverse import DUAL

# Reverse mode: which derivatives of which derivatives.


@dataclass(frozen=True)
class Reverse:
    """Hold what is asked of ``torch.autograd``.

    Attributes:
        asked: of each order, the inputs whose derivatives are asked for; −1 is the cotangent of the output.
        pulled: of each order, the results that are differentiated: positions among those of the order before.
        cotangents: of each order, the layout of the cotangents.
        batched: whether the last order gets a batch of cotangents.
        checkpointed: whether the layer is run again in backward.
    """

    asked: tuple[tuple[int, ...], ...]
    pulled: tuple[tuple[int, ...], ...]
    cotangents: tuple[str, ...]
    batched: bool
    checkpointed: bool

    def __call__(self, f: Map, inputs: Sequence[Tensor], active: Sequence[int]) -> list[Tensor]:
        """Return the output and the derivatives of every order."""
        t = [x.detach().requires_grad_(k in active) for k, x in enumerate(inputs)]
        y = checkpoint(f, *t, use_reentrant=False) if self.checkpointed else f(*t)
        assert y.requires_grad
        results, outputs = [y], [y]
        dy = cotangent(y, self.cotangents[0], 0).requires_grad_(any(-1 in asked for asked in self.asked[1:]))
        for order, asked in enumerate(self.asked):
            last = order + 1 == len(self.asked)
            if order:
                outputs = [outputs[k] for k in self.pulled[order - 1]]
            given = [dy] if not order else [cotangent(o, self.cotangents[order], k) for k, o in enumerate(outputs)]
            if last and self.batched:
                given = [torch.stack([g, -2 * g]) for g in given]
            targets = [dy if k < 0 else t[k] for k in asked]
            outputs = pull(outputs, targets, given, create_graph=not last, is_grads_batched=last and self.batched)
            results += outputs
        # Once more: whatever was asked has changed nothing.
        results += pull([y], [t[k] for k in self.asked[0]], [dy])
        assert all(torch.equal(a, b) for a, b in zip(t, inputs, strict=True)), "an input was written"
        with torch.no_grad():
            results.append(f(*t))
        assert not results[-1].requires_grad
        return results


def pull(outputs: Sequence[Tensor], inputs: Sequence[Tensor], cotangents: Sequence[Tensor], **options: Any) -> Any:
    """Differentiate, where an output may be a constant and an input may not be used: both give zeros."""
    live = [k for k, o in enumerate(outputs) if o.requires_grad]
    options |= {"allow_unused": True, "retain_graph": True}
    found: Sequence[Tensor | None] = [None] * len(inputs)
    if live:
        given = [cotangents[k] for k in live]
        before = [c.clone() for c in given]
        found = torch.autograd.grad([outputs[k] for k in live], inputs, given, **options)
        assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True)), "a cotangent was written"
    batch = (2,) if options.get("is_grads_batched") else ()
    return [x.new_zeros((*batch, *x.shape)) if g is None else g for g, x in zip(found, inputs, strict=True)]


def cotangent(y: Tensor, layout: str, k: int) -> Tensor:
    """Choose a cotangent of y, whose entries every dtype holds exactly."""
    t = torch.randint(-32, 33, y.shape, generator=torch.Generator().manual_seed(k)) / 16
    return LAYOUTS[layout](t.to(y.device, y.dtype)).detach()


@st.composite
def reverses(draw: Any, layer: Layer, most: int = 3) -> Reverse:
    orders = draw(st.integers(1, most))
    asked = [draw(subsets(layer.active)), *(draw(subsets([*layer.active, -1])) for _ in range(orders - 1))]
    return Reverse(
        asked=tuple(asked),
        pulled=tuple(draw(subsets(range(len(a)))) for a in asked[:-1]),
        cotangents=tuple(draw(st.sampled_from(list(LAYOUTS))) for _ in asked),
        batched=draw(st.integers(0, 3)) == 3,
        checkpointed=draw(st.integers(0, 3)) == 3,
    )


# torch.func and dual numbers: a transform of the layer, or of a batch of layers, or a batch of transforms.

DUALS = {mode.name: mode.run for mode in DUAL}
FUNC = (
    "nothing",
    "grad",
    "jvp",
    "jacrev",
    "jacfwd",
    "hessian",
    "grad(grad)",
    "grad(grad(grad))",
    "jvp(grad)",
    "grad(jvp)",
    "jvp(jvp)",
    "jacfwd(jacfwd)",
    "jacrev(jacrev)",
    "jacrev(jacfwd)",
)


@dataclass(frozen=True)
class Transform:
    """Hold what is asked of ``torch.func``, with respect to the inputs that require grad.

    Attributes:
        name: of the transform.
        mapped: the dimension over which ``vmap`` maps each of those inputs, None for one that is shared.
        inside: whether the transform is of the mapped layer, or it is what is mapped.
        pulled: how often backward mode then differentiates all results so far.
    """

    name: str
    mapped: tuple[int | None, ...]
    inside: bool
    pulled: int

    def __call__(self, f: Map, inputs: Sequence[Tensor], active: Sequence[int]) -> list[Tensor]:
        def of_active(*t: Tensor) -> Tensor:
            rest = list(inputs)
            for k, x in zip(active, t, strict=True):
                rest[k] = x
            return f(*rest)

        t = tuple(inputs[k].detach().requires_grad_(self.pulled > 0) for k in active)
        if self.name in DUALS:
            return flat(DUALS[self.name](of_active, t))
        transform = (lambda g: g) if self.name == "nothing" else TRANSFORMS[self.name]
        results = flat((transform(self.map(of_active)) if self.inside else self.map(transform(of_active)))(*t))
        for order in range(self.pulled):
            given = [cotangent(r, "contiguous", k) for k, r in enumerate(results)]
            results += pull(results, t, given, create_graph=order + 1 < self.pulled)
        return results

    def map(self, f: Callable[..., Any]) -> Callable[..., Any]:
        if not self.mapped:
            return f

        def mapped(*t: Tensor) -> Any:
            pairs = list(zip(t, self.mapped, strict=True))
            batches = (x if k is None else torch.stack([x, x.cos(), -x], k) for x, k in pairs)
            return vmap(f, self.mapped)(*batches)

        return mapped


def flat(results: Any) -> list[Tensor]:
    """List nested results."""
    return [t for r in results for t in flat(r)] if isinstance(results, list | tuple) else [results]


@st.composite
def transforms(draw: Any, layer: Layer) -> Transform:
    # torch makes no Jacobian of nothing, and some dual numbers of nothing have no tangent.
    empty = any(0 in shape for shape in layer.shapes)
    if not empty and draw(st.integers(0, 4)) == 4:
        return Transform(draw(st.sampled_from(list(DUALS))), (), False, 0)
    name = draw(st.sampled_from([n for n in FUNC if not (empty and ("jac" in n or "hessian" in n))]))
    some = draw(st.one_of(st.just(()), subsets(layer.active)))
    mapped = tuple(draw(st.integers(0, len(layer.shapes[k]))) if k in some else None for k in layer.active)
    return Transform(name, mapped if some else (), draw(st.booleans()), draw(st.integers(0, 2)))
