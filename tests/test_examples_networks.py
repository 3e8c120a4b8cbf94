"""What the networks of the ensemble, the field and the photograph compute, against torch's layers and formulas."""

import math

import pytest
import torch
from torch import nn

from manual_mlp import MLP
from scripts import ENSEMBLE, FIELD, THOUSAND, assert_close, load, parameter_gradient


@pytest.fixture(scope="module")
def ensemble():
    return load(ENSEMBLE)


@pytest.fixture(scope="module")
def neural():
    return load(FIELD)


@pytest.fixture(scope="module")
def thousand():
    return load(THOUSAND)


def torchs_layers(net):
    """Build torch's own layers with copies of an MLP's parameters."""
    layers = []
    for layer in net.layers:
        linear = nn.Linear(layer.in_features, layer.out_features, dtype=layer.weight.dtype)
        linear.load_state_dict(layer.state_dict())
        layers += [linear, {"tanh": nn.Tanh, "relu": nn.ReLU}[net.layers[0].activation.name]()]
    return nn.Sequential(*layers[:-1])


def test_the_gradients_of_an_ensemble_are_those_of_torchs_layers_one_by_one(ensemble):
    nets = [ensemble.member(dtype=torch.float64) for _ in range(3)]
    x, y = torch.randn(2, 7, 1, dtype=torch.float64)
    stack, _ = torch.func.stack_module_state(nets)
    together, alone = (of(stack, nets[0], x, y) for of in (ensemble.gradients, ensemble.one_by_one))
    for m, net in enumerate(nets):
        theirs = torchs_layers(net)
        mean, log_variance = theirs(x).T
        nn.functional.gaussian_nll_loss(mean, y[:, 0], log_variance.exp()).backward()
        for name, parameter in zip(stack, theirs.parameters(), strict=True):
            assert_close(together[name][m], parameter.grad, 1e-12)
            assert_close(alone[name][m], parameter.grad, 1e-12)


def test_the_parts_of_the_spread_add_up_to_the_variance_of_the_mixture(ensemble):
    nets = [ensemble.member(dtype=torch.float64) for _ in range(4)]
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    means, seen, spread = ensemble.predict(torch.func.stack_module_state(nets)[0], nets[0], x)
    mu, log_variance = torch.stack([torchs_layers(net)(x) for net in nets]).unbind(-1)
    assert_close(means, mu)
    assert_close(seen**2 + spread**2, (log_variance.exp() + mu**2).mean(0) - mu.mean(0) ** 2)


def test_the_data_of_the_ensemble_lie_beside_the_gap_and_about_the_truth(ensemble):
    x, y = ensemble.sample(4000, "cpu")
    low, high = ensemble.GAP
    assert ((x >= -1) & (x <= low) | (x >= high) & (x <= 1)).all()
    assert abs((x < 0).float().mean() - (low + 1) / (2 - high + low)) < 0.03
    for part in (x < low, x > high):
        scaled = (y - torch.sin(5 * x) - x / 2)[part] / (0.15 + 0.1 * x)[part]
        assert abs(scaled.mean()) < 0.1
        assert abs(scaled.std() - 1) < 0.1


def test_the_encoding_is_that_of_the_formula(neural):
    points = torch.randn(2, 3, 3, dtype=torch.float64)
    found = neural.encode(points)
    assert found.shape == (2, 3, 36)
    for point, row in zip(points.view(-1, 3).tolist(), found.view(-1, 36).tolist(), strict=True):
        waves = [f(2**k * math.pi * p / 2) for p in point for k in range(6) for f in (math.sin, math.cos)]
        assert row == pytest.approx(waves, abs=1e-12)


def test_the_encoding_repeats_nowhere_where_a_camera_sees(neural):
    origins, directions, _ = neural.data("cpu")
    assert (origins + neural.FAR * directions).abs().max() < 2


def test_a_ray_through_constant_density_has_the_colour_of_the_closed_form(neural):
    t = neural.distances(5, 9, "cpu").double()
    density = torch.rand(5, 1, dtype=torch.float64)
    color = torch.rand(5, 1, 3, dtype=torch.float64)
    # From the first of the points to the end, and white behind: c (1 − exp(−σl)) + exp(−σl).
    through = torch.exp(-density * (neural.FAR - t[:, :1]))
    found = neural.composite(density.expand(5, 9), color.expand(5, 9, 3), t)
    assert_close(found, color[:, 0] * (1 - through) + through, 1e-12)


def test_the_colour_of_a_ray_is_the_sum_of_the_formula(neural):
    t = neural.distances(2, 6, "cpu").double()
    assert (((t - neural.NEAR) * 6 / (neural.FAR - neural.NEAR)).floor() == torch.arange(6)).all()
    density, color = 3 * torch.rand(2, 6, dtype=torch.float64), torch.rand(2, 6, 3, dtype=torch.float64)
    found = neural.composite(density, color, t)
    for ray in range(2):
        left, sums = 1.0, [0.0] * 3
        for i in range(6):
            delta = (t[ray, i + 1] if i < 5 else neural.FAR) - t[ray, i]
            alpha = 1 - math.exp(-density[ray, i] * delta)
            sums = [s + left * alpha * c for s, c in zip(sums, color[ray, i].tolist(), strict=True)]
            left *= 1 - alpha
        assert found[ray].tolist() == pytest.approx([float(s) + left for s in sums], abs=1e-12)


