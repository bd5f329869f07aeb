"""Seccomp: an allow-list of the system calls that a program may make. Any other call fails with "not permitted".

It does not use libseccomp, since the program inside has only Python's standard library.

The filter checks the arguments of calls that are harmless only with some of them: signals go only to the process
itself, new namespaces and processes are refused, and sockets exist only as connected pairs. It cannot follow pointers,
so calls that would need it (connect, sendmsg, clone3, openat2, capget) are not allowed at all. Nor are those that take
from what all calls share (timer_create: the kernel counts its timers by user). Calls that tell of a
process by its number (its processor time, priority, group) tell a program of itself only.
"""

import ctypes
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from arpo.sandbox import linux
from arpo.sandbox.syscalls import AUDIT, numbers

ALLOWED = """
brk munmap mprotect mremap madvise msync mincore read write readv writev pread64 pwrite64 preadv pwritev preadv2
pwritev2 lseek creat close close_range stat fstat lstat newfstatat statx access faccessat faccessat2 getdents
getdents64 getcwd chdir fchdir mkdir mkdirat rmdir unlink unlinkat rename renameat renameat2 link linkat symlink
symlinkat readlink readlinkat ftruncate fsync fdatasync fallocate fadvise64 flock umask dup dup2 dup3
pipe pipe2 sendfile copy_file_range getxattr lgetxattr fgetxattr listxattr poll ppoll select pselect6 epoll_create
epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd eventfd2 timerfd_create timerfd_settime
timerfd_gettime signalfd signalfd4 nanosleep pause restart_syscall time gettimeofday
times getitimer setitimer alarm rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait
rt_sigsuspend sigaltstack futex_waitv
set_robust_list set_tid_address rseq membarrier sched_yield sched_get_priority_max sched_get_priority_min getcpu
arch_prctl exit exit_group getpid getppid gettid getpgrp getuid geteuid getgid getegid getresuid getresgid
getgroups getrusage getrlimit sysinfo uname getrandom recvfrom recvmsg shutdown getsockname getpeername getsockopt
"""
# On files of the same user that can be read but not written, these would work; a read-only view refuses them by itself.
ON_OWN_FILES = "chmod fchmod fchmodat utimensat utimes futimesat utime truncate"

# How full a file system is tells one branch of a session of the others, which share it.
ON_FILE_SYSTEMS = ["statfs", "fstatfs"]
# A session starts no process but its branches, whose calls and processor time these would tell it.
ON_CHILDREN = ["wait4", "waitid", "rt_sigaction"]
BINDING = ["landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self"]
EPERM, EAGAIN, ENOSYS = 1, 11, 38
_ALLOW, _NOTIFY, _ERRNO, _KILL = 0x7FFF0000, 0x7FC00000, 0x00050000, 0x80000000
_LOAD, _IF_EQUAL, _IF_GREATER_OR_EQUAL, _IF_ANY_BIT, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in what the kernel shows
_CLONE_THREAD = 0x00010000
_ABOUT_A_PROCESS = ["getpgid", "getsid", "sched_getaffinity", "sched_getparam", "sched_getscheduler", "get_robust_list"]
_ON_CLOCKS = ["clock_gettime", "clock_getres", "clock_nanosleep"]
_PRIO_PROCESS, _CLOCK_OF_THREAD = 0, 4
_FUTEX_COMMAND, _FUTEXES_OF_AN_OWNER = 0x7F, (6, 7, 8, 11, 12, 13)  # which the owner's number inherits priority through
_SIGCHLD = 17
_MAP_SHARED = 1  # set in MAP_SHARED_VALIDATE too
_CLONE_NAMESPACES = 0x7E020000
_NEW = 424  # calls from this number on are newer than the list: C libraries fall back where such a one "does not exist"
_SET_FILTER, _NEW_LISTENER = 1, 8
_RECEIVE, _ANSWER, _CONTINUE = 0xC0502100, 0xC0182101, 1

IOCTLS = (
    0x5401,
    0x5413,
    0x541B,
    0x5421,
    0x5450,
    0x5451,
)  # is it a terminal, its size, bytes to read, blocking, close on exec
FCNTLS_REFUSED = (
    8,
    10,
    15,
    1024,
    1026,
    1031,
)  # signals to other processes on input, leases, folder watches, larger pipes
PRCTLS = (15, 16)  # names of threads
_AF_UNIX, _SOCK_STREAM, _SOCK_KIND = 1, 1, 0xF
_WRITING, _READING_AND_WRITING, _MODE, _TRUNCATING = 1, 2, 3, 0x200

Code = list[tuple[int, int, int, int]]


@dataclass(frozen=True, slots=True)
class SeccompPolicy:
    """What one program may do beyond the list."""

    signals_to: int | None = None  # the process that it may send signals to: its own number; None: nobody
    forks: bool = False  # start processes (counted by `Forks`)
    programs: bool = False  # turn into another program
    parts: bool = False  # becomes two that share nothing: bind itself further, no shared mappings, no sizes of disks
    own_files: bool = (
        False  # change modes and times of files: only where the view is read-only but for the scratch folder
    )


