"""One writer a run: a lock file that says who writes, and shows that the writer lives.

Two guards. The kernel's lock ends with its process, however that ends; but some network file systems keep it to one host, or have
none. So the holder also touches the file every few seconds, and whoever finds one that another host left behind waits for a touch
before taking it over. No two clocks are compared. Knows the file. Refuses to know what is written beside it.
"""

import contextlib
import fcntl
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from arpo.errors import ArpoError, ConfigError

BEAT_S = 3.0
PATIENCE_S = 15.0  # without a touch: whoever held it is gone


class Lock:
    """Held from `take` on until `release`, or until the process ends."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path = path
        self.holder = _me()
        self._file = file
        self._ended = threading.Event()
        self._taken_over = ""
        self._beating = threading.Thread(target=self._beat, name="arpo-lock", daemon=True)
        file.truncate(0)
        file.write(f"{self.holder}\n".encode())
        file.flush()
        self._beating.start()

    @classmethod
    def take(cls, path: Path, *, patience_s: float = PATIENCE_S, tell: Callable[[str], None] = lambda _: None) -> "Lock":
        """Raises ConfigError, which names the holder, where somebody else has it. `tell` hears why it waits, where it does."""
        file, certain = _opened(path)
        try:
            holder = _text(path)
            if holder and not (certain and holder.endswith(f" on {socket.gethostname()}")):
                tell(f"{holder} held this run: waiting {patience_s:g} s for a sign of life")
                _wait_for_silence(path, holder, patience_s)
        except BaseException:
            file.close()
            raise
        return cls(path, file)

    @classmethod
    def wait(cls, path: Path) -> "Lock":
        """The same, however long somebody else has it: for what is done in a moment."""
        while True:
            with contextlib.suppress(ConfigError):
                return cls.take(path)

    def check(self) -> None:
        """Raises ArpoError where another process has taken the run over, which it may when this one stood still."""
        if self._taken_over:
            raise ArpoError(f"{self.path.parent}: taken over by {self._taken_over} while this process stood still")

    def release(self) -> None:
        self._ended.set()
        self._beating.join()
        if not self._taken_over:
            self.path.unlink(missing_ok=True)
        self._file.close()

    def moved(self, path: Path) -> None:
        """The folder of the lock has another name now."""
        self.path = path

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            with contextlib.suppress(OSError):  # a file system that is away for a moment
                if (holder := _text(self.path)) and holder != self.holder:
                    self._taken_over = holder
                    return
                os.utime(self._file.fileno())


def is_held(path: Path) -> bool:
    """Whether some process holds the lock at `path`. Of another host's it can only be said that it was touched lately."""
    try:
        with path.open("rb") as file:
            holder = file.read().decode(errors="replace").strip()
            locked = _try(file)
            if locked is False:
                return True
            elsewhere = bool(holder) and not (locked and holder.endswith(f" on {socket.gethostname()}"))
            return elsewhere and time.time() - os.fstat(file.fileno()).st_mtime < PATIENCE_S
    except FileNotFoundError:
        return False


def _me() -> str:
    return f"pid {os.getpid()} on {socket.gethostname()}"


def _text(path: Path) -> str:
    """Opened anew each time, which makes a network file system ask its server. Empty where there is no such file."""
    try:
        return path.read_bytes().decode(errors="replace").strip()
    except FileNotFoundError:
        return ""


def _try(file: IO[bytes]) -> bool | None:
    """Whether the kernel gave its lock; None where the file system has none."""
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _opened(path: Path) -> tuple[IO[bytes], bool]:
    """The file with the kernel's lock on it, and whether there is such a lock here."""
    patience = time.monotonic() + 0.5  # `is_held` of a reader holds it for an instant
    while True:
        file = path.open("a+b")
        locked = _try(file)
        if locked is False:
            file.close()
            if time.monotonic() > patience:
                raise _taken(path, _text(path) or "unknown")
            time.sleep(0.02)
            continue
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):  # else its last holder removed it while we opened it
                return file, bool(locked)
        file.close()


def _wait_for_silence(path: Path, holder: str, patience_s: float) -> None:
    touched, until = path.stat().st_mtime_ns, time.monotonic() + patience_s
    while time.monotonic() < until:
        time.sleep(min(1.0, patience_s / 5))
        _text(path)
        if path.stat().st_mtime_ns != touched:
            raise _taken(path, holder)


def _taken(path: Path, holder: str) -> ConfigError:
    return ConfigError(
        "another process writes this run", where=str(path.parent), value=holder, hint="wait for it, or stop it first"
    )
