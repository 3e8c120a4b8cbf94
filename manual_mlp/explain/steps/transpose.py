"""Steps 6 and 7: why a transpose and no inverse, and why nobody builds the Jacobian."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from manual_mlp.explain.blocks import Areas, Bars, Block, Formula, Refused, Step, Table, Text, Values, number
from manual_mlp.explain.compare import DIFFERENCE, agree, attempt, autograd, central_difference
from manual_mlp.explain.story import Story

_REAL = (64, 784, 128)  # rows, inputs, outputs: MNIST's images into a hidden layer


def transpose(story: Story) -> Step:
    """Step 6: the adjoint identity holds for the transpose, and for no inverse."""
    net = story.network
    h, delta = net.h, story.true_delta
    moves = story.directions(*net.w.shape, count=3)
    pseudo = torch.linalg.pinv(h) @ delta
    sides = torch.stack([(delta * (h @ move)).sum() for move in moves])
    others = torch.stack([(pseudo * move).sum() for move in moves])
    slopes = [central_difference(lambda w: net.cost(h, w, net.b), net.w, move) for move in moves]
    found = attempt(lambda dw: torch.stack([(dw * move).sum() for move in moves]), story.dw)
    off = float((others - sides).abs().max())
    return Step(
        6,
        "Why transpose and not inverse",
        (
            Text(
                "H took W forward, as `HW`. To go back one might want to undo that, by an inverse. But nothing is "
                "undone. Going back asks another question: if W changes by dW, what does J feel?"
            ),
            Text(
                "A change dW of W changes Z by `H dW`. J feels a change of Z by δ: multiply the entries that stand "
                "in the same place and add all. Write `⟨A, B⟩` for that, a dot product of two matrices. Then sort "
                "the terms by weights:"
            ),
            Formula("⟨δ, H dW⟩ = Σₙₗ δₙₗ Σₖ Hₙₖ dWₖₗ"),
            Formula("= Σₖₗ (Σₙ Hₙₖ δₙₗ) dWₖₗ"),
            Formula("= ⟨Hᵀδ, dW⟩"),
            Text(
                "No term was changed. They were added in another order, and `Hᵀ` is the name of that order. This is "
                "what a transpose is: it moves a matrix to the other side of a dot product. Mathematicians call it "
                "the adjoint. Try it on three random changes. Try the pseudo-inverse `H⁺` too, the nearest that a "
                "matrix which need not be square has to an inverse; it has the shape of `Hᵀ`:"
            ),
            Table(
                ("dW", "⟨δ, H dW⟩", "⟨Hᵀδ, dW⟩", "⟨H⁺δ, dW⟩"),
                tuple(
                    (f"no. {i + 1}", number(float(sides[i]), 6), _entry(found, i), number(float(others[i]), 6))
                    for i in range(len(moves))
                ),
            ),
            Text(
                f"The pseudo-inverse is off by up to {number(off)}."
                if off > 1e-9
                else "Here the pseudo-inverse agrees by accident: with these numbers H⁺δ and Hᵀδ are the same."
            ),
            Bars(
                "The first change: numbers that should be equal.",
                (
                    ("⟨δ, H dW⟩", float(sides[0])),
                    *((("⟨Hᵀδ, dW⟩", float(found[0])),) if isinstance(found, Tensor) else ()),
                    ("⟨H⁺δ, dW⟩", float(others[0])),
                ),
            ),
            *_inverse(story),
            agree("⟨Hᵀδ, dW⟩ = ⟨δ, H dW⟩", found, sides, "three random dW"),
            agree(
                "⟨Hᵀδ, dW⟩ = the slope of J along dW",
                found,
                torch.tensor(slopes, dtype=torch.float64),
                "central difference",
                DIFFERENCE,
            ),
        ),
    )


def _inverse(story: Story) -> list[Block]:
    """Try the inverse on a square piece of H."""
    rows, inputs, _ = story.network.shape
    size = min(rows, inputs)
    h, delta = story.network.h[:size, :size], story.true_delta[:size]
    (move,) = story.directions(size, delta.shape[1])
    square = f"{size}×{size}"
    start = (
        f"H is {square}." if rows == inputs else f"H is {rows}×{inputs}, so it has no inverse. Cut it down to {square}."
    )
    try:
        inverse = torch.linalg.inv(h)
    except RuntimeError:
        return [Text(f"{start} This one has no inverse either, and its transpose is there as ever.")]
    want, other = float((delta * (h @ move)).sum()), float((inverse @ delta * move).sum())
    same = float((h.mT @ delta * move).sum())
    verdict = "is off" if abs(other - want) > 1e-9 else "agrees by accident"
    return [
        Text(
            f"{start} For a random dW `⟨δ, H dW⟩` is {number(want)}. With the transpose it is {number(same)}, and "
            f"with the inverse {number(other)}. The inverse {verdict}."
        )
    ]


def _entry(found: Values, i: int) -> str:
    return "none" if isinstance(found, Refused) else number(float(found[i]), 6)


def size(story: Story) -> Step:
    """Step 7: the Jacobian of a real layer is too large, and Hᵀδ is not."""
    rows, inputs, outputs = _REAL
    h, delta, found = _real_layer(story.seed)
    entries, parameters = rows * outputs * inputs * outputs, inputs * outputs
    return Step(
        7,
        "Why nobody builds the Jacobian",
        (
            Text(
                f"A real layer: {rows} images of {inputs} pixels into {outputs} outputs. Y has {rows * outputs:,} "
                f"entries, W has {parameters:,}. All derivatives of one by the other, at 4 bytes each:"
            ),
            Table(
                ("", "numbers", "memory"),
                (
                    (f"∂Y/∂W, {rows * outputs:,} × {parameters:,}", f"{entries:,}", _bytes(4 * entries)),
                    (f"not zero in it, one in {outputs}", f"{entries // outputs:,}", _bytes(4 * entries // outputs)),
                    (f"∂J/∂W = Hᵀδ, {inputs} × {outputs}", f"{parameters:,}", _bytes(4 * parameters)),
                ),
            ),
            Areas(
                f"The small square is Hᵀδ. The large one is ∂Y/∂W, {entries // parameters:,} times its area.",
                ("∂Y/∂W", entries),
                ("Hᵀδ", parameters),
            ),
            Text(
                f"The Jacobian would hold each entry of H many times over, and {outputs - 1} zeros for each number "
                f"that counts. The product Hᵀδ takes {rows * inputs * outputs:,} multiplications and needs nothing "
                "but H and δ. Random numbers at this size:"
            ),
            agree(f"Hᵀδ at {rows}×{inputs} → {outputs} = ∂J/∂W", attempt(story.formulas.weight, h, delta), found),
        ),
    )


@lru_cache(maxsize=1)  # the mistakes ask for it eight times more
def _real_layer(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw H and δ of a layer of real size, and let autograd find ∂J/∂W."""
    rows, inputs, outputs = _REAL
    generator = torch.Generator().manual_seed(seed)
    h, delta, w = (
        torch.randn(*sides, generator=generator, dtype=torch.float64)
        for sides in ((rows, inputs), (rows, outputs), (inputs, outputs))
    )
    return h, delta, autograd(lambda w: (h @ w * delta).sum(), w)[0]


def _bytes(count: int) -> str:
    unit, size = next((unit, size) for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if count >= size)
    return f"{count / size:.3g} {unit}"
