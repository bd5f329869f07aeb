"""What timing may change in a rollout: nothing but when things happen."""

import asyncio
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arpo.core import Pilot, Role, StepStats
from arpo.core.branching import Aepo, Chance, Fixed, Never, Paper, Released, Threshold
from arpo.rollout.collect import collect
from small_world import (
    ANSWER,
    SEARCH,
    Script,
    Search,
    agent,
    config,
    results_in,
    right,
    rollouts,
    search,
    task,
    timeless,
    unsure,
)
from virtual_time import run

RULES = [
    Never(),
    Fixed(),
    Fixed(at=2, siblings=2),
    Chance(rates=(0.8, 0.5)),
    Paper(),
    Paper(siblings=2),
    Released(draws=2),
    Threshold(theta=0.6),
    Threshold(theta=0.6, window=3),
    Aepo(siblings=2),
]


def sped(tokenizer, timing: int):
    """The unsure agent, whose engine and tool take as long as `timing` draws."""
    draw = Random(timing)
    slow = Search(latency=lambda: draw.choice([0.0, 0.1, draw.expovariate(1.0)]))
    return agent(
        tokenizer,
        unsure,
        slow,
        delay=lambda: (draw.choice([0.0, draw.expovariate(2.0)]), draw.choice([0.0, 0.01, 0.1])),
    )


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rule=st.sampled_from(RULES),
    roots=st.sampled_from([2, 3, 5, Pilot()]),
    seed=st.integers(0, 1000),
    timings=st.tuples(st.integers(0, 10**6), st.integers(0, 10**6)),
    in_flight=st.integers(1, 4),
    cap=st.sampled_from([None, None, 4, 8]),
)
def test_same_seed_gives_the_same_trees_when_only_latencies_change(
    tokenizer, rule, roots, seed, timings, in_flight, cap
):
    rules = config(rule=rule, roots=roots, leaves=8, root_cap=cap)
    stats = StepStats(step=3, window=(0.5, 1.2, 0.8))
    tasks = [task(number) for number in range(3)]
    plain = run(rollouts(agent(tokenizer, unsure), rules, *tasks, seed=seed, in_flight=1, stats=stats))
    for timing in timings:
        timed = run(rollouts(sped(tokenizer, timing), rules, *tasks, seed=seed, in_flight=in_flight, stats=stats))
        assert [timeless(one) for one in timed] == [timeless(one) for one in plain]
    for one in plain:
        assert one.grown.expansion.done and len(one.grown.tree.leaves()) == 8
        assert list(one.scored.scores) == one.grown.tree.leaves()


def test_another_seed_gives_other_trees(tokenizer):
    one, other = (run(rollouts(agent(tokenizer, unsure), config(), seed=seed))[0] for seed in (0, 1))
    assert one.grown.tree.turns != other.grown.tree.turns


def test_defect_6_a_slow_tool_holds_up_nobody_else(tokenizer):
    """One of four branches waits an hour for its tool. The three others call, go on and end in seconds."""
    ended: dict[str, float] = {}
    first = iter([3600.0])
    slow = Search(latency=lambda: next(first, 1.0))

    def play(prompt, params):
        return search(token_s=0.01) if not results_in(tokenizer, prompt) else Script(said=ANSWER, token_s=0.01)

    async def reward(asked, said):
        ended.setdefault(asked.id, asyncio.get_running_loop().time())
        return await right(asked, said)

    who = agent(tokenizer, play, slow)
    rules = config(rule="none", leaves=1, roots=1, deadline_s=7200)
    found = run(rollouts(who, rules, *(task(n) for n in range(4)), reward=reward))
    assert sorted(ended.values())[2] < 5 < 3600 < max(ended.values())
    assert [one.task.id for one in found] == ["task-0", "task-1", "task-2", "task-3"]


def test_defect_6_branches_of_one_tree_do_not_wait_for_each_other(tokenizer):
    """In one tree, too: three lines make their two calls and answer while the first call of the fourth still runs."""
    log: list[tuple[float, int]] = []
    first = iter([3600.0])

    def play(prompt, params):
        log.append((asyncio.get_running_loop().time(), len(prompt)))
        return search() if len(log) <= 4 else Script(said=ANSWER)

    slow = Search(latency=lambda: next(first, 1.0))
    (one,) = run(rollouts(agent(tokenizer, play, slow), config(rule="none", leaves=4, roots=4, deadline_s=7200)))
    assert [at for at, _ in log] == [0.0] * 4 + [1.0] * 3 + [3600.0]
    assert len(one.grown.tree.leaves()) == 4


async def test_siblings_start_at_the_probes_head_while_it_goes_on(tokenizer):
    """No clock: the probe may end only after the sibling has ended, so waiting for the probe's end would never come to
    an end."""
    sibling_ended = asyncio.Event()

    class Engine:
        def __init__(self, inner):
            self.inner = inner

        async def sample(self, prompt, params):
            probing = params.head > 0
            async for chunk in self.inner.sample(prompt, params):
                if probing and chunk.finish is not None:
                    await sibling_ended.wait()
                yield chunk
            if not probing and results_in(tokenizer, prompt):
                sibling_ended.set()

    def play(prompt, params):
        if not results_in(tokenizer, prompt):
            return search(entropies=0.1)
        return Script(said="<think>Lima it is, so I am done.</think>" + ANSWER, entropies=2.0)

    who = agent(tokenizer, play)
    who = type(who)(engine=Engine(who.engine), tools=who.tools, format=who.format, vocab_size=who.vocab_size)
    rules = config(leaves=2, roots=1, head=2)
    async with asyncio.timeout(20):
        (one,) = [r async for r in collect(who, [task()], right, rules, stats=StepStats(step=0), seed=0, in_flight=1)]
    assert one.grown.tree.leaves() == [(0, 0), (0, 1)]
    assert one.grown.tree.turns[0, 1].role is Role.SIBLING


def test_waited_seconds_count_from_the_head_to_the_decision(tokenizer):
    """AEPO's pilot calls twice. Its first tip is judged at 1 s (a probe shorter than the head, so at its end), and
    decided when the pilot has ended, at 11 s."""
    turns = iter(
        [search(entropies=0.1), Script(said=SEARCH, entropies=2.0, delay_s=1.0), Script(said="Lima", entropies=0.0)]
    )

    def play(prompt, params):
        return next(turns, Script(said=ANSWER, entropies=0.1))

    calls = iter([0.0, 10.0])
    who = agent(tokenizer, play, Search(latency=lambda: next(calls, 0.0)))
    (one,) = run(rollouts(who, config(leaves=4, roots="pilot", head=50, deadline_s=60)))
    assert one.grown.expansion.decisions[0,].decided.waited
    assert one.grown.waited_s == pytest.approx(10.0)


def test_what_is_decided_at_once_has_not_waited(tokenizer):
    (one,) = run(rollouts(agent(tokenizer, unsure, delay=lambda: (1.0, 0.1)), config(rule="none", leaves=4, roots=4)))
    assert one.grown.waited_s == 0.0
