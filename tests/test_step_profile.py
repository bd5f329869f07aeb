"""A step's profile gives every moment to one phase, and its clocks still fit the program."""

import asyncio

import pytest
import step
from _clocks import REST, Clocks, Interval, Moment, exclusive
from _requests import Asked, unique_tokens
from hypothesis import given
from hypothesis import strategies as st

from arpo.engines import SamplingParams

spans = st.lists(st.tuples(st.sampled_from("abc"), st.integers(-5, 25), st.integers(-5, 25)), max_size=12)


@given(spans=spans, start=st.integers(0, 10), length=st.integers(0, 12), clock=st.sampled_from(["wall", "cpu"]))
def test_every_moment_counts_once_as_the_first_that_was_under_way(spans, start, length, clock):
    def at(moment):
        return Moment(moment, 2 * moment)

    intervals = [Interval(name, at(min(a, b)), at(max(a, b))) for name, a, b in spans]
    found = exclusive(intervals, "abc", at(start), at(start + length), clock)
    slow = dict.fromkeys([*"abc", REST], 0)
    for second in range(start, start + length):
        active = {one.name for one in intervals if one.start.wall <= second < one.end.wall}
        slow[next((name for name in "abc" if name in active), REST)] += 1 if clock == "wall" else 2
    assert found == slow


def test_clocks_time_plain_functions_and_coroutines_and_come_off_again():

    class Worker:
        def plain(self, x):
            return x + 1

        async def waits(self, x):
            await asyncio.sleep(0)
            return x + 2

        async def fails(self):
            raise KeyError("x")

    before = dict(vars(Worker))
    with Clocks() as clocks:
        for name in ("plain", "waits", "fails"):
            clocks.around(Worker, name, name)
        assert Worker().plain(1) == 2 and asyncio.run(Worker().waits(1)) == 3
        with pytest.raises(KeyError):
            asyncio.run(Worker().fails())
    assert [one.name for one in clocks.intervals] == ["plain", "waits", "fails"]
    assert dict(vars(Worker)) == before


def test_the_functions_that_a_step_is_timed_by_are_there():
    with Clocks() as clocks:
        step.put_clocks(clocks)


def test_unique_prefix_tokens_are_those_that_no_turn_wrote():
    after = Asked((1, 2, 3, 9, 9, 5), SamplingParams(max_tokens=1), 0)
    wrote = Asked((1, 2, 3), SamplingParams(max_tokens=2), 0, [9, 9])
    other = Asked((1, 2, 4), SamplingParams(max_tokens=2), 0)
    assert unique_tokens([wrote, wrote, other, after, after]) == 5
