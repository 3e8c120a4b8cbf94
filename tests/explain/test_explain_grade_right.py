"""Right ways of writing a backward, all of which pass: over sizes, seeds, functions and losses."""

import functools

import pytest
import torch
import torch.nn.functional as F

from manual_mlp.explain import check_my_backward

FUNCTIONS = {
    "sigmoid": (torch.sigmoid, lambda z: torch.sigmoid(z) * (1 - torch.sigmoid(z))),
    "tanh": (torch.tanh, lambda z: 1 - torch.tanh(z) ** 2),
    "relu": (torch.relu, lambda z: (z > 0).to(z.dtype)),
    "identity": (lambda z: z, torch.ones_like),
    "silu": (lambda z: z * torch.sigmoid(z), lambda z: torch.sigmoid(z) * (1 + z * (1 - torch.sigmoid(z)))),
    "hardsigmoid": (F.hardsigmoid, lambda z: ((z > -3) & (z < 3)).to(z.dtype) / 6),
}
SIZES = [(3, 2, 4), (3, 3, 3), (5, 4, 7), (1, 2, 1), (2, 7, 1), (7, 2, 2)]


def error(f, df, loss, Z, T):
    """δ, for the ways that differ in what is made of it."""
    Y = f(Z)
    dY = Y - T if loss == "squared-error" else torch.softmax(Y, 1) - T
    return dY * df(Z)


def matmul(f, df, loss, H, W, B, T):
    d = error(f, df, loss, torch.matmul(H, W) + B, T)
    return {"delta": d, "dB": torch.sum(d, 0), "dW": torch.matmul(H.transpose(0, 1), d), "dH": torch.matmul(d, W.t())}


def every_step(f, df, loss, H, W, B, T):
    Z = torch.addmm(B, H, W)
    Y = f(Z)
    dY = Y - T if loss == "squared-error" else Y.exp() / Y.exp().sum(1, keepdim=True) - T
    d = dY * df(Z)
    return {"Z": Z, "Y": Y, "dY": dY, "delta": d, "dB": d.sum(0, keepdim=True), "dW": H.T @ d, "dH": d @ W.T}


def einsum(f, df, loss, H, W, B, T):
    d = error(f, df, loss, torch.einsum("nk,ki->ni", H, W) + B, T)
    return torch.einsum("ni,ki->nk", d, W), torch.einsum("nk,ni->ki", H, d), torch.einsum("ni->i", d)


def loop_over_rows(f, df, loss, H, W, B, T):
    dW, dB = torch.zeros_like(W), torch.zeros_like(B)
    for h, t in zip(H, T, strict=True):
        d = error(f, df, loss, (h @ W + B)[None], t[None])[0]
        dW += h[:, None] * d[None, :]
        dB += d
    return dW, dB


def loop_over_entries(f, df, loss, H, W, B, T):
    d = error(f, df, loss, H @ W + B, T)
    dW = torch.zeros(W.shape, dtype=torch.float64)
    for n in range(H.shape[0]):
        for k in range(W.shape[0]):
            for i in range(W.shape[1]):
                dW[k, i] += H[n, k] * d[n, i]
    return {"dW": dW}


def outer_products(f, df, loss, H, W, B, T):
    d = error(f, df, loss, H @ W + B, T)
    return sum(torch.outer(h, e) for h, e in zip(H, d, strict=True)), sum(d)


def broadcast(f, df, loss, H, W, B, T):
    d = error(f, df, loss, (H[:, :, None] * W[None]).sum(1) + B, T)
    return (d[:, None, :] * W).sum(2), (H[:, :, None] * d[:, None, :]).sum(0), d.mean(0) * len(d)


def accumulated_in_place(f, df, loss, H, W, B, T):
    d = error(f, df, loss, H @ W + B, T)
    dW = torch.empty_like(W).zero_().addmm_(H.T, d)
    return {"dW": dW, "dB": torch.zeros_like(B).add_(d.sum(0)), "dH": torch.zeros_like(H).addmm_(d, W.T)}


def the_cost(f, loss, H, W, B, T):
    Y = f(H @ W + B)
    return 0.5 * (Y - T).square().sum() if loss == "squared-error" else F.cross_entropy(Y, T, reduction="sum")


def autograd_itself(f, df, loss, H, W, B, T):
    leaves = [H.requires_grad_(), W.requires_grad_(), B.requires_grad_()]
    the_cost(f, loss, H, W, B, T).backward()
    return tuple(leaf.grad for leaf in leaves)


