"""When steps begin where sampling runs ahead: never too early, in order, one at a time, and none for nothing."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

import virtual_time
from arpo.engines.scripted import ScriptedEngine
from arpo.training.batch import Batch, SamplerState
from arpo.training.schedule import Asynchronous, OnPolicy

FIRST = SamplerState(step=1, position=0, window=())
T = TypeVar("T")


@dataclass
class World:
    """Steps that take `sampling` seconds and positions that depend on all steps before; it sees what is wrong at
    once."""

    sampling: list[float]
    version: int = -1
    busy: bool = False
    begun: list[tuple[int, int, int]] = field(default_factory=list)  # step, position, version
    rests: list[int] = field(default_factory=list)

    async def collect(self, cursor: SamplerState) -> Batch:
        assert not self.busy, "two steps at once"
        self.busy = True
        self.begun.append((cursor.step, cursor.position, self.version))
        try:
            await asyncio.sleep(self.sampling[cursor.step - 1])
        finally:
            self.busy = False
        after = SamplerState(step=cursor.step + 1, position=2 * cursor.position + cursor.step, window=())
        return Batch(rollouts=(), used=0, after=after, seconds=0.0)

    async def publish(self) -> None:
        self.version = 0

    def engine(self) -> ScriptedEngine:
        world = self

        class Resting(ScriptedEngine):
            async def sleep(self) -> None:
                assert not world.busy
                world.rests.append(world.version)
                await asyncio.sleep(0.01)
                assert not world.busy, "a step began while the engine went to rest"

        return Resting(lambda *_: "never asked")

    def ahead(self, most: int) -> Asynchronous:
        last_step = len(self.sampling)
        return Asynchronous(
            self.collect, self.engine(), self.publish, max_staleness=most, start=FIRST, last_step=last_step
        )

    def on_policy(self) -> OnPolicy:
        return OnPolicy(self.collect, self.engine(), start=FIRST, last_step=len(self.sampling))

    async def train(
        self, schedule: Asynchronous | OnPolicy, learning: list[float], stops_after: int | None = None
    ) -> float:
        """Seconds."""
        began = asyncio.get_running_loop().time()
        async with schedule:
            schedule.published(0)
            for number, seconds in enumerate(learning[:stops_after], 1):
                assert (await anext(schedule)).after.step == number + 1
                await asyncio.sleep(seconds)
                self.version = number
                schedule.published(self.version)
            if stops_after is None:
                assert [batch async for batch in schedule] == [], "it ends with the last step"
        assert not self.busy
        return asyncio.get_running_loop().time() - began


times = st.lists(st.tuples(st.floats(0, 9), st.floats(0, 9)), min_size=1, max_size=9)


@given(times, st.integers(1, 3))
def test_steps_begin_in_order_one_at_a_time_and_never_too_early(pairs: list[tuple[float, float]], most: int) -> None:
    sampling, learning = (list(side) for side in zip(*pairs, strict=True))
    world, plain = World(sampling), World(sampling, version=0)
    seconds = virtual_time.run(world.train(world.ahead(most), learning))
    in_turn = virtual_time.run(plain.train(plain.on_policy(), learning))
    assert [begun[:2] for begun in world.begun] == [begun[:2] for begun in plain.begun], "as without overlap"
    assert all(version >= step - 1 - most for step, _, version in world.begun)
    assert [version for _, _, version in plain.begun] == list(range(len(pairs))) == plain.rests
    assert max(sum(sampling), sum(learning)) <= seconds + 1e-9 and seconds <= in_turn + 0.01 * len(pairs)


@given(times, st.integers(1, 3), st.integers(0, 3))
def test_training_that_ends_early_leaves_nothing_behind(
    pairs: list[tuple[float, float]], most: int, steps: int
) -> None:
    """`virtual_time.run` looks for leaked tasks."""
    sampling, learning = (list(side) for side in zip(*pairs, strict=True))
    world = World(sampling)
    virtual_time.run(world.train(world.ahead(most), learning, stops_after=steps))
    assert len(world.begun) <= steps + 1 + most


def test_where_learning_is_the_bottleneck_all_sampling_but_the_first_is_hidden() -> None:
    world = World([2.0] * 5)
    assert virtual_time.run(world.train(world.ahead(1), [3.0] * 5)) == pytest.approx(2 + 5 * 3, abs=0.1)
    assert [version for *_, version in world.begun] == [0, 0, 1, 2, 3] and world.rests, (
        "it rests while it may not begin"
    )


def test_where_sampling_is_the_bottleneck_all_learning_but_the_last_is_hidden() -> None:
    world = World([3.0] * 5)
    assert virtual_time.run(world.train(world.ahead(1), [2.0] * 5)) == pytest.approx(5 * 3 + 2, abs=0.1)


def test_an_error_comes_when_its_step_is_asked_for() -> None:
    world = World([1.0] * 4)

    async def fails(cursor: SamplerState) -> Batch:
        if cursor.step == 3:
            raise OSError("of step 3")
        return await world.collect(cursor)

    async def train() -> list[int]:
        done: list[int] = []
        schedule = Asynchronous(fails, world.engine(), world.publish, max_staleness=2, start=FIRST, last_step=4)
        with pytest.raises(OSError, match="of step 3"):
            async with schedule:
                schedule.published(0)
                async for batch in schedule:
                    await asyncio.sleep(5)
                    done.append(batch.after.step - 1)
                    schedule.published(done[-1])
        return done

    assert virtual_time.run(train()) == [1, 2]


def test_a_step_whose_beginning_is_known_does_not_wait_for_the_one_before() -> None:
    """Stragglers of step 2 take 9 s, in which steps 3 and 4 may begin: they are within the bound."""
    begun: list[tuple[int, float]] = []

    async def collect(cursor: SamplerState) -> Batch:
        begun.append((cursor.step, asyncio.get_running_loop().time()))
        await asyncio.sleep(9.0 if cursor.step == 2 else 1.0)
        return Batch(rollouts=(), used=0, after=_next(cursor), seconds=0.0)

    async def train() -> float:
        world, cursor = World([1.0]), FIRST
        schedule = Asynchronous(
            collect, world.engine(), world.publish, max_staleness=2, start=FIRST, last_step=5, foresee=_next
        )
        async with schedule:
            schedule.published(0)
            async for batch in schedule:
                assert batch.after == _next(cursor)
                await asyncio.sleep(1)
                schedule.published(cursor.step)
                cursor = batch.after
        return asyncio.get_running_loop().time()

    assert virtual_time.run(train()) == pytest.approx(9 + 4, abs=0.1)
    assert begun == [(1, 0), (2, 0), (3, 0), (4, 2), (5, pytest.approx(10, abs=0.1))]


def test_steps_that_share_the_engine_do_not_each_claim_its_time_alone() -> None:
    """Steps of 8 tokens, of which the engine writes 2 a second, whatever number of steps waits for it."""
    tokens = SimpleNamespace(turns={(0,): SimpleNamespace(tokens=range(8))})
    step: Any = SimpleNamespace(grown=SimpleNamespace(tree=tokens))
    engine = asyncio.Lock()

    async def collect(cursor: SamplerState) -> Batch:
        began = asyncio.get_running_loop().time()
        async with engine:
            await asyncio.sleep(4)
        seconds = asyncio.get_running_loop().time() - began
        return Batch(rollouts=[step], used=1, after=_next(cursor), seconds=seconds)

    async def train() -> list[float]:
        world, per_s = World([1.0]), []
        async with Asynchronous(
            collect, world.engine(), world.publish, max_staleness=2, start=FIRST, last_step=6, foresee=_next
        ) as schedule:
            schedule.published(0)
            async for batch in schedule:
                per_s.append(schedule.figures(batch)["tokens/per_s"])
                schedule.published(batch.after.step - 1)
        return per_s

    assert virtual_time.run(train()) == pytest.approx([2.0] * 6, rel=0.02)


def _next(cursor: SamplerState) -> SamplerState:
    return SamplerState(step=cursor.step + 1, position=cursor.position + 3, window=())


# --- the learner's thread, in real time


def _in_ahead(work: Callable[[Asynchronous], Coroutine[Any, Any, T]]) -> T:
    async def main() -> T:
        world = World([0.0])
        async with world.ahead(1) as schedule:
            return await work(schedule)

    return asyncio.run(main())


def test_the_event_loop_goes_on_while_the_learner_works() -> None:
    async def work(schedule: Asynchronous) -> int:
        going, ticks = threading.Event(), 0
        learning = asyncio.ensure_future(schedule.learn(lambda: going.wait(5)))
        while ticks < 10:
            await asyncio.sleep(0)
            ticks += 1
        assert not learning.done()
        going.set()
        assert await learning
        return ticks

    assert _in_ahead(work) == 10


def test_a_cancelled_update_is_done_to_its_end_first() -> None:
    async def work(schedule: Asynchronous) -> list[str]:
        steps: list[str] = []

        def update() -> str:
            time.sleep(0.1)
            steps.append("updated")
            return "metrics"

        async def step() -> None:
            steps.append(await schedule.learn(update))
            steps.append("finished")
            await asyncio.sleep(0)
            steps.append("went on")

        task = asyncio.ensure_future(step())
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return steps

    assert _in_ahead(work) == ["updated", "metrics", "finished"]


def test_an_error_of_the_learner_is_its_own() -> None:
    async def work(schedule: Asynchronous) -> None:
        with pytest.raises(ZeroDivisionError):
            await schedule.learn(lambda: 1 // 0)
        assert await schedule.learn(lambda: 1 // 1) == 1

    _in_ahead(work)
