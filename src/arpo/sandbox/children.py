"""What the zygote knows of calls and of its children: when, how long, which process. Never what they run, or what that printed."""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from arpo.sandbox import seccomp

if TYPE_CHECKING:
    import socket

GRACE_S = 0.5  # of wall time, for a program's last words


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildRequest:
    """A call to be made. `program`, `output`: descriptors (see `payload`), the zygote's to close and not to read."""

    number: int
    seconds: float
    program: int
    output: int
    session: str | None = None
    new: bool = False  # its session may be opened
    more: bool = False  # its session is in use until a call without this has begun

    @classmethod
    def read(cls, message: dict[str, Any], descriptors: Sequence[int]) -> "ChildRequest":
        output, program = descriptors
        known = {key: message[key] for key in ("session", "new", "more") if key in message}
        return cls(number=message["id"], seconds=message["seconds"], program=program, output=output, **known)

    def close(self) -> None:
        os.close(self.program)
        os.close(self.output)


@dataclass(slots=True)
class ChildCall:
    """One call that runs."""

    number: int
    pid: int
    pidfd: int
    deadline: float
    slot: "ChildSlot"
    session: "Session | None" = None
    forks: seccomp.Forks | None = None
    niceness: int = 0  # where it was set
    killed: str = ""  # why, where we did it: "time", "cpu", "files", "stopped"
    cpu_s: float = 0.0  # when it has ended
    cpu_before_s: float = 0.0

    def interrupt(self) -> None:
        """Time is up: let the program say what it has; who does not listen is killed at the new deadline."""
        self.killed, self.deadline = "time", self.deadline + GRACE_S
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGXCPU)
        except ProcessLookupError:
            return

    def kill(self, why: str) -> None:
        self.killed = self.killed or why
        if self.session is None:
            _kill_group(self.pid)
        else:
            self.session.kill()

    def cpu_of_call(self) -> float:
        """Processor seconds of its process since it began."""
        return cpu_of(self.pid) - self.cpu_before_s

    def reap(self) -> int | None:
        """Wait for the process, which has ended, and everything that it started; its status."""
        _kill_group(self.pid)  # while its number is still its own
        _, status, used = os.wait4(self.pid, 0)
        self.cpu_s = used.ru_utime + used.ru_stime
        _reap_group(self.pid)
        return status

    def end(self, status: int | None, most_cpu_s: float) -> dict[str, Any]:
        """What the trainer is told of its end. `status` as of waitpid; None where it is not known."""
        code = os.waitstatus_to_exitcode(status) if status is not None else -signal.SIGKILL
        used_up = code == -signal.SIGKILL and self.cpu_s >= most_cpu_s
        return {"id": self.number, "code": code, "killed": self.killed, "used_up": used_up}


@dataclass(slots=True)
class Family:
    """Sessions forked from one: they are of one process group, and ask for forks in one place."""

    group: int
    forks: seccomp.Forks | None = None

    def kill(self) -> None:
        _kill_group(self.group)

    def end(self) -> None:
        self.kill()
        _reap_group(self.group)


@dataclass(slots=True, kw_only=True)
class Session:
    name: str
    pid: int
    pidfd: int
    control: "socket.socket"
    slot: "ChildSlot"
    family: Family = field(default=None)  # type: ignore[assignment]
    call: ChildCall | None = None
    in_use: bool = False  # between two calls that belong together: not to be let go
    used: float = 0.0
    hung_up: bool = False

    def __post_init__(self) -> None:
        if self.family is None:
            self.family = Family(self.pid)
        self.used = time.monotonic()

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def stand_still(self) -> None:
        """Until `go_on`: between calls nothing of a program runs, whatever threads it has or says that it ended."""
        self._send(signal.SIGSTOP)

    def go_on(self) -> None:
        self._send(signal.SIGCONT)

    def _send(self, number: signal.Signals) -> None:
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            return

    def reap(self) -> int | None:
        """Its status; None where it is another session's child, which takes care of it."""
        try:
            return os.waitpid(self.pid, 0)[1]
        except ChildProcessError:
            return None

    def close(self) -> None:
        self.control.close()
        os.close(self.pidfd)


def _kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def _reap_group(group: int) -> None:
    try:
        while True:
            os.waitpid(-group, 0)
    except ChildProcessError:
        return


@dataclass(slots=True)
class ChildSlot:
    """A scratch folder with the Landlock ruleset that opens nothing else for writing."""

    folder: str
    ruleset: int
    holders: set[int] = field(default_factory=set)  # sessions that share it


def lead_group(pid: int) -> None:
    """The child does the same: whoever comes first, its group is there before it can be ended."""
    try:
        os.setpgid(pid, pid)
    except OSError:  # already gone
        return


def cpu_of(pid: int) -> float:
    """Processor seconds of a process so far."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0
