"""Generation ahead of training: the next steps are sampled while the learner works on this one.

A version of the weights has the number of the step that made them: step s makes version s from version s - 1. With N =
`train.max_staleness`, its rollouts start when version s - 1 - N is published, or later. So none of their tokens is more than N
versions older than the weights that the step starts from, whatever comes in flight; and while step t is trained, the steps up to
t + N are sampled at most. Each begins where the one before it ends (position, window), as without overlap. Where that is known
beforehand, its first trees grow beside the last ones of that step; else it waits for them.

What was collected ahead belongs to no checkpoint: a resumed run collects it again, by the weights that it resumes with.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Self, TypeVar

from arpo.engines import Engine
from arpo.recipe.run import RunConfig
from arpo.training.batch import Batch, SamplerState, foreseen
from arpo.training.schedule import Collect, OnPolicy, Schedule

T = TypeVar("T")


class Asynchronous:
    """The pace of `max_staleness` above 0, up to `last_step`. The learner works in a thread of its own, so that the event loop goes
    on serving engine and tools.

    `publish` hands the learner's weights to the engine: done first of all, since an engine may have been built on the very tensors
    that the learner is about to change. `foresee`: where the step after one begins, if that can be said before it is collected.

    On a CPU learner and engine share the cores as the system gives them out: with threads that do not spin
    (OMP_WAIT_POLICY=passive) that costs nothing, and who works alone has them all.
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
        foresee: Callable[[SamplerState], SamplerState | None] = lambda _: None,
    ) -> None:
        self.collect, self.engine, self.publish = collect, engine, publish
        self.max_staleness, self.last_step, self.foresee = max_staleness, last_step, foresee
        self._version = -1  # nothing is published yet
        self._next: SamplerState | None = None  # where the next step begins, once that is known and until it has begun
        self._steps: deque[asyncio.Task[tuple[Batch, float]]] = deque()  # begun and not taken yet, in order; with tokens a second
        self._written = 0  # tokens of all steps that are collected
        self._per_s = 0.0  # of the batch that was taken last
        self._ended = False
        self._pool = ThreadPoolExecutor(1, "arpo-learner")  # always the same thread: OpenMP keeps a team for each

    async def __aenter__(self) -> Self:
        await self.publish()
        return self

    async def __aexit__(self, *_: object) -> None:
        """What is still growing is cancelled."""
        self.last_step, self._ended = 0, True  # nothing begins any more
        for step in self._steps:
            step.cancel()
        await asyncio.gather(*self._steps, return_exceptions=True)
        self._pool.shutdown()

    async def batch(self, cursor: SamplerState) -> Batch:
        if not self._steps:
            self._next = cursor
            self._begin()
        batch, self._per_s = await self._steps[0]
        self._steps.popleft()
        if all(step.done() for step in self._steps):  # and none begins before weights are published, which whoever asks here does
            await self.engine.rest()
        return batch

    def figures(self, batch: Batch) -> Mapping[str, float]:
        """`seconds/sampling` is only what the learner waited: how long the step was on its way, and how fast the engine was then,
        other steps' tokens included."""
        return {"ahead/sampling_s": batch.seconds, "tokens/per_s": self._per_s}

    def published(self, version: int) -> None:
        self._version = version
        self._begin()

    def _begin(self) -> None:
        """Begin every step that may."""
        while (cursor := self._next) is not None and cursor.step <= min(self.last_step, self._version + 1 + self.max_staleness):
            self._next = self.foresee(cursor)
            self._steps.append(asyncio.create_task(self._collect(cursor, waited_for=self._next is None)))

    async def _collect(self, cursor: SamplerState, waited_for: bool) -> tuple[Batch, float]:
        """The step, and the tokens a second of all steps that came to their end meanwhile: they share the engine."""
        before = self._written
        batch = await self.collect(cursor)
        self._written += sum(len(turn.tokens) for rollout in batch.rollouts for turn in rollout.grown.tree.turns.values())
        if waited_for:
            self._next = batch.after
            self._begin()
        return batch, (self._written - before) / max(batch.seconds, 1e-9)

    async def learn(self, work: Callable[[], T]) -> T:
        if self._ended:  # nobody waits for the event loop any more
            return work()
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


def make_schedule(
    run: RunConfig, collect: Collect, publish: Callable[[], Awaitable[None]], *, engine: Engine, last_step: int
) -> Schedule:
    """The pace that `train.max_staleness` means."""
    most = run.train.max_staleness
    if not most:
        return OnPolicy(collect, engine)
    return Asynchronous(collect, engine, publish, max_staleness=most, last_step=last_step, foresee=partial(foreseen, run))
