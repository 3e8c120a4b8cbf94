"""Which state of the code a run is of."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

_TIMEOUT = 10  # seconds
_LISTED = 50  # changed files


def git_state(folder: Path) -> str:
    """Return the commit and branch of the repository around a folder and what is changed in it, as Markdown.

    It does not fail: where there is no repository, or no git, it says so.
    """
    # A git hook sets variables that lead to its own repository.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "-C", str(folder), "status", "--porcelain=v2", "--branch"]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT,
            env={**environment, "LC_ALL": "C"},
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"state of git unknown: {error}"
    if done.returncode:
        reason = done.stderr.strip().partition("\n")[0].removeprefix("fatal: ")
        return (
            "not a git repository" if reason.startswith("not a git repository") else f"state of git unknown: {reason}"
        )
    lines = done.stdout.splitlines()
    head = dict(line[2:].split(" ", 1) for line in lines if line.startswith("# branch."))
    changed = [_short(line) for line in lines if not line.startswith("#")]
    where = f"commit `{head.get('branch.oid', '?')}` on `{head.get('branch.head', '?')}`"
    if not changed:
        return f"{where}, clean"
    return f"{where}, dirty:\n\n" + "\n".join("    " + line for line in changed[:_LISTED])


def _short(line: str) -> str:
    """Return what happened to a file, and its path, from a line of git's second format."""
    fields = {"1": 8, "2": 9, "u": 10}.get(line[0], 1)  # before the path
    return f"{line.split()[1] if fields > 1 else line[0]} {line.split(' ', fields)[-1]}"
