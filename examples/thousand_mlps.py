"""Fit a photograph by 1,024 tiny networks, one for each tile of 8 × 8 pixels, all trained at once.

KiloNeRF (Reiser et al., 2021, ICCV) takes thousands of tiny networks for the cells of a scene; here they share out a
picture. Network m maps where in its tile a pixel p lies to the pixel's colour, and has a loss of its own:

    Jₘ = 1/P Σₚ ½ ‖yₘ(p) − cₘ(p)‖²        J = Σₘ Jₘ

No other term of J holds Wₘ: ∂J/∂Wₘ = ∂Jₘ/∂Wₘ, and Adam is entrywise. So the parameters of all lie in one stack, (M, …)
each, one Adam serves it, and what is left to choose is how the gradients come about: a network after the other by
manual_mlp.backprop, which has no graph, or all at once by torch.func. Both are timed, beside torch's layers in the same
two ways, and the quicker one of manual_mlp's trains; torch's layers are quicker than it under torch.func.

    python examples/thousand_mlps.py
    python examples/thousand_mlps.py --device cuda
"""

import argparse
import importlib.util
import time
import timeit
from pathlib import Path

import torch
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

from manual_mlp import MLP, backprop

SIDE, TILE = 32, 8  # 32 × 32 tiles of 8 × 8 pixels
SIZES = (2, 16, 3)


def photograph(device=None):
    """Load the photograph that comes with matplotlib, its upper 512 × 512 pixels at half size: (256, 256, 3)."""
    from matplotlib import cbook, image

    with cbook.get_sample_data("grace_hopper.jpg") as file:
        pixels = torch.tensor(image.imread(file, format="jpg"), device=device)
    return pixels[:512].view(256, 2, 256, 2, 3).float().mean((1, 3)) / 255


def tiles_of(image):
    """Cut an image into its tiles, (M, P, 3)."""
    return image.view(SIDE, TILE, SIDE, TILE, 3).transpose(1, 2).reshape(SIDE * SIDE, TILE * TILE, 3)


def image_of(tiles):
    """Put the tiles together again."""
    return tiles.view(SIDE, SIDE, TILE, TILE, 3).transpose(1, 2).reshape(SIDE * TILE, SIDE * TILE, 3)


def places(device=None):
    """List where in a tile each of its pixels lies, (P, 2) within [−1, 1]."""
    at = (torch.arange(TILE, device=device) + 0.5) / TILE * 2 - 1
    return torch.cartesian_prod(at, at)


def stacked(nets):
    """Stack parameters and gradients of the networks, and make those of each network views of its part."""
    stack, _ = stack_module_state(nets)
    for name, whole in stack.items():
        whole.grad = torch.zeros_like(whole)
        layer, _, kind = name.rpartition(".")
        for m, net in enumerate(nets):
            parameter = nn.Parameter(whole.detach()[m])
            parameter.grad = whole.grad[m]
            setattr(net.get_submodule(layer), kind, parameter)
    return stack


def loss(y, c):
    """Compute Jₘ = 1/P Σₚ ½ ‖y − c‖²."""
    return 0.5 * (y - c).square().sum() / len(c)


def by_vmap(stack, net, p, colors):
    """Add the gradients of all networks in the stack, which are like this one, at once."""
    of_one = grad(lambda parameters, c: loss(functional_call(net, parameters, (p,)), c))
    for whole, gradient in zip(stack.values(), vmap(of_one)(stack, colors).values(), strict=True):
        whole.grad += gradient


def ways(nets, p, colors):
    """Stack the networks' parameters, and list the ways to add the gradients of all to those of the stack."""
    stack, torchs = stacked(nets), [net.to_sequential() for net in nets]  # over the same parameters
    torchs_stack = dict(zip(torchs[0].state_dict(), stack.values(), strict=True))

    def by_backprop():
        for net, c in zip(nets, colors, strict=True):
            backprop(net, p, c, "squared_error", "sum", gradient=1 / len(p))

    def by_backward():
        for net, c in zip(torchs, colors, strict=True):
            loss(net(p), c).backward()

    return stack, {
        "MLP, one by one by backprop": by_backprop,
        "MLP, all by vmap": lambda: by_vmap(stack, nets[0], p, colors),
        "nn.Sequential, one by one by backward": by_backward,
        "nn.Sequential, all by vmap": lambda: by_vmap(torchs_stack, torchs[0], p, colors),
    }


def milliseconds(add, stack):
    """Time a way to add gradients, the least of three times."""
    first = next(iter(stack.values()))
    # The copy waits for the device.
    return 1e3 * min(timeit.repeat(lambda: (add(), first.grad.cpu()), number=1, repeat=3))


def train(stack, add, steps):
    """Minimise J by Adam."""
    optimizer = torch.optim.Adam(stack.values(), lr=2e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=False)  # those of the networks are views of these
        add()
        optimizer.step()
        schedule.step()


def psnr(found, true):
    """Compute the peak signal-to-noise ratio, −10 log₁₀ of the mean squared error, in dB."""
    return -10 * (found - true).square().mean().log10().item()


def draw(picture, true, fit, error):
    """Save the photograph, what the networks make of it, and the error of each network."""
    import io

    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from PIL import Image

    figure, axes = plt.subplots(1, 3, figsize=(12.5, 4.1), layout="constrained")
    fitted = f"As {error.numel():,} networks have it: {psnr(fit, true):.1f} dB"
    for ax, t, title in zip(axes, (true, fit, error), ("The photograph", fitted, "Error of each network"), strict=True):
        shown = ax.imshow(t.clamp(0, 1).numpy(), cmap="gray")
        ax.set(title=title, xticks=(), yticks=())
    figure.colorbar(shown, ax=axes[2], label="root mean square", shrink=0.9)
    file = io.BytesIO()
    figure.savefig(file, dpi=100)
    Image.open(file).convert("RGB").quantize(128).save(picture)  # photographs make large files


def arguments():
    """Read the flags, and stop in one line at one that cannot be."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.error = lambda message: parser.exit(2, f"error: {message}\n")
    parser.add_argument("--steps", type=int, default=400, help="steps of Adam (default: %(default)s)")
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
    nets = [MLP(SIZES, "tanh", device=args.device) for _ in range(SIDE * SIDE)]
    image = photograph(args.device)
    p, colors = places(args.device), tiles_of(image)
    stack, ways_to_add = ways(nets, p, colors)
    times = {name: milliseconds(add, stack) for name, add in ways_to_add.items()}
    chosen = min((name for name in times if name.startswith("MLP")), key=times.get)

    start = time.perf_counter()
    train(stack, ways_to_add[chosen], args.steps)
    seconds = time.perf_counter() - start

    with torch.no_grad():
        tiles = torch.stack([net(p) for net in nets])
    error = (tiles - colors).square().mean((1, 2)).sqrt().view(SIDE, SIDE)
    draw(args.picture, *(t.cpu() for t in (image, image_of(tiles), error)))
    print(f"trained {len(nets)} networks {args.steps} steps in {seconds:.1f} s: {chosen}")
    print(f"picture: {args.picture}")
    print(f"fit {psnr(tiles, colors):.1f} dB, the mean colour of each tile {psnr(colors.mean(1, True), colors):.1f} dB")
    print(f"{'gradients of all networks':>38} {'ms':>8} {'networks trained a second, at so many steps':>44}")
    for name, ms in times.items():
        print(f"{name:>38} {ms:>8.1f} {1e3 * len(nets) / ms / args.steps:>44.1f}")


if __name__ == "__main__":
    main()
