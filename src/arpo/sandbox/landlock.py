"""Landlock restricts the files that a process and its children may access, permanently (Linux 5.13).

Older versions of Landlock handle less: below ABI 2 they always refuse moves between folders; they do not handle
truncation below 3, TCP below 4, device ioctls below 5, and signals and abstract sockets below 6. `seccomp` closes these
gaps.
"""

import ctypes
import os
from collections.abc import Sequence

from arpo.sandbox import linux

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR, REMOVE_DIR, REMOVE_FILE = 1, 2, 4, 8, 16, 32
MAKE_CHAR, MAKE_DIR, MAKE_REG, MAKE_SOCK, MAKE_FIFO, MAKE_BLOCK, MAKE_SYM = 64, 128, 256, 512, 1024, 2048, 4096
REFER, TRUNCATE, IOCTL_DEV = 8192, 16384, 32768
NET_BIND_TCP, NET_CONNECT_TCP = 1, 2
SCOPE_ABSTRACT_UNIX_SOCKET, SCOPE_SIGNAL = 1, 2

_FILE_ONLY = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
_VERSION, _PATH_BENEATH = 1, 1
READ = READ_FILE | READ_DIR
SCRATCH = READ | WRITE_FILE | REMOVE_DIR | REMOVE_FILE | MAKE_DIR | MAKE_REG | MAKE_SYM | MAKE_FIFO | REFER | TRUNCATE


def abi() -> int:
    """The kernel's Landlock version; 0 if Landlock is missing or disabled."""
    try:
        return linux.syscall("landlock_create_ruleset", None, ctypes.c_size_t(0), ctypes.c_uint(_VERSION))
    except OSError:
        return 0


def handled(version: int) -> int:
    """File rights that a kernel of this version knows."""
    rights = (1 << 13) - 1
    for since, right in ((2, REFER), (3, TRUNCATE), (5, IOCTL_DEV)):
        rights |= right if version >= since else 0
    return rights


def build(read: Sequence[str], write: Sequence[str | int], *, execute: bool, devices: Sequence[str] = ()) -> int:
    """A ruleset as a file descriptor. It allows reading `read` (and executing, with `execute`), all access to the
    scratch folders `write` (paths or descriptors), and reading and writing `devices`. Missing paths are left out.
    Raises OSError without Landlock.
    """
    version = abi()
    scoped = SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL if version >= 6 else 0
    network = NET_BIND_TCP | NET_CONNECT_TCP if version >= 4 else 0
    attributes = (ctypes.c_uint64 * 3)(handled(version), network, scoped)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    ruleset = linux.syscall(
        "landlock_create_ruleset", ctypes.byref(attributes), ctypes.c_size_t(size), ctypes.c_uint(0)
    )
    runnable = EXECUTE if execute else 0
    try:
        for paths, rights in ((read, READ | runnable), (write, SCRATCH | runnable), (devices, READ_FILE | WRITE_FILE)):
            for path in paths:
                _allow(ruleset, path, rights & handled(version))
    except BaseException:
        os.close(ruleset)
        raise
    return ruleset


def _allow(ruleset: int, path: str | int, rights: int) -> None:
    try:
        place = os.dup(path) if isinstance(path, int) else os.open(path, os.O_PATH | os.O_CLOEXEC)  # type: ignore[attr-defined,unused-ignore]
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        if not os.path.isdir(path):
            rights &= _FILE_ONLY
        rule = ctypes.create_string_buffer(rights.to_bytes(8, "little") + place.to_bytes(4, "little"), 12)
        linux.syscall("landlock_add_rule", ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), rule, ctypes.c_uint(0))
    finally:
        os.close(place)


def enter(ruleset: int) -> None:
    """Restrict this process to `ruleset`. Needs no_new_privs."""
    linux.syscall("landlock_restrict_self", ctypes.c_int(ruleset), ctypes.c_uint(0))
