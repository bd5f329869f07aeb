"""One writer per folder: an operating-system lock on a file that names the process and the host that hold it.

The lock ends with its process, however that ends. Knows the file. Refuses to know what is written beside it.
"""

import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout

from arpo.errors import ConfigError

PATIENCE_S = 0.5  # `is_held`, called by a reader, takes the lock for an instant


class Lock:
    """Held from `take` until `release`, or until the process ends. Any thread may release it."""

    def __init__(self, path: Path, file_lock: FileLock) -> None:
        self.path = path
        self._file_lock = file_lock
        path.write_text(f"pid {os.getpid()} on {socket.gethostname()}\n", encoding="utf-8")

    @classmethod
    def take(cls, path: Path, *, timeout_s: float = PATIENCE_S) -> "Lock":
        """Raises ConfigError, which names the holder, where another process holds the lock for `timeout_s` seconds (-1:
        wait until it is free); OSError where the file cannot be written or the file system has no locks."""
        file_lock = _file_lock(path)
        try:
            file_lock.acquire(timeout=timeout_s, poll_interval=0.02)
        except Timeout as error:
            holder = _holder(path)
            raise ConfigError(
                "another process writes this run",
                where=str(path.parent),
                value=holder,
                hint="wait for it, or stop it first",
            ) from error
        return cls(path, file_lock)

    def release(self) -> None:
        """Remove the file and free the lock. A process that opened the file before sees that it is gone and opens a new
        one."""
        self.path.unlink(missing_ok=True)
        self._file_lock.release()

    def moved(self, path: Path) -> None:
        """The folder of the lock has another name now."""
        self.path = path


def is_held(path: Path) -> bool:
    """Whether a process holds the lock at `path`; True as well where this user may not open the file, so cannot try."""
    if not path.exists():
        return False
    try:
        with _file_lock(path).acquire(timeout=0):
            return False
    except OSError:  # `Timeout` is one
        return True


def _file_lock(path: Path) -> FileLock:
    return FileLock(path, thread_local=False, fallback_to_soft=False)


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or "unknown"
    except FileNotFoundError:
        return "unknown"
