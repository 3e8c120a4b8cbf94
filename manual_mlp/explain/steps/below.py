"""Steps 8 and 9: the layer below, and the softmax, whose Jacobian is not diagonal."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from manual_mlp.explain.blocks import Boxes, Formula, Matrix, Numbers, Step, Text, Tile, Tiles, count, number
from manual_mlp.explain.compare import DIFFERENCE, agree, attempt, autograd, central_difference, jacobian
from manual_mlp.explain.story import Story, as_row, row_of, spelled_out


def below(story: Story) -> Step:
    """Step 8: ∂J/∂H, and the same formulas for the hidden layer."""
    net, n = story.network, story.row
    width = net.x.shape[1]
    rows, inputs, outputs = net.shape
    _, dv, dc, *_ = autograd(net.whole_cost, net.x, net.v, net.c, net.w, net.b)
    k = story.knob[0]
    (direction,) = story.directions(*net.v.shape)
    slope = central_difference(lambda v: net.whole_cost(net.x, v, net.c, net.w, net.b), net.v, direction)
    before = float(net.cost_of(net.y))
    after, rate = _descend(story)
    delta = story.delta if isinstance(story.delta, Tensor) else story.true_delta
    return Step(
        8,
        "One layer down",
        (
            Text(
                f"An entry `Hₙₖ` reaches every output of its row, here {count(outputs, 'output')}, by the weights in "
                "row k of W. So there is no I in the chain rule, and the whole sum stays:"
            ),
            Formula("∂J/∂Hₙₖ = Σᵢ δₙᵢ Wₖᵢ = (δ Wᵀ)ₙₖ", "B2"),
            Text(f"For n = {n + 1} and k = {k + 1}: {spelled_out(delta[n], net.w[k])}."),
            Numbers(
                (
                    Matrix("δ", story.delta, "n", "i"),
                    "·",
                    Matrix("Wᵀ", net.w.mT, "i", "k"),
                    "=",
                    Matrix("∂J/∂H", story.dh, "n", "k"),
                )
            ),
            Text(
                "This H did not fall from the sky. It is the output of a hidden layer, `H = f(XV + C)`, with data X of "
                f"{count(width, 'number')} a row, a weight V and a bias C:"
            ),
            Boxes(
                "The whole network, forward.",
                (("X", rows, width), "→", ("H", rows, inputs), "→", ("Y", rows, outputs), "→", ("J", 1, 1)),
            ),
            Numbers(
                (
                    Matrix("X", net.x, "n", "m"),
                    "·",
                    Matrix("V", net.v, "m", "k"),
                    "+",
                    Matrix("C", net.c[None], "", "k"),
                )
            ),
            Text(
                "For the hidden layer ∂J/∂H is what ∂J/∂Y was for the layer above. So the same formulas hold again. "
                "Call its δ by another letter, γ:"
            ),
            Formula("γ = ∂J/∂H ⊙ f′(XV + C)", "B1"),
            Formula("∂J/∂V = Xᵀ γ", "B3"),
            Formula("∂J/∂C = Σₙ γₙ", "B4"),
            Numbers(
                (
                    Matrix("∂J/∂H", story.dh, "n", "k"),
                    "⊙",
                    Matrix("f′(XV + C)", net.f.df(net.z1), "n", "k"),
                    "=",
                    Matrix("γ", story.gamma, "n", "k"),
                )
            ),
            Numbers(
                (
                    Matrix("∂J/∂V", story.dv, "m", "k"),
                    "and",
                    Matrix("∂J/∂C", as_row(story.dc), "", "k"),
                )
            ),
            Text(
                "That is the tutorial's whole network. Each layer takes what comes back and makes its δ, then Hᵀδ "
                "for its weight and the sum of δ for its bias, then δWᵀ for the layer below: with more layers this "
                "is repeated, and it is called backpropagation."
            ),
            Text(
                "And this is what it is for: move every parameter a little against its derivative, θ − η ∂J/∂θ. With "
                f"`η = {number(rate)}` this takes J from {number(before, 6)} to {number(after, 6)}."
            ),
            agree("δWᵀ = ∂J/∂H", story.dh, net.gradients[0]),
            agree("Xᵀγ = ∂J/∂V", story.dv, dv),
            agree("Σₙ γₙ = ∂J/∂C", story.dc, dc),
            agree(
                "⟨Xᵀγ, U⟩ = the slope of J along a random U",
                attempt(lambda dv: (dv * direction).sum(), story.dv),
                slope,
                "central difference",
                DIFFERENCE,
            ),
        ),
    )


def _descend(story: Story) -> tuple[float, float]:
    """Return J after a step of gradient descent, and the step's η: the largest of 1, 1/2, 1/4, … that lowers J."""
    net = story.network
    parameters = (net.v, net.c, net.w, net.b)
    gradients = autograd(lambda *p: net.whole_cost(net.x, *p), *parameters)
    before, rate = float(net.cost_of(net.y)), 1.0
    for _ in range(20):
        after = float(net.whole_cost(net.x, *(p - rate * g for p, g in zip(parameters, gradients, strict=True))))
        if after < before:
            return after, rate
        rate /= 2
    return before, 0.0