def test_the_gradients_of_the_field_are_those_of_torchs_layers(neural):
    net = MLP([36, 8, 8, 4], dtype=torch.float64, tile_rows=5)
    theirs, rays = torchs_layers(net), [t[:7].double() for t in (*neural.camera(0.3, 0.2, 4, "cpu"), torch.rand(16, 3))]
    gradients = []
    for of in (net, theirs):
        torch.manual_seed(0)  # of the distances
        gradients.append(parameter_gradient(neural.loss(of, *rays), of))
    assert gradients[1].abs().max() > 1e-3
    assert_close(*gradients, 1e-12)


def test_the_loss_of_a_field_without_density_is_that_of_white(neural):
    def empty(encoded):
        return torch.tensor([-100.0, 3.0, -2.0, 0.0]).expand(*encoded.shape[:-1], 4)

    rays = [*neural.camera(0.3, 0.2, 4, "cpu"), torch.rand(16, 3)]
    assert neural.loss(empty, *rays).item() == pytest.approx(sum((1 - c) ** 2 for c in rays[2].flatten().tolist()) / 16)


def test_the_pixels_of_a_camera_are_squares_about_the_middle_of_the_scene(neural):
    origins, directions = neural.camera(0.6, 0.5, 5, "cpu")
    forward = -origins[0] / origins[0].norm()
    points = (directions / (directions @ forward)[:, None]).view(5, 5, 3)  # at a distance of 1
    assert_close(points[2, 2], forward, 1e-6)
    down, right = (points.diff(dim=k) for k in (0, 1))
    for sides in (down, right):
        assert_close(sides.norm(dim=-1), torch.full(sides.shape[:2], 0.8 / 5), 1e-6)
    assert (down[:, :4] * right[:4]).sum(-1).abs().max() < 1e-6
    assert down[0, 0, 2] < 0  # the first row of pixels is the highest
    assert torch.linalg.cross(right[0, 0], -down[0, 0]) @ forward < 0  # no mirror image


def test_a_camera_sees_the_first_ball_that_a_ray_meets_and_white_where_it_meets_none(neural):
    origins, directions = neural.camera(0.6, 0.5, 40, "cpu")
    assert_close(directions.norm(dim=-1), torch.ones(1600), 1e-6)
    seen, clear = neural.view(neural.scene, 0.6, 0.5, 40, "cpu"), torch.ones(1600, dtype=torch.bool)
    first, expected = torch.full((1600,), math.inf), torch.ones(1600, 3)
    for center, radius, color in neural.BALLS:
        to = torch.tensor(center) - origins
        along = (to * directions).sum(-1)
        aside = (to - along[:, None] * directions).norm(dim=-1)
        enters = along - (radius**2 - aside**2).clamp(min=0).sqrt()
        meets = (aside < radius) & (enters < first)
        first, expected = enters.where(meets, first), torch.tensor(color).where(meets[:, None], expected)
        clear &= (aside < radius - 0.12) | (aside > radius + 0.12)  # of edges, which are soft
    assert 200 < (clear & first.isinf()).sum() < 1400
    assert (clear & first.isfinite()).sum() > 100
    assert (seen - expected)[clear].abs().max() < 0.03


def test_all_ways_add_the_gradients_of_torchs_layers(thousand):
    nets = [MLP([2, 5, 3], "tanh", dtype=torch.float64) for _ in range(3)]
    theirs = [torchs_layers(net) for net in nets]
    p, colors = torch.randn(7, 2, dtype=torch.float64), torch.rand(3, 7, 3, dtype=torch.float64)
    stack, ways = thousand.ways(nets, p, colors)
    for of, c in zip(theirs, colors, strict=True):
        (1.5 * nn.functional.mse_loss(of(p), c)).backward()  # of 3 entries: 1/P Σ ½ ‖y − c‖²
    assert len(ways) == 4
    for add in ways.values():
        for _ in range(2):
            add()
        for whole, *parts in zip(stack.values(), *(of.parameters() for of in theirs), strict=True):
            assert_close(whole.grad, 2 * torch.stack([part.grad for part in parts]), 1e-12)
            whole.grad.zero_()


@pytest.mark.parametrize("way", range(4))
def test_a_network_follows_its_part_of_the_stack(thousand, way):
    nets = [MLP([2, 5, 3], "tanh", dtype=torch.float64) for _ in range(3)]
    theirs = torchs_layers(nets[1])
    p, colors = torch.randn(7, 2, dtype=torch.float64), torch.rand(3, 7, 3, dtype=torch.float64)
    stack, ways = thousand.ways(nets, p, colors)
    thousand.train(stack, list(ways.values())[way], 4)
    optimizer = torch.optim.Adam(theirs.parameters(), lr=2e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    for _ in range(4):
        optimizer.zero_grad()
        (1.5 * nn.functional.mse_loss(theirs(p), colors[1])).backward()
        optimizer.step()
        schedule.step()
    assert_close(nets[1](p), theirs(p))


def test_each_network_has_a_tile_of_the_photograph_and_the_places_in_it(thousand):
    pytest.importorskip("matplotlib")
    image = thousand.photograph()
    tiles = thousand.tiles_of(image)
    assert torch.equal(tiles[37], image[8:16, 40:48].reshape(64, 3))  # row 1, column 5 of 32
    assert torch.equal(thousand.image_of(tiles), image)
    rows, columns = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
    expected = torch.stack([rows, columns], -1).view(64, 2) / 4 - 7 / 8
    assert_close(thousand.places(), expected, 1e-6)
