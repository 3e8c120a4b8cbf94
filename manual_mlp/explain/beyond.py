"""Steps 6 to 10: the adjoint, the Jacobian's size, the layer below, the softmax, and the verdict."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from manual_mlp.explain.blocks import (
    Areas,
    Bars,
    Block,
    Boxes,
    Formula,
    Matrix,
    Numbers,
    Refused,
    Step,
    Table,
    Text,
    Tile,
    Tiles,
    Values,
    number,
)
from manual_mlp.explain.compare import (
    DIFFERENCE,
    agree,
    attempt,
    autograd,
    central_difference,
    complex_step,
    every_difference,
    has_complex_step,
    jacobian,
    last_places,
)
from manual_mlp.explain.story import Story, row_of, spelled_out

_LARGE = (64, 784, 128)  # rows, inputs, outputs: MNIST's images into a hidden layer


def transpose(story: Story) -> Step:
    """Step 6: the adjoint identity holds for the transpose, and for no inverse."""
    net = story.network
    h, delta = net.h, story.true_delta
    moves = story.directions(*net.w.shape, count=3)
    product = attempt(story.formulas.weight, h, story.delta)
    pseudo = torch.linalg.pinv(h) @ delta
    names = [f"dW no. {i + 1}" for i in range(len(moves))]
    sides = [float((delta * (h @ move)).sum()) for move in moves]
    rows = [
        (name, number(side, 6), _inner(product, move), _inner(pseudo, move))
        for name, side, move in zip(names, sides, moves, strict=True)
    ]
    off = max(abs(float((pseudo * move).sum()) - side) for side, move in zip(sides, moves, strict=True))
    slopes = [central_difference(lambda w: net.cost(h, w, net.b), net.w, move) for move in moves]
    found = attempt(lambda dw: torch.stack([(dw * move).sum() for move in moves]), product)
    return Step(
        6,
        "Why transpose and not inverse",
        (
            Text(
                "H took W forward, as `HW`. To go back one might want to undo that, by an inverse. But nothing is "
                "undone. Going back asks another question: if W changes by dW, what does J feel?"
            ),
            Text(
                "A change dW of W changes Z by H dW. J feels a change of Z by δ: multiply the entries that stand in "
                "the same place and add all. Write `⟨A, B⟩` for that, a dot product of two matrices. Then sort the "
                "terms by weights:"
            ),
            Formula("⟨δ, H dW⟩ = Σₙₗ δₙₗ Σₖ Hₙₖ dWₖₗ = Σₖₗ (Σₙ Hₙₖ δₙₗ) dWₖₗ = ⟨Hᵀδ, dW⟩"),
            Text(
                "No term was changed. They were added in another order, and Hᵀ is the name of that order. This is "
                "what a transpose is: it moves a matrix to the other side of a dot product. Try it on three random "
                "changes, and try the pseudo-inverse H⁺, which has the shape of Hᵀ:"
            ),
            Table(("", "⟨δ, H dW⟩", "⟨Hᵀδ, dW⟩", "⟨H⁺δ, dW⟩"), tuple(rows)),
            Text(
                f"The pseudo-inverse is off by up to {number(off)}."
                if off > 1e-9
                else "Here the pseudo-inverse agrees, which is an accident of these numbers: H⁺ is Hᵀ for this H."
            ),
            Bars(
                "The first change: three numbers that should be equal.",
                (
                    ("⟨δ, H dW⟩", sides[0]),
                    *((("⟨Hᵀδ, dW⟩", float(found[0])),) if isinstance(found, Tensor) else ()),
                    ("⟨H⁺δ, dW⟩", float((pseudo * moves[0]).sum())),
                ),
            ),
            *_inverse(story),
            agree("⟨Hᵀδ, dW⟩, and ⟨δ, H dW⟩", found, torch.tensor(sides, dtype=torch.float64), "adjoint identity"),
            agree(
                "⟨Hᵀδ, dW⟩, and the slope of J along dW",
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
    start = (
        f"H is {rows}×{inputs}, so it has no inverse at all. Cut it down to {size}×{size}"
        if rows != inputs
        else f"H is {size}×{size}"
    )
    try:
        inverse = torch.linalg.inv(h)
    except RuntimeError:
        return [Text(f"{start}: this one is singular and has no inverse either. Its transpose is there as ever.")]
    want, other = float((delta * (h @ move)).sum()), float((inverse @ delta * move).sum())
    same = float((h.mT @ delta * move).sum())
    verdict = "is off" if abs(other - want) > 1e-9 else "agrees by accident"
    return [
        Text(
            f"{start}: ⟨δ, H dW⟩ is {number(want)}, with the transpose it is {number(same)}, and the inverse gives "
            f"{number(other)}: it {verdict}."
        )
    ]


def _inner(product: Values, move: Tensor) -> str:
    found = attempt(lambda dw: (dw * move).sum(), product)
    return "none" if isinstance(found, Refused) else number(float(found), 6)


def size(story: Story) -> Step:
    """Step 7: the Jacobian of a real layer is too large, and Hᵀδ is not."""
    rows, inputs, outputs = _LARGE
    h, delta, found = _real_layer(story.seed)
    entries, parameters = rows * outputs * inputs * outputs, inputs * outputs
    product = attempt(story.formulas.weight, h, delta)
    return Step(
        7,
        "Why nobody builds the Jacobian",
        (
            Text(
                f"A real layer: {rows} images of {inputs} pixels into {outputs} outputs. Y has {rows * outputs:,} "
                f"entries, W has {parameters:,}. All derivatives of one by the other are"
            ),
            Table(
                ("", "numbers", "memory, 4 bytes each"),
                (
                    (f"∂Y/∂W, {rows * outputs:,} × {parameters:,}", f"{entries:,}", _bytes(4 * entries)),
                    ("of these not zero", f"{entries // outputs:,}", f"one in {outputs}"),
                    (f"∂J/∂W = Hᵀδ, {inputs} × {outputs}", f"{parameters:,}", _bytes(4 * parameters)),
                ),
            ),
            Areas(
                f"The small square is Hᵀδ. The large one is ∂Y/∂W, {entries // parameters:,} times its area.",
                ("∂Y/∂W", entries),
                ("Hᵀδ", parameters),
            ),
            Text(
                f"The Jacobian would hold each entry of H and of f′ many times over, and {outputs - 1} zeros for each "
                f"number that counts. The product Hᵀδ takes {rows * inputs * outputs:,} multiplications and needs "
                "nothing but H and δ."
            ),
            agree(f"Hᵀδ at {rows}×{inputs} → {outputs}", product, found),
        ),
    )


@lru_cache(maxsize=1)  # the mistakes ask for it eight times more
def _real_layer(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Draw H and δ of a layer of real size, and let autograd find ∂J/∂W."""
    rows, inputs, outputs = _LARGE
    generator = torch.Generator().manual_seed(seed)
    h, delta, w = (
        torch.randn(*sides, generator=generator, dtype=torch.float64)
        for sides in ((rows, inputs), (rows, outputs), (inputs, outputs))
    )
    return h, delta, autograd(lambda w: (h @ w * delta).sum(), w)[0]


