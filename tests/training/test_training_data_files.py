"""Files of images: packed or not, read within bounds, and refused in one line."""

import gzip
import os
import struct
import subprocess
import sys
import tempfile
import tracemalloc
import zlib
from pathlib import Path

import pytest
import torch

from manual_mlp.training import idx
from manual_mlp.training.data import load
from manual_mlp.training.errors import InputError
from manual_mlp.training.sources import holds
from mnist import FILES, PACKED, names_in, pack, path_of, read_only, write_idx, write_mnist

CPU = torch.device("cpu")


@pytest.fixture
def anywhere():
    """Make a folder that other users reach too."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def refused(root, dataset="mnist"):
    """Return the line with which a data set is refused."""
    with pytest.raises(InputError) as error:
        load(dataset, root, CPU)
    said = str(error.value)
    assert len(said.splitlines()) == 1
    return said


@pytest.mark.parametrize("folder", ["MNIST", "FashionMNIST"])
def test_packed_files_are_read_as_they_lie_there_and_nothing_is_written(tmp_path, no_network, folder):
    dataset = {"MNIST": "auto", "FashionMNIST": "fashion-mnist"}[folder]
    data = load(dataset, write_mnist(tmp_path, folder), CPU)
    raw = pack(tmp_path, folder) / folder / "raw"
    before = raw.stat().st_mtime_ns
    found = load(dataset, tmp_path, CPU)
    assert torch.equal(found.train.images, data.train.images)
    assert torch.equal(found.read_test().images, data.read_test().images)
    assert (names_in(tmp_path, folder), raw.stat().st_mtime_ns) == (PACKED, before)


def test_packed_files_are_read_in_a_folder_that_cannot_be_written(anywhere, no_network):
    raw = pack(write_mnist(anywhere)) / "MNIST" / "raw"
    with read_only(raw):
        assert not os.access(raw, os.W_OK, effective_ids=True)
        data = load("mnist", anywhere, CPU)
        assert (len(data.train), len(data.read_test())) == (22, 6)


@pytest.mark.parametrize("dataset", ["auto", "mnist"])
def test_a_folder_that_cannot_be_written_and_lacks_files_is_told_so(anywhere, dataset):
    raw = pack(write_mnist(anywhere)) / "MNIST" / "raw"
    (raw / "t10k-labels-idx1-ubyte.gz").unlink()
    with read_only(raw):
        said = refused(anywhere, dataset)
    assert f"got no t10k-labels-idx1-ubyte; {raw} cannot be written: Permission denied; " in said
    assert "make it writable, or name another by --data-dir" in said
    assert "tried" not in said
    assert "put the missing files there" not in said


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_advice_about_a_damaged_file_fits_its_folder(anywhere, ending):
    path = path_of(write_mnist(anywhere), "t10k-images")
    if ending:
        pack(anywhere)
    path = path.with_name(path.name + ending)
    path.write_bytes(path.read_bytes()[:-1])
    assert "replace it, or delete it, and the published one is downloaded" in refused(anywhere)
    with read_only(path.parent):
        said = refused(anywhere)
    assert "delete" not in said
    assert "its folder cannot be written: name another by --data-dir" in said


def test_packed_files_are_read_without_torchvision(tmp_path):
    script = f"""
import sys
from pathlib import Path
import torch
from manual_mlp.training.data import load
load("mnist", Path({str(pack(write_mnist(tmp_path)))!r}), torch.device("cpu")).read_test()
print(*{{"torchvision", "manual_mlp.training.download"}} & sys.modules.keys())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_whether_a_folder_holds_a_data_set_is_told_without_reading(tmp_path, ending, monkeypatch):
    monkeypatch.setattr(idx, "read", None)
    assert holds("digits", tmp_path / "none")
    for dataset in ("auto", "mnist", "fashion-mnist", "nonsense", ""):
        assert not holds(dataset, tmp_path / "none")
        assert not holds(dataset, Path("a\0b"))
        assert not holds(dataset, Path("a" * 300))
    for folder, datasets in (("MNIST", ("auto", "mnist")), ("FashionMNIST", ("fashion-mnist",))):
        write_mnist(tmp_path, folder)
        if ending:
            pack(tmp_path, folder)
        assert all(holds(dataset, tmp_path) for dataset in datasets)
        path = path_of(tmp_path, "t10k-labels", folder)
        path.with_name(path.name + ending).unlink()
        assert not any(holds(dataset, tmp_path) for dataset in datasets)


def repacked(change):
    return lambda packed: gzip.compress(change(gzip.decompress(packed)))


DAMAGES = {
    "short": lambda b: b[:-9],
    "cut in the header": lambda b: b[:5],
    "empty": lambda b: b"",
    "zeros": lambda b: bytes(1000),
    "HTML": lambda b: b"<html>" + b,
    "bad block": lambda b: b[:10] + b"\xff" + b[11:],
    "bad CRC": lambda b: b[:-6] + bytes(6),
    "rubbish behind": lambda b: b + b"rubbish",
    "half a member behind": lambda b: b + gzip.compress(b"")[:12],
    "short inside": repacked(lambda b: b[:-1]),
    "long inside": repacked(lambda b: b + b"x"),
    "a second member": lambda b: b + gzip.compress(b"x"),
    "HTML inside": repacked(lambda b: b"<html>"),
    "nothing inside": repacked(lambda b: b""),
}


