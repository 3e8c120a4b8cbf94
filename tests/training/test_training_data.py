"""Data: how it is split and batched, and what is refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from manual_mlp.training import idx
from manual_mlp.training.data import Split, drop, load, shift
from manual_mlp.training.errors import InputError
from mnist import path_of, write_idx, write_mnist
from runs import SCRIPT

CPU = torch.device("cpu")


@pytest.mark.skipif("MANUAL_MLP_DATA" not in os.environ, reason="needs MNIST in MANUAL_MLP_DATA")
def test_real_mnist_is_split_into_55000_and_5000_with_10000_to_test():
    data = load("auto", Path(os.environ["MANUAL_MLP_DATA"]), CPU)
    assert (data.name, data.image_shape) == ("mnist", (28, 28))
    assert (len(data.train), len(data.validation), len(data.read_test())) == (55_000, 5_000, 10_000)
    assert (data.mean, data.std) == pytest.approx((0.1307, 0.3081), abs=1e-3)
    assert data.train.labels[:5].tolist() == [5, 0, 4, 1, 9]


def test_digits_are_split_into_three_parts_that_share_no_image(digits):
    sizes = [len(digits.train), len(digits.validation), len(digits.read_test())]
    assert sizes == [1374, 124, 299]
    assert sum(sizes) == 1797
    rows = [
        tuple(row) for split in (digits.train, digits.validation, digits.read_test()) for row in split.images.tolist()
    ]
    assert len(set(rows)) == 1797


def test_every_class_is_in_every_part_of_the_digits(digits):
    for split in (digits.train, digits.validation, digits.read_test()):
        assert split.labels.unique().tolist() == list(range(10))


def test_training_pixels_have_mean_zero_and_deviation_one(digits):
    std, mean = torch.std_mean(digits.train.images)
    assert mean == pytest.approx(0, abs=1e-5)
    assert std == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("colour", [0, 17, 51, 136, 255])
def test_a_data_set_of_one_colour_is_not_divided_by_its_deviation(tmp_path, colour):
    write_mnist(tmp_path)
    write_idx(path_of(tmp_path, "train-images"), torch.full((24, 4, 3), colour))
    data = load("mnist", tmp_path, CPU)
    assert data.mean == pytest.approx(colour / 255)
    assert data.train.images.abs().max() < 1e-6
    assert data.std == 1.0


def test_mean_and_deviation_are_those_of_all_training_pixels(mnist):
    raw = torch.frombuffer(bytearray(path_of(mnist, "train-images").read_bytes()[16:]), dtype=torch.uint8).view(24, 12)
    data = load("mnist", mnist, CPU, held_out=4)
    std, mean = torch.std_mean(raw[:20].double() / 255, correction=0)
    assert (data.mean, data.std) == pytest.approx((mean.item(), std.item()), rel=1e-6)


def test_all_parts_are_normalised_by_the_training_pixels(mnist):
    data = load("mnist", mnist, CPU)
    raw = torch.frombuffer(bytearray(path_of(mnist, "t10k-images").read_bytes()[16:]), dtype=torch.uint8).view(6, 12)
    expected = (raw / 255 - data.mean) / data.std
    torch.testing.assert_close(data.read_test().images, expected)


def test_training_imports_neither_the_compiler_nor_torchvision(mnist):
    # Each takes longer than a short run.
    script = f"""
import sys
from pathlib import Path
import torch
from manual_mlp.training import build, data, interrupt, log, loop
from manual_mlp.training.config import Config

config = Config(dataset="mnist", hidden=(8,), epochs=1, batch_size=4)
images = data.load("mnist", Path({str(mnist)!r}), torch.device("cpu"))
trainer = loop.Trainer(build.build_model(config, images, torch.device("cpu")), images, config)
with log.NoLog() as nothing:
    trainer.fit(nothing, interrupt.Interrupt())
print(*{{"torch._dynamo", "torchvision", "tensorboard", "sklearn"}} & sys.modules.keys())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""


