"""Finds and runs benchmarks, which are scripts: `benchmarks/NAME.py` in a checkout."""

import ast
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from arpo.errors import ConfigError, nearest


def scripts() -> dict[str, Path]:
    """Benchmarks by name (`quickstart-compare` is `quickstart_compare.py`), from the checkout or the current folder."""
    for folder in (Path(__file__).parents[3] / "benchmarks", Path("benchmarks")):
        if folder.is_dir():
            return {path.stem.replace("_", "-"): path for path in sorted(folder.glob("[a-z]*.py"))}
    return {}


def run_benchmark(name: str | None, arguments: Sequence[str]) -> int:
    """Run a benchmark and return its exit code; without a name, list all. Raises ConfigError for an unknown name."""
    available = scripts()
    if not available:
        raise ConfigError(
            "there are no benchmarks here", hint="They are part of the repository: run this in a checkout"
        )
    if name is None:
        for each, path in available.items():
            print(f"{each:24} {_purpose(path)}")
        return 0
    if name not in available:
        raise ConfigError(
            "there is no such benchmark", value=name, hint=f"{nearest(name, available)}; without a name they are listed"
        )
    child = subprocess.Popen([sys.executable, str(available[name]), *arguments])
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:  # the script also gets it and ends by itself
            continue


def _purpose(path: Path) -> str:
    """The first line of a script's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]
