"""Solve a Poisson problem with a physics-informed neural network.

f is chosen so that the solution, u* = sin 2πx + 0.1 sin 8πx, has two scales:

    −u″(x) = f(x) on (0, 1),    u(0) = u(1) = 0

The loss of a network u at collocation points xᵢ (Raissi, Perdikaris & Karniadakis, 2019, J. Comput. Phys. 378):

    J = 1/N Σᵢ (u″(xᵢ) + f(xᵢ))² + λ (u(0)² + u(1)²)

u″ takes two calls of torch.autograd.grad, and ∂J/∂W a third derivative. manual_mlp.MLP answers them as
nn.Sequential(nn.Linear, nn.Tanh, …) does: with `net.to_sequential()` in its place the gradients are the same.

    python examples/poisson_pinn.py
    python examples/poisson_pinn.py --device cuda
"""

import argparse
import importlib.util
import math
import time
from pathlib import Path

import torch

from manual_mlp import MLP

BOUNDARY_WEIGHT = 1e3  # λ: f is of size 100, and |u(0)| = 0.03 weighs as much as a residual of 1


def exact(x):
    """Compute u* = sin 2πx + 0.1 sin 8πx."""
    return torch.sin(2 * math.pi * x) + 0.1 * torch.sin(8 * math.pi * x)


def source(x):
    """Compute f = −u*″ = 4π² sin 2πx + 6.4π² sin 8πx."""
    return math.pi**2 * (4 * torch.sin(2 * math.pi * x) + 6.4 * torch.sin(8 * math.pi * x))


def residual(net, x):
    """Compute u″ + f at x (N, 1), which must require grad."""
    u = net(x)
    (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)  # u′: row i of u depends on row i of x alone
    (d2u,) = torch.autograd.grad(du.sum(), x, create_graph=True)  # u″
    return d2u + source(x)


def loss(net, x):
    """Compute J = 1/N Σ (u″ + f)² + λ (u(0)² + u(1)²)."""
    ends = x.new_tensor([[0.0], [1.0]])
    return residual(net, x).square().mean() + BOUNDARY_WEIGHT * net(ends).square().sum()


def train(net, x, steps):
    """Minimise J, a quarter of the steps by Adam and the rest by L-BFGS, and return J at every evaluation."""
    history = []

    def evaluate():
        optimizer.zero_grad()
        j = loss(net, x)
        j.backward()
        history.append(j.item())
        return j

    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps // 4)
    for _ in range(steps // 4):
        optimizer.step(evaluate)
        schedule.step()
    # Adam finds the valley; L-BFGS, which learns its curvature, follows it down.
    settings = {"history_size": 50, "tolerance_grad": 0, "tolerance_change": 0, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=steps - steps // 4, max_eval=2 * steps, **settings)
    optimizer.step(evaluate)
    return history


def draw(picture, x, u, history, adam_steps):
    """Save the solution, its pointwise error and the course of the loss."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12.5, 3.7), layout="constrained")
    left.plot(x, exact(x), color="tab:orange", linewidth=5, alpha=0.5, label="exact solution")
    left.plot(x, u, color="tab:blue", label="network")
    left.set(title="Solution of −u″ = f, u(0) = u(1) = 0", xlabel="x", ylabel="u")
    left.legend(loc="upper right")
    middle.semilogy(x, (u - exact(x)).abs(), color="tab:red", linewidth=1)
    middle.set(title="Pointwise error of the network", xlabel="x", ylabel="|u − u*|")
    right.semilogy(history, color="tab:blue", linewidth=1)
    right.axvline(adam_steps, color="gray", linestyle="--", label="Adam → L-BFGS")
    right.set(title="Training loss", xlabel="evaluations of the loss", ylabel="J")
    right.legend()
    figure.savefig(picture, dpi=100)


def arguments():
    """Read the flags, and stop in one line at one that cannot be."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.error = lambda message: parser.exit(2, f"error: {message}\n")
    parser.add_argument("--steps", type=int, default=4000, help="steps of the optimizers (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the initial parameters (default: %(default)s)")
    parser.add_argument("--picture", type=Path, default=Path(__file__).with_suffix(".png"), help="PNG file to write")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: %(default)s)")
    args = parser.parse_args()
    if args.steps < 4:
        parser.error(f"expected --steps to be at least 4, got {args.steps}")
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
    net = MLP([1, 20, 20, 1], "tanh", device=args.device, dtype=torch.float64)
    x = torch.linspace(0, 1, 128, device=args.device, dtype=torch.float64)[:, None].requires_grad_()

    start = time.perf_counter()
    history = train(net, x, args.steps)
    seconds = time.perf_counter() - start

    test = torch.linspace(0, 1, 1001, device=args.device, dtype=torch.float64)[:, None]
    with torch.no_grad():
        u = net(test)
    error = ((u - exact(test)).norm() / exact(test).norm()).item()
    draw(args.picture, test.cpu(), u.cpu(), history, args.steps // 4)
    print(f"trained {args.steps} steps in {seconds:.1f} s")
    print(f"picture: {args.picture}")
    print(f"relative L2 error {error:.1e}")


if __name__ == "__main__":
    main()