def test_nor_does_the_command_line_before_its_first_batch(mnist):
    script = f"""
import runpy, sys
from manual_mlp.training import loop

step = loop.Trainer._step

def first(*args):
    print("imported:", *{{"torch._dynamo", "torchvision", "sklearn"}} & sys.modules.keys())
    loop.Trainer._step = step
    return step(*args)

loop.Trainer._step = first
sys.argv = ["train.py", "--dataset", "mnist", "--data-dir", {str(mnist)!r}, "--dry-run"]
runpy.run_path({str(SCRIPT)!r})["main"]()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "imported:" in done.stdout.splitlines()


def test_test_images_stay_unread_until_they_are_asked_for(mnist, monkeypatch):
    kept, read = [], idx.read

    def spy(path, rank, keep=True):
        if keep and rank == 3:
            kept.append(path.name)
        return read(path, rank, keep)

    monkeypatch.setattr(idx, "read", spy)
    data = load("mnist", mnist, CPU)
    assert kept == ["train-images-idx3-ubyte"]
    data.read_test()
    assert kept == ["train-images-idx3-ubyte", "t10k-images-idx3-ubyte"]


def test_an_epoch_holds_every_image_once_and_ends_with_the_partial_batch():
    split = Split(torch.arange(10.0).unsqueeze(1), torch.arange(10))
    for generator in (torch.Generator().manual_seed(0), None):
        batches = list(split.batches(4, generator))
        assert [len(labels) for _, labels in batches] == [4, 4, 2]
        assert torch.cat([labels for _, labels in batches]).sort().values.tolist() == list(range(10))
        assert all(torch.equal(images[:, 0], labels.float()) for images, labels in batches)


def test_each_epoch_has_its_own_order_and_a_seed_repeats_them():
    split = Split(torch.arange(100.0).unsqueeze(1), torch.arange(100))

    def epochs(seed):
        generator = torch.Generator().manual_seed(seed)
        return [torch.cat([labels for _, labels in split.batches(7, generator)]).tolist() for _ in range(2)]

    first, second = epochs(0)
    assert first != second
    assert epochs(0) == [first, second]
    assert epochs(1)[0] != first


def test_shift_moves_each_image_by_an_offset_of_its_own_and_fills_with_background(device):
    images = torch.arange(1.0, 25.0, device=device).view(2, 12)
    frame = torch.full((2, 6, 5), -1.0, device=device)
    frame[:, 1:5, 1:4] = images.view(2, 4, 3)
    places = [(i, j) for i in range(3) for j in range(3)]
    possible = [{tuple(image[i : i + 4, j : j + 3].flatten().tolist()): (i, j) for i, j in places} for image in frame]
    generator = torch.Generator(device).manual_seed(0)
    seen = set()
    for _ in range(1000):
        moved = shift(images, (4, 3), 1, -1.0, generator)
        seen.add(tuple(possible[k][tuple(moved[k].tolist())] for k in range(2)))
    assert seen == {(first, second) for first in places for second in places}


def test_a_shift_past_the_height_leaves_background_and_takes_no_wider_margin(monkeypatch):
    images, pixels, pad, padded = torch.ones(2000, 9), 7, F.pad, []
    monkeypatch.setattr(F, "pad", lambda *args, **kwargs: padded.append(pad(*args, **kwargs)) or padded[-1])
    moved = shift(images, (1, 9), pixels, -1.0, torch.Generator().manual_seed(0))
    gone = (moved == -1).all(1).double().mean().item()
    assert gone == pytest.approx(1 - 1 / 15, abs=0.02)  # one row of 15 places is seen
    right = {int((row == 1).nonzero()[0]) - int((row.flip(0) == 1).nonzero()[0]) for row in moved if row.max() == 1}
    assert right == set(range(-7, 8))
    assert padded[0].shape == (2000, 3, 23)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_drop_makes_pixels_background_and_keeps_the_mean(dtype, device):
    images, background = torch.rand(2000, 12, dtype=dtype, device=device) + 0.5, -0.5
    before, generator = images.clone(), torch.Generator(device).manual_seed(1)
    first, second = (drop(images, 0.25, background, generator) for _ in range(2))
    assert torch.equal(images, before)
    assert first.dtype is dtype
    dropped = first == background
    assert dropped.double().mean(0).tolist() == pytest.approx([0.25] * 12, abs=0.04)
    assert dropped.any(1).sum() > 1900
    torch.testing.assert_close(first[~dropped], (images[~dropped] + 0.5) / 0.75 - 0.5)
    assert first.mean().item() == pytest.approx(images.mean().item(), abs=0.03)
    assert not torch.equal(first, second)
    assert torch.equal(first, drop(images, 0.25, background, torch.Generator(device).manual_seed(1)))


def test_fashion_mnist_is_read_from_its_own_folder(tmp_path):
    write_mnist(tmp_path, "FashionMNIST")
    assert load("fashion-mnist", tmp_path, CPU).name == "fashion-mnist"


def test_labels_past_nine_and_labels_too_few_are_errors(mnist):
    write_idx(path_of(mnist, "train-labels"), torch.arange(24))
    with pytest.raises(InputError, match=r"expected labels 0 to 9 .* got 23"):
        load("mnist", mnist, CPU)
    write_idx(path_of(mnist, "train-labels"), torch.arange(7))
    with pytest.raises(InputError, match="got 7 for 24"):
        load("mnist", mnist, CPU)


def test_test_images_of_another_size_are_an_error(mnist):
    write_idx(path_of(mnist, "t10k-images"), torch.zeros(6, 3, 3, dtype=torch.int))
    with pytest.raises(InputError, match=r"expected test images of \(4, 3\) .* got \(3, 3\)"):
        load("mnist", mnist, CPU)


def test_too_few_images_to_split_are_an_error(mnist):
    write_idx(path_of(mnist, "train-images"), torch.zeros(3, 4, 3, dtype=torch.int))
    write_idx(path_of(mnist, "train-labels"), torch.zeros(3, dtype=torch.int))
    with pytest.raises(InputError, match=r"more training images than the 12 .* got 3"):
        load("mnist", mnist, CPU)
