"""Drops the rights of a forked child, in order, before it runs a program. `confine` cannot be undone."""

import contextlib
import io
import os
import random
import signal
import sys
import types
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from arpo.sandbox import landlock, linux, namespaces, program, seccomp
from arpo.sandbox.children import ChildSlot
from arpo.sandbox.limits import CALL_TASKS, Limits, apply, grant_cpu, leave_tasks

CLOSE_TO = 1 << 16
ENVIRONMENT = (
    "LANG",
    "LC_ALL",
    "PYTHONHASHSEED",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "PATH",
    "TZ",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What all children of a zygote have in common. It is built once."""

    limits: Limits
    address_space: int  # bytes, before a program runs
    private_root: bool
    readable: tuple[str, ...] | None  # allowed by Landlock; None: without Landlock
    alone: bytes  # seccomp's filter for a call without state
    in_session: bytes
    asking: bytes

    @classmethod
    def from_limits(
        cls, limits: Limits, address_space: int, *, private_root: bool, readable: Sequence[str] | None
    ) -> "Cell":
        def made(**more: Any) -> bytes:
            return seccomp.program(seccomp.SeccompPolicy(**more))

        return cls(
            limits=limits,
            address_space=address_space,
            private_root=private_root,
            readable=None if readable is None else tuple(readable),
            alone=made(
                signals_to=seccomp.MYSELF,
                forks=limits.processes > 0,
                programs=limits.processes > 0,
                own_files=private_root,
            ),
            in_session=made(forks=True, parts=True),  # to branch; each is asked for
            asking=seccomp.ask_before_forks(),
        )


def confine(cell: Cell, slot: ChildSlot, *, output: int, keep: Collection[int] = (), session: bool = False) -> int:
    """Restrict this process permanently to `slot`, whose folder becomes its working folder. `output` becomes
    descriptors 1 and 2, and the descriptors in `keep` stay open. Returns the descriptor that receives requests to start
    processes, or -1 if the process may not start any.
    """
    leave_tasks()
    if slot.view is not None:
        slot.view.enter()
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)  # after that: gaining rights, if only in a namespace, ends it
    os.setpgid(0, 0)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN if session else signal.SIG_DFL)
    program.listen()
    attach(output)
    if cell.private_root:
        os.chdir(namespaces.FILES)
    else:
        os.fchdir(slot.folder)
    os.utime(".", (0, 0))  # hide the times of the last call, which could carry information
    _set_environment(os.getcwd())
    if slot.ruleset >= 0:
        landlock.enter(slot.ruleset)
    close_all_but(keep)
    apply(cell.limits, address_space=cell.address_space, tasks=CALL_TASKS if cell.private_root else None)
    grant_cpu(cell.limits, 0.0, hard=not session)
    forks = cell.limits.processes > 0 or session
    listener = seccomp.enter(cell.asking, listen=True) if forks else -1
    return listener


def lock(cell: Cell, *, session: bool = False) -> None:
    """The last step: from here on only allowed system calls work. (The listener is handed over before it.)"""
    seccomp.enter(cell.in_session if session else seccomp.for_process(cell.alone, os.getpid()))


def attach(output: int) -> io.BufferedWriter:
    """Redirect standard output and error to `output`, in the order of writing, through the returned stream."""
    os.dup2(output, 1)
    os.dup2(output, 2)
    buffer: io.BufferedWriter = io.BufferedWriter(io.FileIO(1, "w", closefd=False))
    for name in ("stdout", "stderr"):
        stream = io.TextIOWrapper(buffer, encoding="utf-8", errors="backslashreplace", write_through=True)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    return buffer


def detach(buffer: io.BufferedWriter) -> None:
    """Detach the output of the last call of a session, so that nothing is written between calls. This drops text that
    did not fit, which would otherwise start the next output."""
    nowhere = os.open("/dev/null", os.O_RDWR)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.close(nowhere)
    with contextlib.suppress(ValueError):  # the program has closed it
        buffer.flush()


def _set_environment(folder: str) -> None:
    kept = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    os.environ.clear()
    os.environ.update(kept, HOME=folder, TMPDIR=folder)


def close_all_but(keep: Collection[int]) -> None:
    """Every descriptor above 2."""
    start = 3
    for number in sorted(keep):
        os.closerange(start, number)
        start = number + 1
    os.closerange(start, CLOSE_TO)


def fresh_main() -> types.ModuleType:
    """A new `__main__`, which holds the program's names."""
    module = types.ModuleType("__main__")
    module.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = module
    sys.argv = [""]
    return module


def seed(number: int) -> None:
    """Seed the random generators by the call's place, so that the same call draws the same numbers."""
    random.seed(number)
    numpy = sys.modules.get("numpy")
    if numpy is not None and "numpy.random" in sys.modules:
        numpy.random.seed(number % 2**32)