def program(policy: SeccompPolicy, architecture: str = "") -> bytes:
    """The filter in the kernel's form. Raises KeyError for an architecture without a table."""
    architecture = architecture or linux.ARCHITECTURE
    number = numbers(architecture)
    code: Code = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_IF_EQUAL, 1, 0, AUDIT[architecture]),
        _end(_KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    allowed = ALLOWED.split() + (ON_OWN_FILES.split() if policy.own_files else [])
    allowed += ["execve", "execveat"] if policy.programs else []
    allowed += BINDING if policy.parts else ["mmap", *ON_FILE_SYSTEMS, *ON_CHILDREN]
    for name in allowed:
        if name in number:
            code += [(_IF_EQUAL, 0, 1, number[name]), _end(_ALLOW)]
    for name, check in _checks(policy).items():
        if name in number:
            code += [(_IF_EQUAL, 0, len(check), number[name]), *check]
    code += [(_IF_GREATER_OR_EQUAL, 0, 1, _NEW), _end(_ERRNO | ENOSYS), _end(_ERRNO | EPERM)]
    return _packed(code)


def _checks(policy: SeccompPolicy) -> dict[str, Code]:
    """By call: what decides on its arguments. Each ends in a return."""
    no_process = _end(_ALLOW if policy.forks else _ERRNO | EAGAIN)
    refused = [_end(_ERRNO | EPERM)]
    to_itself = refused if policy.signals_to is None else _only(0, [policy.signals_to])
    itself = [0] if policy.signals_to is None else [0, policy.signals_to]
    about_itself = _only(0, itself)
    flags = (_LOAD, 0, 0, _ARGUMENTS)
    clocks: Code = [  # negative: the processor time of a process, or of one of its own threads
        flags,
        (_IF_ANY_BIT, 1, 0, 1 << 31),
        _end(_ALLOW),
        (_IF_ANY_BIT, 0, 1, _CLOCK_OF_THREAD),
        _end(_ALLOW),
        *refused,
    ]
    return {
        "clone": [
            flags,
            (_IF_ANY_BIT, 0, 1, _CLONE_NAMESPACES),
            *refused,
            (_IF_ANY_BIT, 0, 1, _CLONE_THREAD),
            _end(_ALLOW),
            no_process,
        ],
        "unshare": _only(0, [_CLONE_THREAD]),  # changes nothing: how a process asks whether it has one thread
        "fork": [no_process],
        "vfork": [no_process],
        "clone3": [_end(_ERRNO | ENOSYS)],  # its flags lie behind a pointer; C libraries then use clone
        "kill": to_itself,
        "tgkill": to_itself,
        "prlimit64": _only(0, [0]),
        **dict.fromkeys(_ABOUT_A_PROCESS, about_itself),
        "getpriority": [(_LOAD, 0, 0, _ARGUMENTS), (_IF_EQUAL, 1, 0, _PRIO_PROCESS), *refused, *_only(1, itself)],
        **dict.fromkeys(_ON_CLOCKS, clocks),
        "futex": [
            (_LOAD, 0, 0, _ARGUMENTS + 8),
            (_AND, 0, 0, _FUTEX_COMMAND),
            *_any_of_loaded(_FUTEXES_OF_AN_OWNER, _ERRNO | ENOSYS),
            _end(_ALLOW),
        ],
        "rt_sigaction": [*_any_of(0, [_SIGCHLD], _ERRNO | EPERM), _end(_ALLOW)],  # in sessions: see ON_CHILDREN
        "open": _truncating_as_it_says(1),
        "openat": _truncating_as_it_says(2),
        "mmap": [(_LOAD, 0, 0, _ARGUMENTS + 8 * 3), (_IF_ANY_BIT, 0, 1, _MAP_SHARED), *refused, _end(_ALLOW)],
        "ioctl": _only(1, IOCTLS),
        "fcntl": [*_any_of(1, FCNTLS_REFUSED, _ERRNO | EPERM), _end(_ALLOW)],
        "prctl": _only(0, PRCTLS),
        **_on_sockets(),
    }


def _on_sockets() -> dict[str, Code]:
    return {
        "socketpair": [
            (_LOAD, 0, 0, _ARGUMENTS),
            (_IF_EQUAL, 1, 0, _AF_UNIX),
            _end(_ERRNO | EPERM),
            (_LOAD, 0, 0, _ARGUMENTS + 8),
            (_AND, 0, 0, _SOCK_KIND),
            (_IF_EQUAL, 0, 1, _SOCK_STREAM),
            _end(_ALLOW),
            _end(_ERRNO | EPERM),
        ],
        "sendto": [  # only with no address
            (_LOAD, 0, 0, _ARGUMENTS + 32),
            (_IF_EQUAL, 1, 0, 0),
            _end(_ERRNO | EPERM),
            (_LOAD, 0, 0, _ARGUMENTS + 36),
            (_IF_EQUAL, 0, 1, 0),
            _end(_ALLOW),
            _end(_ERRNO | EPERM),
        ],
    }


def _truncating_as_it_says(argument: int) -> Code:
    """Opening may truncate only where the mode says that it writes: the kernel truncates in the others too, and
    Landlock below ABI 3 asks for what the mode says. (openat2, with its flags behind a pointer, is not on the list.)"""
    return [
        (_LOAD, 0, 0, _ARGUMENTS + 8 * argument),
        (_IF_ANY_BIT, 1, 0, _TRUNCATING),
        _end(_ALLOW),
        (_AND, 0, 0, _MODE),
        (_IF_EQUAL, 1, 0, _WRITING),
        (_IF_EQUAL, 0, 1, _READING_AND_WRITING),
        _end(_ALLOW),
        _end(_ERRNO | EPERM),
    ]


def _only(argument: int, values: Sequence[int]) -> Code:
    return [*_any_of(argument, values, _ALLOW), _end(_ERRNO | EPERM)]


def _any_of(argument: int, values: Sequence[int], verdict: int) -> Code:
    """`verdict` where the lower half of the argument is one of `values`; else goes on after it."""
    return [(_LOAD, 0, 0, _ARGUMENTS + 8 * argument), *_any_of_loaded(values, verdict)]


def _any_of_loaded(values: Sequence[int], verdict: int) -> Code:
    return [line for value in values for line in ((_IF_EQUAL, 0, 1, value), _end(verdict))]


def _end(verdict: int) -> tuple[int, int, int, int]:
    return (_RETURN, 0, 0, verdict)


def _packed(code: Code) -> bytes:
    return b"".join(struct.pack("<HBBI", *line) for line in code)


MYSELF = 0x7FFFFFF1  # no process has this number: `for_process` puts the real one in its place


def for_process(filter_: bytes, number: int) -> bytes:
    """A filter made with `signals_to=MYSELF`, for process `number`: made once, fitted a thousand times."""
    return filter_.replace(MYSELF.to_bytes(4, "little"), number.to_bytes(4, "little"))


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("lines", ctypes.c_void_p)]


