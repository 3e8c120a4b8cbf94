"""Data sets, and train.py: in this process, in forks, and to its end once for all who ask with the same flags."""

import gzip
import os
import runpy
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from manual_mlp.training import figures
from manual_mlp.training.data import Data, load
from mnist import FILES, path_of, write_mnist
from patience import SECONDS
from runs import FORKS, SCRIPT, Train


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    return write_mnist(tmp_path)


@pytest.fixture
def packed(tmp_path: Path) -> dict[str, bytes]:
    """Pack the files of a small MNIST: contents by name."""
    root = write_mnist(tmp_path / "published")
    paths = [path_of(root, file) for file in FILES]
    return {f"{path.name}.gz": gzip.compress(path.read_bytes()) for path in paths}


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="session")
def digits() -> Data:
    pytest.importorskip("sklearn")
    return load("digits", Path("unused"), torch.device("cpu"))


@pytest.fixture
def main(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the script's main in this process, in an empty directory: exit status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    for name in ("mistakes", "confusion"):  # which are drawn where they are tested
        monkeypatch.setattr(figures, name, lambda *_: torch.zeros(2, 2, 3, dtype=torch.uint8).numpy())
    script = runpy.run_path(str(SCRIPT))

    def call(*flags: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, flags)])
        try:
            status = script["main"]()
        except SystemExit as exit:
            status = exit.code
        return status, *capsys.readouterr()

    return call


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], Train]]:
    """Start the process that forks, once, and share the runs that nothing disturbs."""
    command = [sys.executable, "-c", textwrap.dedent(FORKS), str(SCRIPT)]
    environment, at = {**os.environ, "OMP_NUM_THREADS": "1"}, tmp_path_factory.mktemp("forks")
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment, cwd=at) as process:
        yield partial(Train, process, wholes={})
        process.stdin.close()
        process.wait(SECONDS)


@pytest.fixture(scope="module")
def train(forks: Callable[[Path], Train], tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Run train.py in forks, in a folder of the module's own."""
    return forks(tmp_path_factory.mktemp("train"))
