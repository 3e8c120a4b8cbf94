"""Train an ensemble of networks at once by torch.func, and see from their disagreement where there are no data.

Each member m gives a mean μₘ(x) and a variance σₘ²(x), and has the loss of Lakshminarayanan, Pritzel & Blundell (2017,
NeurIPS, eq. 1) over the data (xᵢ, yᵢ); members differ by their initial parameters alone:

    Jₘ = 1/N Σᵢ ½ log σₘ²(xᵢ) + (yᵢ − μₘ(xᵢ))² / 2σₘ²(xᵢ)

The ensemble is the mixture of its members. Its variance falls into what they all see in the data, the noise, and what
they disagree about (section 2.4 there, by the law of total variance):

    μ = 1/M Σₘ μₘ        σ² = 1/M Σₘ σₘ²  +  1/M Σₘ (μₘ − μ)²

The parameters of all members lie in one stack, (M, …) each, and vmap(grad(J)) is their gradient: manual_mlp.MLP goes
through stack_module_state, functional_call, grad and vmap as nn.Sequential does, in Python and more slowly.

    python examples/ensemble_func.py
    python examples/ensemble_func.py --device cuda
"""

import argparse
import importlib.util
import time
import timeit
from pathlib import Path

import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

from manual_mlp import MLP

MEMBERS, SIZES, DATA = 32, (1, 32, 32, 2), 128
GAP = -0.3, 0.4  # where there are no data
STEEP = 6.0  # how much steeper than nn.Linear's the first layer starts: what wiggles more can disagree more


def truth(x):
    """Compute f(x) = sin 5x + x/2."""
    return torch.sin(5 * x) + x / 2


def noise(x):
    """Compute the standard deviation of the noise, 0.05 + 0.1 (1 + x)."""
    return 0.05 + 0.1 * (1 + x)


def sample(n, device):
    """Draw n points x (n, 1) of [−1, 1] outside of the gap, and y = f(x) + noise."""
    low, high = GAP
    x = torch.rand(n, 1, device=device) * (2 - (high - low)) - 1
    x = torch.where(x > low, x + (high - low), x)
    return x, truth(x) + noise(x) * torch.randn_like(x)


def member(device=None, dtype=None):
    """Build a network of the ensemble."""
    net = MLP(SIZES, "tanh", device=device, dtype=dtype)
    with torch.no_grad():
        net.layers[0].weight *= STEEP
        net.layers[0].bias *= STEEP
    return net


def loss(parameters, net, x, y):
    """Compute J of one member, the network with these parameters."""
    mean, log_variance = functional_call(net, parameters, (x,)).split(1, -1)
    return 0.5 * (log_variance + (y - mean).square() * torch.exp(-log_variance)).mean()


def gradients(stack, net, x, y):
    """Compute ∂Jₘ/∂Wₘ of all members at once, in a stack as the parameters are."""
    return vmap(lambda parameters: grad(loss)(parameters, net, x, y))(stack)


def one_by_one(stack, net, x, y):
    """Compute the same, a member after the other."""
    members = [dict(zip(stack, map(nn.Parameter, parts), strict=True)) for parts in zip(*stack.values(), strict=True)]
    found = [torch.autograd.grad(loss(member, net, x, y), list(member.values())) for member in members]
    return dict(zip(stack, map(torch.stack, zip(*found, strict=True)), strict=True))


