"""Learn a scene of coloured balls from pictures of it, as a radiance field, and look at it from where no camera stood.

A network maps a point p to its density σ and colour c, here the same from all sides (Mildenhall et al., 2020, ECCV). It
reads sines and cosines of each coordinate (eq. 4), scaled to lie within [−1, 1], for they repeat:

    γ(p) = (sin 2⁰πp, cos 2⁰πp, …, sin 2ᴸ⁻¹πp, cos 2ᴸ⁻¹πp)

A pixel is the sum of what lies along its ray at distances t₁ < … < t_S, one drawn in each of S equal parts (eq. 2, 3),
and of the white behind:

    C = Σᵢ wᵢcᵢ + (1 − Σᵢ wᵢ),    wᵢ = Tᵢ (1 − exp(−σᵢδᵢ)),    Tᵢ = exp(−Σⱼ σⱼδⱼ) over j < i,    δᵢ = tᵢ₊₁ − tᵢ

The loss is the mean of ‖C − C*‖² over rays. A step takes S points a ray through the network. Until backward torch's
layers keep what each of them gave; manual_mlp.MLP, with tile_rows, keeps the encoded points alone.

    python examples/neural_field.py
    python examples/neural_field.py --device cuda
"""

import argparse
import importlib.util
import math
import os
import time
import timeit
from pathlib import Path

import torch

from manual_mlp import MLP

FREQUENCIES, WIDTH, TILE_ROWS = 6, 64, 1024  # L, and the hidden layers
VIEWS, PIXELS, RAYS, SAMPLES = 24, 32, 256, 32  # RAYS of a step, SAMPLES of a ray
DISTANCE, NEAR, FAR = 2.5, 1.5, 3.5  # of the cameras from the middle of the scene, and of what they see from them
HALF = 2.0  # all points that they see lie within [−2, 2]³
BALLS = (  # centre, radius, colour
    ((0.35, 0.30, 0.0), 0.42, (0.85, 0.20, 0.15)),
    ((-0.40, 0.15, 0.15), 0.34, (0.15, 0.45, 0.85)),
    ((0.05, -0.45, -0.10), 0.38, (0.95, 0.75, 0.15)),
)


def scene(points):
    """Compute density and colour of the true scene at points (*, 3): balls of density 40, with an edge 0.02 wide."""
    centers, radii, colors = (points.new_tensor(part) for part in zip(*BALLS, strict=True))
    each = 40 * torch.sigmoid((radii - (points[..., None, :] - centers).norm(dim=-1)) / 0.02)
    density = each.sum(-1)
    return density, each @ colors / (density[..., None] + 1e-6)


def encode(points):
    """Compute γ(p/2) of points (*, 3) as (*, 6L)."""
    angles = points[..., None] * points.new_tensor([2**k * math.pi / HALF for k in range(FREQUENCIES)])
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-3)


def field(net, points):
    """Compute density, by softplus, and colour, by a sigmoid, at points (*, 3)."""
    density, color = net(encode(points)).split([1, 3], -1)
    return torch.nn.functional.softplus(density[..., 0]), color.sigmoid()


def camera(azimuth, height, pixels, device):
    """List the origins and directions (pixels², 3) of the rays of a camera that looks at the middle of the scene."""
    (sin, cos), (sin_height, cos_height) = ((math.sin(a), math.cos(a)) for a in (azimuth, height))
    back = torch.tensor([cos * cos_height, sin * cos_height, sin_height])
    right = torch.tensor([-sin, cos, 0.0])
    at = 0.8 * ((torch.arange(pixels) + 0.5) / pixels - 0.5)  # 0.8 is seen at a distance of 1
    rows, columns = torch.meshgrid(-at, at, indexing="ij")
    directions = columns[..., None] * right + rows[..., None] * torch.linalg.cross(back, right) - back
    directions = torch.nn.functional.normalize(directions.view(-1, 3), dim=-1)
    return (DISTANCE * back).expand_as(directions).to(device), directions.to(device)


def distances(rays, samples, device, offset=None):
    """Draw t (rays, samples), one in each of the equal parts of [NEAR, FAR], or take them at an offset in each."""
    offsets = torch.rand(rays, samples, device=device) if offset is None else offset
    return NEAR + (FAR - NEAR) / samples * (torch.arange(samples, device=device).expand(rays, -1) + offsets)


def composite(density, color, t):
    """Compute C of rays (N, 3) from density (N, S) and colour (N, S, 3) at distances t (N, S)."""
    depth = density * torch.diff(t, append=torch.full_like(t[:, :1], FAR))  # σᵢδᵢ
    weights = torch.exp(depth - depth.cumsum(-1)) * -torch.expm1(-depth)  # the sum, without i itself
    return (weights[..., None] * color).sum(-2) + 1 - weights.sum(-1, keepdim=True)


