"""The cache of tool results: equal calls are made once, whoever makes them and in whichever process.

    live     a fresh result from the store, else one process makes the call for all that wait, and keeps its result
    record   what the store has recorded, however old, else the call is made and recorded, errors too
    replay   what the store has recorded, else ReplayMissError

Knows keys, freshness and who makes a call. Refuses to know limits, and how a call is made.
"""

import asyncio
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from uuid import uuid4

from arpo.core.tree import CallStatus, ToolCallResult
from arpo.errors import ToolError, ToolsStoppedError
from arpo.tools.cache_key import ANY_VERSION, canonical, key_of
from arpo.tools.settings import Mode
from arpo.tools.store import Entry, Store

T = TypeVar("T")
Make = Callable[
    [], Awaitable[tuple[ToolCallResult, bool]]
]  # makes the call: its outcome, and whether nothing was found

LEASE_S = 30.0  # for which a process that died keeps others waiting; the living renew it
FIRST_LOOK_S, LONGEST_LOOK_S = 0.002, 0.05  # how often a process looks whether another one is done: a look takes 30 us
TOUCH_S = 5.0  # how often it is written down what was used
DAY_S = 86_400.0


class ReplayMissError(ToolError):
    """A call that the record does not hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePolicy:
    """How results of one tool are cached: under which name and version, and for how many seconds (`empty_s`: with no
    results)."""

    tool: str
    version: str
    schema: Mapping[str, Any]
    fresh_s: float = 30 * DAY_S
    empty_s: float = DAY_S


class Cache:
    """The cache of one process, over a store that other processes share. `tell` is called once if the store cannot be
    used."""

    def __init__(
        self, store: Store, mode: Mode = "live", tell: Callable[[str, str], None] = lambda text, level: None
    ) -> None:
        self.store, self.mode, self.tell = store, mode, tell
        self._in_flight: dict[bytes, InFlightCall] = {}
        self._owner = f"{os.getpid()}-{uuid4().hex}"
        self._writer = ThreadPoolExecutor(
            1, thread_name_prefix="arpo-cache"
        )  # writers wait for each other: not on the loop
        self._used: set[bytes] = set()
        self._touched = time.monotonic()
        self._able = True  # False once the store could not be written

    async def outcome(self, kept: CachePolicy, arguments: Mapping[str, Any], make: Make) -> ToolCallResult:
        """The stored result, that of an equal call in flight, or that of `make`. Raises ReplayMissError, and what
        `make` raises."""
        words = canonical(arguments, kept.schema)
        recorded = self.mode != "live"
        keys = [key_of(kept.tool, kept.version, words, recorded=recorded)]
        if recorded:
            keys.append(key_of(kept.tool, ANY_VERSION, words, recorded=True))
        if (call := self._in_flight.get(keys[0])) is not None and call.waiting:
            return _not_ours(await call.wait())
        if (entry := self._found(kept, keys)) is not None:
            return entry.outcome
        if self.mode == "replay":
            raise ReplayMissError(f"{kept.tool}({words[:300]}) is not in the record {self.store.path}")
        made = self._in_flight[keys[0]] = InFlightCall(asyncio.create_task(self._make_once(kept, keys, words, make)))
        made.task.add_done_callback(lambda _: self._finished(keys[0], made))
        return await made.wait()

    def _finished(self, key: bytes, call: "InFlightCall") -> None:
        if self._in_flight.get(key) is call:  # else it was given up and another one is in flight
            del self._in_flight[key]

    async def _make_once(self, kept: CachePolicy, keys: list[bytes], words: str, make: Make) -> ToolCallResult:
        """Make the call, or wait for the result of another process that makes it."""
        key = keys[0]
        if (theirs := await self._ahead_of_us(kept, keys)) is not None:
            return _not_ours(theirs)
        renewing = asyncio.create_task(self._renew(key))
        entry = failure = None
        try:
            outcome, empty = await make()
            failure = None if outcome.status is CallStatus.OK else outcome
            if self._keeps(outcome):
                entry = Entry(
                    key=key,
                    tool=kept.tool,
                    version=kept.version,
                    arguments=words,
                    status=outcome.status,
                    text=outcome.text,
                    fault=outcome.fault,
                    empty=empty,
                    made=time.time(),
                    recorded=self.mode == "record",
                )
        finally:
            renewing.cancel()
            finished = self._in_turn(self.store.finish, key, self._owner, entry, failure)
        await finished
        return outcome

    def _keeps(self, outcome: ToolCallResult) -> bool:
        """A record holds failures too, so that a replay meets them again; a provider that stayed away is no result."""
        return outcome.status is CallStatus.OK or (
            self.mode == "record" and outcome.status is not CallStatus.UNAVAILABLE
        )

    def _found(self, kept: CachePolicy, keys: list[bytes]) -> Entry | None:
        """The entry that the store has, if it may be used. Read on the event loop: that takes 20 us, and readers never
        wait."""
        for entry in self._read(self.store.get, keys) or ():
            if self._serves(kept, entry):
                self._touch(entry)
                return entry
        return None

    def _serves(self, kept: CachePolicy, entry: Entry) -> bool:
        if self.mode == "replay":
            return True
        fresh_s = kept.empty_s if entry.empty else kept.fresh_s
        return entry.status is CallStatus.OK and (self.mode == "record" or time.time() - entry.made < fresh_s)

    async def _ahead_of_us(self, kept: CachePolicy, keys: list[bytes]) -> ToolCallResult | None:
        """Wait while another process makes this call. Returns its result, failures too, or None once this process is to
        make it."""
        since, wait_s = time.time(), FIRST_LOOK_S
        while self._able:
            if not self._read(self.store.claimed, keys[0]) and await self._claimed(keys[0]):
                outcome = self._ended(kept, keys, since)  # by a process that was done between our look and our claim
                if outcome is not None:
                    await self._in_turn(self.store.finish, keys[0], self._owner, None)
                return outcome
            await asyncio.sleep(wait_s)
            wait_s = min(1.25 * wait_s, LONGEST_LOOK_S)
            if (outcome := self._ended(kept, keys, since)) is not None:
                return outcome
        return None

    async def _claimed(self, key: bytes) -> bool:
        try:
            return bool(await self._in_turn(self.store.claim, key, self._owner, LEASE_S))
        except asyncio.CancelledError:
            self._in_turn(self.store.finish, key, self._owner, None)  # the claim is made all the same
            raise

    def _ended(self, kept: CachePolicy, keys: list[bytes], since: float) -> ToolCallResult | None:
        """The result of another process's call, or its failure at `since` or later."""
        if (entry := self._found(kept, keys)) is not None:
            return entry.outcome
        return self._read(self.store.failure, keys[0], since)

    async def _renew(self, key: bytes) -> None:
        while True:
            await asyncio.sleep(LEASE_S / 3)
            await self._in_turn(self.store.renew, key, self._owner, LEASE_S)

    def _touch(self, entry: Entry) -> None:
        """Remember that the entry was used; written to the store every few seconds."""
        self._used.add(entry.key)
        if not entry.recorded and time.monotonic() - self._touched > TOUCH_S:
            used, self._used, self._touched = self._used, set(), time.monotonic()
            self._in_turn(self.store.touch, used)

    def _in_turn(self, write: Callable[..., T], *arguments: Any) -> "asyncio.Future[T | None]":
        """Let the writer do it, also where nobody waits for that any more: what was paid for is kept, and leases are
        given back. What it cannot write is told once, and stops the run where the record would be left incomplete."""
        return asyncio.shield(asyncio.get_running_loop().run_in_executor(self._writer, self._written, write, arguments))

    def _written(self, write: Callable[..., T], arguments: tuple[Any, ...]) -> T | None:
        if not self._able:  # each would wait for a locked file once more
            return None
        try:
            return write(*arguments)
        except sqlite3.Error as error:
            self._broken(error)
            return None

    def _read(self, read: Callable[..., T], *arguments: Any) -> T | None:
        try:
            return read(*arguments)
        except sqlite3.Error as error:
            self._broken(error)
            return None

    def _broken(self, error: sqlite3.Error) -> None:
        wrong = f"{self.store.path} can no longer be used: {error}"
        if self.mode != "live":
            raise ToolsStoppedError(f"the record {wrong}") from error
        if self._able:
            self._able = False
            self.tell(f"the cache {wrong}; calls go on without it", "warning")


class InFlightCall:
    """A call in flight and the number of its waiters. It is cancelled when nobody waits any more."""

    __slots__ = ("task", "waiting")

    def __init__(self, task: "asyncio.Task[ToolCallResult]") -> None:
        self.task, self.waiting = task, 0

    async def wait(self) -> ToolCallResult:
        """Raises what the call raises."""
        self.waiting += 1
        try:
            return await asyncio.shield(self.task)
        finally:
            self.waiting -= 1
            if not self.waiting and not self.task.done():
                self.task.cancel()
                await asyncio.wait({self.task})


def _not_ours(outcome: ToolCallResult) -> ToolCallResult:
    """The result of an equal call that was in flight."""
    return replace(outcome, shared=True, cached=False, seconds=0.0, attempts=1, cost=0.0)
