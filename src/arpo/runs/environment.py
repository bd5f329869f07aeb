"""Where a run ran: Python, platform, package versions, processor, commit and command line, for `environment.json`.

Refuses to know environment variables (they hold secrets) and imports none of the packages whose versions it states.
"""

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("arpo", "torch", "transformers", "accelerate", "peft", "tokenizers", "safetensors", "numpy", "pydantic")
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8", "asimd", "bf16", "i8mm", "sve")


def describe_environment(
    *, seed: int, command: Sequence[str] | None = None, folder: Path | str = "."
) -> dict[str, Any]:
    """The facts that somebody needs to repeat a run. `folder` is where a git commit is looked for; without git it is
    None."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "cpu": _cpu_field("model name"),
        "cpu_flags": [flag for flag in CPU_FLAGS if flag in _cpu_field("flags", "Features").split()],
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
        "commit": _git(folder, "rev-parse", "HEAD"),
        "changed": bool(_git(folder, "status", "--porcelain", "--untracked-files=no")),
        "command": list(sys.argv if command is None else command),
        "seed": seed,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_field(*names: str) -> str:
    """The first line of /proc/cpuinfo that has one of `names`; empty where there is none (macOS)."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() in names), "")


def _git(folder: Path | str, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