def enter(filter_: bytes, *, listen: bool = False) -> int:
    """Bind this process to `filter_`. Needs no_new_privs. With `listen`, the descriptor on which `Forks` hears."""
    lines = ctypes.create_string_buffer(filter_, len(filter_))
    filter_program = _Program(len(filter_) // 8, ctypes.addressof(lines))
    flags = _NEW_LISTENER if listen else 0
    return linux.syscall("seccomp", ctypes.c_uint(_SET_FILTER), ctypes.c_uint(flags), ctypes.byref(filter_program))


def ask_before_forks(architecture: str = "") -> bytes:
    """A filter that only asks: every call that starts a process waits for an answer from who holds the listener."""
    architecture = architecture or linux.ARCHITECTURE
    number = numbers(architecture)
    code: Code = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_IF_EQUAL, 1, 0, AUDIT[architecture]),
        _end(_KILL),
        (_LOAD, 0, 0, _NUMBER),
    ]
    for name in ("fork", "vfork"):
        if name in number:
            code += [(_IF_EQUAL, 0, 1, number[name]), _end(_NOTIFY)]
    code += [
        (_IF_EQUAL, 0, 3, number["clone"]),
        (_LOAD, 0, 0, _ARGUMENTS),
        (_IF_ANY_BIT, 1, 0, _CLONE_THREAD),
        _end(_NOTIFY),
        _end(_ALLOW),
    ]
    return _packed(code)


class Forks:
    """Who holds this counts the processes that a program starts. Exact, whatever else runs on the machine. `process`:
    the only one whose requests are granted (0: any)."""

    def __init__(self, listener: int, permits: int) -> None:
        self.listener, self.permits, self.process = listener, permits, 0

    def fileno(self) -> int:
        return self.listener

    def answer(self) -> None:
        """Answer one waiting call: go on while there are permits, else "try again later" (EAGAIN)."""
        request = ctypes.create_string_buffer(80)
        if linux.libc().ioctl(ctypes.c_int(self.listener), ctypes.c_ulong(_RECEIVE), request) < 0:  # who asked is gone
            return
        which, process = ctypes.string_at(request, 8), int.from_bytes(ctypes.string_at(request, 12)[8:], "little")
        ctypes.memset(
            request, 0, 80
        )  # the arguments of the call are the program's words: nothing that is forked later inherits them
        granted = self.permits > 0 and self.process in (0, process)
        self.permits -= granted
        reply = which + struct.pack("<qiI", 0, 0 if granted else -EAGAIN, _CONTINUE if granted else 0)
        linux.libc().ioctl(
            ctypes.c_int(self.listener), ctypes.c_ulong(_ANSWER), reply
        )  # fails where it is gone meanwhile

    def close(self) -> None:
        os.close(self.listener)
