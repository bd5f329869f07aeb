"""System calls that Python's standard library lacks, through ctypes. Knows numbers and flags. Refuses to know their
purpose.

Imports on every platform; calls raise OSError where the kernel lacks them.
"""

import contextlib
import ctypes
import errno
import os
import platform
import signal
import sys
from typing import Any

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_THREAD = 0x00010000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000

MS_BIND, MS_REC, MS_PRIVATE, MS_NOSUID, MS_NODEV, MS_RDONLY, MS_REMOUNT = 4096, 16384, 1 << 18, 2, 4, 1, 32
MNT_DETACH = 2

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
PR_SET_CHILD_SUBREAPER = 36

_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 1, 2, 4
_AT_FDCWD, _AT_RECURSIVE = -100, 0x8000

_NAMES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
ARCHITECTURE = (
    _NAMES.get(platform.machine().lower(), "") if sys.platform == "linux" else ""
)  # other systems number otherwise
_NUMBERS = {
    "x86_64": {"pivot_root": 155, "capset": 126, "seccomp": 317},
    "aarch64": {"pivot_root": 41, "capset": 91, "seccomp": 277},
}
_EVERYWHERE = {
    "mount_setattr": 442,
    "landlock_create_ruleset": 444,
    "landlock_add_rule": 445,
    "landlock_restrict_self": 446,
}

_libc: Any = None


def libc() -> Any:
    """The C library of this process, which keeps errno."""
    global _libc
    if _libc is None:
        _libc = ctypes.CDLL(None, use_errno=True)
    return _libc


def syscall(name: str, *arguments: Any) -> int:
    """Make the system call `name`. Raises OSError, with ENOSYS on a machine whose numbers are unknown."""
    number = {**_EVERYWHERE, **_NUMBERS.get(ARCHITECTURE, {})}.get(name)
    if number is None:
        raise OSError(38, f"{name}: no number for this architecture ({platform.machine()})")
    return _checked(libc().syscall(ctypes.c_long(number), *arguments), name)


def _checked(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def prctl(option: int, *arguments: int) -> int:
    words = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)][:4]
    return _checked(libc().prctl(ctypes.c_int(option), *words), f"prctl {option}")


def unshare(flags: int) -> None:
    _checked(libc().unshare(ctypes.c_int(flags)), "unshare")


def setns(namespace: int, kind: int) -> None:
    _checked(libc().setns(ctypes.c_int(namespace), ctypes.c_int(kind)), "setns")


def mount(source: str, target: str, kind: str | None = None, flags: int = 0, options: str = "") -> None:
    _checked(
        libc().mount(
            source.encode(),
            target.encode(),
            kind.encode() if kind else None,
            ctypes.c_ulong(flags),
            options.encode() or None,
        ),
        f"mount {kind or source} on {target}",
    )


def unmount(target: str) -> None:
    _checked(libc().umount2(target.encode(), MNT_DETACH), f"unmount {target}")


def pivot_root(new: str, old: str) -> None:
    syscall("pivot_root", ctypes.c_char_p(new.encode()), ctypes.c_char_p(old.encode()))


def make_read_only(target: str, *, devices: bool = False) -> None:
    """Make the mount at `target` and all below it read-only, without set-user-id and, unless `devices`, without device
    files."""
    flags = _ATTR_RDONLY | _ATTR_NOSUID | (0 if devices else _ATTR_NODEV)
    attributes = (ctypes.c_uint64 * 4)(flags, 0, 0, 0)
    syscall(
        "mount_setattr",
        ctypes.c_int(_AT_FDCWD),
        ctypes.c_char_p(target.encode()),
        ctypes.c_uint(_AT_RECURSIVE),
        ctypes.byref(attributes),
        ctypes.c_size_t(32),
    )


def drop_privileges() -> None:
    """Drop all capabilities permanently, also for every later exec. The user stays the same."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    for capability in range(64):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except OSError:  # the kernel has no more, or this process may not: it has none then
            break
    drop_capabilities()


def drop_capabilities() -> None:
    """Drop all capabilities of this process. An exec could bring them back, unless `drop_privileges` was called."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    syscall("capset", ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)()))


def kill_session(first: int) -> None:
    """Kill every process of the session that `first` started, even if `first` is gone."""
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if name.isdigit() and os.getsid(int(name)) == first:
                os.kill(int(name), signal.SIGKILL)


def has_threads() -> bool:
    """True if this process has a second thread, also one that Python does not know yet. Without /proc the kernel tells:
    it refuses this call to a process with several threads. False if the call is not allowed."""
    try:
        unshare(CLONE_THREAD)
    except OSError as error:
        return error.errno == errno.EINVAL
    return False


def is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True
