"""Runs calls of one function in processes of its own, with limits of time and memory that hold whatever it does.

A late call's process is killed and another one takes its place. Knows processes and pickles. Refuses to know what the
function does.
"""

import asyncio
import contextlib
import multiprocessing
import os
import pickle
import resource
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from functools import reduce
from importlib import import_module
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from arpo.threads import run_off_loop

START_S = 120.0  # for a process to import the function's module
SAFE_PATH = "PYTHONSAFEPATH"
GRACE_S = 5.0  # of processor time beyond a call's limit, after which the kernel ends a process that lost its parent


class WorkerError(Exception):
    """The process cannot start, or ended during a call."""


class WorkerPool:
    """At most `most` processes for calls of `target` (`module:name`), each for one call at a time. Safe to use from any
    thread.

    `memory_bytes`: of address space (Linux); None: no limit.
    """

    def __init__(self, target: str, *, memory_bytes: int | None = None, most: int = 0) -> None:
        self.target, self._memory_bytes = target, memory_bytes
        self.most = most or max(2, os.cpu_count() or 1)
        self._free = threading.BoundedSemaphore(self.most)
        self._idle: list[_Worker] = []
        self._lock = threading.Lock()
        self.close = weakref.finalize(self, _end_all, self._idle)

    def start(self) -> None:
        """Start a process for the first call. Raises WorkerError."""
        self._put(self._take())

    def call(self, arguments: Mapping[str, Any], seconds: float) -> Any:
        """What the function returns for these arguments.

        Raises what it raises (a RuntimeError where that cannot be pickled), TimeoutError after `seconds` of wall time,
        and WorkerError where the process ends.
        """
        worker = self._take()
        try:
            return worker.call(arguments, seconds)
        finally:
            self._put(worker)

    async def run(self, arguments: Mapping[str, Any], seconds: float) -> Any:
        """As `call`, off the event loop. A cancelled call's process is killed."""
        taking = asyncio.ensure_future(run_off_loop(self._take))
        try:
            worker = await asyncio.shield(taking)
        except asyncio.CancelledError:
            taking.add_done_callback(self._put_back)
            raise
        calling = asyncio.ensure_future(run_off_loop(worker.call, arguments, seconds))
        try:
            return await asyncio.shield(calling)
        except asyncio.CancelledError:
            worker.usable = False
            worker.process.kill()  # the thread that waits for it then ends it
            calling.add_done_callback(lambda done: done.cancelled() or done.exception())
            raise
        finally:
            self._put(worker)

    def _take(self) -> "_Worker":
        self._free.acquire()
        try:
            with self._lock:
                while self._idle:
                    worker = self._idle.pop()
                    if worker.process.is_alive():
                        return worker
            return _Worker(self.target, self._memory_bytes)
        except BaseException:
            self._free.release()
            raise

    def _put(self, worker: "_Worker") -> None:
        if worker.usable:
            with self._lock:
                self._idle.append(worker)
        self._free.release()

    def _put_back(self, taking: "asyncio.Future[_Worker]") -> None:
        if not taking.cancelled() and taking.exception() is None:
            self._put(taking.result())


_starting = threading.Lock()


@contextlib.contextmanager
def _without_this_folder() -> Iterator[None]:
    """Processes that start in this block import no module that happens to lie in the current folder."""
    with _starting:
        before = os.environ.get(SAFE_PATH)
        os.environ[SAFE_PATH] = before or "1"
        try:
            yield
        finally:
            if before is None:
                del os.environ[SAFE_PATH]


class _Worker:
    """One process."""

    def __init__(self, target: str, memory_bytes: int | None) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy locks that other threads hold
        self._pipe, there = context.Pipe()
        self.process: BaseProcess = context.Process(
            target=_serve,
            args=(there, target, memory_bytes, os.environ.get(SAFE_PATH)),
            name=f"arpo-{target}",
            daemon=True,
        )
        self.usable = True
        try:
            with _without_this_folder():
                self.process.start()
        except (OSError, RuntimeError, AttributeError, pickle.PicklingError) as error:
            raise WorkerError(f"no process for {target} can be started: {error}") from error
        there.close()
        kind, value = self._receive(START_S)
        if kind == "raised":
            self.end()
            raise WorkerError(f"the process for {target} does not start: {type(value).__name__}: {value}") from value

    def call(self, arguments: Mapping[str, Any], seconds: float) -> Any:
        try:
            self._pipe.send((dict(arguments), seconds))
        except (OSError, ValueError) as error:  # it ended while it was idle
            self.end()
            raise WorkerError(f"the process ended before the call: {error}") from None
        kind, value = self._receive(seconds)
        if kind == "raised":
            raise value
        return value

    def _receive(self, seconds: float) -> tuple[str, Any]:
        try:
            if not self._pipe.poll(seconds):
                self.end()
                raise TimeoutError(f"stopped after {seconds:g} s")
            kind, content = self._pipe.recv()
            return kind, pickle.loads(content)
        except (EOFError, OSError) as error:
            self.end()
            if isinstance(error, TimeoutError):
                raise
            raise WorkerError(f"the process ended in the call (exit code {self.process.exitcode})") from None

    def end(self) -> None:
        self.usable = False
        self.process.kill()
        self.process.join()
        self._pipe.close()


def _end_all(workers: list[_Worker]) -> None:
    for worker in workers:
        worker.end()


# --- in the process


def _serve(pipe: Connection, target: str, memory_bytes: int | None, safe_path: str | None) -> None:
    try:
        if safe_path is None:  # programs that the function starts are the user's own
            os.environ.pop(SAFE_PATH, None)
        if memory_bytes is not None and sys.platform == "linux":
            resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
        function = function_at(target)
        _send(pipe, "ready", None)
    except BaseException as error:  # noqa: BLE001  a user's module may raise anything
        _send(pipe, "raised", error)
        return
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            arguments, seconds = pipe.recv()
            _limit_processor_time(seconds + GRACE_S)
            try:
                result = function(**arguments)
                _send(pipe, "returned", asyncio.run(_awaited(result)) if hasattr(result, "__await__") else result)
            except BaseException as error:  # noqa: BLE001  the caller raises it
                _send(pipe, "raised", error)


def function_at(target: str) -> Any:
    """The function that `module:name` names; of a tool the function that it was made from."""
    module, _, path = target.partition(":")
    found = reduce(getattr, path.split("."), import_module(module))
    return getattr(found, "function", found)


async def _awaited(result: Any) -> Any:
    return await result


def _limit_processor_time(seconds: float) -> None:
    """The kernel ends this process after so much more of it: also where its parent, who would kill it, is gone."""
    if sys.platform == "linux" and seconds < 1e6:
        limit = int(time.process_time() + seconds) + 1
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (limit if hard < 0 else min(limit, hard), hard))


def _send(pipe: Connection, kind: str, value: Any) -> None:
    try:
        content = pickle.dumps(value)
        if isinstance(value, BaseException):
            pickle.loads(content)  # some exceptions are pickled and cannot be read
            if not isinstance(value, Exception):
                raise TypeError("would end the process")
    except Exception:  # noqa: BLE001  foreign objects
        wrong = f"{type(value).__name__}: {value}" if isinstance(value, BaseException) else None
        kind, content = "raised", pickle.dumps(RuntimeError(wrong or f"{type(value).__name__} cannot be sent back"))
    with contextlib.suppress(BrokenPipeError):
        pipe.send((kind, content))