def train(stack, net, x, y, steps):
    """Minimise the loss of every member by Adam, which sees the stack as it would see one network."""
    optimizer = torch.optim.Adam(stack.values(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        for p, g in zip(stack.values(), gradients(stack, net, x, y).values(), strict=True):
            p.grad = g
        optimizer.step()
        schedule.step()


@torch.no_grad()
def predict(stack, net, x):
    """Compute μₘ of the members (M, N), and σ of the noise and of the disagreement at x (N, 1)."""
    outputs = vmap(lambda parameters: functional_call(net, parameters, (x,)))(stack)
    means, variances = outputs[..., 0], outputs[..., 1].exp()
    return means, variances.mean(0).sqrt(), means.std(0, correction=0)


def milliseconds(compute, stack, *operands):
    """Time a computation of gradients, the least of five times."""
    first = next(iter(stack))
    # The copy waits for the device.
    return 1e3 * min(timeit.repeat(lambda: compute(stack, *operands)[first].cpu(), number=1, repeat=5))


def draw(picture, data, x, means, seen, spread):
    """Save the members, the mixture of them, and the two parts of its variance."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12.5, 3.9), layout="constrained")
    mean, deviation = means.mean(0), (seen.square() + spread.square()).sqrt()
    left.plot(x, means.T, color="tab:blue", linewidth=0.6, alpha=0.6)
    left.set(title=f"The means of {len(means)} members", xlabel="x", ylabel="y")
    for k, color, label in ((2, "0.9", "± 2σ"), (1, "0.8", "± σ")):
        middle.fill_between(x, mean - k * deviation, mean + k * deviation, color=color, linewidth=0, label=label)
    middle.plot(x, truth(x), color="tab:orange", linewidth=5, alpha=0.5, label="truth")
    middle.plot(x, mean, color="tab:blue", label="mean μ")
    middle.set(title="The ensemble: mean and spread", xlabel="x")
    for ax in (left, middle):
        ax.scatter(*data, color="black", s=4, zorder=3, label="data")
        ax.set_ylim(-2.2, 2.2)
    middle.legend(ncols=2, fontsize="small", loc="upper left")
    right.plot(x, noise(x), color="tab:orange", linewidth=5, alpha=0.5, label="true noise")
    right.plot(x, seen, color="tab:blue", label="noise that members see")
    right.plot(x, spread, color="tab:red", label="their disagreement")
    right.axvspan(*GAP, color="0.9", label="no data")
    right.set(title="What σ is made of", xlabel="x", ylabel="standard deviation")
    right.set_ylim(0, 1.4 * spread.max().item())
    right.legend(fontsize="small")
    figure.savefig(picture, dpi=100)


def arguments():
    """Read the flags, and stop in one line at one that cannot be."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.error = lambda message: parser.exit(2, f"error: {message}\n")
    parser.add_argument("--steps", type=int, default=600, help="steps of Adam (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of data and parameters (default: %(default)s)")
    parser.add_argument("--picture", type=Path, default=Path(__file__).with_suffix(".png"), help="PNG file to write")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: %(default)s)")
    args = parser.parse_args()
    if args.steps < 1:
        parser.error(f"expected --steps to be at least 1, got {args.steps}")
    if not 0 <= args.seed < 2**64:
        parser.error(f"expected --seed to be in [0, 2^64), got {args.seed}")
    if args.picture.suffix != ".png" or not args.picture.absolute().parent.is_dir():
        parser.error(f"expected --picture to be a .png file in an existing folder, got {args.picture}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("expected a CUDA device for --device cuda, got none")
    if importlib.util.find_spec("matplotlib") is None:
        parser.error("expected matplotlib, for the picture, got none: pip install '.[examples]'")
    return args


def main():
    args = arguments()
    torch.set_num_threads(1)  # in products this small, threads wait for each other more than they work
    torch.manual_seed(args.seed)
    x, y = sample(DATA, args.device)
    nets = [member(args.device) for _ in range(MEMBERS)]
    net, (stack, _) = nets[0], stack_module_state(nets)

    together, alone = (compute(stack, net, x, y) for compute in (gradients, one_by_one))
    off = max(((g - alone[name]).abs().max() / g.abs().max()).item() for name, g in together.items())
    start = time.perf_counter()
    train(stack, net, x, y, args.steps)
    seconds = time.perf_counter() - start

    test = torch.linspace(-1, 1, 401, device=args.device)[:, None]
    means, seen, spread = predict(stack, net, test)
    draw(args.picture, (x.cpu(), y.cpu()), *(t.cpu() for t in (test[:, 0], means, seen, spread)))
    gap = (test[:, 0] > GAP[0]) & (test[:, 0] < GAP[1])
    error, deviation = (means.mean(0) - truth(test)[:, 0]).abs(), (seen.square() + spread.square()).sqrt()
    print(f"trained {MEMBERS} members for {args.steps} steps in {seconds:.1f} s")
    print(f"picture: {args.picture}")
    print(f"disagreement: in the gap {spread[gap].mean():.3f}, amid the data {spread[~gap].mean():.3f}")
    print(f"error of the mean {error.mean():.3f}, within 2 sigma in {(error < 2 * deviation).float().mean():.0%} of x")

    print(f"first gradients of the members together and one by one: apart by {off:.1e} of the largest")
    for name, of in (("MLP", nets), ("nn.Sequential", [net.to_sequential() for net in nets])):
        stack, _ = stack_module_state(of)
        ms = [milliseconds(compute, stack, of[0], x, y) for compute in (gradients, one_by_one)]
        print("these gradients by {}: together {:.1f} ms, one by one {:.1f} ms".format(name, *ms))


if __name__ == "__main__":
    main()
