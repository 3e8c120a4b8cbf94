"""Distortions: each image its own, and each as large as it says."""

import math

import pytest
import torch
import torch.nn.functional as F

from manual_mlp.training import augment
from manual_mlp.training.augment import Deformation, affine, elastic_basis, resample
from manual_mlp.training.errors import InputError

SHAPES = [(28, 28), (8, 8), (7, 5), (4, 9)]


def seeded(seed=0, device="cpu"):
    return torch.Generator(device).manual_seed(seed)


def pictures(count, shape, dtype=torch.float64, device="cpu"):
    return torch.rand(count, math.prod(shape), dtype=torch.float64).to(device, dtype)


def one(angle=0.0, scale=(1.0, 1.0), shear=0.0, offset=(0.0, 0.0), count=1):
    """Return the coefficients of one motion, for so many images."""
    each = (torch.tensor(value, dtype=torch.float64) for value in (angle, scale, shear, offset))
    angle, scale, shear, offset = (value.expand(count, *value.shape) for value in each)
    return affine(angle, scale, shear, offset)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_parameters_the_images_come_back(shape, dtype, device):
    images = pictures(6, shape, dtype, device)
    moved = Deformation()(images, shape, -0.4, seeded(device=device))
    assert moved.dtype == dtype
    assert moved.data_ptr() != images.data_ptr()
    torch.testing.assert_close(moved, images, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("right", "down"), [(0, 0), (1, 0), (0, 2), (-2, 1), (3, -3)])
def test_a_move_by_whole_pixels_is_a_shift_and_background_enters(shape, right, down):
    images = pictures(3, shape)
    moved = resample(images, shape, one(offset=(float(right), float(down)), count=3), -0.4)
    shifted = F.pad(images.view(-1, *shape), (right, -right, down, -down), value=-0.4).flatten(1)
    torch.testing.assert_close(moved, shifted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [28, 8, 5])
@pytest.mark.parametrize("quarters", [1, 2, 3, -1])
def test_a_turn_by_quarters_is_rot90(size, quarters):
    images = pictures(2, (size, size))
    turned = resample(images, (size, size), one(angle=quarters * math.pi / 2, count=2), 0.5)
    expected = torch.rot90(images.view(-1, size, size), quarters, (1, 2)).flatten(1)
    torch.testing.assert_close(turned, expected, rtol=0, atol=1e-9)


def test_scaling_doubles_the_width_alone():
    shape = (4, 8)
    images = torch.zeros(4, 8, dtype=torch.float64)
    images[:, 3:5] = 1  # two columns, in the middle
    wider = resample(images.view(1, -1), shape, one(scale=(2.0, 1.0)), 0.0).view(shape)
    torch.testing.assert_close(
        wider, torch.tensor([0, 0.25, 0.75, 1, 1, 0.75, 0.25, 0], dtype=torch.float64).expand(4, 8)
    )


def test_shear_moves_each_row_by_its_distance_from_the_centre():
    shape = (5, 9)
    images = torch.zeros(5, 9, dtype=torch.float64)
    images[:, 4] = 1  # upright
    slanted = resample(images.view(1, -1), shape, one(shear=1.0), 0.0).view(shape)
    expected = torch.zeros_like(images)
    expected[range(5), range(2, 7)] = 1
    torch.testing.assert_close(slanted, expected)


@pytest.mark.parametrize("order", ["scale", "shear", "turn", "move"])
def test_motions_follow_one_another_in_the_order_named(order):
    """The inverse of the product is the product of the inverses, turned round."""
    steps = {
        "scale": {"scale": (1.3, 0.8)},
        "shear": {"shear": 0.4},
        "turn": {"angle": 0.7},
        "move": {"offset": (2.0, -1.0)},
    }
    earlier, later = {}, {}
    for name, step in steps.items():
        (earlier if list(steps).index(name) <= list(steps).index(order) else later).update(step)

    def matrix(motion):
        c = one(**motion)[0]
        top = torch.stack((c[0, 1], c[1, 0], c[0, 0]), 1)
        return torch.cat((top, torch.tensor([[0.0, 0, 1]], dtype=torch.float64)))

    whole = matrix(earlier | later)
    torch.testing.assert_close(whole, matrix(earlier) @ matrix(later))


@pytest.mark.parametrize("kind", [{"rotation": 20}, {"scaling": 0.3}, {"shear": 20}, {"translation": 2}, {"alpha": 34}])
def test_every_image_is_deformed_in_its_own_way(kind, device):
    images = pictures(1, (8, 8), device=device).expand(600, -1)  # more than one block
    moved = Deformation(**kind)(images, (8, 8), 0.0, seeded(device=device))
    assert len(moved.unique(dim=0)) == 600
    assert not torch.isclose(moved, images).all(1).any()


