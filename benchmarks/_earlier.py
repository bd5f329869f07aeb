"""The library as it was at an earlier commit, beside the one at hand: a benchmark's script of today runs with either.

Knows git and processes; what is measured, the script knows. It leaves nothing in the repository (no worktree, no branch).
"""

import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

from arpo.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]


def checkout(commit: str, folder: Path) -> str:
    """The sources of `commit` in `folder`; returns its full name. Raises ConfigError where there is none."""
    wrong = ConfigError("not a commit of this repository", where="--before", value=commit, hint="git log --oneline lists them")
    try:
        name = _git("rev-parse", "--verify", f"{commit}^{{commit}}").decode().strip()
        packed = _git("archive", name, "src", "recipes")
    except (OSError, subprocess.CalledProcessError) as error:
        raise wrong from error
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")
    return name


def run(script: Path, arguments: Sequence[str], sources: Path) -> None:
    """`script` with the library that lies in `sources`; its report goes to standard error. Raises ConfigError where it fails."""
    environment = {**os.environ, "PYTHONPATH": str(sources / "src")}
    done = subprocess.run([sys.executable, str(script), *arguments], env=environment, stdout=sys.stderr, check=False)
    if done.returncode:
        hint = "its last words are above; not every earlier commit has what this script puts clocks around"
        raise ConfigError(f"{script.name} ended with {done.returncode}", where="--before", value=str(sources), hint=hint)


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", "-C", str(ROOT), *arguments], check=True, capture_output=True).stdout
