"""The trainer's side: starts the program inside, sends it calls, and restarts it when it dies.

Works in any event loop, and in several at once, since one thread reads the answers. It sends no more calls than can
run, so that the program inside holds nothing of a waiting call. It reads a program's output from memory that no other
program ever had.
"""

import asyncio
import contextlib
import os
import socket
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from arpo.sandbox import boot, linux, messages, packets, payload, verdict, view
from arpo.sandbox.limits import Limits
from arpo.sandbox.namespaces import FILES
from arpo.sandbox.places import Places
from arpo.sandbox.scratch import place_for, remove
from arpo.sandbox.setup import Setup
from arpo.sandbox.verdict import Ran

START_S = 120.0  # for imports on a busy machine
SPARE = 4  # scratch folders, for the time that another takes to be emptied


class StartError(Exception):
    """The sandbox did not start. `stage` is "enter" (the machine does not allow it) or "import"; `name` is what
    failed."""

    def __init__(self, reason: str, stage: str = "enter", name: str = "") -> None:
        super().__init__(reason)
        self.stage, self.name = stage, name


class Died(Exception):
    """The program inside died, with everything that it was doing."""


class Inside:
    """One running program inside, and its pending calls."""

    def __init__(self, setup: Setup, scratch: str | None) -> None:
        self.setup, self.scratch = setup, scratch
        self.pending: dict[int, Future[dict[str, Any]]] = {}
        self.lock = threading.Lock()  # around what is pending
        # Taken first: who sends may have to wait until answers are read, which takes the other one.
        self.sending = threading.Lock()
        self.number = 0
        self.alive = False
        self.control, theirs = packets.pair()
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115  closed with this object
        try:
            self.process = subprocess.Popen(
                boot.outside(setup),
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=self.errors,
                env=boot.ENVIRONMENT,
                cwd="/",
                start_new_session=True,
            )
        finally:
            theirs.close()

    def wait_until_ready(self) -> dict[str, Any]:
        """The start message of the program. Raises StartError."""
        self.control.settimeout(START_S)
        try:
            received = packets.receive(self.control)
        except (OSError, packets.BrokenPacket) as error:
            self.end()
            raise StartError(f"no answer: {error}") from error
        answer = received[0] if received else {}
        if "ready" not in answer:
            self.end()
            reason = answer.get("failed") or (self.last_words().splitlines() or ["it ended at once"])[-1]
            raise StartError(str(reason), str(answer.get("stage", "enter")), str(answer.get("name", "")))
        self.control.settimeout(None)
        self.alive = True
        threading.Thread(
            target=_read_answers, args=(weakref.ref(self), self.control), name="arpo-sandbox", daemon=True
        ).start()
        return answer

    def ask(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> tuple[int, "Future[dict[str, Any]]"]:
        """Send a request. Returns its number and a future for its answer. Raises Died."""
        future: Future[dict[str, Any]] = Future()
        with self.sending:
            with self.lock:
                if not self.alive:
                    raise Died
                self.number += 1
                number = self.number
                self.pending[number] = future
            self._send({**message, "id": number}, descriptors)
        return number, future

    def tell(self, message: dict[str, Any]) -> None:
        """Send a message without an answer. Does nothing if the program is gone."""
        with self.sending:
            if self.alive:
                self._send(message)

    def _send(self, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
        try:
            packets.send(self.control, message, descriptors)
        except OSError as error:  # where it has ended, the reading thread hears of that too, and tells whoever waits
            if self.alive and not isinstance(error, ConnectionError):
                raise

    def take(self, answer: dict[str, Any]) -> None:
        with self.lock:
            future = self.pending.pop(answer.get("id", -1), None)
        if future is not None and future.set_running_or_notify_cancel():
            future.set_result(answer)

    def give_up(self, number: int) -> None:
        with self.lock:
            self.pending.pop(number, None)

    def lost(self) -> None:
        with self.lock:
            self.alive = False
            pending, self.pending = self.pending, {}
        for future in pending.values():
            if future.set_running_or_notify_cancel():
                future.set_exception(Died())

    def last_words(self) -> str:
        """Its standard error (which programs cannot write to), and its exit status."""
        self.errors.seek(0)
        words = self.errors.read().decode("utf-8", "replace").strip()
        status = self.process.poll()
        return f"{words}\nended with status {status}".strip()

    def end(self) -> None:
        """Close the socket, which ends the program, and kill it if that fails."""
        self.lost()
        _end(self.control, self.process, self.scratch)


def _end(control: socket.socket, process: "subprocess.Popen[bytes]", scratch: str | None) -> None:
    with contextlib.suppress(OSError):
        control.shutdown(socket.SHUT_RDWR)
    control.close()
    try:
        process.wait(timeout=5.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if scratch is not None:
        if process.returncode < 0:  # it was killed: a branch of a session is no child of its, and need not listen
            linux.kill_session(process.pid)
        remove(scratch)


def _read_answers(inside: "weakref.ref[Inside]", control: socket.socket) -> None:
    """The reading thread. It holds no reference while it waits, so that an unused client can be collected."""
    while True:
        try:
            received = packets.receive(control)
        except (OSError, packets.BrokenPacket):
            received = None
        owner = inside()
        if owner is None:
            return
        if received is None:
            owner.lost()
            return
        owner.take(received[0])
        del owner


class WarmSandbox:
    """Runs up to `at_once` programs concurrently, each in a fork of an interpreter that has imported `imports`.

    `level` sets the isolation (see `levels`). Raises StartError if the sandbox does not start. If the program inside
    dies, it is restarted, and the calls that it ran are repeated once.
    """

    def __init__(
        self,
        level: str,
        *,
        limits: Limits,
        imports: Sequence[str] = (),
        at_once: int = 16,
        sessions: int = 0,
        landlocked: bool = True,
        bwrap: str = "",
        own_users: bool = True,
    ) -> None:
        self.level, self.limits, self.landlocked = level, limits, landlocked
        self._count = at_once + sessions + SPARE
        self._places = Places(min(at_once, sessions) if sessions else at_once)
        self._settings: dict[str, Any] = {
            "outer": "none" if level == "landlock" else level,
            "view": view.here(programs=limits.processes > 0),
            "path": tuple(view.import_path()),
            "imports": tuple(imports),
            "limits": limits,
            "at_once": at_once,
            "sessions": sessions,
            "landlocked": landlocked,
            "bwrap": bwrap,
            "own_users": own_users,
        }
        self._starting = threading.Lock()
        self._closed = False
        self.starts = 0
        self.last_words = ""  # of the program inside that died last
        self._inside = self._start()
        self.close = weakref.finalize(self, _close, self.__dict__)

    def _start(self) -> Inside:
        scratch = None
        base = FILES
        if self.level == "landlock":
            base = scratch = tempfile.mkdtemp(prefix="arpo-sandbox-", dir=place_for(self._count * self.limits.file_mb))
        inside = Inside(Setup(scratch=base, slots=self._count, **self._settings), scratch)
        self.about = inside.wait_until_ready()
        self.starts += 1
        return inside

    def _now(self) -> Inside:
        """The program inside, restarted if it died."""
        with self._starting:
            if not self._inside.alive:
                if self._closed:
                    raise Died
                self._inside.end()
                self.last_words = self._inside.last_words()
                self._inside = self._start()
            return self._inside

    def run_now(self, code: str) -> Ran:
        """Run `code` without an event loop. Raises Died, TimeoutError."""
        call = self._begun(self._now(), code, 0, self.limits.seconds)
        try:
            return call.ran(call.future.result(timeout=START_S))
        finally:
            call.close()

    async def run(
        self,
        code: str,
        *,
        seconds: float,
        seed: int = 0,
        session: str | None = None,
        past: Sequence[tuple[str, int]] | None = None,
    ) -> Ran:
        """Run `code`, optionally in `session`. With `past` the session is opened first, and those calls (code and seed)
        run.

        Raises Died if the program inside dies twice because of it, and StartError if it cannot be restarted.
        """
        seconds = min(seconds, self.limits.seconds)
        async with self._places.one():
            try:
                return await self._run(code, seed, seconds, session, past)
            except Died:
                if session is not None and past is None:
                    return Ran(text="", ending="", gone=True)
                return await self._run(code, seed, seconds, session, past)

    async def _run(
        self, code: str, seed: int, seconds: float, session: str | None, past: Sequence[tuple[str, int]] | None
    ) -> Ran:
        if session is None:
            return await self._made(code, seed, seconds)
        new = past is not None
        not_again = Ran(text=messages.NOT_AGAIN, ending="error", gone=True)
        try:
            for old_code, old_seed in past or ():
                ran = await self._made(old_code, old_seed, self.limits.seconds, session=session, new=new, more=True)
                if ran.gone:
                    return not_again
                new = False
            ran = await self._made(code, seed, seconds, session=session, new=new)
            return not_again if past and ran.gone and not ran.ending else ran
        except asyncio.CancelledError:
            self.end_session(session)  # it may be waiting for the rest
            raise

    async def _made(self, code: str, seed: int, seconds: float, **more: Any) -> Ran:
        """One call."""
        inside = self._inside
        if not inside.alive:
            inside = await asyncio.to_thread(self._now)
        call = self._begun(inside, code, seed, seconds, **more)
        try:
            return call.ran(await _answer(inside, call.number, call.future))
        finally:
            call.close()

    def _begun(self, inside: Inside, code: str, seed: int, seconds: float, **more: Any) -> "Begun":
        output = payload.open_output(self.limits.output_bytes)
        try:
            program = payload.write_program(code, seed % 2**63)
            try:
                number, future = inside.ask({"op": "run", "seconds": seconds, **more}, (output, program))
            finally:
                os.close(program)
        except BaseException:
            os.close(output)
            raise
        return Begun(number, future, output, self.limits, seconds)

    def count(self) -> dict[str, int]:
        """The resources of the program inside: descriptors, files in unused scratch folders, such folders, calls,
        sessions."""
        _, future = self._now().ask({"op": "count"})
        return {name: int(number) for name, number in future.result(timeout=START_S).items() if name != "id"}

    async def fork(self, session: str, to: str) -> bool:
        """Fork `session` as `to`. Returns whether that worked."""
        try:
            answer = await self._asked({"op": "fork", "session": session, "to": to})
        except Died:
            return False
        return bool(answer.get("forked"))

    def end_session(self, session: str) -> None:
        self._inside.tell({"op": "close", "session": session})

    async def _asked(self, request: dict[str, Any]) -> dict[str, Any]:
        inside = self._inside
        if not inside.alive:
            inside = await asyncio.to_thread(self._now)
        return await _answer(inside, *inside.ask(request))


@dataclass(frozen=True, slots=True)
class Begun:
    """A call on its way: `output` is where its program writes."""

    number: int
    future: "Future[dict[str, Any]]"
    output: int
    limits: Limits
    seconds: float

    def ran(self, answer: dict[str, Any]) -> Ran:
        return verdict.ran(answer, self.output, self.limits, self.seconds)

    def close(self) -> None:
        os.close(self.output)


async def _answer(inside: Inside, number: int, future: "Future[dict[str, Any]]") -> dict[str, Any]:
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        inside.give_up(number)
        inside.tell({"op": "stop", "id": number})
        raise


def _close(owner: dict[str, Any]) -> None:
    owner["_closed"] = True
    owner["_inside"].end()
