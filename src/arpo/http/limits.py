"""Rate limits, concurrency limits, retries and a circuit breaker for a provider that tools share.

    closed ── a call fails, its retries included ──> open: all calls wait; from time to time one of them probes
       ^                                               │
       └───────── any call succeeds ───────────────────┘── for longer than `patience_s`: ToolsStoppedError

Knows time. Refuses to know tools, arguments and results.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, TypeVar

from arpo.errors import ProviderError, ToolsStoppedError
from arpo.secrets import without_secrets

if TYPE_CHECKING:
    from tenacity import RetryCallState

T = TypeVar("T")
Tell = Callable[[str, str], None]  # a text and its level: "info", "warning"

FIRST_RETRY_S, LONGEST_RETRY_S = 0.5, 30.0
FIRST_PROBE_S, LONGEST_PROBE_S = 1.0, 60.0
LONG_S = 5.0  # a provider that asks for a longer wait counts as down: all calls wait, not one
GO_ON = "raise tools.limits.patience_s to wait longer, and resume (--resume) when it is back"
MOST_FAILED_ROUNDS = 2  # of one call while others succeed: then the fault is the call's


class Provider:
    """Makes calls to one provider: `rate` calls a second, `concurrency` at a time (0: no limit). A call that may be
    tried again has `retries` further attempts with growing waits. `patience_s`: seconds that the provider may be down;
    `hint`: what to do then."""

    def __init__(
        self,
        name: str,
        *,
        rate: float = 0.0,
        concurrency: int = 0,
        retries: int = 3,
        patience_s: float = 600.0,
        tell: Tell = lambda text, level: None,
        hint: str = GO_ON,
    ) -> None:
        self.name, self.rate, self.concurrency, self.retries = name, rate, concurrency, retries
        self.outage = Outage(name, patience_s, tell, hint)
        self._next_at = 0.0  # on the event loop's clock: the earliest start of the next call
        # of the event loop that waits: a semaphore for concurrency and a lock for the rate
        self._queues: tuple[asyncio.AbstractEventLoop, asyncio.Semaphore | nullcontext[None], asyncio.Lock] | None = (
            None
        )

    async def call(self, once: Callable[[], Awaitable[T]]) -> tuple[T, int]:
        """The result of `once` and the number of attempts; waits while the provider is down.

        Raises ProviderError where this call alone fails, ToolsStoppedError where every call does: the provider refuses
        us or has been down for too long.
        """
        outage, attempts, rounds = self.outage, 0, 0

        async def one() -> T:
            nonlocal attempts
            attempts += 1
            return await self.limited(once)

        while True:
            if outage.since is not None:
                await outage.turn()
            with outage.probing():
                try:
                    result = await self._tried(one)
                except ProviderError as error:
                    self._give_up_if_final(error)
                    rounds += 1
                    if rounds >= MOST_FAILED_ROUNDS and outage.worked_since_failure:
                        raise
                    outage.failed(error)
                    continue
            outage.worked()
            return result, attempts

    def _give_up_if_final(self, error: ProviderError) -> None:
        if not error.retriable:
            what = f"{self.name} refuses every call, and will until somebody acts: {without_secrets(str(error))}"
            raise ToolsStoppedError(what) from error

    async def _tried(self, one: Callable[[], Awaitable[T]]) -> T:
        """`one`, with retries after a failure; only then is tenacity imported."""
        try:
            return await one()
        except ProviderError as error:
            if not self.retries or not self._worth(error):
                raise
            wait_s = error.retry_after_s
        import tenacity

        grow = tenacity.wait_exponential_jitter(initial=FIRST_RETRY_S * 2, max=LONGEST_RETRY_S, jitter=FIRST_RETRY_S)

        def wait(state: "RetryCallState") -> float:
            asked = getattr(state.outcome.exception() if state.outcome else None, "retry_after_s", None)
            return max(asked or 0.0, grow(state))

        await asyncio.sleep(max(wait_s or 0.0, FIRST_RETRY_S))
        again = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(self.retries),
            wait=wait,
            retry=tenacity.retry_if_exception(self._worth),
            reraise=True,
        )
        return await again(one)

    def _worth(self, error: BaseException) -> bool:
        """Whether to retry this call soon."""
        soon = isinstance(error, ProviderError) and error.retriable and (error.retry_after_s or 0.0) <= LONG_S
        return soon and self.outage.since is None

    async def limited(self, once: Callable[[], Awaitable[T]]) -> T:
        """The result of `once`, within rate and concurrency; the caller handles failures."""
        if not self.concurrency and not self.rate:
            return await once()
        loop = asyncio.get_running_loop()
        if self._queues is None or self._queues[0] is not loop:
            places = asyncio.Semaphore(self.concurrency) if self.concurrency else nullcontext()
            self._queues = (loop, places, asyncio.Lock())
        _, places, turn = self._queues
        async with places:
            if self.rate:
                async with turn:  # one at a time, so that who gives up waiting takes no start from those behind
                    start = max(loop.time(), self._next_at)
                    if (wait_s := start - loop.time()) > 0:
                        await asyncio.sleep(wait_s)
                    self._next_at = start + 1 / self.rate
            return await once()


class Outage:
    """Whether a provider is down, and which call probes it next. Waiting calls probe one at a time and in turn, so that
    a call that can never succeed does not keep the others waiting."""

    def __init__(self, name: str, patience_s: float, tell: Tell, hint: str = GO_ON) -> None:
        self.name, self.patience_s, self.tell, self.hint = name, patience_s, tell, hint
        self.since: float | None = None  # on the loop's clock
        self.worked_since_failure = False
        self._wait_s = 0.0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # to which the timer belongs
        self._probes = 0  # calls that probe now
        self._over: ToolsStoppedError | None = None

    async def turn(self) -> None:
        """Wait until the provider is back or this call is to probe it. Raises ToolsStoppedError after `patience_s`."""
        if self._over is not None:
            raise self._over
        loop = asyncio.get_running_loop()
        if self._loop is not loop:  # the timer of an earlier loop never fires
            self._timer = None
        ahead = loop.create_future()
        self._waiting.append(ahead)
        if self._timer is None and not self._probes:
            self._next()
        try:
            await ahead
        except asyncio.CancelledError:
            if ahead in self._waiting:
                self._waiting.remove(ahead)
            elif self.since is not None:
                self._next()  # it was this call's turn
            raise

    @contextmanager
    def probing(self) -> Iterator[None]:
        """Around a call: if it probes and is cancelled or raises, the next one probes."""
        self._probes += self.since is not None
        probe = self.since is not None
        try:
            yield
        except BaseException:
            if probe and self.since is not None and self._timer is None:
                self._schedule(self._wait_s)
            raise
        finally:
            self._probes -= probe

    def failed(self, error: ProviderError) -> None:
        """A call failed, its retries included."""
        now = asyncio.get_running_loop().time()
        said = without_secrets(str(error))
        if self.since is None:
            self.since, self._wait_s = now, FIRST_PROBE_S
            self.worked_since_failure = False
            self.tell(
                f"paused: {self.name} does not answer ({said}); calls to it wait, and one tries again now and then",
                "warning",
            )
        elif self._timer is not None:  # a call from before the outage: nothing new
            return
        else:
            self._wait_s = min(2 * self._wait_s, LONGEST_PROBE_S)
        left_s = self.since + self.patience_s - now
        if left_s <= 0:
            self._stop(now - self.since, said)
        else:
            self._schedule(min(max(self._wait_s, error.retry_after_s or 0.0), left_s))

    def worked(self) -> None:
        self.worked_since_failure = True
        if self.since is None:
            return
        down_s = asyncio.get_running_loop().time() - self.since
        self.since = None
        self._release(None)
        self.tell(f"going on: {self.name} answers again after {down_s:.0f} s", "info")

    def _schedule(self, wait_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(wait_s, self._next)

    def _next(self) -> None:
        """Let the call that has waited longest probe."""
        self._timer = None
        while self._waiting:
            ahead = self._waiting.popleft()
            if not ahead.done():
                ahead.set_result(None)
                return

    def _stop(self, down_s: float, said: str) -> None:
        self._over = ToolsStoppedError(
            f"{self.name} has been down for {down_s:.0f} s. It said: {said}. To go on: {self.hint}"
        )
        self._release(self._over)

    def _release(self, error: ToolsStoppedError | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting, self._waiting = self._waiting, deque()
        for ahead in waiting:
            if not ahead.done():
                ahead.set_exception(error) if error else ahead.set_result(None)