def test_the_seed_decides_and_the_next_call_differs(device):
    deformation, images = Deformation(15, 0.15, 10, 1, 34, 4), pictures(5, (28, 28), device=device)
    generator = seeded(3, device)
    first, second = (deformation(images, (28, 28), 0.0, generator) for _ in range(2))
    assert torch.equal(first, deformation(images, (28, 28), 0.0, seeded(3, device)))
    assert not torch.isclose(first, second).all(1).any()
    assert not torch.isclose(first, deformation(images, (28, 28), 0.0, seeded(4, device))).all(1).any()


def test_the_global_generator_is_left_alone():
    images, before = pictures(1, (8, 8)), torch.get_rng_state()
    Deformation(15, 0.15, 10, 1, 34, 4)(images, (8, 8), 0.0, seeded())
    assert torch.equal(torch.get_rng_state(), before)


def test_drawn_angles_fill_their_range_and_no_more():
    """A dot right of the centre tells the angle that its image was turned by."""
    size, radius = 41, 16
    image = torch.zeros(size, size, dtype=torch.float64)
    image[20, 20 + radius] = 1
    turned = Deformation(rotation=30)(image.view(1, -1).expand(2000, -1), (size, size), 0.0, seeded())
    turned = turned.view(-1, size, size)
    centred = torch.arange(size, dtype=torch.float64) - 20
    mass = turned.sum((1, 2))
    x, y = (turned.sum(1) @ centred) / mass, (turned.sum(2) @ centred) / mass
    angles = torch.atan2(-y, x).rad2deg()
    assert 29 < angles.abs().max() < 31
    assert angles.mean().abs() < 1.5
    assert angles.std() == pytest.approx(30 / math.sqrt(3), rel=0.05)


def test_what_is_drawn_is_uniform_within_its_limits_and_independent(monkeypatch):
    drawn = []

    def note(angle, scale, shear, offset):
        drawn.append(torch.stack((angle.rad2deg(), *scale.unbind(1), shear.atan().rad2deg(), *offset.unbind(1))))
        return affine(angle, scale, shear, offset)

    monkeypatch.setattr(augment, "affine", note)
    Deformation(rotation=20, scaling=0.2, shear=15, translation=3)(torch.zeros(20_000, 4), (2, 2), 0.0, seeded())
    centres, limits = torch.tensor([0, 1, 1, 0, 0, 0.0]), torch.tensor([20, 0.2, 0.2, 15, 3, 3])
    uniform = (drawn[0] - centres[:, None]) / limits[:, None]
    assert uniform.abs().max() <= 1 + 1e-5
    quarters = torch.tensor([0.25, 0.5, 0.75])
    torch.testing.assert_close(
        uniform.quantile(quarters, 1), (2 * quarters - 1)[:, None].expand(3, 6), rtol=0, atol=0.04
    )
    torch.testing.assert_close(torch.corrcoef(uniform), torch.eye(6), rtol=0, atol=0.04)


@pytest.mark.parametrize("size", [28, 8, 5])
@pytest.mark.parametrize("sigma", [0.5, 1.0, 4.0, 8.0])
def test_the_basis_has_the_covariance_of_noise_convolved_with_a_gaussian(size, sigma):
    reach = 6 * math.ceil(sigma)
    at = torch.arange(-reach, reach + 1, dtype=torch.float64)
    kernel = (torch.distributions.Normal(0, sigma).log_prob(at)).exp()
    kernel = kernel / kernel.sum()
    # Convolve an impulse at each place of a long axis: the fields of two pixels share what both responses hold.
    impulses = torch.eye(size + 2 * reach, dtype=torch.float64)[:, None]
    response = F.conv1d(impulses, kernel[None, None])[:, 0]  # (place, pixel)
    basis = elastic_basis(size, sigma)
    torch.testing.assert_close(
        basis @ basis.mT, response.mT @ response, rtol=0, atol=2e-4 * float(response.square().sum(0)[0])
    )
    assert basis.size(1) <= size


def test_a_smooth_basis_is_small():
    assert elastic_basis(28, 4.0).shape[1] <= 12


@pytest.mark.parametrize(("alpha", "sigma"), [(34.0, 4.0), (8.0, 2.0)])
def test_the_displacement_has_the_root_mean_square_of_the_formula(alpha, sigma):
    """Images of straight ramps: what a pixel reads tells from where."""
    shape = (40, 24)
    down, right = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in shape), indexing="ij")
    inside = (slice(None), slice(12, 28), slice(8, 16))  # far from the border, where the ramp ends
    for ramp in (down, right):
        images = ramp.reshape(1, -1).expand(4000, -1)
        moved = Deformation(alpha=alpha, sigma=sigma)(images, shape, 0.0, seeded()).view(-1, *shape)
        displacement = (moved - ramp)[inside]
        expected = alpha / (sigma * math.sqrt(12 * math.pi))
        assert displacement.square().mean().sqrt() == pytest.approx(expected, rel=0.03)
        assert displacement.mean().abs() < 0.05 * expected
        # Neighbours at distance d correlate as exp(-d²/4σ²).
        near = (displacement[:, :, 4:] * displacement[:, :, :-4]).mean() / displacement.square().mean()
        assert near == pytest.approx(math.exp(-4 / sigma**2), abs=0.03)


