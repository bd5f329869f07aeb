"""The program inside: forks one child per call, watches it, and reports its end.

It trusts nothing that a child says, and holds no right that a child could gain. A child inherits its memory, so it
never reads a call's program or output: their descriptors pass through it and are closed before it forks the next call.

One thread with one selector handles children that end, answers of sessions, requests to fork, and deadlines.
"""

import contextlib
import os
import selectors
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from arpo.sandbox import child, landlock, linux, namespaces, packets, payload, program, scratch, seccomp
from arpo.sandbox.children import ChildCall, ChildRequest, ChildSlot, lead_group
from arpo.sandbox.keeper import ForkRequest, Sessions
from arpo.sandbox.limits import MOST_FILES, SHORT_S, niceness_among
from arpo.sandbox.setup import Setup
from arpo.sandbox.sweeper import Sweeper

SLOW_TO_HEAR_S = 2.0  # of processor time: the kernel's own signal comes a whole second late at most
MOST_DESCRIPTORS = 4096  # that are looked at when open ones are counted
WATCH_S = 0.05  # between looks at a scratch folder that nothing bounds, and at a session's processor time


class Zygote:
    """Serves one trainer until the socket closes."""

    def __init__(
        self, setup: Setup, control: socket.socket, address_space: int, views: Sequence[namespaces.CallView]
    ) -> None:
        self.setup, self.control = setup, control
        self.selector = selectors.DefaultSelector()
        self.waiting: deque[ChildRequest] = (
            deque()
        )  # the trainer asks for no more than can run: seldom anything, and never for long
        self.calls: dict[int, ChildCall] = {}
        self.sessions = Sessions(self)
        hidden = setup.outer == "none"
        self.sweeper = Sweeper(setup.scratch, setup.slots, hidden=hidden)
        self.sweeping: dict[int, ChildSlot] = {}  # by number: what is being emptied
        self.looking = False
        own = os.path.dirname(os.path.abspath(__file__))
        readable = [path for path in setup.view.read if path != own] if setup.landlocked else None
        self.cell = child.Cell.from_limits(setup.limits, address_space, private_root=not hidden, readable=readable)
        shared = None if hidden else self._ruleset(namespaces.SCRATCH)
        self.free = [
            ChildSlot(
                number,
                folder,
                self._ruleset(folder) if shared is None else shared,
                views[number] if views else None,
            )
            for number, folder in reversed(list(enumerate(self.sweeper.folders)))
        ]
        self.last_look = 0.0
        self.niceness = os.getpriority(os.PRIO_PROCESS, 0)

    def _ruleset(self, folder: str | int) -> int:
        if self.cell.readable is None:
            return -1
        execute = self.setup.limits.processes > 0
        return landlock.build(self.cell.readable, [folder], execute=execute, devices=namespaces.DEVICES)

    def serve(self) -> None:
        """Serve until the trainer closes its end, or sends an invalid request."""
        self.selector.register(self.control, selectors.EVENT_READ, self._hear)
        self.selector.register(self.sweeper, selectors.EVENT_READ, self._swept)
        self.answer({"ready": True, "user": os.geteuid(), "address_space": self.cell.address_space})
        while True:
            for key, _ in self.selector.select(self._next_s()):
                still_there = any(
                    key is other for other in self.selector.get_map().values()
                )  # an earlier one may have closed it
                if still_there and key.data() is False:
                    return
            self._mind_the_time()
            self.sessions.begin_forks()
            self._begin_waiting()

    def _next_s(self) -> float | None:
        deadlines = [call.deadline for call in self.calls.values()] + self.sessions.fork_deadlines()
        if not deadlines:
            return WATCH_S if self.waiting else None
        left = min(deadlines) - time.monotonic()
        return max(0.0, min(left, WATCH_S))

    # --- requests

    def _hear(self) -> bool:
        try:
            received = packets.receive(self.control, 2)
        except (OSError, packets.BrokenPacket):
            return False
        if received is None:
            return False
        message, descriptors = received
        what = message["op"]
        if what == "run":
            self.waiting.append(ChildRequest.read(message, descriptors))
        elif what == "stop":
            self._stop(message["id"])
        elif what == "fork":
            self.sessions.request_fork(ForkRequest(message["id"], message["session"], message["to"]))
        elif what == "close":
            self.sessions.forget(message["session"])
        elif what == "count":
            self.answer({"id": message["id"], **self._counted()})
        return True

    def answer(self, message: dict[str, Any]) -> None:
        packets.send(self.control, message)

    def _stop(self, number: int) -> None:
        call = self.calls.get(number)
        if call is not None:
            call.kill("stopped")
        for request in [request for request in self.waiting if request.number == number]:
            self.waiting.remove(request)
            request.close()
            self.answer({"id": number})

    def _counted(self) -> dict[str, int]:
        """The resources in use, to find leaks."""
        return {
            "descriptors": sum(linux.is_open(number) for number in range(MOST_DESCRIPTORS)),
            "files": sum(len(os.listdir(slot.folder)) for slot in self.free),
            "slots": len(self.free) + len(self.sweeping),
            "calls": len(self.calls) + len(self.waiting),
            "sessions": len(self.sessions.live),
        }

    def _begin_waiting(self) -> None:
        """Start waiting calls in order, as far as there is room."""
        held: list[ChildRequest] = []
        while self.waiting and len(self.calls) < self.setup.at_once:
            request = self.waiting.popleft()
            if not self._begin(request):
                held.append(request)
        self.waiting.extendleft(reversed(held))

    def _begin(self, request: ChildRequest) -> bool:
        """Start a call. Returns False if it must wait for a place, for its session, or for a process."""
        if request.session is None:
            return bool(self.free) and self._run_alone(request)
        return self.sessions.begin(request.session, request)

    # --- calls without state

    def _run_alone(self, request: ChildRequest) -> bool:
        ours, theirs = socket.socketpair() if self.setup.limits.processes > 0 else (None, None)
        slot = self.free[-1]
        made = self.fork()
        if made is None:
            for end in (ours, theirs):
                if end is not None:
                    end.close()
            return False
        if not made:
            self._be_child(request, slot, theirs)  # never returns
        request.close()
        self.free.pop()
        lead_group(made)
        call = ChildCall(
            number=request.number,
            pid=made,
            pidfd=os.pidfd_open(made),
            deadline=time.monotonic() + request.seconds,
            slot=slot,
        )
        self.calls[call.number] = call
        self.selector.register(call.pidfd, selectors.EVENT_READ, lambda: self._ended(call))
        if ours is not None and theirs is not None:
            theirs.close()
            call.forks = self.listen(ours, self.setup.limits.processes)
            ours.close()
        return True

    def fork(self) -> int | None:
        """Like os.fork; None if the machine has no process or no memory left at the moment."""
        try:
            return os.fork()
        except OSError as error:
            print(f"no process could be made: {error}", file=sys.stderr)
            return None

    def _be_child(self, request: ChildRequest, slot: ChildSlot, handing: socket.socket | None) -> None:
        """The main function of the forked child. Never returns."""
        ending, entered = program.FAILED, False
        try:
            keep = [request.program] if handing is None else [request.program, handing.fileno()]
            listener = child.confine(self.cell, slot, output=request.output, keep=keep)
            if handing is not None:
                socket.send_fds(handing, [b"L"], [listener])
                handing.close()
                os.close(listener)
            names = child.fresh_main().__dict__
            child.lock(self.cell)
            code, seed = payload.read_program(request.program)
            child.seed(seed)
            entered = True
            ending = program.run(code, names, self.setup.limits)
        except BaseException as error:  # noqa: BLE001  the program's own errors are told by `run`
            if not entered:
                os.write(1, f"the sandbox could not be entered: {type(error).__name__}: {error}".encode())
        finally:
            os._exit(ending)

    def listen(self, ours: socket.socket, permits: int) -> seccomp.Forks | None:
        """Receive the listener for the child's forks. Until then the child runs our code, so it sends it at once or is
        dead."""
        ours.settimeout(5.0)
        try:
            _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
        except OSError:
            descriptors = []
        ours.setblocking(False)
        if not descriptors:
            return None
        forks = seccomp.Forks(descriptors[0], permits)
        self.selector.register(forks, selectors.EVENT_READ, forks.answer)
        return forks

    def _ended(self, call: ChildCall) -> None:
        """Clean up after a child that ended, and report to its caller."""
        self.selector.unregister(call.pidfd)
        status = call.reap()
        self.close_forks(call.forks)
        os.close(call.pidfd)
        del self.calls[call.number]
        self.release(call.slot)
        self.answer(call.end(status, self.setup.limits.cpu_seconds))

    def release(self, slot: ChildSlot) -> None:
        """Take a slot back. It is free once it is empty; a slot that cannot be emptied is not used again."""
        if self.cell.private_root and scratch.is_untouched(slot.folder):
            self.free.append(slot)
            return
        self.sweeping[slot.number] = slot
        self.sweeper.empty(slot.number)

    def _swept(self) -> None:
        answer = self.sweeper.answer()
        if "emptied" in answer:
            slot = self.sweeping.pop(answer["emptied"])
            if answer["ok"]:
                self.free.append(slot)
            return
        self.looking = False
        for call in self.calls.values():
            if call.slot.number in answer["over"] and not self.sessions.part(call.slot):
                call.kill("files")

    def close_forks(self, forks: seccomp.Forks | None) -> None:
        if forks is not None:
            self.selector.unregister(forks)
            forks.close()

    # --- time

    def _mind_the_time(self) -> None:
        now = time.monotonic()
        for call in list(self.calls.values()):
            if now >= call.deadline and not call.killed:
                call.interrupt()
            elif now >= call.deadline:
                call.kill("time")
        self.sessions.end_late_forks(now)
        if now - self.last_look < WATCH_S:
            return
        self.last_look = now
        self._let_others_go_first()
        for call in list(self.calls.values()):
            if call.session and call.cpu_of_call() > self.setup.limits.cpu_seconds + SLOW_TO_HEAR_S:
                call.kill("cpu")
            self.sessions.part_where_full(call.slot)
        if self.calls and not self.cell.private_root and not self.looking:
            self.looking = True
            slots = [call.slot.number for call in self.calls.values()]
            self.sweeper.look(slots, self.setup.limits.file_mb << 20, MOST_FILES)

    def _let_others_go_first(self) -> None:
        """Lower the priority of calls that compute for long, but not of sessions, which could never raise it again."""
        busy = [call for call in self.calls.values() if not call.session and call.cpu_of_call() > SHORT_S]
        if not busy:
            return
        target = niceness_among(len(busy), self.niceness)
        for call in busy:
            if call.niceness < target:
                call.niceness = target
                with contextlib.suppress(ProcessLookupError):  # it has just ended
                    os.setpriority(os.PRIO_PGRP, call.pid, target)

    def end(self) -> None:
        """Remove all processes and folders, since a killed trainer removes none. (Mounts disappear by themselves.)"""
        for call in self.calls.values():
            call.kill("stopped")
        for session in self.sessions.live.values():
            session.family.end()
        if not self.cell.private_root:
            self.sweeper.end()
            with contextlib.suppress(ChildProcessError):
                while True:
                    os.wait()
            scratch.remove(self.setup.scratch)
        os._exit(0)
