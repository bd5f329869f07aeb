"""When a step's rollouts are collected, and where the learner works meanwhile.

`OnPolicy`, the default: the newest weights sample a step, then the learner works. `arpo.training.asynchronous:Asynchronous` samples
the next steps while the learner works on this one.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol, Self, TypeVar

from arpo.engines import Engine
from arpo.training.batch import Batch, SamplerState

T = TypeVar("T")
Collect = Callable[[SamplerState], Awaitable[Batch]]


class Schedule(Protocol):
    """Used as an asynchronous context: at its end nothing samples any more."""

    overlaps: bool  # whether the engine samples while the learner works

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...

    async def batch(self, cursor: SamplerState) -> Batch:
        """The step that begins at `cursor`; asked for step after step. Raises what its collection raised."""
        ...

    async def learn(self, work: Callable[[], T]) -> T:
        """The learner's work: an update by the batch that was taken last, or a checkpoint. Cancelled, it is done to its end; the
        cancellation comes then."""
        ...

    def figures(self, batch: Batch) -> Mapping[str, float]:
        """What the seconds of the step's phases do not say."""
        ...

    def published(self, version: int) -> None:
        """The engine samples with this version of the weights (the number of the step that made them) from now on."""
        ...


class OnPolicy:
    """First a step's rollouts, then the learner, with the engine at rest."""

    overlaps = False

    def __init__(self, collect: Collect, engine: Engine) -> None:
        self.collect, self.engine = collect, engine

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def figures(self, batch: Batch) -> Mapping[str, float]:
        return {}

    async def batch(self, cursor: SamplerState) -> Batch:
        batch = await self.collect(cursor)
        await self.engine.rest()
        return batch

    async def learn(self, work: Callable[[], T]) -> T:
        return work()

    def published(self, version: int) -> None:
        pass