@pytest.mark.parametrize("dataset", ["auto", "mnist"])
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ["train-images", "t10k-images", "t10k-labels"])
def test_a_damaged_packed_file_is_an_error_that_names_it(mnist, no_network, dataset, damage, file):
    path = path_of(pack(mnist), file)
    archive = path.with_name(f"{path.name}.gz")
    archive.write_bytes(DAMAGES[damage](archive.read_bytes()))
    assert str(archive) in refused(mnist, dataset)
    assert names_in(mnist) == PACKED


SAME = {
    "several members": lambda b: b"".join(gzip.compress(b[i : i + 1000]) for i in range(0, len(b), 1000)),
    "empty members": lambda b: gzip.compress(b"") + gzip.compress(b) + gzip.compress(b"") * 3,
    "zeros between": lambda b: gzip.compress(b[:50]) + bytes(70) + gzip.compress(b[50:]),
    "zeros behind": lambda b: gzip.compress(b) + bytes(512),
    "not compressed": lambda b: gzip.compress(b, 0),
}


@pytest.mark.parametrize("way", SAME)
@pytest.mark.parametrize("shape", [(4, 3), (80, 100)])
def test_a_file_is_read_however_it_is_packed(tmp_path, no_network, way, shape):
    expected = load("mnist", write_mnist(tmp_path, shape=shape), CPU)
    for file in FILES:
        path = path_of(tmp_path, file)
        path.with_name(f"{path.name}.gz").write_bytes(SAME[way](path.read_bytes()))
    whole = load("mnist", tmp_path, CPU).read_test().images
    for file in FILES:
        path_of(tmp_path, file).unlink()
    found = load("mnist", tmp_path, CPU)
    assert torch.equal(found.train.images, expected.train.images)
    assert torch.equal(found.read_test().images, whole)


@pytest.fixture
def counted(monkeypatch):
    """Count the bytes that files are read to, and unpacked to."""
    counts = {"_plain": 0, "_unpacked": 0}

    def counting(name, blocks):
        def count(file, seen):
            for block in blocks(file, seen):
                counts[name] += len(block)
                yield block

        return count

    for name in counts:
        monkeypatch.setattr(idx, name, counting(name, getattr(idx, name)))
    return counts


def peak_of(call):
    """Return the most bytes that Python held during a call, and what it returned."""
    tracemalloc.start()
    try:
        found = call()
        return tracemalloc.get_traced_memory()[1], found
    finally:
        tracemalloc.stop()


def bomb(start, gigabytes):
    """Pack a beginning, and zeros without an end that is worth waiting for."""
    packer = zlib.compressobj(9, wbits=31)
    head = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    zeros = packer.compress(bytes(2**24)) + packer.flush(zlib.Z_FULL_FLUSH)
    return head + zeros * (64 * gigabytes)


@pytest.mark.parametrize("start", ["images", "nothing"])
def test_a_bomb_is_unpacked_no_further_than_its_header_announces(mnist, no_network, counted, start):
    path = path_of(mnist, "train-images")
    content = path.read_bytes()
    path.unlink()
    path.with_name(f"{path.name}.gz").write_bytes(bomb(content if start == "images" else b"", 16))
    peak, said = peak_of(lambda: refused(mnist))
    assert ("expected 304 bytes in" in said) == (start == "images")
    assert counted["_unpacked"] <= len(content) + 2 * 2**16
    assert peak < 2**22


