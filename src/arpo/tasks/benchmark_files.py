"""Finds the file of a benchmark in a folder.

Knows names and suffixes. Refuses to know the content of a file.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from arpo.errors import ConfigError
from arpo.files import expanded
from arpo.tasks.data import SUFFIXES


def local_file(folder: Path, names: Sequence[str]) -> Path:
    """The one file in `folder` that has one of `names` (ignoring case, - and _), or `folder` if it is a file.

    Raises ConfigError, which says what it looked for and what the folder holds.
    """
    folder = expanded(folder)
    if folder.is_file() and folder.suffix in SUFFIXES:
        return folder
    if folder.is_file():
        raise ConfigError(
            "not a file of questions",
            where="--data",
            value=str(folder),
            hint=f"Its name must end in {', '.join(SUFFIXES)}",
        )
    if not folder.is_dir():
        raise ConfigError(
            "no such folder", where="--data", value=str(folder), hint="Name the folder that holds the benchmarks' files"
        )
    files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES)
    accepted = {normalized(name) for name in names}
    matches = [path for path in files if normalized(path.stem) in accepted]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise ConfigError(
            "several files match",
            where="--data",
            value=[path.name for path in matches],
            hint="Keep one, or name the file",
        )
    raise ConfigError(
        f"no file of {names[0]} in this folder",
        where="--data",
        value=str(folder),
        hint=f"Expected {names[0]}{{{','.join(SUFFIXES)}}} (also known as {', '.join(names)}); "
        f"the folder holds {', '.join(path.name for path in files) or 'no such file'}",
    )


def normalized(name: str) -> str:
    """`name` for comparison: hotpot_qa and HotpotQA are equal."""
    return re.sub(r"[-_\s]", "", name).casefold()