def below(story: Story) -> Step:
    """Step 8: ∂J/∂H, and the same two formulas for the hidden layer."""
    net, n = story.network, story.row
    width = net.x.shape[1]
    rows, inputs, outputs = net.shape
    dh = attempt(story.formulas.input, story.delta, net.w)
    delta1 = attempt(story.formulas.delta, dh, net.z1, net.f)
    dv, dc = attempt(story.formulas.weight, net.x, delta1), attempt(story.formulas.bias, delta1)
    found = dict(zip("xvcwb", autograd(net.whole_cost, net.x, net.v, net.c, net.w, net.b), strict=True))
    k = story.knob[0]
    delta = story.true_delta[n]
    (direction,) = story.directions(*net.v.shape)
    slope = central_difference(lambda v: net.whole_cost(net.x, v, net.c, net.w, net.b), net.v, direction)
    before = float(net.cost_of(net.y))
    after, rate = _descend(story, found)
    return Step(
        8,
        "One layer down",
        (
            Text(
                f"An entry `Hₙₖ` reaches all {outputs} outputs of its row, by the weights of row k of W. So here no "
                "zero kills the sum of the chain rule:"
            ),
            Formula("∂J/∂Hₙₖ = Σᵢ δₙᵢ Wₖᵢ = (δ Wᵀ)ₙₖ", "B2"),
            Text(f"For n = {n + 1} and k = {k + 1}: {spelled_out(delta, net.w[k])}."),
            Numbers(
                (
                    Matrix("δ", story.delta, "n", "i"),
                    "·",
                    Matrix("Wᵀ", net.w.mT, "i", "k"),
                    "=",
                    Matrix("∂J/∂H", dh, "n", "k"),
                )
            ),
            Text(
                "This H did not fall from the sky. It is the output of the hidden layer, `H = f(XV + C)`, with data X "
                f"of {width} numbers a row. For that layer ∂J/∂H is what ∂J/∂Y was for this one. So the same two "
                "formulas again:"
            ),
            Formula("δ₁ = ∂J/∂H ⊙ f′(XV + C)", "B1"),
            Formula("∂J/∂V = Xᵀ δ₁", "B3"),
            Boxes(
                "The whole network, forward. Backward each δ has the shape of its Z.",
                (("X", rows, width), "→", ("H", rows, inputs), "→", ("Y", rows, outputs), "→", ("J", 1, 1)),
            ),
            Numbers(
                (
                    Matrix("Xᵀ", net.x.mT, "m", "n"),
                    "·",
                    Matrix("δ₁", delta1, "n", "k"),
                    "=",
                    Matrix("∂J/∂V", dv, "m", "k"),
                )
            ),
            Text(
                "That is the tutorial's whole network, and there is no third formula. With more layers the two are "
                f"repeated: this is backpropagation. One step of gradient descent, of η = {number(rate)}, along all "
                f"four derivatives takes J from {number(before, 6)} to {number(after, 6)}."
            ),
            agree("δWᵀ, and ∂J/∂H", dh, story.true_dh_dw_db[0]),
            agree("Xᵀδ₁, and ∂J/∂V", dv, found["v"]),
            agree("Σₙ δ₁, and ∂J/∂C", dc, found["c"]),
            agree(
                "⟨Xᵀδ₁, U⟩, and the slope of J along a random U",
                attempt(lambda dv: (dv * direction).sum(), dv),
                torch.tensor(slope, dtype=torch.float64),
                "central difference",
                DIFFERENCE,
            ),
        ),
    )


