"""The command behind ``make elsewhere``: install the wheel for another Python and torch, and run make quick against it.

    python tests/elsewhere.py --python python3.12 --torch 2.11.0

It makes a virtual environment in a temporary folder, installs dist/*-py3-none-any.whl with its extra ``dev`` there,
unpacks the source archive of dist/, puts the installed package in the place of the one in the archive, compiles the
native engine, and runs ``make quick`` in it. It prints a row of the table in docs/versions.md.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Of this process, and none of the machine's: another torch is to build its own.
SET = re.compile("MANUAL_MLP_|PYTHONPATH|VIRTUAL_ENV")
ASKED = """
import platform, torch, manual_mlp
from manual_mlp.engines import native
print(manual_mlp.__file__)
print(platform.python_version(), torch.__version__, "plain" if native.why() else "native", sep=" | ")
"""


def output(command: Sequence[str], **options: object) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, **options).stdout


def installed(args: argparse.Namespace, at: Path, environment: dict[str, str]) -> Path:
    """Make the environment, and return its Python."""
    (wheel,) = args.dist.glob("manual_mlp-*-py3-none-any.whl")
    subprocess.run([args.python, "-m", "venv", str(at)], check=True)
    python = at / "bin" / "python"
    pip = [args.uv, "pip", "install", "--python", str(python)] if args.uv else [str(python), "-m", "pip", "install"]
    wanted = [f"manual_mlp[dev] @ {wheel.absolute().as_uri()}", f"torch=={args.torch}" if args.torch else "torch"]
    subprocess.run([*pip, "--quiet", *wanted], check=True, env=environment)
    return python


def unpacked(dist: Path, at: Path, package: Path) -> Path:
    """Unpack the source archive, with the installed package in the place of its own."""
    (archive,) = dist.glob("manual_mlp-*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(at, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    (tree,) = at.glob("manual_mlp-*")
    shutil.rmtree(tree / "manual_mlp")
    (tree / "manual_mlp").symlink_to(package)
    return tree


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="which Python (default: this one)")
    parser.add_argument("--torch", default="", help="which torch (default: the newest)")
    parser.add_argument("--dist", type=Path, default=ROOT / "dist", help="the folder with wheel and archive")
    parser.add_argument("--uv", default="", metavar="PROGRAM", help="install by uv, which is quicker, instead of pip")
    parser.add_argument("--plain", action="store_true", help="do not compile the native engine")
    parser.add_argument("--part", default="1/1", metavar="K/N", help="of the tests, every N-th from the K-th")
    parser.add_argument("--at", type=Path, help="where the temporary folder is made")
    args = parser.parse_args()
    environment = {name: value for name, value in os.environ.items() if not SET.match(name)}
    with tempfile.TemporaryDirectory(prefix="elsewhere-", dir=args.at) as temporary:
        at = Path(temporary)
        environment["MANUAL_MLP_CACHE"] = str(at / "cache")
        python = installed(args, at / "venv", environment)
        if not args.plain:
            subprocess.run([str(python), "-m", "manual_mlp", "build"], check=True, env=environment, cwd=at)
        where, row = output([str(python), "-c", ASKED], env=environment, cwd=at).splitlines()
        assert Path(where).is_relative_to(at / "venv"), where
        tree = unpacked(args.dist, at, Path(where).parent)
        # Neither environment nor build is make's to make.
        skipped = [word for name in ("installed", "native") for word in ("-o", f".venv/{name}")]
        begin = time.monotonic()
        done = subprocess.run(
            ["make", "quick", f"BIN={python.parent}", f"ARGS=--part={args.part}", *skipped],
            cwd=tree,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        seconds = time.monotonic() - begin
        print("\n".join(done.stdout.splitlines()[-40:]))
        said = re.findall(r"^=+ (.*) in [\d.]+s.* =+$", done.stdout, re.MULTILINE)
        result = said[-1] if said else "nothing ran"
        print(f"| {row} | {args.part} | {result} | {seconds:.0f} | {datetime.now(timezone.utc):%Y-%m-%d} |", flush=True)
        return done.returncode


if __name__ == "__main__":
    sys.exit(main())
