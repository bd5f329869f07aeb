"""Caches a value that is read from files, and reads it again when the files change."""

from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")


class Memo(Generic[T]):
    """A cached value. `read` reads it from the files at `paths`, some of which may be missing. Both appending to a file
    and replacing it count as a change."""

    def __init__(self, read: Callable[[], T], *paths: Path) -> None:
        self._read, self._paths = read, paths
        self._cached: tuple[list[tuple[int, int, int] | None], T] | None = None

    def get(self) -> T:
        """The current value. Two threads that call this at once may both read; neither gets a value older than its
        call."""
        identity = [
            file_identity(path) for path in self._paths
        ]  # taken before reading, so that the next call sees a change
        cached = self._cached
        if cached is None or cached[0] != identity:
            cached = self._cached = (identity, self._read())
        return cached[1]


def file_identity(path: Path) -> tuple[int, int, int] | None:
    """Size, inode and modification time of a file; None if it does not exist."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_size, status.st_ino, status.st_mtime_ns
