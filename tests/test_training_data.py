"""Data: where it comes from, how it is split and batched, and what is refused."""

import os
import socket
import struct
import time

import pytest
import torch

pytest.importorskip("torchvision")

from manual_mlp.training import sources
from manual_mlp.training.data import Split, load, shift
from manual_mlp.training.errors import InputError

CPU = torch.device("cpu")
FILES = {"train-images": 3, "train-labels": 1, "t10k-images": 3, "t10k-labels": 1}


def write_idx(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        bytes((0, 0, 8, values.dim()))
        + struct.pack(f">{values.dim()}I", *values.shape)
        + bytes(values.flatten().tolist())
    )


def path_of(root, file, folder="MNIST"):
    return root / folder / "raw" / f"{file}-idx{FILES[file]}-ubyte"


def write_mnist(root, folder="MNIST"):
    """Write 24 training and 6 test images of 4x3 pixels, in torchvision's layout."""
    generator = torch.Generator().manual_seed(0)
    for part, count in (("train", 24), ("t10k", 6)):
        images = torch.randint(256, (count, 4, 3), generator=generator)
        write_idx(path_of(root, f"{part}-images", folder), images)
        write_idx(path_of(root, f"{part}-labels", folder), torch.arange(count) % 10)
    return root


@pytest.fixture
def mnist(tmp_path):
    return write_mnist(tmp_path)


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def digits():
    return load("digits", None, CPU)


@pytest.mark.skipif("MANUAL_MLP_DATA" not in os.environ, reason="needs MNIST in MANUAL_MLP_DATA")
def test_real_mnist_is_split_into_55000_and_5000_with_10000_to_test():
    from pathlib import Path

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


def test_all_parts_are_normalised_by_the_training_pixels(mnist):
    data = load("mnist", mnist, CPU)
    raw = torch.frombuffer(bytearray(path_of(mnist, "t10k-images").read_bytes()[16:]), dtype=torch.uint8).view(6, 12)
    expected = (raw / 255 - data.mean) / data.std
    torch.testing.assert_close(data.read_test().images, expected)


def test_test_images_stay_unread_until_they_are_asked_for(mnist, monkeypatch):
    parts, read = [], sources._read
    monkeypatch.setattr(sources, "_read", lambda folder, part: parts.append(part) or read(folder, part))
    data = load("mnist", mnist, CPU)
    assert parts == ["train"]
    data.read_test()
    assert parts == ["train", "t10k"]


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


def test_shift_moves_the_whole_batch_by_one_offset_and_fills_with_background():
    images = torch.arange(1.0, 25.0).view(2, 12)
    frame = torch.full((2, 6, 5), -1.0)
    frame[:, 1:5, 1:4] = images.view(2, 4, 3)
    possible = {tuple(frame[:, i : i + 4, j : j + 3].flatten().tolist()) for i in range(3) for j in range(3)}
    generator = torch.Generator().manual_seed(0)
    seen = {tuple(shift(images, (4, 3), 1, -1.0, generator).flatten().tolist()) for _ in range(200)}
    assert seen == possible


def test_fashion_mnist_is_read_from_its_own_folder(tmp_path):
    write_mnist(tmp_path, "FashionMNIST")
    assert load("fashion-mnist", tmp_path, CPU).name == "fashion-mnist"


def test_missing_files_are_downloaded_through_torchvision(tmp_path, monkeypatch):
    import torchvision

    def download(root, download):
        assert download
        write_mnist(root)

    monkeypatch.setattr(torchvision.datasets, "MNIST", download)
    assert len(load("mnist", tmp_path, CPU).train) == 22


def test_auto_without_files_and_network_says_in_one_line_that_it_takes_the_digits(tmp_path, no_network, capsys):
    data = load("auto", tmp_path / "none", CPU)
    said = capsys.readouterr().err
    assert data.name == "digits"
    assert said.count("\n") == 1
    assert "WARNING" in said
    assert "digits" in said
    assert str(tmp_path / "none") in said


def test_mnist_without_files_and_network_names_all_that_was_tried(tmp_path, no_network):
    start = time.perf_counter()
    with pytest.raises(InputError) as error:
        load("mnist", tmp_path / "none", CPU)
    assert time.perf_counter() - start < 10
    for tried in (str(tmp_path / "none/MNIST/raw"), "train-images", "t10k-labels", "https://", "MANUAL_MLP_DATA"):
        assert tried in str(error.value)
    assert "\n" not in str(error.value)


def test_a_failed_download_leaves_no_folder_behind(tmp_path, no_network):
    load("auto", tmp_path / "none", CPU)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dataset", ["auto", "mnist"])
def test_an_incomplete_mnist_is_an_error_and_not_a_reason_to_take_the_digits(mnist, no_network, dataset):
    path_of(mnist, "t10k-labels").unlink()
    with pytest.raises(InputError, match="t10k-labels"):
        load(dataset, mnist, CPU)


@pytest.mark.parametrize("dataset", ["auto", "mnist"])
@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b + b"x", lambda b: b[:3], lambda b: b"", lambda b: b"<html>" + b]
)
def test_a_damaged_file_is_an_error_that_names_it(mnist, dataset, file, damage):
    path = path_of(mnist, file)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"expected .* got .*") as error:
        load(dataset, mnist, CPU)
    assert str(path) in str(error.value)


def test_a_truncated_file_is_told_with_both_sizes(mnist):
    path = path_of(mnist, "train-images")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"expected 304 bytes .*, got 100"):
        load("mnist", mnist, CPU)


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
    with pytest.raises(InputError, match=r"at least 12 training images .* got 3"):
        load("mnist", mnist, CPU)
