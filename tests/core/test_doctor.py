"""What the doctor prints."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from manual_mlp import doctor
from manual_mlp.__main__ import main
from manual_mlp.engines import native

LINES = (
    *("manual_mlp", "torch", "Python", "platform", "devices", "engine", "on a GPU", "compiler", "ninja", "Triton"),
    *("processor", "threads", "OpenMP", "malloc", "data", "variables"),
)


def told() -> dict[str, str]:
    return {line[:12].strip(): line[12:] for line in doctor.report()}


def test_a_line_for_everything_and_each_is_known(capsys):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert tuple(line[:12].strip() for line in lines) == LINES
    assert not [line for line in lines if "unknown (" in line or not line[12:]]
    found = told()
    assert found["torch"].startswith(f"{torch.__version__}, git ")
    assert found["threads"].startswith(f"{torch.get_num_threads()}, between operations ")
    assert torch.backends.cpu.get_cpu_capability() in found["processor"]


@pytest.mark.processes
@pytest.mark.skipif(sys.platform != "linux", reason="the libraries of a process are read from /proc")
def test_with_native_there_is_the_one_openmp_of_torch():
    # In a process of its own, for other packages bring theirs.
    code = "from manual_mlp import doctor; print(*doctor.report(), sep='\\n')"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in said.splitlines() if line.startswith("OpenMP")]
    assert line.count(".so") == 1, line


def test_it_says_which_engine_and_why_it_is_not_native(monkeypatch):
    monkeypatch.setattr(native, "_reason", "for a reason")
    assert told()["engine"] == "plain, not native: for a reason"
    monkeypatch.setattr(native, "_reason", None)
    monkeypatch.setattr(native, "doors", os)
    assert told()["engine"] == doctor.short(f"native, {os.__file__}")


def test_a_second_openmp_and_another_malloc_are_seen(monkeypatch, tmp_path):
    maps = tmp_path / "maps"
    lines = ("/a/libgomp.so.1", "/b b/libiomp5.so", "/c/libomptarget.so", "/usr/lib/libjemalloc.so.2", "")
    maps.write_text("".join(f"7f00-7f01 r-xp 00000000 08:01 42    {path}\n" for path in lines))
    monkeypatch.setattr(doctor, "_MAPS", maps)
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "7")
    monkeypatch.setenv("LD_PRELOAD", "/secret/libnot_there.so")
    found = told()
    assert found["OpenMP"] == "/a/libgomp.so.1, /b b/libiomp5.so (expected one)"
    assert found["malloc"] == "libjemalloc.so.2, MALLOC_TRIM_THRESHOLD_=7, LD_PRELOAD=libnot_there.so"
    monkeypatch.setattr(doctor, "_MAPS", tmp_path / "nowhere")
    assert told()["OpenMP"] == "unknown"


def test_no_line_raises_and_the_home_folder_is_not_told(monkeypatch, tmp_path):
    monkeypatch.setenv("MANUAL_MLP_DATA", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path.parent))
    assert told()["data"] == f"~/{tmp_path.name} (is there)"
    for name in ("get_num_threads", "__version__"):
        monkeypatch.delattr(torch, name)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "nothing")
    monkeypatch.setattr(Path, "read_text", lambda *_: 1 / 0)
    found = told()
    assert tuple(found) == LINES
    assert found["threads"].startswith("unknown (AttributeError: ")
    assert found["OpenMP"] == "unknown (ZeroDivisionError: division by zero)"
    assert found["compiler"] == "none: no nothing"
