"""Folders that appear whole or not at all, and show when they were damaged afterwards.

A whole folder holds MANIFEST.json: the size of every other file in it. Knows files. Refuses to know what is in them.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from arpo.files import sync_folder

MANIFEST = "MANIFEST.json"
_PARTIAL = ".partial-"


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A new folder to be filled in the block. Then it reaches the disk and takes the name `target`, instead of what has that name.

    Where the block fails, or the process is killed, `target` stays as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{_PARTIAL}{target.name}.{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        files = {str(path.relative_to(partial)): path.stat().st_size for path in sorted(partial.rglob("*")) if path.is_file()}
        (partial / MANIFEST).write_text(json.dumps(files, indent=1))
        for path in (*partial.rglob("*"), partial):
            sync_folder(path)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync_folder(target.parent)


def clear_partial(folder: Path) -> None:
    """Remove what killed processes left unfinished in `folder`. Only for who alone writes there."""
    for path in folder.glob(f"{_PARTIAL}*"):
        shutil.rmtree(path, ignore_errors=True)


def fault(path: Path) -> str | None:
    """What is wrong with the folder at `path`, or None if it is whole."""
    manifest = path / MANIFEST
    if not manifest.is_file():
        return f"{MANIFEST} is missing"
    try:
        files: Any = json.loads(manifest.read_text())
    except ValueError:
        files = None
    if not isinstance(files, dict):
        return f"{MANIFEST} is truncated"
    for name, size in files.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
    return None
