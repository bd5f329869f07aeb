"""The zygote's view of calls and of its children: times and processes. It never knows their programs or outputs."""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from arpo.sandbox import seccomp
from arpo.sandbox.namespaces import CallView

if TYPE_CHECKING:
    import socket

GRACE_S = 0.5  # of wall time, for a program's last words


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildRequest:
    """A requested call. `program` and `output` are descriptors (see `payload`), which the zygote closes and never
    reads."""

    number: int
    seconds: float
    program: int
    output: int
    session: str | None = None
    new: bool = False  # the call may open its session
    more: bool = False  # the session stays in use until a call without this flag has begun

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
    """A running call."""

    number: int
    pid: int
    pidfd: int
    deadline: float
    slot: "ChildSlot"
    session: "Session | None" = None
    forks: seccomp.Forks | None = None
    niceness: int = 0  # where it was set
    killed: str = ""  # why we killed it: "time", "cpu", "files", "stopped"
    cpu_s: float = 0.0  # set at its end
    cpu_before_s: float = 0.0

    def interrupt(self) -> None:
        """Give a program whose time is up a chance to report; at the new deadline it is killed."""
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
        """Processor seconds of its process since the start."""
        return cpu_of(self.pid) - self.cpu_before_s

    def reap(self) -> int | None:
        """Reap the ended process and everything that it started. Returns its status."""
        _kill_group(self.pid)  # while its number is still its own
        _, status, used = os.wait4(self.pid, 0)
        self.cpu_s = used.ru_utime + used.ru_stime
        _reap_group(self.pid)
        return status

    def end(self, status: int | None, most_cpu_s: float) -> dict[str, Any]:
        """The report to the trainer. `status` comes from waitpid; None if it is unknown."""
        code = os.waitstatus_to_exitcode(status) if status is not None else -signal.SIGKILL
        used_up = code == -signal.SIGKILL and self.cpu_s >= most_cpu_s
        return {"id": self.number, "code": code, "killed": self.killed, "used_up": used_up}


@dataclass(slots=True)
class Family:
    """Sessions that were forked from one session. They share a process group and a listener for forks."""

    group: int
    forks: seccomp.Forks | None = None
    forking: bool = False  # one of them is being forked

    def kill(self) -> None:
        _kill_group(self.group)

    def end(self) -> None:
        self.kill()
        _reap_group(self.group)


@dataclass(slots=True)
class Fork:
    """A fork under way. `control` is our end of the new session's socket."""

    number: int  # of the request
    name: str  # of the new session
    control: "socket.socket"
    deadline: float


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
    fork: "Fork | None" = None  # under way
    blameless: bool = False  # it is killed for what another of its family did

    def __post_init__(self) -> None:
        if self.family is None:
            self.family = Family(self.pid)
        self.used = time.monotonic()

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def stand_still(self) -> None:
        """Stop the process until `go_on`, so that no thread of a program runs between calls."""
        self._send(signal.SIGSTOP)

    def go_on(self) -> None:
        self._send(signal.SIGCONT)

    def _send(self, number: signal.Signals) -> None:
        try:
            signal.pidfd_send_signal(self.pidfd, number)
        except ProcessLookupError:
            return

    def reap(self) -> int | None:
        """Its status; None if its parent is another session, which reaps it."""
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
    """A scratch folder as a descriptor, with the Landlock ruleset that allows writing only there (-1: none). The
    sweeper alone knows its name, unless every call has a view of its own: calls inherit the zygote's memory."""

    number: int
    folder: int
    ruleset: int
    view: CallView | None  # None: all calls share one
    holders: set[int] = field(default_factory=set)  # sessions that share it


def lead_group(pid: int) -> None:
    """Put the child in its own group. Parent and child both do this, so that the group exists before it can be
    killed."""
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