def test_both_axes_of_the_elastic_field_are_independent():
    shape = (40, 40)
    down, right = torch.meshgrid(*(torch.arange(40, dtype=torch.float64) for _ in shape), indexing="ij")
    deformation = Deformation(alpha=34.0, sigma=4.0)
    fields = []
    for ramp in (down, right):
        moved = deformation(ramp.reshape(1, -1).expand(4000, -1), shape, 0.0, seeded())
        fields.append((moved.view(-1, *shape) - ramp)[:, 12:28, 12:28].flatten())
    assert torch.corrcoef(torch.stack(fields))[0, 1].abs() < 0.05


def test_background_fills_what_enters():
    images = torch.full((50, 64), 0.7, dtype=torch.float64)
    same = Deformation(rotation=45, translation=4, alpha=20, sigma=2)(images, (8, 8), 0.7, seeded())
    torch.testing.assert_close(same, images)
    darker = Deformation(rotation=45, translation=4)(images, (8, 8), -2.0, seeded())
    assert darker.min() < -1.9
    assert darker.max() <= 0.7 + 1e-9


def test_no_image_gives_no_image():
    assert Deformation(10, 0.1, 5, 1, 34, 4)(torch.empty(0, 64), (8, 8), 0.0, seeded()).shape == (0, 64)


def test_gradients_do_not_flow_into_the_images():
    images = pictures(2, (8, 8)).requires_grad_()
    assert not Deformation(10)(images, (8, 8), 0.0, seeded()).requires_grad


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"rotation": -1}, "rotation to be degrees in"),
        ({"rotation": 181}, "got 181"),
        ({"scaling": 1}, "scaling to be a share"),
        ({"shear": 90}, "shear to be degrees in"),
        ({"translation": -0.5}, "translation to be pixels"),
        ({"translation": math.inf}, "got inf"),
        ({"translation": 2e6}, r"translation to be pixels in \[0, 1,000,000\]"),
        ({"sigma": 101}, "got 101"),
        ({"alpha": -1}, "alpha to be pixels in"),
        ({"alpha": math.nan}, "got nan"),
        ({"sigma": 0}, r"sigma to be pixels in \[0.5, 100\], got 0"),
    ],
)
def test_parameters_out_of_range_are_refused(parameters, message):
    with pytest.raises(InputError, match=message):
        Deformation(**parameters)


@pytest.mark.parametrize("shape", [(3, 63), (3, 8, 8), (64,)])
def test_images_of_another_size_are_refused(shape):
    with pytest.raises(InputError, match=r"expected images \(N, 64\), got"):
        Deformation()(torch.zeros(shape), (8, 8), 0.0, seeded())


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (2, 2)])
@pytest.mark.parametrize("kind", [{"rotation": 180}, {"alpha": 34}, {"alpha": 34, "sigma": 0.5}, {"translation": 1e6}])
def test_images_of_one_pixel_a_side_are_deformed_too(shape, kind):
    images = pictures(600, shape)
    moved = Deformation(**kind)(images, shape, -0.4, seeded())
    assert moved.isfinite().all()
    assert not torch.equal(moved, images)


def test_a_pixel_is_moved_by_its_elastic_field():
    """What one pixel of a width of one reads from a bright neighbour tells how far it moved."""
    column = torch.tensor([[0.0] * 5 + [1.0] + [0.0] * 5], dtype=torch.float64).expand(4000, -1)
    moved = Deformation(alpha=4.0)(column, (11, 1), 0.0, seeded())
    wide = Deformation(alpha=4.0)(torch.eye(11, dtype=torch.float64)[5:6].expand(4000, -1), (1, 11), 0.0, seeded())
    torch.testing.assert_close(moved.mean(0), wide.mean(0), rtol=0, atol=0.02)
    assert moved[:, 5].std() > 0.05


def test_a_scaling_next_to_one_leaves_no_image_without_a_width(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *shape, **kwargs: torch.zeros(*shape))  # the lowest that is drawn
    images = pictures(3, (4, 4), torch.float32)
    moved = Deformation(scaling=math.nextafter(1, 0), translation=1e6, shear=89.9)(images, (4, 4), 0.0, seeded())
    assert moved.isfinite().all()


def test_an_elastic_field_over_too_many_pixels_is_refused():
    with pytest.raises(InputError, match="sides of at most 4096 pixels for an elastic deformation, got 1x4097"):
        Deformation(alpha=1.0)(torch.zeros(2, 4097), (1, 4097), 0.0, seeded())
    assert Deformation(rotation=1.0)(torch.zeros(2, 4097), (1, 4097), 0.0, seeded()).shape == (2, 4097)
