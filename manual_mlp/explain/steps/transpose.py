"""Steps 6 and 7: why a transpose and no inverse, and why nobody builds the Jacobian."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from manual_mlp.explain.blocks import Areas, Formula, Step, Table, Text, Tiles
from manual_mlp.explain.compare import agree, attempt, autograd
from manual_mlp.explain.story import Story

_REAL = (64, 784, 128)  # rows, inputs, outputs: MNIST's images into a hidden layer


def transpose(story: Story) -> Step:
    """Step 6: the adjoint identity holds for the transpose, and for no inverse."""
    s, inputs = story, story.network.shape[1]
    side = f"min(rows(H), {inputs})"
    square, moved = f"head(H, {side}, {side})", f"head(moves(W, 1), {side}, cols(W))"
    delta = f"head(delta_, {side}, cols(W))"
    right, wrong = f"sum({square}.T @ {delta} * {moved})", f"sum(inv({square}) @ {delta} * {moved})"
    return Step(
        6,
        "Why transpose and not inverse",
        (
            Text(
                "H took W forward, as `HW`. To go back one might want to undo that, by an inverse. But nothing is "
                "undone. Going back asks another question: if W changes, what does J feel?"
            ),
            Text(
                "A change U of W changes Z by `H U`. J feels a change of Z by δ: multiply the entries that stand in "
                "the same place and add all. Write `⟨A, D⟩` for that, a dot product of two matrices. Then sort the "
                "terms by weights:"
            ),
            Formula("⟨δ, H U⟩ = Σₙₗ δₙₗ Σₖ Hₙₖ Uₖₗ"),
            Formula("= Σₖₗ (Σₙ Hₙₖ δₙₗ) Uₖₗ"),
            Formula("= ⟨Hᵀδ, U⟩"),
            Text(
                "No term was changed. They were added in another order, and `Hᵀ` is the name of that order. This is "
                "what a transpose is: it moves a matrix to the other side of a dot product. Mathematicians call it the "
                "adjoint. Try it on three changes:"
            ),
            Table(
                ("U", "⟨δ, H U⟩", "⟨Hᵀδ, U⟩"),
                tuple(
                    (
                        f"no. {draw}",
                        s.say(f"{{sum(delta_ * (H @ moves(W, {draw}))):6}}"),
                        s.say(f"{{sum(dW * moves(W, {draw})):6}}"),
                    )
                    for draw in (1, 2, 3)
                ),
            ),
            Tiles(
                "The first U, and what it does to Z.",
                (s.tile("U", "moves(W, 1)", ("k", "l")), "", s.tile("H U", "H @ moves(W, 1)", ("n", "l"))),
            ),
            s.when(
                f"rows(H) == {inputs}",
                "Now try the inverse. H is {H:shape}:",
            ),
            s.when(
                f"abs(rows(H) - {inputs})",
                f"Now try an inverse. H is {{H:shape}}, so it has none. Its first rows "
                f"and columns, {{{square}:shape}}, may have one:",
            ),
            s.text(
                f"With the transpose `⟨Hᵀδ, U⟩` is {{{right}}}, as `⟨δ, H U⟩` is. With the inverse in its place it is "
                f"{{{wrong}}}, off by {{abs({wrong} - {right})}}. (It is none where there is no inverse. The transpose "
                "is always there.)"
            ),
            *(
                s.same(
                    f"⟨Hᵀδ, U⟩ = ⟨δ, H U⟩, no. {draw}",
                    f"sum(dW * moves(W, {draw}))",
                    f"sum(delta_ * (H @ moves(W, {draw})))",
                    "the other order",
                )
                for draw in (1, 2, 3)
            ),
            s.difference(
                "⟨Hᵀδ, U⟩ = the slope of J along U",
                "sum(dW * moves(W, 1))",
                "J(f(H @ (W + e * moves(W, 1)) + B), T)",
                "e",
            ),
        ),
    )


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
                "but H and δ. Checked on random numbers of this size:"
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
