"""Runs of train.py in processes of their own."""

import json
import os
import runpy
import socket
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from patience import SECONDS

SCRIPT = Path(__file__).parent.parent / "train.py"

# train.py, but for what is called before: the names of `loop` and `os` are there, and the rank of the process.
PATCHED = """
    import os, runpy, signal, sys
    from manual_mlp.training import loop
    rank = int(os.environ.get("RANK", "0"))
    exec(sys.argv[1], globals())
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
"""

# train.py in forks of one process that has torch loaded: a child for each line of stdin, with what it calls.
FORKS = """
    import json, os, runpy, signal, sys
    import torch, torchvision, sklearn.datasets, tyro, tqdm, tensorboard, safetensors.torch
    from torch.utils.tensorboard import SummaryWriter
    from manual_mlp.training import build, checkpoint, cli, data, loop, state

    main = runpy.run_path(sys.argv[1])["main"]

    def child(rank, flags, before, processes, port):
        world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in world.items()}, MASTER_ADDR="localhost")
        exec(before, globals())
        sys.argv = ["train.py", *flags]
        for stream in (1, 2):
            os.dup2(os.open(os.devnull if stream == 1 else f"err{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        try:
            code = main()
        except SystemExit as exit:
            code = exit.code
        sys.stderr.flush()
        os._exit(code or 0)

    for line in sys.stdin:
        request, pids = json.loads(line), []
        for rank in range(request[2]):
            pids.append(os.fork())
            if not pids[-1]:
                child(rank, *request)
        print(*{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids}, flush=True)
"""


def start(*flags: object, processes: int = 0, before: str = "") -> "subprocess.Popen[str]":
    """Start train.py, warnings being errors; by torchrun where processes are asked for, each of which calls before."""
    script = ["-c", textwrap.dedent(PATCHED), before, str(SCRIPT)] if before else [str(SCRIPT)]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes)] if processes else ["-W", "error"]
    if before and processes:
        torchrun += ["--no-python", sys.executable]
    command = [sys.executable, *torchrun, *script, *map(str, flags)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )


def finish(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Wait for the end: exit status, stdout, stderr."""
    try:
        out, err = process.communicate(timeout=SECONDS)
    finally:
        process.kill()
    return process.returncode, out, err


def run(*flags: object, processes: int = 0, before: str = "") -> tuple[int, str, str]:
    """Run train.py to its end: exit status, stdout, stderr."""
    return finish(start(*flags, processes=processes, before=before))


def read_until(process: "subprocess.Popen[str]", text: str) -> str:
    """Read stdout up to the first line with the text."""
    head = ""
    assert process.stdout is not None
    for line in process.stdout:
        head += line
        if text in line:
            return head
    raise AssertionError(f"{text!r} did not come: {head}{finish(process)}")


def weights(folder: Path, name: str = "last") -> dict[str, Tensor]:
    """Read the weights of a run."""
    return load_file(folder / f"{name}.safetensors")


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Tell whether weights agree bit by bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def reader(path: Path) -> Callable[[Tensor], Tensor]:
    """Read a file that was exported, without manual_mlp: a function of pixels."""
    if path.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda pixels: torch.from_numpy(session.run(["scores"], {"pixels": pixels.numpy()})[0])
    if path.suffix == ".pt2":
        with warnings.catch_warnings():
            # torch 2.11 reads the file into a buffer that is not writable, and warns of that.
            warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
            return torch.export.load(path).module()
    saved, names = torch.load(path, weights_only=True), dict[str, Any]()
    exec(saved["code"], names)
    names["model"].load_state_dict(saved["state_dict"])
    return names["model"]  # as it was built: in training mode


@pytest.fixture(name="main")
def main_here(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run the script's main in this process, in an empty directory: exit status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    script = runpy.run_path(str(SCRIPT))

    def call(*flags: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["train.py", *map(str, flags)])
        try:
            status = script["main"]()
        except SystemExit as exit:
            status = exit.code
        return status, *capsys.readouterr()

    return call


@pytest.fixture(name="train", scope="module")
def train_in_forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., tuple[int, list[str]]]]:
    """Run train.py in a fork, or in several that share the work, in a folder of its own: status, last error line."""
    at = tmp_path_factory.mktemp("forks")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(FORKS), str(SCRIPT)]
    forks = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=at)

    def call(*flags: object, before: str = "", processes: int = 1) -> tuple[int, list[str]]:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            request = [list(map(str, flags)), before, processes, free.getsockname()[1]]
        print(json.dumps(request), file=forks.stdin, flush=True)
        status = int(forks.stdout.readline())
        return status, (at / "err0").read_text().splitlines()[-1:]

    call.at = at / "runs"  # type: ignore[attr-defined]
    assert forks.stdin is not None
    assert forks.stdout is not None
    yield call
    forks.stdin.close()
    forks.stdout.close()
    forks.wait(SECONDS)
