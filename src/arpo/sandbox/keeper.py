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
from typing import TYPE_CHECKING, Any

from arpo.sandbox import branches, child, packets, seccomp, sessions
from arpo.sandbox.children import ChildCall, ChildRequest, ChildSlot, Session, cpu_of, lead_group

if TYPE_CHECKING:
    from arpo.sandbox.zygote import Zygote

FORK_S = 1.0  # time limit for a session's fork; it does nothing else meanwhile


class Sessions:
    """The sessions of one zygote, by name."""

    def __init__(self, zygote: "Zygote") -> None:
        self.zygote = zygote
        self.live: dict[str, Session] = {}

    def begin(self, name: str, request: ChildRequest) -> bool:
        """Start a call in a session. Returns False if the call must wait for that session, or for room for a new
        one."""
        session = self.live.get(name)
        if session is None and not request.new:
            request.close()
            self.zygote.answer({"id": request.number, "gone": True})
            return True
        session = session or self._open(name)
        if session is None or session.call is not None:
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
            home = branches.Home.make(slot.folder)
            keep = [control.fileno()]
            listener = child.confine(
                self.zygote.cell, folder=home.files, ruleset=slot.ruleset, output=output, keep=keep, session=True
            )
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
            idle = [session for session in self.live.values() if session.call is None and not session.in_use]
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
        ending = _heard(session, 1)
        if session.call is None or ending is None:
            session.kill()  # speaks out of turn, or hung up: its end is heard of next
            self.zygote.selector.unregister(session.control)
            session.hung_up = True
            return
        session.stand_still()
        self._end_call(session, ending << 8)

    def _end_call(self, session: Session, status: int | None, **more: Any) -> None:
        """Report the end of a session's call to its caller."""
        call, session.call = session.call, None
        if call is not None:
            del self.zygote.calls[call.number]
            self.zygote.answer({**call.end(status, self.zygote.setup.limits.cpu_seconds), **more})

    def fork(self, name: str, to: str) -> bool:
        """Fork a session as `to`. If that fails, the caller repeats the calls."""
        session = self.live.get(name)
        if session is None or session.call is not None or len(self.live) >= self.zygote.setup.sessions:
            return False
        forks = session.family.forks
        return forks is not None and self._fork_now(session, to, forks)

    def _fork_now(self, session: Session, name: str, forks: seccomp.Forks) -> bool:
        ours, theirs = packets.pair()
        forks.permits = 1
        session.go_on()
        try:
            socket.send_fds(session.control, [sessions.FORK], [theirs.fileno()])
            made = self._number_of_fork(session, forks)
        except OSError:
            made = -1
        finally:
            session.stand_still()
            granted, forks.permits = not forks.permits, 0
            theirs.close()
        pidfd = self._opened_member(made, session)
        if pidfd is None:
            ours.close()
            if granted:  # there may be a process that nobody knows
                session.family.kill()
            return False
        ours.setblocking(False)
        new = Session(name=name, pid=made, pidfd=pidfd, control=ours, slot=session.slot, family=session.family)
        new.stand_still()
        self._keep(new)
        return True

    def _number_of_fork(self, session: Session, forks: seccomp.Forks) -> int:
        """The process that the forking session reports, within a second. Answers its request to fork meanwhile."""
        end = time.monotonic() + FORK_S
        with selectors.DefaultSelector() as both:
            both.register(session.control, selectors.EVENT_READ)
            both.register(forks, selectors.EVENT_READ)
            while (left := end - time.monotonic()) > 0:
                for key, _ in both.select(left):
                    if key.fileobj is forks:
                        forks.answer()
                        continue
                    made = _heard(session, 8)
                    return -1 if made is None else made
        session.kill()
        return -1

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
    said = bytearray(size + 1)
    try:
        got = session.control.recv_into(said)
    except OSError:
        got = 0
    number = int.from_bytes(said[:size], "little", signed=size > 1) if got == size else None
    said[:] = bytes(size + 1)
    return number
