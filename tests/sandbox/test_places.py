"""Places for calls: never more than there are, in the order of asking, none lost to who gives up, whatever loop or
thread asks."""

import asyncio
import random
import threading

from hypothesis import given, settings
from hypothesis import strategies as st

from arpo.sandbox import limits
from arpo.sandbox.places import Places


async def test_in_the_order_of_asking() -> None:
    places = Places(2)
    begun: list[int] = []

    async def one(number: int) -> None:
        async with places.one():
            begun.append(number)
            await asyncio.sleep(0)

    await asyncio.gather(*(one(number) for number in range(20)))
    assert begun == list(range(20))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(0, 2**32))
def test_who_gives_up_takes_no_place_along(number: int, seed: int) -> None:
    draw = random.Random(seed)
    places = Places(number)
    inside, most = 0, 0

    async def one() -> None:
        nonlocal inside, most
        async with places.one():
            inside += 1
            most = max(most, inside)
            try:
                await asyncio.sleep(draw.choice([0, 0, 0.0005]))
            finally:
                inside -= 1

    async def some() -> None:
        tasks = [asyncio.create_task(one()) for _ in range(20)]
        for task in tasks:
            if draw.random() < 0.3:
                await asyncio.sleep(0)
            if draw.random() < 0.4:
                task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            assert outcome is None or isinstance(outcome, asyncio.CancelledError)
        assert most <= number and not inside

    asyncio.run(some())

    async def all_there() -> None:
        async with asyncio.timeout(5):
            held = [places.one() for _ in range(number)]
            for each in held:
                await each.__aenter__()
            for each in held:
                await each.__aexit__(None, None, None)

    asyncio.run(all_there())


def test_loops_in_several_threads_share_them() -> None:
    places = Places(2)
    lock = threading.Lock()
    inside, most, done = 0, 0, 0

    async def one() -> None:
        nonlocal inside, most, done
        async with places.one():
            with lock:
                inside += 1
                most = max(most, inside)
            await asyncio.sleep(0.001)
            with lock:
                inside -= 1
                done += 1

    async def many() -> None:
        await asyncio.gather(*(one() for _ in range(25)))

    threads = [threading.Thread(target=asyncio.run, args=(many(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, done) == (2, 100)


@given(st.integers(1, 64), st.integers(0, 19))
def test_calls_that_compute_weigh_together_what_they_may(busy: int, own: int) -> None:
    """Beside a trainer of niceness `own - CALL`; as far as there are steps."""
    each = limits.niceness_among(busy, own)
    assert own <= each <= limits.LARGEST_NICENESS and each <= limits.niceness_among(busy + 1, own)
    if each < limits.LARGEST_NICENESS:
        assert busy * 1.25 ** -(each - own + limits.CALL_NICENESS) <= limits.LONG_CALLS_SHARE + 1e-9