def softmax(story: Story) -> Step:
    """Step 9: softmax mixes the entries of a row, and what goes back is p − t all the same."""
    net, n = story.network, story.row
    s, target = story.classes
    # A share too small for a number would make 0/0 of what is 1.
    p = torch.softmax(s, 1).clamp_min(1e-300)
    identity = torch.eye(s.shape[1], dtype=torch.float64)
    full = p[n, :, None] * (identity - p[n])
    dp = -target[n] / p[n]
    back = attempt(story.formulas.softmax, s, target)
    (found,) = autograd(lambda s: F.cross_entropy(s, target, reduction="sum"), s)
    answer = int(target[n].argmax())
    of_y = net.loss == "cross-entropy"
    enters = (
        "In step 2 the J of this network put one behind Y, so S is Y."
        if of_y
        else "Forget f for a moment, and let a softmax stand in its place: S is Z."
    )
    alone = " It needs a second class to compare with: 0 enters for it." if net.shape[2] == 1 else ""
    return Step(
        9,
        "The exception that proves it",
        (
            Text(
                "All this rested on one thing: f works entry by entry, so its Jacobian is diagonal. A softmax does "
                "not. It turns a row S into shares p that add up to 1, and every share depends on every entry. "
                f"{enters}{alone} Row {n + 1}:"
            ),
            Formula("pᵢ = exp(Sᵢ) / Σₗ exp(Sₗ)"),
            Numbers(
                (
                    Matrix("S", s[n : n + 1], "", "i"),
                    "→",
                    Matrix("p", p[n : n + 1], "", "i"),
                    "and",
                    Matrix("∂p/∂S", full, "i", "l"),
                )
            ),
            Tiles(
                "The softmax's Jacobian is full. That of an entrywise f would be diagonal.",
                (Tile("∂p/∂S", full, ("i", "l")), "", Tile("its diagonal alone", full * identity, ("i", "l"))),
            ),
            Formula("∂pᵢ/∂Sₗ = pᵢ (Iᵢₗ − pₗ)"),
            Text(
                "Now the sum has all its terms. Take the cross-entropy, J = −ln p of the right class. Right is where "
                f"`Y*` is largest, here class {answer + 1}. So `∂J/∂p` is {number(float(dp[answer]))} there, which is "
                "−1/p, and 0 elsewhere. Multiply by the matrix and add: p cancels, and what is left is short again. "
                "Write t for the row that is 1 at the right class and 0 elsewhere:"
            ),
            Formula("∂J/∂Sₗ = Σᵢ ∂J/∂pᵢ pᵢ (Iᵢₗ − pₗ) = pₗ − tₗ", "O2"),
            Numbers(
                (
                    Matrix("p", p[n : n + 1], "", "l"),
                    "−",
                    Matrix("t", target[n : n + 1], "", "l"),
                    "=",
                    Matrix("∂J/∂S", row_of(back, n), "", "l"),
                )
            ),
            Text(
                "This is the ∂J/∂Y of step 2, and from there f takes over."
                if of_y
                else "This is the δ of a layer that ends in a softmax. From there nothing is new: its ∂J/∂B sums δ, "
                "and its ∂J/∂W is Hᵀδ."
            ),
            agree("pᵢ (Iᵢₗ − pₗ) = ∂p/∂S", full, jacobian(lambda row: torch.softmax(row, 0), s[n])),
            agree("p − t of the row = the sum over i", row_of(back, n), (dp @ full)[None], "the full matrix"),
            agree("p − t of all rows = the derivative of F.cross_entropy", back, found),
        ),
    )