def _descend(story: Story, gradients: dict[str, Tensor]) -> tuple[float, float]:
    """Return J after a step of gradient descent, and the step's η: the largest of 1, 1/2, 1/4, … that lowers J."""
    net = story.network
    parameters = {"v": net.v, "c": net.c, "w": net.w, "b": net.b}
    before, rate = float(net.cost_of(net.y)), 1.0
    for _ in range(20):
        moved = {name: p - rate * gradients[name] for name, p in parameters.items()}
        after = float(net.whole_cost(net.x, **moved))
        if after < before:
            return after, rate
        rate /= 2
    return before, 0.0


def softmax(story: Story) -> Step:
    """Step 9: softmax mixes the entries of a row, and δ is p − t all the same."""
    net, n = story.network, story.row
    z, target = story.classes
    p = torch.softmax(z, 1)
    identity = torch.eye(z.shape[1], dtype=torch.float64)
    full = p[n, :, None] * (identity - p[n])
    dp = -target[n] / p[n]
    delta = attempt(story.formulas.softmax, z, target)
    (found,) = autograd(lambda z: F.cross_entropy(z, target, reduction="sum"), z)
    answer = int(target[n].argmax())
    return Step(
        9,
        "The exception that proves it",
        (
            Text(
                "All this rested on one thing: f works entry by entry, so its Jacobian is diagonal. The softmax does "
                f"not. It turns a row of Z into shares that add up to 1: row {n + 1} becomes p. Every share depends "
                "on every entry."
            ),
            Formula("pᵢ = exp(Zᵢ) / Σₗ exp(Zₗ)"),
            *(
                [Text("With one output the softmax needs a second class to compare with: its Z is fixed at 0.")]
                if net.shape[2] == 1
                else []
            ),
            Numbers(
                (
                    Matrix(f"Z of row {n + 1}", z[n : n + 1], "", "i"),
                    "→",
                    Matrix("p", p[n : n + 1], "", "i"),
                    "beside",
                    Matrix("∂p/∂Z", full, "i", "l"),
                )
            ),
            Tiles(
                "The softmax's Jacobian is full. That of an entrywise f is diagonal.",
                (Tile("∂p/∂Z", full, ("i", "l")), "", Tile("its diagonal alone", full * identity, ("i", "l"))),
            ),
            Formula("∂pᵢ/∂Zₗ = pᵢ (δᵢₗ − pₗ)"),
            Text(
                "Now the sum has all its terms. The cross-entropy is J = −ln p of the right class, here class "
                f"{answer + 1}, so ∂J/∂p is {number(float(dp[answer]))} there and 0 elsewhere. Multiply by the matrix "
                "and add: p cancels, and what is left is short again. Write t for the row that is 1 at the right "
                "class and 0 elsewhere."
            ),
            Formula("δₗ = Σᵢ ∂J/∂pᵢ pᵢ (δᵢₗ − pₗ) = pₗ − tₗ", "O2"),
            Numbers(
                (
                    Matrix("p", p[n : n + 1], "", "l"),
                    "−",
                    Matrix("t", target[n : n + 1], "", "l"),
                    "=",
                    Matrix("δ", row_of(delta, n), "", "l"),
                )
            ),
            Text("From there on nothing is new: ∂J/∂B sums δ, and ∂J/∂W is Hᵀδ."),
            agree("∂p/∂Z, and the Jacobian", full, jacobian(lambda row: torch.softmax(row, 0), z[n])),
            agree(
                "p − t of the row, and the sum with the full matrix", row_of(delta, n), (dp @ full)[None], "index sum"
            ),
            agree("p − t of all rows, and F.cross_entropy", delta, found),
        ),
    )