@pytest.mark.parametrize("filler", [gzip.compress(b""), b"\0"], ids=["empty members", "zeros"])
@pytest.mark.parametrize("at", ["before", "behind"])
def test_a_packed_file_of_nothing_is_not_read_to_its_end(mnist, no_network, filler, at):
    path = path_of(mnist, "train-images")
    content = gzip.compress(path.read_bytes())
    path.unlink()
    archive = path.with_name(f"{path.name}.gz")
    empty = filler * (2**21 // len(filler))
    archive.write_bytes(empty + content if at == "before" else content + empty)
    said = refused(mnist)
    assert str(archive) in said
    if filler == b"\0" and at == "before":
        assert "incorrect header check" in said
    else:
        read = int(said.partition(", got: ")[2].split(" bytes that unpack to")[0])
        assert read < 2**18


def test_a_sparse_file_is_read_no_further_than_its_header_announces(mnist, counted):
    path = path_of(mnist, "train-images")
    os.truncate(path, 2**40)
    assert f"expected 304 bytes in {path}, got more" in refused(mnist)
    assert counted["_plain"] <= 2 * 2**16


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("shape", [(2**32 - 1,) * 3, (1, 100_000, 100_000), (2**31, 1, 1)], ids=str)
def test_a_header_that_announces_too_much_is_refused_before_anything_is_read(mnist, no_network, ending, shape, counted):
    path = path_of(mnist, "t10k-images")
    path.unlink()
    content = bytes((0, 0, 8, 3)) + struct.pack(">3I", *shape)
    path.with_name(path.name + ending).write_bytes(gzip.compress(content) if ending else content)
    said = refused(mnist)
    assert f"expected at most {2**31} bytes in {path}" in said
    assert " x ".join(map(str, shape)) in said


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_a_header_that_announces_what_does_not_come_takes_no_memory(mnist, no_network, ending):
    path = path_of(mnist, "t10k-labels")
    path.unlink()
    content = bytes((0, 0, 8, 1)) + struct.pack(">I", 2**31 - 8)
    path.with_name(path.name + ending).write_bytes(gzip.compress(content) if ending else content)
    peak, said = peak_of(lambda: refused(mnist))
    assert f"expected {2**31} bytes in {path}" in said
    assert peak < 2**22


def a_folder(path):
    path.mkdir()


def a_link_to_nothing(path):
    path.symlink_to(path.parent / "nowhere")


def a_link_to_itself(path):
    path.symlink_to(path)


def a_device(path):
    path.symlink_to("/dev/zero")


PLACES = [a_folder, os.mkfifo, a_device, a_link_to_nothing, a_link_to_itself]


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
@pytest.mark.parametrize("dataset", ["auto", "mnist"])
def test_what_is_no_file_is_refused_in_one_line_and_left_alone(mnist, no_network, place, ending, dataset):
    path = path_of(mnist, "t10k-images")
    path.unlink()
    path = path.with_name(path.name + ending)
    place(path)
    before = os.lstat(path)
    assert f"expected a file that can be read, got {path}: " in refused(mnist, dataset)
    assert os.lstat(path).st_mode == before.st_mode


def test_a_file_that_may_not_be_read_is_told_in_one_line(anywhere):
    path = path_of(write_mnist(anywhere), "t10k-images")
    path.chmod(0)
    with read_only(path.parent):
        assert f"got {path}: Permission denied" in refused(anywhere)


EMPTY = {
    "no training image": {"train": (0, 4, 3)},
    "no test image": {"t10k": (0, 4, 3)},
    "no image": {"train": (0, 4, 3), "t10k": (0, 4, 3)},
    "no pixel": {"train": (24, 0, 0), "t10k": (6, 0, 0)},
    "no column": {"train": (24, 4, 0), "t10k": (6, 4, 0)},
    "no row": {"train": (24, 0, 3), "t10k": (6, 0, 3)},
    "nothing": {"train": (0, 0, 0), "t10k": (0, 0, 0)},
    "no row, and many columns": {"train": (24, 0, 2**32 - 1), "t10k": (6, 0, 2**32 - 1)},
}


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("case", EMPTY)
def test_empty_images_are_refused_before_training(mnist, no_network, case, ending):
    for part, shape in EMPTY[case].items():
        path_of(mnist, f"{part}-images").write_bytes(bytes((0, 0, 8, 3)) + struct.pack(">3I", *shape))
        write_idx(path_of(mnist, f"{part}-labels"), torch.zeros(shape[0], dtype=torch.int))
    if ending:
        pack(mnist)
    part, (count, height, width) = next(iter(EMPTY[case].items()))
    path = path_of(mnist, f"{part}-images")
    assert (
        f"expected at least one image, and one pixel, in {path}{ending}, got {count} of {height}x{width} pixels"
        in refused(mnist)
    )


@pytest.mark.parametrize("part", ["train", "t10k"])
def test_labels_are_compared_with_the_images_before_training(mnist, part):
    path = path_of(mnist, f"{part}-labels")
    write_idx(path, torch.zeros(0, dtype=torch.int))
    assert f"as many labels as {part} images" in refused(mnist)
    write_idx(path, torch.full(({"train": 24, "t10k": 6}[part],), 23))
    assert f"expected labels 0 to 9 in {path}, got 23" in refused(mnist)


def test_test_images_that_change_while_we_train_are_refused(mnist):
    data = load("mnist", mnist, CPU)
    write_idx(path_of(mnist, "t10k-images"), torch.zeros(6, 9, 9, dtype=torch.int))
    with pytest.raises(InputError, match="as it was when training began, got another"):
        data.read_test()


def test_test_images_may_be_packed_while_we_train(mnist):
    first, second = (load("mnist", mnist, CPU) for _ in range(2))
    images = first.read_test().images
    pack(mnist)
    assert torch.equal(second.read_test().images, images)


@pytest.mark.parametrize(
    ("dataset", "md5", "of"), [("mnist", "27ae3e4e", "ubyte.gz, unpacked"), ("fashion-mnist", "bb300cfd", "ubyte.gz")]
)
def test_a_packed_file_as_long_as_the_published_one_must_be_the_published_one(tmp_path, no_network, dataset, md5, of):
    folder = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}[dataset]
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
