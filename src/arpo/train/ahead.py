"""Generation ahead of training: the next steps are sampled while the learner works on this one.

A version of the weights has the number of the step that made them: step s makes version s from version s - 1. With N =
`train.max_staleness`, its rollouts start when version s - 1 - N is published, or later. So none of their tokens is more than N
versions older than the weights that the step starts from, whatever comes in flight; and while step t is trained, the steps up to
t + N are sampled at most, one after the other: each begins where the one before it ended (position, window), as without overlap.

What was collected ahead belongs to no checkpoint: a resumed run collects it again, by the weights that it resumes with.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Self, TypeVar

from arpo.engines import Engine
from arpo.train.batches import Batch, Cursor
from arpo.train.pace import Collect, InTurn, Pace

T = TypeVar("T")


class Ahead:
    """The pace of `max_staleness` above 0, up to `last_step`. The learner works in a thread of its own, so that the event loop goes
    on serving engine and tools.

    `publish` hands the learner's weights to the engine: done first of all, since an engine may have been built on the very tensors
    that the learner is about to change. On a CPU learner and engine share the cores as the system gives them out: with threads that
    do not spin (OMP_WAIT_POLICY=passive) that costs nothing, and who works alone has them all.
    """

    overlaps = True

    def __init__(
        self,
        collect: Collect,
        engine: Engine,
        publish: Callable[[], Awaitable[None]],
        *,
        max_staleness: int,
        last_step: int,
    ) -> None:
        self.collect, self.engine, self.publish = collect, engine, publish
        self.max_staleness, self.last_step = max_staleness, last_step
        self._version = -1  # nothing is published yet
        self._next: Cursor | None = None  # where the next step begins, once that is known and until it has begun
        self._steps: deque[asyncio.Task[Batch]] = deque()  # begun and not taken yet, in order; all but the last have ended
        self._pool = ThreadPoolExecutor(1, "arpo-learner")  # always the same thread: OpenMP keeps a team for each

    async def __aenter__(self) -> Self:
        await self.publish()
        return self

    async def __aexit__(self, *_: object) -> None:
        """What is still growing is cancelled."""
        self.last_step = 0  # nothing begins any more
        for step in self._steps:
            step.cancel()
        await asyncio.gather(*self._steps, return_exceptions=True)
        self._pool.shutdown()

    async def batch(self, cursor: Cursor) -> Batch:
        if not self._steps:
            self._next = cursor
            self._begin()
        batch = await self._steps[0]
        self._steps.popleft()
        if all(step.done() for step in self._steps):  # and none begins before weights are published, which whoever asks here does
            await self.engine.rest()
        return batch

    def figures(self, batch: Batch) -> Mapping[str, float]:
        """`seconds/sampling` is only what the learner waited: how long sampling took, and how fast it was."""
        tokens = sum(len(turn.tokens) for rollout in batch.rollouts for turn in rollout.grown.tree.turns.values())
        return {"ahead/sampling_s": batch.seconds, "tokens/per_s": tokens / max(batch.seconds, 1e-9)}

    def published(self, version: int) -> None:
        self._version = version
        self._begin()

    def _begin(self) -> None:
        """Begin the next step, if it may."""
        cursor = self._next
        if cursor is None or cursor.step > self.last_step or self._version < cursor.step - 1 - self.max_staleness:
            return
        self._next = None
        self._steps.append(asyncio.create_task(self._collect(cursor)))

    async def _collect(self, cursor: Cursor) -> Batch:
        batch = await self.collect(cursor)
        self._next = batch.after
        self._begin()
        return batch

    async def learn(self, work: Callable[[], T]) -> T:
        doing = asyncio.get_running_loop().run_in_executor(self._pool, work)
        interrupted = False
        while not doing.done():
            try:
                await asyncio.wait({doing})
            except asyncio.CancelledError:  # half an update is worth nothing
                interrupted = True
        result = doing.result()
        task = asyncio.current_task()
        if interrupted and task is not None:
            task.uncancel()
            task.cancel()  # now, at whatever is waited for next
        return result


def pace_of(
    max_staleness: int, collect: Collect, publish: Callable[[], Awaitable[None]], *, engine: Engine, last_step: int
) -> Pace:
    """The pace that `train.max_staleness` means."""
    if not max_staleness:
        return InTurn(collect, engine)
    return Ahead(collect, engine, publish, max_staleness=max_staleness, last_step=last_step)
