"""Data: where it comes from, how it is split and batched, and what is refused."""

import functools
import gzip
import hashlib
import http.server
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("torchvision")

from manual_mlp.training import sources
from manual_mlp.training.data import Split, drop, load, shift
from manual_mlp.training.errors import InputError
from runs import SCRIPT

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


class Mirror(http.server.BaseHTTPRequestHandler):
    """Serve files as a good mirror does, or in one of the ways in which mirrors fail."""

    def __init__(self, files, fault, asked, over, *args):
        self.files, self.fault, self.asked, self.over = files, fault, asked, over
        super().__init__(*args)

    def do_GET(self):
        name = self.path.rpartition("/")[2]
        self.asked.append(name)
        if name not in self.files or self.fault == "not found":
            self.send_error(404)
            return
        content = self.files[name]
        if self.fault == "stalled":
            self.over.wait(10)
            return
        if self.fault == "another file":
            content = b"<html>" + content
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if self.fault == "truncated" else content)

    def log_message(self, *args):
        pass


@pytest.fixture
def serve():
    """Start a mirror: its address, and the list of the files it is asked for."""
    servers, over = [], threading.Event()

    def start(files, fault=None):
        asked = []
        handler = functools.partial(Mirror, files, fault, asked, over)
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = False
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        return f"http://127.0.0.1:{server.server_port}/", asked

    yield start
    over.set()
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def down():
    """Return the address of a mirror that nobody runs."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}/"


@pytest.fixture
def packed(tmp_path):
    """Pack the files of a small MNIST: contents by name."""
    root = write_mnist(tmp_path / "published")
    paths = [path_of(root, file) for file in FILES]
    return {f"{path.name}.gz": gzip.compress(path.read_bytes()) for path in paths}


@pytest.fixture
def publish(monkeypatch, packed):
    """Let torchvision list these files, with their checksums, at these mirrors."""
    from torchvision import datasets

    def listed(first, *more, dataset="mnist"):
        published = getattr(datasets, sources._FOLDERS[dataset])
        sums = [(name, hashlib.md5(content).hexdigest()) for name, content in packed.items()]
        monkeypatch.setattr(published, "resources", sums)
        monkeypatch.setattr(published, "mirrors", [first])
        monkeypatch.setitem(sources._MORE_MIRRORS, dataset, more)

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return listed


def names_in(root, folder="MNIST"):
    return sorted(str(path.relative_to(root / folder / "raw")) for path in (root / folder / "raw").rglob("*"))


UNPACKED = sorted(f"{file}-idx{rank}-ubyte" for file, rank in FILES.items())


@pytest.mark.parametrize("dataset", ["mnist", "fashion-mnist"])
def test_missing_files_are_downloaded_and_only_the_unpacked_ones_stay(tmp_path, packed, serve, publish, dataset):
    publish(serve(packed)[0], dataset=dataset)
    data = load(dataset, tmp_path / "data", CPU)
    assert (data.name, len(data.train), len(data.read_test())) == (dataset, 22, 6)
    assert names_in(tmp_path / "data", sources._FOLDERS[dataset]) == UNPACKED
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize("fault", ["not found", "another file", "truncated", "stalled"])
def test_a_mirror_that_fails_is_left_for_the_next_and_not_asked_again(
    tmp_path, packed, serve, publish, fault, monkeypatch
):
    monkeypatch.setattr(sources, "_NETWORK_TIMEOUT", 0.3)
    (bad, asked), (good, served) = serve(packed, fault), serve(packed)
    publish(bad, good)
    assert len(load("mnist", tmp_path / "data", CPU).train) == 22
    assert names_in(tmp_path / "data") == UNPACKED
    assert set(asked) == {"train-images-idx3-ubyte.gz"}
    assert set(served) == set(packed)


def test_a_mirror_that_is_down_is_left_for_the_next(tmp_path, packed, serve, publish, down):
    publish(down, serve(packed)[0])
    assert len(load("mnist", tmp_path / "data", CPU).train) == 22


def test_an_error_names_each_mirror_that_failed_and_why_and_leaves_nothing(tmp_path, packed, serve, publish, down):
    missing, damaged = serve({})[0], serve(packed, "truncated")[0]
    publish(down, missing, damaged)
    with pytest.raises(InputError) as error:
        load("mnist", tmp_path / "data", CPU)
    said = str(error.value)
    assert "\n" not in said
    for mirror, reason in ((down, "refused"), (missing, "404"), (damaged, "corrupted")):
        assert reason in said.partition(mirror)[2].partition(")")[0]
    assert not (tmp_path / "data").exists()


def test_a_download_that_stops_half_way_keeps_the_whole_files_and_names_the_others(tmp_path, packed, serve, publish):
    first = {name: content for name, content in packed.items() if name.startswith("train")}
    publish(serve(first)[0])
    with pytest.raises(InputError) as error:
        load("auto", tmp_path / "data", CPU)
    assert names_in(tmp_path / "data") == [name for name in UNPACKED if name.startswith("train")]
    for name in UNPACKED:
        assert (name in str(error.value)) == name.startswith("t10k")


def test_ctrl_c_in_a_download_leaves_nothing(tmp_path, monkeypatch):
    from torchvision.datasets import utils

    def interrupted(url, root, md5):
        (Path(root) / "train-images-idx3-ubyte.gz").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(utils, "download_url", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load("mnist", tmp_path / "data", CPU)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("dataset", ["auto", "fashion-mnist"])
def test_packed_files_in_the_folder_are_unpacked_without_a_network(tmp_path, packed, no_network, dataset):
    folder = {"auto": "MNIST", "fashion-mnist": "FashionMNIST"}[dataset]
    raw = tmp_path / folder / "raw"
    raw.mkdir(parents=True)
    for name, content in packed.items():
        (raw / name).write_bytes(content)
    assert len(load(dataset, tmp_path, CPU).train) == 22
    assert names_in(tmp_path, folder) == sorted([*UNPACKED, *packed])


def pack(change):
    return lambda packed: gzip.compress(change(gzip.decompress(packed)))


@pytest.mark.parametrize("dataset", ["auto", "mnist"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b[:-9],
        lambda b: b"",
        lambda b: b"<html>" + b,
        lambda b: b[:10] + b"\xff" + b[11:],
        lambda b: b[:-6] + bytes(6),
        pack(lambda b: b[:-1]),
        pack(lambda b: b"<html>"),
    ],
    ids=["short", "empty", "HTML", "bad block", "bad CRC", "short inside", "HTML inside"],
)
def test_a_damaged_packed_file_is_an_error_that_names_it(mnist, packed, no_network, dataset, damage):
    path = path_of(mnist, "t10k-images")
    path.unlink()
    archive = path.with_name(f"{path.name}.gz")
    archive.write_bytes(damage(packed[archive.name]))
    with pytest.raises(InputError) as error:
        load(dataset, mnist, CPU)
    assert str(archive) in str(error.value)
    assert "\n" not in str(error.value)
    assert archive.name in names_in(mnist)
    assert path.name not in names_in(mnist)
    assert not any(name.startswith(".") for name in names_in(mnist))


@pytest.mark.parametrize(
    ("dataset", "md5", "of"), [("mnist", "27ae3e4e", "ubyte.gz, unpacked"), ("fashion-mnist", "bb300cfd", "ubyte.gz")]
)
def test_a_packed_file_as_long_as_the_published_one_must_be_the_published_one(tmp_path, no_network, dataset, md5, of):
    folder = sources._FOLDERS[dataset]
    path = path_of(write_mnist(tmp_path, folder), "t10k-labels", folder)
    write_idx(path, torch.zeros(10_000, dtype=torch.int))
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    with pytest.raises(InputError, match=rf"expected MD5 {md5}\w* of .*/t10k-labels-idx1-{of}, got"):
        load(dataset, tmp_path, CPU)
    assert not path.exists()


def test_a_file_as_long_as_the_published_one_must_be_the_published_one(mnist):
    write_idx(path_of(mnist, "t10k-images"), torch.zeros(10_000, 4, 3, dtype=torch.int))
    write_idx(path_of(mnist, "t10k-labels"), torch.zeros(10_000, dtype=torch.int))
    with pytest.raises(
        InputError, match=r"expected MD5 27ae3e4e\w* of .*/t10k-labels-idx1-ubyte, got .* damaged, or of"
    ):
        load("mnist", mnist, CPU)


def test_packed_files_that_cannot_be_unpacked_are_no_reason_to_take_the_digits(tmp_path, packed, monkeypatch):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in packed.items():
        (raw / name).write_bytes(content)

    def refuse(**kwargs):
        raise PermissionError(13, "Permission denied", str(kwargs["dir"]))

    monkeypatch.setattr(sources.tempfile, "TemporaryDirectory", refuse)
    with pytest.raises(InputError, match=r"got no train-images.* Permission denied: '.*raw'"):
        load("auto", tmp_path, CPU)


def test_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path):
    (tmp_path / "MNIST").write_text("a file")
    with pytest.raises(InputError, match=r"expected mnist in .*/MNIST/raw .*, got no train-images.*MNIST") as error:
        load("mnist", tmp_path, CPU)
    assert "\n" not in str(error.value)


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
    with pytest.raises(InputError, match=r"more training images than the 12 .* got 3"):
        load("mnist", mnist, CPU)