def with_a_graph(f, df, loss, H, W, B, T):
    W = W.clone().requires_grad_()
    d = error(f, df, loss, H @ W + B, T)
    return {"delta": d, "dW": H.T @ d, "dB": d.sum(0)}


def func_vjp(f, df, loss, H, W, B, T):
    _, back = torch.func.vjp(lambda W, B: the_cost(f, loss, H, W, B, T), W, B)
    return back(torch.ones((), dtype=torch.float64))


def func_grad(f, df, loss, H, W, B, T):
    return torch.func.grad(lambda H, W, B: the_cost(f, loss, H, W, B, T), (0, 1, 2))(H, W, B)


def linear(f, df, loss, H, W, B, T):
    d = error(f, df, loss, F.linear(H, W.T, B), T)
    return {"dH": F.linear(d, W), "dW": F.linear(H.T, d.T), "dB": d.sum(dim=0)}


def lists(f, df, loss, H, W, B, T):
    d = error(f, df, loss, H @ W + B, T).tolist()
    rows, inputs, outputs = range(len(H)), range(len(W)), range(len(B))
    H, W = H.tolist(), W.tolist()
    dW = [[sum(H[n][k] * d[n][i] for n in rows) for i in outputs] for k in inputs]
    dH = [[sum(d[n][i] * W[k][i] for i in outputs) for k in inputs] for n in rows]
    return {"delta": d, "dW": dW, "dB": [sum(d[n][i] for n in rows) for i in outputs], "dH": dH}


def lists_of_tensors(f, df, loss, H, W, B, T):
    d = error(f, df, loss, H @ W + B, T)
    return {"dW": [H[:, k] @ d for k in range(len(W))], "dB": [d[:, i].sum() for i in range(len(B))]}


def float32(f, df, loss, H, W, B, T):
    H, W, B, T = H.float(), W.float(), B.float(), T.float()
    d = error(f, df, loss, H @ W + B, T)
    return {"delta": d, "dB": d.sum(0), "dW": H.T @ d, "dH": d @ W.T}


def float32_buffers(f, df, loss, H, W, B, T):
    d = error(f, df, loss, H @ W + B, T)
    dW, dB = torch.zeros(W.shape), torch.zeros(B.shape)
    for n in range(len(H)):
        dW += torch.outer(H[n], d[n])
        dB += d[n]
    return dW, dB


def sparse(f, df, loss, H, W, B, T):
    d = error(f, df, loss, H @ W + B, T)
    return (H.T @ d).to_sparse(), d.sum(0).to_sparse()


def off_the_tape(f, df, loss, H, W, B, T):
    with torch.inference_mode():
        d = error(f, df, loss, H @ W + B, T)
        return {"delta": d, "dW": H.T @ d, "dB": d.sum(0)}


def stored(f, df, loss, H, W, B, T):
    """The weight as nn.Linear holds it."""
    d = error(f, df, loss, F.linear(H, W, B), T)
    return {"delta": d, "dB": d.sum(0), "dW": d.T @ H, "dH": d @ W}


