"""Keeps freed memory for the next update, or returns it to the system. Knows glibc's allocator; elsewhere it does
nothing."""

import ctypes
import sys
from functools import cache
from pathlib import Path

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt's names of them
_LARGEST = 32 * 2**20  # of a block that glibc can keep in its heap
_SCARCE = 0.25  # share of the machine's memory


@cache
def keep_freed() -> None:
    """Keep freed blocks of up to 32 MB in the process: memory that goes back to the system returns page by page, each
    with a page fault (a quarter of an update's time, measured on virtual machines)."""
    if libc := _glibc():
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST)
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def give_back() -> None:
    """Return freed pages of the heap to the system where its memory is scarce: an update frees thousands of blocks of
    many sizes, and leaves gigabytes of holes that the next one may fill badly."""
    if _available() < _SCARCE and (libc := _glibc()):
        libc.malloc_trim(0)


def _available() -> float:
    """The share of the machine's memory that is free or can be freed; 1 where that is unknown."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        sizes = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if rest}
        return sizes["MemAvailable"] / sizes["MemTotal"]
    except (OSError, KeyError, ValueError):
        return 1.0


@cache
def _glibc() -> ctypes.CDLL | None:
    library = ctypes.CDLL(None) if sys.platform == "linux" else None
    return library if library is not None and hasattr(library, "malloc_trim") else None
