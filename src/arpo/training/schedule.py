"""When a step's rollouts are collected, and where the learner works meanwhile: a schedule is an iterator of batches.

`OnPolicy`, the default: the newest weights sample a step, then the learner works while the engine sleeps.

`Asynchronous`: the next steps are sampled while the learner works on this one. A version of the weights has the number
of the step that made them: step s makes version s from version s - 1. With N = `train.max_staleness`, the rollouts of
step s start when version s - 1 - N is published, or later. So none of their tokens is more than N versions older than
the weights that the step starts from, and while step t is trained, the steps up to t + N are sampled at most. Each
begins where the one before it ends (position, window), as on-policy. Where that is known beforehand, its first trees
grow beside the last ones of that step; else it waits for them. What was collected ahead belongs to no checkpoint: a
resumed run collects it again, with the weights it resumes with.

Knows steps and versions. Refuses to know what a step collects (`arpo.training.batch`) and what the learner does.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol, Self, TypeVar

from arpo.engines import Engine
from arpo.event_loop import finished
from arpo.recipe.run import RunConfig
from arpo.training.batch import Batch, SamplerState, foreseen

T = TypeVar("T")
Collect = Callable[[SamplerState], Awaitable[Batch]]


class Schedule(Protocol):
    """The batches of a run, step by step from `start` to `last_step`.

    Used as an asynchronous context, at whose end nothing samples any more.
    """

    overlaps: bool
    """Whether the engine samples while the learner works."""

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...

    def __aiter__(self) -> Self: ...

    async def __anext__(self) -> Batch:
        """The next step's batch. Raises what its collection raised, and StopAsyncIteration after the last step."""
        ...

    async def learn(self, work: Callable[[], T]) -> T:
        """Run the learner's `work`: an update on the batch that was taken last, or a copy for a checkpoint. Where
        this is cancelled, the work is finished first, and the cancellation raised at the next await."""
        ...

    def figures(self, batch: Batch) -> Mapping[str, float]:
        """Metrics that the seconds of the step's phases do not show."""
        ...

    def published(self, version: int) -> None:
        """The engine samples with this version of the weights (the number of the step that made them) from now on."""
        ...


class OnPolicy:
    """First a step's rollouts, then the learner, while the engine sleeps."""

    overlaps = False

    def __init__(self, collect: Collect, engine: Engine, *, start: SamplerState, last_step: int) -> None:
        self.collect, self.engine, self.last_step = collect, engine, last_step
        self._next = start

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Batch:
        if self._next.step > self.last_step:
            raise StopAsyncIteration
        batch = await self.collect(self._next)
        self._next = batch.after
        await self.engine.sleep()
        return batch

    async def learn(self, work: Callable[[], T]) -> T:
        return work()

    def figures(self, batch: Batch) -> Mapping[str, float]:
        return {}

    def published(self, version: int) -> None:
        pass


class Asynchronous:
    """The schedule of `max_staleness` above 0. The learner works in a thread of its own, so that the event loop goes on
    serving engine and tools.

    `publish` hands the learner's weights to the engine. It is called at the start, since an engine may have been built
    on the very tensors that the learner is about to change. `foresee` returns where the step after one begins, or None
    where that is not known before it is collected.

    On a CPU learner and engine share the cores as the system gives them out: with threads that do not spin
    (OMP_WAIT_POLICY=passive) that costs nothing, and either has all cores while the other is idle.
    """

    overlaps = True

    def __init__(
        self,
        collect: Collect,
        engine: Engine,
        publish: Callable[[], Awaitable[None]],
        *,
        max_staleness: int,
        start: SamplerState,
        last_step: int,
        foresee: Callable[[SamplerState], SamplerState | None] = lambda _: None,
    ) -> None:
        self.collect, self.engine, self.publish = collect, engine, publish
        self.max_staleness, self.last_step, self.foresee = max_staleness, last_step, foresee
        self._version = -1  # nothing is published yet
        self._next: SamplerState | None = start  # where the next step begins; None where the step before decides it
        # Begun and not taken yet, in order; a result is the batch and the engine's tokens a second.
        self._steps: deque[asyncio.Task[tuple[Batch, float]]] = deque()
        self._written = 0  # tokens of all steps that are collected
        self._per_s = 0.0  # of the batch that was taken last
        self._ended = False
        self._pool = ThreadPoolExecutor(1, "arpo-learner")  # always the same thread: OpenMP keeps a team for each

    async def __aenter__(self) -> Self:
        await self.publish()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Cancel what is still being collected."""
        self.last_step, self._ended = 0, True  # nothing begins any more
        for step in self._steps:
            step.cancel()
        await asyncio.gather(*self._steps, return_exceptions=True)
        self._pool.shutdown()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Batch:
        if not self._steps:
            self._begin()
        if not self._steps:
            raise StopAsyncIteration
        batch, self._per_s = await self._steps[0]
        self._steps.popleft()
        if all(step.done() for step in self._steps):  # and none begins before the next weights are published
            await self.engine.sleep()
        return batch

    async def learn(self, work: Callable[[], T]) -> T:
        if self._ended:  # nothing on the event loop waits any more
            return work()
        doing = asyncio.get_running_loop().run_in_executor(self._pool, work)
        return await finished(doing)  # half an update is worth nothing

    def figures(self, batch: Batch) -> Mapping[str, float]:
        """How long the step took to collect (`seconds/sampling` is only what the learner waited), and the engine's
        tokens a second meanwhile, those of other steps included."""
        return {"ahead/sampling_s": batch.seconds, "tokens/per_s": self._per_s}

    def published(self, version: int) -> None:
        self._version = version
        self._begin()

    def _begin(self) -> None:
        """Begin every step that may begin."""
        while (start := self._next) is not None and start.step <= min(
            self.last_step, self._version + 1 + self.max_staleness
        ):
            self._next = self.foresee(start)
            self._steps.append(asyncio.create_task(self._collect(start, waited_for=self._next is None)))

    async def _collect(self, start: SamplerState, waited_for: bool) -> tuple[Batch, float]:
        """The step, and the tokens a second of all steps that ended meanwhile: they share the engine."""
        before = self._written
        batch = await self.collect(start)
        self._written += sum(
            len(turn.tokens) for rollout in batch.rollouts for turn in rollout.grown.tree.turns.values()
        )
        if waited_for:
            self._next = batch.after
            self._begin()
        return batch, (self._written - before) / max(batch.seconds, 1e-9)


def make_schedule(
    run: RunConfig,
    collect: Collect,
    publish: Callable[[], Awaitable[None]],
    *,
    engine: Engine,
    start: SamplerState,
    last_step: int,
) -> Schedule:
    """The schedule that `train.max_staleness` asks for. `start`: of the first step to collect."""
    if not run.train.max_staleness:
        return OnPolicy(collect, engine, start=start, last_step=last_step)
    return Asynchronous(
        collect,
        engine,
        publish,
        max_staleness=run.train.max_staleness,
        start=start,
        last_step=last_step,
        foresee=partial(foreseen, run),
    )
