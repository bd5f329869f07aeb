"""Folders that appear whole or not at all, and show when they were damaged afterwards.

A whole folder holds MANIFEST.json: size and CRC-32 of every other file in it, written when those have reached the disk.
Knows files. Refuses to know what is in them.
"""

import errno
import json
import os
import re
import secrets
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from arpo.files import PARTIAL, sync_folder
from arpo.foreign import loads, read_file

MANIFEST = "MANIFEST.json"
_PIECE = 1 << 22  # bytes read at once
_NAME = re.compile(re.escape(PARTIAL) + r"(.+)\.[^.]+")


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A new folder to be filled in the block. Then it reaches the disk and takes the name `target`, instead of what has
    that name.

    Where the block fails, or the process is killed, `target` stays as it was. (Killed between the two renames that
    replace a folder, neither has the name; `settle` gives it to one of them.)
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _beside(target)
    partial.mkdir()
    try:
        yield partial
        files = {str(path.relative_to(partial)): _stamp(path) for path in sorted(partial.rglob("*")) if path.is_file()}
        for path in partial.rglob("*"):
            sync_folder(path)
        (partial / MANIFEST).write_text(json.dumps(files, indent=1))
        for path in (partial / MANIFEST, partial):
            sync_folder(path)
        _name(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync_folder(target.parent)


def settle(folder: Path) -> None:
    """Tidy up after processes that were killed while they wrote in `folder`: what is whole takes its name, unless
    something whole has it; the rest goes. Only for who alone writes there."""
    for path in sorted(folder.glob(f"{PARTIAL}*"), key=lambda path: path.stat().st_mtime_ns, reverse=True):
        named = _NAME.fullmatch(path.name)
        if named and path.is_dir() and fault(path) is None and fault(target := path.with_name(named[1])) is not None:
            _name(path, target)
    clear_partial(folder)


def clear_partial(folder: Path) -> None:
    """Remove what killed processes left unfinished in `folder`. Only for who alone writes there."""
    for path in folder.glob(f"{PARTIAL}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _beside(target: Path) -> Path:
    """A name that no other process has, on whatever host."""
    return target.with_name(f"{PARTIAL}{target.name}.{secrets.token_hex(6)}")


def _name(partial: Path, target: Path) -> None:
    """Give `partial` the name `target`. What has it steps aside first, and goes when the name is taken."""
    aside: list[Path] = []
    while True:
        try:
            os.replace(partial, target)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        with suppress(FileNotFoundError):  # another process was faster
            os.replace(target, old := _beside(target))
            aside.append(old)
    for old in aside:
        shutil.rmtree(old, ignore_errors=True)


def fault(path: Path) -> str | None:
    """What is wrong with the folder at `path`, or None if it is whole. Reads all of it."""
    manifest = path / MANIFEST
    if not manifest.is_file():
        return f"{MANIFEST} is missing"
    try:
        files: Any = loads(read_file(manifest))
    except ValueError:
        files = None
    except OSError as error:
        return f"{MANIFEST} cannot be read ({error.strerror})"
    if not isinstance(files, dict):
        return f"{MANIFEST} is truncated"
    return next((wrong for name, listed in files.items() if (wrong := _wrong(path / name, name, listed))), None)


def _wrong(file: Path, name: str, listed: Any) -> str | None:
    """`listed`: what the manifest says of the file, at first its size alone."""
    size, checksum = (listed.get("bytes"), listed.get("crc32")) if isinstance(listed, dict) else (listed, None)
    if not file.is_file():
        return f"{name} is missing"
    if (found := file.stat().st_size) != size:
        return f"{name} has {found} bytes instead of {size}"
    try:
        damaged = checksum is not None and _crc32(file) != checksum
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    return f"{name} is damaged: its checksum does not fit" if damaged else None


def _stamp(file: Path) -> dict[str, int | str]:
    return {"bytes": file.stat().st_size, "crc32": _crc32(file)}


def _crc32(file: Path) -> str:
    """Of the content, in hexadecimal: against disks that forget, not against people who forge. Some GB/s."""
    checksum, buffer = 0, bytearray(min(_PIECE, file.stat().st_size or 1))
    with file.open("rb", buffering=0) as stream:
        while count := stream.readinto(buffer):
            checksum = zlib.crc32(memoryview(buffer)[:count], checksum)
    return f"{checksum:08x}"
