"""What a reader pastes from a document: its blocks, its commands, and a folder to run them in."""

import os
import re
import shlex
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from patience import SECONDS

ROOT = Path(__file__).parent.parent
# What differs from what is pasted: which Python it is, its threads, and where package and images lie.
INTERPRETERS = {"python": [sys.executable], "torchrun": [sys.executable, "-m", "torch.distributed.run"]}


def blocks(text: str) -> list[tuple[str, str]]:
    """List the blocks of code: language and text."""
    return re.findall(r"^```(\S*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def command_of(line: str) -> str:
    """Return a line of a shell without its comment."""
    return line.partition("  #")[0].partition(" # ")[0].strip()


def paste(line: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run a command in a folder, by this Python."""
    words = shlex.split(line)
    command = [*INTERPRETERS[words[0]], *words[1:]]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, "MANUAL_MLP_DATA": str(folder / "data")}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=SECONDS)


def make_clone(folder: Path) -> Path:
    """Make a folder as a reader has it after a first run: train.py, images at random, and runs/NAME."""
    (folder / "train.py").symlink_to(ROOT / "train.py")
    raw = folder / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 40), ("t10k", 20)):
        images = torch.randint(256, (count, 28, 28), dtype=torch.uint8).numpy().tobytes()
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, count, 28, 28) + images)
        labels = bytes(k % 10 for k in range(count))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, count) + labels)
    done = paste("python train.py --name NAME --epochs 1", folder)
    assert done.returncode == 0, done.stderr
    return folder


@contextmanager
def ending() -> Iterator[None]:
    """Let what was pasted end its process in good order, and go on."""
    try:
        yield
    except SystemExit as exit:
        if exit.code:
            raise AssertionError(f"expected exit status 0, got {exit.code}") from None
