"""The limits and the priority of one call, and the functions that set them in a forked child. Both sides share this
module.

Priorities: first the trainer, then short calls, then calls that compute for long. The more long calls there are, the
lower their priority. The kernel weights processes by niceness (one step is a factor of 1.25). If it groups them by
session (autogroup), it first weights the sandbox as a whole. No process in the sandbox can raise its priority.
"""

import math
import os
import resource
import signal
from dataclasses import asdict, dataclass
from typing import Any, Self

MEGABYTE = 1 << 20
HARD_CPU_GRACE_S = 1  # between the signal that a program can handle and the one that it cannot
DESCRIPTORS = 64
STACK_MB = 16
MOST_FILES = 4096  # in a scratch folder
MOST_TASKS = 4096  # threads of all calls together
TASKS_KEPT = 256  # that calls leave to the sandbox itself, so that it can start the next one
CALL_TASKS = 256  # threads of one call, where the kernel counts them by call (in a user namespace of its own)
AUTOGROUP_NICENESS = 1  # of the sandbox as a whole: less than half of a core that the trainer uses
CALL_NICENESS = 10  # of a short call: a tenth of the trainer's weight
LARGEST_NICENESS = 19
SHORT_S = 0.03  # processor time of a short call
LONG_CALLS_SHARE = 0.5  # maximum weight of all computing calls together, relative to one thread of the trainer
_NICENESS_STEP = 1.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of one call. `memory_mb` is in addition to the interpreter and its imports."""

    cpu_seconds: float = 5.0
    seconds: float = 10.0  # wall time
    memory_mb: int = 512
    processes: int = 0  # that the program may start, besides itself
    file_mb: int = 32  # a file, and the scratch folder as a whole
    output_bytes: int = 20_000

    def plain(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def read(cls, plain: dict[str, Any]) -> Self:
        return cls(**plain)


def leave_tasks() -> None:
    """Limit the threads of all calls together. What is set before a user namespace is entered holds for all of them."""
    if (tasks := resource.getrlimit(resource.RLIMIT_NPROC)[1]) != resource.RLIM_INFINITY:  # see `entry`
        _lower(resource.RLIMIT_NPROC, max(tasks - TASKS_KEPT, 1))


def apply(limits: Limits, *, address_space: int, tasks: int | None = None) -> None:
    """Set all limits of this process, except time. `address_space` is its size in bytes before the program; `tasks`
    limits its threads, if it is alone in its user namespace."""
    memory = address_space + limits.memory_mb * MEGABYTE
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    file = max(limits.file_mb * MEGABYTE, limits.output_bytes)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file, file))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if tasks is not None:
        _lower(resource.RLIMIT_NPROC, tasks)
    _lower(resource.RLIMIT_NOFILE, DESCRIPTORS)
    _lower(resource.RLIMIT_STACK, STACK_MB * MEGABYTE)
    for name in ("RLIMIT_MSGQUEUE", "RLIMIT_MEMLOCK", "RLIMIT_SIGPENDING"):
        if hasattr(resource, name):
            _lower(getattr(resource, name), 1024 if name == "RLIMIT_SIGPENDING" else 0)


def grant_cpu(limits: Limits, used_s: float, *, hard: bool) -> None:
    """Limit processor time to `cpu_seconds` from now on: a timer that the program can handle (SIGPROF), then the
    kernel's limit in whole seconds (SIGXCPU), and with `hard` the kill one second later. A session gets its time call
    by call, and the zygote kills it."""
    signal.setitimer(signal.ITIMER_PROF, limits.cpu_seconds, HARD_CPU_GRACE_S)
    soft = math.ceil(used_s + limits.cpu_seconds)
    most = soft + HARD_CPU_GRACE_S if hard else resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (soft, most))


def _lower(which: int, most: int) -> None:
    _, hard = resource.getrlimit(which)
    value = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(which, (value, value))


def take_the_back_seat() -> None:
    """Lower this process's priority, before it enters the sandbox."""
    os.nice(CALL_NICENESS)
    try:
        with open("/proc/self/autogroup", "w", encoding="ascii") as file:
            file.write(str(AUTOGROUP_NICENESS))
    except OSError:  # a kernel without autogroups
        return


def niceness_among(busy: int, short: int) -> int:
    """The niceness of every one of `busy` computing calls. `short` is the niceness of a short call."""
    steps = math.ceil(math.log(busy / LONG_CALLS_SHARE, _NICENESS_STEP))
    return min(LARGEST_NICENESS, max(short, short - CALL_NICENESS + steps))