def verdict(story: Story) -> Step:
    """Step 10: every derivative by four ways, and how far they are apart."""
    net = story.network
    cost = net.whole_cost
    names = {"W": net.w, "B": net.b, "V": net.v, "C": net.c, "X": net.x}
    order = ("X", "V", "C", "W", "B")
    dh = attempt(story.formulas.input, story.delta, net.w)
    delta1 = attempt(story.formulas.delta, dh, net.z1, net.f)
    by_hand = {
        "W": attempt(story.formulas.weight, net.h, story.delta),
        "B": attempt(story.formulas.bias, story.delta),
        "V": attempt(story.formulas.weight, net.x, delta1),
        "C": attempt(story.formulas.bias, delta1),
        "X": attempt(story.formulas.input, delta1, net.v),
    }
    by_autograd = dict(zip(order, autograd(cost, *(names[name] for name in order)), strict=True))
    analytic = has_complex_step(net.f)

    def alone(name: str) -> Callable[[Tensor], Tensor]:
        return lambda value: cost(*(value if other == name else names[other].to(value.dtype) for other in order))

    checks, rows, bars = [], [], []
    for name, value in names.items():
        ours = by_hand[name]
        checks.append(agree(f"∂J/∂{name}", ours, by_autograd[name]))
        ways = [("autograd", by_autograd[name], torch.arange(value.numel()))]
        ways.append(("central difference", *every_difference(alone(name), value)))
        if analytic:
            ways.append(("complex step", *complex_step(alone(name), value)))
        for way, want, entries in ways:
            if isinstance(ours, Refused) or ours.shape != value.shape:
                rows.append((f"∂J/∂{name}", way, "none", "none"))
                continue
            got, want = ours.reshape(-1)[entries], want.reshape(-1)
            apart = float((got - want).abs().max())
            rows.append((f"∂J/∂{name}", way, number(apart), f"{last_places(got, want):,.0f}"))
            bars.append((f"∂J/∂{name}, {way}", apart))
            if way != "autograd":
                allowed = DIFFERENCE if way == "central difference" else 1e-12
                checks.append(agree(f"∂J/∂{name}, {len(entries)} entries", got, want, way, allowed))
    return Step(
        10,
        "The verdict",
        (
            Text(
                "Every derivative of the network by hand, held against other ways to find it. Autograd is PyTorch's "
                "own. The central difference nudges an entry up and down and needs no calculus, but subtracts "
                "numbers that are nearly equal, and so loses half its digits. The complex step nudges it by a tiny "
                "imaginary number, subtracts nothing and loses none; it is "
                + (
                    "at hand for this f."
                    if analytic
                    else f"not defined here: {net.f.name} has no form for complex numbers."
                )
            ),
            Text(
                "The last column counts units in the last place. One unit is the gap between two neighbouring "
                "numbers of float64, so a few of them mean: the same but for rounding. An entry in which large terms "
                "cancel may be off by more of its own, tiny places."
            ),
            Table(("by hand", "against", "apart by", "last places"), tuple(rows)),
            Bars("Largest differences, by order of magnitude: shorter is better.", tuple(bars), logarithmic=True),
            *checks,
        ),
    )


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"