def render(of_points, origins, directions, t):
    """Compute C of rays (N, 3) through a field, a function of points."""
    points = origins[:, None] + t[..., None] * directions[:, None]
    return composite(*of_points(points), t)


@torch.no_grad()
def view(of_points, azimuth, height, pixels, device):
    """Compute what a camera sees of a field, (pixels², 3), with 128 points a ray."""
    parts = zip(*(part.split(512) for part in camera(azimuth, height, pixels, device)), strict=True)
    return torch.cat([render(of_points, *part, distances(len(part[0]), 128, device, 0.5)) for part in parts])


def data(device):
    """List the origins, directions and colours of all rays of the cameras, which stand on a spiral about the scene."""
    places = [(2.4 * k, math.asin(0.9 * (2 * (k + 0.5) / VIEWS - 1))) for k in range(VIEWS)]
    found = [(*camera(*at, PIXELS, device), view(scene, *at, PIXELS, device)) for at in places]
    return [torch.cat(part) for part in zip(*found, strict=True)]


def loss(net, origins, directions, colors):
    """Compute the mean of ‖C − C*‖² over rays, at distances that are drawn anew."""
    t = distances(len(origins), SAMPLES, origins.device)
    return (render(lambda points: field(net, points), origins, directions, t) - colors).square().sum(-1).mean()


def psnr(found, true):
    """Compute the peak signal-to-noise ratio, −10 log₁₀ of the mean squared error, in dB."""
    return -10 * (found - true).square().mean().log10().item()


def train(net, rays, steps):
    """Minimise the loss by Adam, on rays that are drawn at random."""
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        drawn = torch.randint(len(rays[0]), (RAYS,), device=rays[0].device)
        optimizer.zero_grad()
        loss(net, *(part[drawn] for part in rays)).backward()
        optimizer.step()
        schedule.step()


def cost(net, rays, device):
    """Return the milliseconds of a loss and its gradients, the least of three, and the most MB of new tensors held."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would announce itself
    rays = [part[:RAYS] for part in rays]

    def compute():
        torch.autograd.grad(loss(net, *rays), list(net.parameters()))[0].cpu()  # which waits for the device

    seconds = timeit.repeat(compute, number=1, repeat=3)
    with torch.autograd.profiler.profile(profile_memory=True) as profiler:
        compute()
    events = sorted(profiler.kineto_results.events(), key=lambda event: event.start_ns())
    events = [e for e in events if e.name() == "[memory]" and e.device_type().name.lower() == device]
    held = torch.tensor([event.nbytes() for event in events], dtype=torch.float64).cumsum(0)
    return 1e3 * min(seconds), held.max().item() / 1e6


def draw(picture, true, learned):
    """Save a view of the true scene and of the field, and how far they are apart."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12.5, 4.1), layout="constrained")
    titles = "A view held out", f"The field's: {psnr(learned, true):.1f} dB", "Error, the mean over colours"
    images = true, learned, (learned - true).abs().mean(-1)
    for ax, image, title in zip(axes, images, titles, strict=True):
        shown = ax.imshow(image.clamp(0, 1).numpy(), cmap="viridis")
        ax.set(title=title, xticks=(), yticks=())
    figure.colorbar(shown, ax=axes[2], shrink=0.9)
    figure.savefig(picture, dpi=100)


def arguments():
    """Read the flags, and stop in one line at one that cannot be."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.error = lambda message: parser.exit(2, f"error: {message}\n")
    parser.add_argument("--steps", type=int, default=800, help="steps of Adam (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of parameters and rays (default: %(default)s)")
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
    torch.set_num_threads(1)  # the figures are those of one core
    torch.manual_seed(args.seed)
    net = MLP([6 * FREQUENCIES, WIDTH, WIDTH, 4], tile_rows=TILE_ROWS, device=args.device)
    rays = data(args.device)

    start = time.perf_counter()
    train(net, rays, args.steps)
    seconds = time.perf_counter() - start

    place = (0.6, 0.5, 64)  # azimuth, height, and pixels: twice as fine as what it was trained on
    true, learned = (view(of, *place, args.device) for of in (scene, lambda points: field(net, points)))
    draw(args.picture, *(image.view(64, 64, 3).cpu() for image in (true, learned)))
    print(f"trained {args.steps} steps of {RAYS * SAMPLES} points in {seconds:.1f} s")
    print(f"picture: {args.picture}")
    print(f"view held out: {psnr(learned, true):.1f} dB; its mean colour alone {psnr(true.mean(0), true):.1f} dB")
    for name, of in (("MLP", net), ("nn.Sequential", net.to_sequential())):
        print("loss and gradients by {}: {:.1f} ms, {:.1f} MB at most".format(name, *cost(of, rays, args.device)))


if __name__ == "__main__":
    main()
