"""Manages the sessions: processes that hold variables between calls, fork when a trajectory branches, and end when
there are too many.

A session's process has run a program, so the keeper trusts nothing that it says: a claimed fork must belong to its
process group, which no process inside can leave, and its forks are counted where it requests them. A process that
reports the end of its call, or a fork, is stopped until there is work: nothing would limit what else it does.
"""

import os
import selectors
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from arpo.sandbox import branches, child, packets, scratch, seccomp, sessions
from arpo.sandbox.children import ChildCall, ChildRequest, ChildSlot, Family, Fork, Session, cpu_of, lead_group

if TYPE_CHECKING:
    from arpo.sandbox.zygote import Zygote

FORK_S = 1.0  # time limit for a session's fork, during which hooks of its programs may run


@dataclass(frozen=True, slots=True)
class ForkRequest:
    """The trainer's request `number` to fork `session` as `to`."""

    number: int
    session: str
    to: str


class Sessions:
    """The sessions of one zygote, by name."""

    def __init__(self, zygote: "Zygote") -> None:
        self.zygote = zygote
        self.live: dict[str, Session] = {}
        self.fork_requests: list[ForkRequest] = []

    def begin(self, name: str, request: ChildRequest) -> bool:
        """Start a call in a session. Returns False if the call must wait for that session, or for room for a new
        one."""
        session = self.live.get(name)
        if session is None and not request.new:
            request.close()
            self.zygote.answer({"id": request.number, "gone": True})
            return True
        session = session or self._open(name)
        if session is None or session.call is not None or session.fork is not None:
            return False
        self._run_in(session, request)
        return True

    def _open(self, name: str) -> Session | None:
        """The process of a new session. None if every slot is in use, or if no process can be created."""
        if not self._make_room():
            return None
        slot = self.zygote.free[-1]
        ours, theirs = packets.pair()
        nowhere = os.open("/dev/null", os.O_RDWR)
        made = self.zygote.fork()
        if made == 0:
            self._be_session(slot, nowhere, theirs)
        os.close(nowhere)
        theirs.close()
        if made is None:
            ours.close()
            return None
        lead_group(made)
        self.zygote.free.pop()
        session = Session(name=name, pid=made, pidfd=os.pidfd_open(made), control=ours, slot=slot)
        session.family.forks = self.zygote.listen(ours, 0)
        self._keep(session)
        return session

    def _be_session(self, slot: ChildSlot, output: int, control: socket.socket) -> None:
        """The main function of a session's process. Never returns."""
        try:
            keep = [control.fileno()]
            listener = child.confine(self.zygote.cell, slot, output=output, keep=keep, session=True)
            home = branches.Home.make(os.getcwd())
            socket.send_fds(control, [b"L"], [listener])
            os.close(listener)
            names = child.fresh_main().__dict__
            child.lock(self.zygote.cell, session=True)
            sessions.live(control, self.zygote.cell, names, home)
        finally:
            os._exit(1)

    def _make_room(self) -> bool:
        """End the least recently used session if there are too many. Its calls can be repeated."""
        while len(self.live) >= self.zygote.setup.sessions or not (self.zygote.free or self.zygote.sweeping):
            idle = [
                session
                for session in self.live.values()
                if session.call is None and session.fork is None and not session.in_use
            ]
            if not idle:
                return False
            self.forget(min(idle, key=lambda session: session.used).name)
        return bool(self.zygote.free)

    def _keep(self, session: Session) -> None:
        self.live[session.name] = session
        session.slot.holders.add(session.pid)
        self.zygote.selector.register(session.pidfd, selectors.EVENT_READ, lambda: self.forget(session.name))
        self.zygote.selector.register(session.control, selectors.EVENT_READ, lambda: self._session_answers(session))

    def _run_in(self, session: Session, request: ChildRequest) -> None:
        """Send a session its next program and its output."""
        session.go_on()
        try:
            socket.send_fds(session.control, [sessions.RUN], [request.output, request.program])
        except OSError:  # it does not read: what it holds is of no use to anybody
            session.kill()
        request.close()
        call = ChildCall(
            number=request.number,
            pid=session.pid,
            pidfd=session.pidfd,
            deadline=time.monotonic() + request.seconds,
            slot=session.slot,
            session=session,
            cpu_before_s=cpu_of(session.pid),
        )
        session.call, session.in_use, session.used = call, request.more, time.monotonic()
        self.zygote.calls[call.number] = call

    def _session_answers(self, session: Session) -> None:
        if session.fork is not None:
            made = _heard(session, 8)
            self._end_fork(session, -1 if made is None else made)
            return
        ending = _heard(session, 1)
        if session.call is None or ending is None:
            session.kill()  # speaks out of turn, or hung up: its end is heard of next
            self.zygote.selector.unregister(session.control)
            session.hung_up = True
            return
        session.stand_still()
        self.part_where_full(session.slot)
        self._end_call(session, ending << 8)

    def _end_call(self, session: Session, status: int | None, **more: Any) -> None:
        """Report the end of a session's call to its caller."""
        call, session.call = session.call, None
        if call is None:
            return
        del self.zygote.calls[call.number]
        if session.blameless:  # as if the session had been let go before the call: it is made again
            self.zygote.answer({"id": call.number, "gone": True})
        else:
            self.zygote.answer({**call.end(status, self.zygote.setup.limits.cpu_seconds), **more})

    # --- forks

    def request_fork(self, request: ForkRequest) -> None:
        self.fork_requests.append(request)

    def begin_forks(self) -> None:
        """Begin requested forks, one at a time in each family. A fork that fails is answered, and the caller repeats
        the calls instead."""
        waiting = []
        for request in self.fork_requests:
            session = self.live.get(request.session)
            forks = session.family.forks if session is not None else None
            forking = sum(other.fork is not None for other in self.live.values())
            full = len(self.live) + forking >= self.zygote.setup.sessions
            if session is None or session.call is not None or forks is None or full:
                self._answer_fork(request.number, False)
            elif session.family.forking:
                waiting.append(request)
            else:
                self._begin_fork(session, request, forks)
        self.fork_requests = waiting

    def fork_deadlines(self) -> list[float]:
        return [session.fork.deadline for session in self.live.values() if session.fork is not None]

    def end_late_forks(self, now: float) -> None:
        for session in list(self.live.values()):
            if session.fork is not None and now >= session.fork.deadline:
                session.kill()
                self._end_fork(session, -1)

    def _begin_fork(self, session: Session, request: ForkRequest, forks: seccomp.Forks) -> None:
        ours, theirs = packets.pair()
        ours.setblocking(False)
        session.fork = Fork(request.number, request.to, ours, time.monotonic() + FORK_S)
        session.family.forking, forks.permits, forks.process = True, 1, session.pid
        session.go_on()
        try:
            socket.send_fds(session.control, [sessions.FORK], [theirs.fileno()])
        except OSError:
            self._end_fork(session, -1)
        finally:
            theirs.close()

    def _end_fork(self, session: Session, made: int) -> None:
        """Accept the new session, if its process `made` (-1: none) is what it is said to be."""
        fork, session.fork = session.fork, None
        forks = session.family.forks
        assert fork is not None and forks is not None
        session.stand_still()
        granted, forks.permits = not forks.permits, 0
        session.family.forking = False
        pidfd = self._opened_member(made, session)
        if pidfd is None:
            fork.control.close()
            if granted:  # there may be a process that nobody knows
                self._end_family(session.family, session)
        else:
            new = Session(
                name=fork.name, pid=made, pidfd=pidfd, control=fork.control, slot=session.slot, family=session.family
            )
            new.stand_still()
            self._keep(new)
        self._answer_fork(fork.number, pidfd is not None)

    def _answer_fork(self, number: int, forked: bool) -> None:
        self.zygote.answer({"id": number, "forked": forked})

    def _end_family(self, family: Family, guilty: Session | None = None) -> None:
        """Kill all sessions of a family for what one of them did. Calls that run in the others are made again."""
        for other in self.live.values():
            if other.family is family and other is not guilty:
                other.blameless = True
        family.kill()

    def part(self, slot: ChildSlot) -> bool:
        """End the sessions that share a folder without room. Their calls are made again, in folders of their own, so
        that a limit meets whoever exceeds it. Returns False if at most one session uses the folder."""
        if len(slot.holders) < 2:
            return False
        self._end_family(next(session.family for session in self.live.values() if session.slot is slot))
        return True

    def part_where_full(self, slot: ChildSlot) -> None:
        """The same, if the folder is a bounded file system (the sweeper watches others)."""
        if self.zygote.cell.private_root and len(slot.holders) > 1 and scratch.is_full(slot.folder):
            self.part(slot)

    def _opened_member(self, pid: int, session: Session) -> int | None:
        """`pid` as a descriptor, if it belongs to that session's group (which no process inside can leave) and is
        new."""
        try:
            known = any(other.pid == pid for other in self.live.values())
            return os.pidfd_open(pid) if pid > 1 and not known and os.getpgid(pid) == session.family.group else None
        except (OSError, OverflowError):
            return None

    def forget(self, name: str) -> None:
        """End a session and its running call, and free its resources. The scratch folder goes with the last of its
        family."""
        session = self.live.pop(name, None)
        if session is None:
            return
        session.kill()
        if session.fork is not None:
            self._end_fork(session, -1)
        self._end_call(session, session.reap(), gone=True)
        self.zygote.selector.unregister(session.pidfd)
        if not session.hung_up:
            self.zygote.selector.unregister(session.control)
        session.close()
        session.slot.holders.discard(session.pid)
        if not session.slot.holders:
            session.family.end()
            self.zygote.close_forks(session.family.forks)
            self.zygote.release(session.slot)


def _heard(session: Session, size: int) -> int | None:
    """A number of `size` bytes from a session; None for anything else, of which nothing stays in memory, since calls
    inherit it."""
    buffer = bytearray(size + 1)
    try:
        received = session.control.recv_into(buffer)
    except OSError:
        received = 0
    number = int.from_bytes(buffer[:size], "little", signed=size > 1) if received == size else None
    buffer[:] = bytes(size + 1)
    return number
