"""A value made of files, made again only when they have changed."""

from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

T = TypeVar("T")


class Memo(Generic[T]):
    """`read` makes the value of the files at `paths`; some of them may be missing. Appending to a file, and putting another one
    in its place, both count as a change."""

    def __init__(self, read: Callable[[], T], *paths: Path) -> None:
        self._read, self._paths = read, paths
        self._held: tuple[list[tuple[int, int, int] | None], T] | None = None

    def get(self) -> T:
        """The value. Of two threads that ask at once both may read; neither gets what is older than its question."""
        identity = [file_identity(path) for path in self._paths]  # before reading: a later change is seen next time
        held = self._held
        if held is None or held[0] != identity:
            held = self._held = (identity, self._read())
        return held[1]


def file_identity(path: Path) -> tuple[int, int, int] | None:
    """Size, inode and time of change; None where there is no such file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_size, found.st_ino, found.st_mtime_ns
