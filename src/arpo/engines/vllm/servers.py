"""vLLM behind one or several servers: which request goes where, and what happens when one is lost.

The requests of a tree go to one replica, whose cache holds their prefix. A replica that does not answer is taken out;
its requests go on at another, with the tokens that they have. It comes back when it is healthy and has the newest
weights.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from pathlib import Path

from arpo.engines import SamplingParams
from arpo.engines.vllm.launch import Launcher
from arpo.engines.vllm.replica import LostError, Replica
from arpo.engines.vllm.transport import Piece, WeightSnapshot
from arpo.engines.vllm.weight_sender import TRANSFER_S
from arpo.errors import ConfigError, EngineError

LOOK_S = 2.0  # between looks at each server's health
MISSED = 3  # looks that an up server may miss in a row (a busy one answers late)
PATIENCE_S = 120.0  # that a request waits while no server answers, before its branch counts as lost
FRUITLESS = 3  # times that a request may be lost without one more token before it is given up
START = "Start one as docs/vllm.md says, or let the run do it: engine.vllm.replicas"
HOMES = 8192  # trees whose replica is remembered


class Servers:
    """A `Transport` over `replicas`. context: tokens that they must be able to read. tied: see `Replica.check`.
    launcher: starts and ends them; None: somebody else does. patience_s: how long a request waits while none is up.
    transfer_s: how long one may take over new weights. tell: hears of losses and returns."""

    def __init__(
        self,
        replicas: Sequence[Replica],
        *,
        context: int,
        tied: bool = False,
        patience_s: float = PATIENCE_S,
        transfer_s: float = TRANSFER_S,
        launcher: Launcher | None = None,
        sleeps: bool = False,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.replicas, self.context, self.tied = list(replicas), context, tied
        self.patience_s, self.transfer_s = patience_s, transfer_s
        self.launcher, self.sleeps, self.tell = launcher, sleeps, tell
        self.published: WeightSnapshot | None = None
        self._homes: OrderedDict[str, Replica] = OrderedDict()
        self._missed: dict[Replica, int] = {}
        self._starts: dict[Replica, WeightSnapshot] = {}  # the weights from which one is being started anew
        self._watching: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()  # a replica came back
        self._asleep = False
        self._told_plain = False
        self._waking = asyncio.Lock()

    async def stream(self, prompt: Sequence[int], params: SamplingParams) -> AsyncGenerator[Piece, None]:
        written: list[int] = []
        fruitless = 0
        while True:
            before = len(written)
            replica = await self._replica(params.tree or f"prompt {hash(tuple(prompt[:64]))}")
            left = replace(params, max_tokens=params.max_tokens - before, seed=params.seed ^ before)
            try:
                async with aclosing(replica.ask([*prompt, *written], left)) as pieces:
                    async for piece in pieces:
                        written += piece.tokens.tolist()
                        yield replace(piece, cached=None) if before else piece
                        if piece.finish is not None:
                            return
            except LostError as error:
                fruitless = 0 if len(written) > before else fruitless + 1
                if fruitless == FRUITLESS:
                    raise EngineError(
                        f"no vLLM server could answer this request; the last one, {replica.url}: {error}"
                    ) from error
                await self._lose(replica, str(error))

    async def update_weights(self, published: WeightSnapshot) -> None:
        first = self.published is None
        self.published = published
        await self._wake()
        if first and self.launcher is not None:
            await self.launcher.start(await (published.base or published).written())
        await asyncio.gather(
            *(self._bring(replica, loaded=first and self.launcher is not None) for replica in self.replicas)
        )
        if first and not any(
            replica.up for replica in self.replicas
        ):  # later they may come back, and requests wait for that
            urls = ", ".join(f"{replica.url} ({replica.why})" for replica in self.replicas)
            raise ConfigError(f"no vLLM server answers at {urls}", where="engine.vllm.urls", hint=START)
        if not self._watching:
            self._watching = [
                asyncio.create_task(self._watch(replica), name="arpo-vllm-health") for replica in self.replicas
            ]

    async def sleep(self) -> None:
        if self.sleeps and not self._asleep:
            async with self._waking:
                self._asleep = True
                await self._every(Replica.sleep)

    async def close(self) -> None:
        for watching in self._watching:
            watching.cancel()
        await asyncio.gather(*self._watching, return_exceptions=True)
        for replica in self.replicas:
            await replica.close()
        if self.launcher is not None:
            await self.launcher.stop()

    async def _wake(self) -> None:
        if self._asleep:
            async with self._waking:
                if self._asleep:
                    await self._every(Replica.wake)
                    self._asleep = False

    async def _every(self, act: Callable[[Replica], Awaitable[None]]) -> None:
        """Do this to every replica that is up; one that fails is taken out."""

        async def one(replica: Replica) -> None:
            try:
                async with asyncio.timeout(self.transfer_s):
                    await act(replica)
            except (LostError, TimeoutError) as error:
                await self._lose(replica, str(error) or f"it does not answer within {self.transfer_s:g} s")

        await asyncio.gather(*(one(replica) for replica in self.replicas if replica.up))

    async def _replica(self, tree: str) -> Replica:
        """The home of `tree`; where it has none that is up, the replica with the fewest requests becomes it."""
        await self._wake()
        end = time.monotonic() + self.patience_s
        while not (up := [replica for replica in self.replicas if replica.up]):
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), end - time.monotonic())
            except TimeoutError:
                raise EngineError(f"no vLLM server answered for {self.patience_s:g} s") from None
        home = self._homes.pop(tree, None)
        if home is None or not home.up:
            home = min(up, key=lambda replica: replica.live)
        self._homes[tree] = home
        if len(self._homes) > HOMES:
            self._homes.popitem(last=False)
        return home

    # -- health
    # -----------------------------------------------------------------------------------------------------------

    async def _bring(self, replica: Replica, *, loaded: bool = False) -> None:
        """Give `replica` the newest weights and requests; where it is lost, take it out. loaded: it was started with
        them."""
        async with replica.bringing:
            await self._bring_alone(replica, loaded)

    async def _bring_alone(self, replica: Replica, loaded: bool) -> None:
        assert self.published is not None
        published = self.published
        try:
            async with asyncio.timeout(self.transfer_s):
                if self.sleeps and not replica.up:
                    await replica.wake()  # it may have been asleep when it was lost
                if loaded:
                    await replica.name(published.base or published)
                    await replica.check(self.context, tied=self.tied)
                    await replica.join(published)
                    if published.base is not None:
                        await replica.publish(published)
                elif not await replica.holds(published):
                    await replica.check(self.context, tied=self.tied)
                    await replica.publish(published)
                elif not replica.up:
                    await replica.resume()  # it may have been lost just before
        except (LostError, TimeoutError) as error:
            await self._lose(replica, str(error) or f"new weights took longer than {self.transfer_s:g} s")
            if replica.sender is not None and self.launcher is not None:
                self.launcher.end(replica.url)  # a worker may wait for the rest of them for ever
            return
        except BaseException:  # refused or cancelled, it may be paused, with half of them
            await replica.drop()
            raise
        if not (replica.compact or self._told_plain):
            self._told_plain = True
            self.tell(
                f"the vLLM server {replica.url} answers in JSON, which costs this process many times as much a token: "
                "start it with --middleware arpo.engines.vllm.answers.CompactAnswers (docs/vllm.md)"
            )
        if published is self.published and not replica.up:
            self._has_started(replica)
            replica.up = True
            self._missed[replica] = 0
            self._changed.set()

    async def _lose(self, replica: Replica, reason: str) -> None:
        replica.why = reason
        if replica.up:
            self.tell(f"the vLLM server {replica.url} is lost ({reason}); its requests go elsewhere")
        await replica.drop()

    async def _watch(self, replica: Replica) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self._look(replica)
            except ConfigError as error:
                if str(error) != replica.why:  # once
                    self.tell(str(error))
                replica.why = str(error)

    async def _look(self, replica: Replica) -> None:
        if replica.up:
            self._missed[replica] = 0 if await replica.healthy() else self._missed[replica] + 1
            if self._missed[replica] >= MISSED:
                await self._lose(replica, "it does not answer")
            return
        if self.launcher is not None:
            url = await self.launcher.revive(replica.url, partial(self._start_from, replica))
            if url is not None:
                replica.move(url)
                return
        if not await replica.healthy():
            return
        await self._bring(replica)
        if replica.up:
            self.tell(f"the vLLM server {replica.url} is back")

    async def _start_from(self, replica: Replica) -> Path:
        """The newest weights, which stay where they are until `replica` has started."""
        assert self.published is not None
        self._has_started(replica)
        self._starts[replica] = published = self.published
        published.readers += 1
        return await (published.base or published).written()

    def _has_started(self, replica: Replica) -> None:
        if (published := self._starts.pop(replica, None)) is not None:
            published.readers -= 1
