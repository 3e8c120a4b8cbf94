"""Runs of train.py, in processes and in forks."""

import json
import os
import socket
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
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
    import torch, torchvision, sklearn.datasets, sklearn.metrics, tyro, tqdm, tensorboard, safetensors.torch
    from torch.utils.tensorboard import SummaryWriter
    from manual_mlp.training import build, checkpoint, cli, data, figures, loop, state

    # The pictures of mistakes are drawn where they are tested.
    figures.mistakes = figures.confusion = lambda *_: torch.zeros(2, 2, 3, dtype=torch.uint8).numpy()
    main = runpy.run_path(sys.argv[1])["main"]

    def child(rank, flags, before, processes, port, folder):
        os.chdir(folder)
        world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in world.items()}, MASTER_ADDR="localhost")
        exec(before, globals())
        sys.argv = ["train.py", *flags]
        for stream in (1, 2):
            file = f"{('out', 'err')[stream - 1]}{rank}"
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        try:
            code = main()
        except SystemExit as exit:
            code = exit.code
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)

    for line in sys.stdin:
        request, pids = json.loads(line), []
        for rank in range(request[2]):
            pids.append(os.fork())
            if not pids[-1]:
                child(rank, *request)
        print(*(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids), flush=True)
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
    from safetensors.torch import load_file

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


class Train:
    """Run train.py in forks, in a folder of its own: the runs are in ``at``."""

    def __init__(self, forks: "subprocess.Popen[str]", folder: Path, wholes: dict[tuple[object, ...], Path]) -> None:
        self.forks, self.folder, self.at, self.wholes = forks, folder, folder / "runs", wholes

    def __call__(self, *flags: object, before: str = "", processes: int = 1) -> tuple[int, list[str]]:
        """Run it in a fork, or in several that share the work: the status of the first, and its last error line."""
        with socket.socket() as free:
            free.bind(("localhost", 0))
            request = [list(map(str, flags)), before, processes, free.getsockname()[1], str(self.folder)]
        print(json.dumps(request), file=self.forks.stdin, flush=True)
        status, *others = map(int, self.forks.stdout.readline().split())
        assert all(bool(other) == bool(status) for other in others), "some have failed, and others have not"
        return status, (self.folder / "err0").read_text().splitlines()[-1:]

    def said(self) -> str:
        """Read what the first process wrote to stdout, when it was last run."""
        return (self.folder / "out0").read_text()

    def whole(self, *flags: object) -> Path:
        """Run it to its end, once for all who ask with the same flags: the folder of the run, which nobody changes."""
        if flags not in self.wholes:
            name = f"whole-{len(self.wholes)}"
            assert self(*flags, "--name", name)[0] == 0
            self.wholes[flags] = self.at / name
        return self.wholes[flags]
