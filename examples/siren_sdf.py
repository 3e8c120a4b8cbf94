"""Fit the signed distance of a flower to oriented points of its boundary, with a SIREN.

The distance f solves |∇f| = 1, the eikonal equation, with f = 0 and ∇f = n on the boundary, n its outward normal. The
loss (Sitzmann et al., 2020, NeurIPS, eq. 6, with |∇f − n| from Gropp et al., 2020, ICML):

    J = λ₁ E |f| + λ₂ E |∇f − n|        at points of the boundary
      + λ₃ E exp(−100 |f|)              at points of the box, nearly all of them off the boundary
      + λ₄ E | |∇f| − 1 |               at both

∇f takes a call of torch.autograd.grad, and ∂J/∂W a second derivative. manual_mlp.MLP answers them as nn.Linear and
torch.sin do: with `net.to_sequential()` in its place the gradients are the same.

    python examples/siren_sdf.py
    python examples/siren_sdf.py --device cuda
"""

import argparse
import importlib.util
import math
import time
from pathlib import Path

import torch

from manual_mlp import MLP, activations

OMEGA = 30.0
# The paper has ω = 30 in the first layer too and λ₄ = 50. For a shape this smooth that leaves ripples off the boundary.
FIRST_OMEGA = 10.0
WEIGHTS = 3e3, 1e2, 1e2, 5e2  # λ₁ to λ₄


def radius(theta):
    """Compute r(θ) = 0.6 + 0.15 cos 5θ, a flower of five petals."""
    return 0.6 + 0.15 * torch.cos(5 * theta)


def boundary(theta):
    """Compute the points p = r (cos θ, sin θ) and their outward normals (p₂′, −p₁′)/|p′|."""
    r, dr = radius(theta), -0.75 * torch.sin(5 * theta)
    cos, sin = torch.cos(theta), torch.sin(theta)
    tangent_1, tangent_2 = dr * cos - r * sin, dr * sin + r * cos  # p′
    points, normals = torch.stack([r * cos, r * sin], -1), torch.stack([tangent_2, -tangent_1], -1)
    return points, normals / normals.norm(dim=-1, keepdim=True)


def true_distance(x):
    """Compute the distance of x (N, 2) to 8192 points of the boundary, negative where |x| < r(θ)."""
    points, _ = boundary(torch.arange(8192, device=x.device, dtype=torch.float64) * (2 * math.pi / 8192))
    distance = torch.cat([torch.cdist(part, points).amin(1) for part in x.double().split(1024)]).to(x.dtype)
    inside = x.norm(dim=-1) < radius(torch.atan2(x[:, 1], x[:, 0]))
    return torch.where(inside, -distance, distance)


def siren(width=64, device=None, dtype=None):
    """Build a SIREN: W uniform in ±1/n in the first layer, in ±√(6/n)/ω in the others, n the inputs of a layer."""
    net = MLP([2, width, width, width, 1], activations.sin(OMEGA), device=device, dtype=dtype)
    net.layers[0].activation = activations.sin(FIRST_OMEGA)
    for i, layer in enumerate(net.layers):
        bound = math.sqrt(6 / layer.in_features) / OMEGA if i else 1 / layer.in_features
        torch.nn.init.uniform_(layer.weight, -bound, bound)
    return net


def field(net, x):
    """Compute f and ∇f at x (N, 2), which must require grad."""
    f = net(x)[:, 0]
    (df,) = torch.autograd.grad(f.sum(), x, create_graph=True)  # row i of f depends on row i of x alone
    return f, df


def eikonal(df):
    """Compute | |∇f| − 1 |."""
    return (df.norm(dim=-1) - 1).abs()


def loss(net, points, normals, box):
    """Compute J at oriented points of the boundary and points of the box."""
    n = len(points)
    f, df = field(net, torch.cat([points, box]).requires_grad_())
    terms = (
        f[:n].abs().mean(),  # |f|
        (df[:n] - normals).norm(dim=-1).mean(),  # |∇f − n|
        torch.exp(-100 * f[n:].abs()).mean(),  # exp(−100 |f|)
        eikonal(df).mean(),  # | |∇f| − 1 |
    )
    return sum(weight * term for weight, term in zip(WEIGHTS, terms, strict=True))


def sample(n, device):
    """Draw n oriented points of the boundary, and 2n points of the box [−1, 1]²."""
    points, normals = boundary(2 * math.pi * torch.rand(n, device=device))
    return points, normals, 2 * torch.rand(2 * n, 2, device=device) - 1


def train(net, steps, device):
    """Fit the distance of a circle, which settles the signs, then minimise J, by Adam."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(300):
        _, _, box = sample(512, device)
        optimizer.zero_grad()
        (net(box)[:, 0] - (box.norm(dim=-1) - 0.6)).square().mean().backward()
        optimizer.step()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-4, total_steps=steps, pct_start=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(net, *sample(512, device)).backward()
        optimizer.step()
        schedule.step()


def draw(picture, axis, f, slope):
    """Save the distance, with its zero level and the true boundary, and the slope."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.8), layout="constrained")
    distance = left.contourf(axis, axis, f, levels=torch.linspace(-0.8, 0.8, 17), cmap="RdBu", extend="both")
    left.contour(axis, axis, f, levels=[0.0], colors="black", linewidths=3)
    left.plot([], [], color="black", linewidth=3, label="learned: f = 0")
    outline, _ = boundary(torch.linspace(0, 2 * math.pi, 500))
    left.plot(*outline.T, color="gold", linestyle="--", linewidth=1.2, label="true boundary")
    left.legend(loc="upper left", fontsize="small")
    slopes = right.contourf(axis, axis, slope, levels=torch.linspace(0, 1.2, 13), cmap="viridis", extend="max")
    left.set_title("Learned signed distance f")
    right.set_title("Its slope |∇f|: 1, except on the medial axis")
    figure.colorbar(distance, ax=left, label="f", shrink=0.9)
    figure.colorbar(slopes, ax=right, label="|∇f|", shrink=0.9)
    for ax in (left, right):
        ax.set(xlabel="x₁", ylabel="x₂", aspect="equal", xticks=(-1, -0.5, 0, 0.5, 1), yticks=(-1, -0.5, 0, 0.5, 1))
    figure.savefig(picture, dpi=100)


def arguments():
    """Read the flags, and stop in one line at one that cannot be."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.error = lambda message: parser.exit(2, f"error: {message}\n")
    parser.add_argument("--steps", type=int, default=1000, help="steps of Adam (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the initial parameters (default: %(default)s)")
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
    net = siren(device=args.device)

    start = time.perf_counter()
    train(net, args.steps, args.device)
    seconds = time.perf_counter() - start

    points, _, _ = sample(4096, args.device)
    axis = torch.linspace(-1, 1, 151, device=args.device)
    grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).view(-1, 2).requires_grad_()
    f, df = (t.detach() for t in field(net, grid))
    draw(args.picture, axis.cpu(), f.view(151, 151).cpu(), df.norm(dim=-1).view(151, 151).cpu())
    error = (f - true_distance(grid.detach())).abs()
    print(f"trained {args.steps} steps in {seconds:.1f} s")
    print(f"picture: {args.picture}")
    print(f"mean |f| at new points of the boundary {net(points).abs().mean():.1e}")
    print(f"| |grad f| - 1 | over the box: mean {eikonal(df).mean():.1e}, median {eikonal(df).median():.1e}")
    print(f"mean error against the true distance {error.mean():.1e}")


if __name__ == "__main__":
    main()