def by_a_module(f, df, loss, H, W, B, T):
    layer = torch.nn.Linear(W.shape[1], W.shape[0], dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(W)
        layer.bias.copy_(B)
    Y = f(layer(H))
    cost = F.mse_loss(Y, T, reduction="sum") / 2 if loss == "squared-error" else F.cross_entropy(Y, T, reduction="sum")
    cost.backward()
    return {"dW": layer.weight.grad, "dB": layer.bias.grad}


class Layer:
    """A class, with its steps in methods."""

    def __init__(self, f, df, loss):
        self.f, self.df, self.loss = f, df, loss

    def forward(self, H, W, B):
        self.H, self.W, self.Z = H, W, H @ W + B

    def backward(self, T):
        delta = error(self.f, self.df, self.loss, self.Z, T)
        return {"dW": self.H.T @ delta, "dB": delta.sum(0), "dH": delta @ self.W.T}

    def __call__(self, H, W, B, T):
        self.forward(H, W, B)
        return self.backward(T)


def a_class(f, df, loss, H, W, B, T):
    return Layer(f, df, loss)(H, W, B, T)


WAYS = [
    *(matmul, every_step, einsum, loop_over_rows, loop_over_entries, outer_products, broadcast, accumulated_in_place),
    *(autograd_itself, with_a_graph, func_vjp, func_grad, linear, lists, lists_of_tensors, float32, float32_buffers),
    *(sparse, off_the_tape, a_class),
]
STORED = [stored, by_a_module]


# torch's derivative of it has the factor 1/6 in float32.
BY_TORCH = (autograd_itself, func_vjp, func_grad, by_a_module)


@pytest.mark.parametrize("loss", ["squared-error", "cross-entropy"])
@pytest.mark.parametrize("way", [*WAYS, *STORED])
def test_a_right_way_passes(way, loss, every_case):
    layout = "torch" if way in STORED else "textbook"
    for seed, (activation, (inputs, outputs, batch)) in enumerate(zip(FUNCTIONS, SIZES, strict=True)):
        if not every_case and (seed + [*WAYS, *STORED].index(way)) % 3:
            continue  # so that over any three ways all functions and sizes occur
        if activation == "hardsigmoid" and way in BY_TORCH:
            continue
        grade = check_my_backward(
            functools.partial(way, *FUNCTIONS[activation], loss),
            inputs=inputs,
            outputs=outputs,
            batch=batch,
            seed=seed,
            activation=activation,
            loss=loss,
            layout=layout,
        )
        assert grade.passed, str(grade)
        assert grade.mistakes == grade.hints == ()
        assert grade.picture == ""
        assert str(grade).endswith("All is right.")


@pytest.mark.parametrize("activation", FUNCTIONS)
def test_a_right_way_passes_for_every_function(activation):
    for seed in range(3):
        fn = functools.partial(every_step, *FUNCTIONS[activation], "squared-error")
        assert check_my_backward(fn, activation=activation, seed=seed).passed


def test_one_output_and_one_row_pass():
    for sizes in ({"outputs": 1}, {"batch": 1}, {"inputs": 1, "outputs": 1, "batch": 1}):
        for way in (every_step, loop_over_rows, lists, func_grad):
            fn = functools.partial(way, *FUNCTIONS["sigmoid"], "squared-error")
            assert check_my_backward(fn, **sizes).passed, (way, sizes)


def test_an_instance_of_a_class_passes():
    assert check_my_backward(Layer(*FUNCTIONS["tanh"], "squared-error"), activation="tanh").passed


@pytest.mark.parametrize("way", [float32, loop_over_rows], ids=["float32", "float64"])
def test_a_right_way_passes_for_large_sums(way):
    fn = functools.partial(way, *FUNCTIONS["silu"], "squared-error")
    for seed in range(3):
        sizes = {"inputs": 300, "outputs": 12, "batch": 60, "seed": seed}
        grade = check_my_backward(fn, activation="silu", **sizes)
        assert grade.passed, str(grade)


def test_softmax_and_cross_entropy_pass_without_an_activation():
    def softmax(H, W, B, T):
        p = torch.softmax(H @ W + B, 1)
        delta = p - T
        return {"delta": delta, "dB": delta.sum(0), "dW": H.T @ delta, "dH": delta @ W.T}

    for seed in range(5):
        assert check_my_backward(softmax, loss="cross-entropy", seed=seed, outputs=3).passed
    assert check_my_backward(softmax, loss="cross-entropy", activation="identity").passed
    assert not check_my_backward(softmax, loss="cross-entropy", activation="sigmoid").passed
    grade = check_my_backward(softmax)
    assert grade.mistakes == ("another-loss",)
    assert "loss='cross-entropy'" in grade.hints[0]


@pytest.mark.parametrize("by", ["p", "logits", "p alone"])
def test_the_softmax_may_be_called_y(by):
    def softmax(H, W, B, T):
        Z = H @ W + B
        p = torch.exp(Z) / torch.exp(Z).sum(1, keepdim=True)
        delta = p - T
        found = {"Z": Z, "Y": p, "dY": delta if by == "logits" else -T / p, "delta": delta, "dW": H.T @ delta}
        if by == "p alone":
            del found["Y"]
        return found

    grade = check_my_backward(softmax, loss="cross-entropy", outputs=4)
    assert grade.passed, str(grade)
    assert ("p, the softmax of the logits" in str(grade)) == (by != "p alone")


def test_a_derivative_by_p_does_not_pass_beside_logits():
    def mixed(H, W, B, T):
        Y = H @ W + B
        return {"Y": Y, "dY": -T / torch.softmax(Y, 1)}

    assert check_my_backward(mixed, loss="cross-entropy").mistakes == ("stopped-at-p",)
