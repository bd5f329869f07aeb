"""Reads and writes files that survive a crash: whole files, which it writes atomically, and JSON lines.

Knows bytes, JSON and what a half-written last line looks like. Refuses to know what the files mean.
"""

import errno
import json
import math
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from arpo.errors import FormatError
from arpo.foreign import lines, loads, read_file
from arpo.terminal_safe import json_safe

PARTIAL = ".partial-"  # prefix of unfinished files; it identifies what a killed process leaves behind


def write_atomic(path: Path | str, content: bytes | str) -> Path:
    """Write a whole file atomically: a reader, or a crash at any moment, sees the old content or the new one, never a
    part.

    The content goes to a temporary file in the same folder, which is synced and then renamed to `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = content.encode() if isinstance(content, str) else content
    descriptor, temporary = tempfile.mkstemp(prefix=f"{PARTIAL}{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp creates files that only their owner can read
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    return path


def open_to_append(path: Path | str) -> IO[bytes]:
    """The file, made where it is missing, opened to append to it: unbuffered, whole lines or frames at a time. Raises
    FormatError for a link (whose target is somebody else's file), a device, a pipe or a folder."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        file = os.fdopen(os.open(path, flags, 0o666), "r+b", buffering=0)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise FormatError(f"{path} is a link, a folder or a pipe: only a file is written to") from error
        raise
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise FormatError(f"{path} is not a file: nothing is written to it")
    return file


def cut_unfinished_line(file: IO[bytes]) -> None:
    """Cut off what a kill left of a last line, reading from the end."""
    end = at = whole = file.seek(0, os.SEEK_END)
    while at > 0:
        start = max(0, at - (1 << 20))
        file.seek(start)
        newline = file.read(at - start).rfind(b"\n")
        if newline >= 0:
            whole = start + newline + 1
            break
        at = whole = start
    if whole < end:
        file.truncate(whole)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cache_folder() -> Path:
    """The folder of downloaded models, cold starts and tool results: `$ARPO_CACHE`, else `arpo` in `$XDG_CACHE_HOME` or
    `~/.cache`."""
    if configured := os.environ.get("ARPO_CACHE"):
        return expanded(configured)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "arpo"


def as_seen_from_here(path: Path) -> str:
    """`path` for messages: relative to the current folder if it lies below it."""
    resolved = path.resolve()
    return str(resolved.relative_to(Path.cwd())) if resolved.is_relative_to(Path.cwd()) else str(path)


def expanded(path: Path | str) -> Path:
    """`path` with `~` replaced by the home folder. A path with an unknown home (`~nobody/x`) stays unchanged."""
    return Path(os.path.expanduser(path))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def as_json(value: Any) -> Any:
    """`value` as JSON values: numbers that are not finite become None, NumPy scalars and arrays Python's, paths
    text."""
    if isinstance(value, bool | str) or value is None:
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [as_json(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # NumPy arrays and scalars, torch tensors
        return as_json(value.tolist())
    raise TypeError(f"{value!r} ({type(value).__name__}) has no JSON form")


def json_line(value: Mapping[str, Any]) -> bytes:
    """A JSON object on one line that ends with a newline. Numbers that are not finite become null."""
    return (json_safe(json.dumps(as_json(value), ensure_ascii=False, allow_nan=False)) + "\n").encode()


def write_json(path: Path | str, value: Any) -> Path:
    text = json.dumps(as_json(value), indent=2, ensure_ascii=False, allow_nan=False)
    return write_atomic(path, json_safe(text) + "\n")


def read_json(path: Path | str) -> Any:
    """The content of a JSON file. Raises FormatError, which names the file and the place, if it is not JSON."""
    try:
        return loads(read_file(path))
    except ValueError as error:  # also bytes that are not UTF-8, and huge numbers
        raise FormatError(f"{path} is not JSON: {error}") from error
    except OSError as error:
        raise FormatError(f"{path} cannot be read ({error.strerror or error})") from error


def read_json_lines(path: Path | str) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file, one at a time; none if the file is missing.

    A last line without a newline is unfinished, so it is left out. Any other line that is not a JSON object raises
    FormatError, which names file and line.
    """
    path = Path(path)
    if not path.exists():
        return
    for number, line in lines(path):
        if not line.endswith(b"\n"):
            return
        if not line.strip():
            continue
        try:
            value = loads(line)
        except ValueError as error:
            raise FormatError(f"{path}, line {number} is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise FormatError(f"{path}, line {number} is {type(value).__name__}, not an object")
        yield value
