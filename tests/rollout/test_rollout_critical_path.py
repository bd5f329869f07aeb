"""No tree takes longer than its critical path: the driver and the budget wait for what a turn depends on, and for nothing else.

The critical path is computed by the benchmark's slow twin, which serves the budget from the beginning at every event.
"""

import asyncio

import _world as world
import overlap
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arpo.core.branching import Aepo, Chance, Fixed, Never, Paper, Threshold
from arpo.rollout.config import RolloutConfig
from virtual_time import run

TIMES = world.Times()
RULES = [Never(), Paper(), Paper(siblings=3), Fixed(at=2, siblings=2), Chance(rates=(0.9, 0.3)), Threshold(theta=0.6), Aepo()]


@pytest.fixture(scope="module")
def who():
    return world.agent(TIMES)


def setting(tasks: int = 1, **values):
    return overlap.Setting(num_tasks=tasks, config=RolloutConfig(**{**world.SIZES, **values}), times=TIMES)


@settings(max_examples=60, deadline=None)
@given(
    rule=st.sampled_from(RULES),
    shape=st.sampled_from([(4, 1), (8, 3), (8, 4), (12, 3), (16, 8)]),
    calls=st.integers(1, 4),
    seed=st.integers(0, 10**6),
)
def test_a_tree_ends_with_its_critical_path(who, rule, shape, calls, seed):
    leaves, roots = shape
    grows = setting(leaves=leaves, roots=roots, rule=rule, max_calls=calls)

    async def timed():
        return await overlap.grow(who, grows, seed), asyncio.get_running_loop().time()

    rollouts, wall = run(timed())
    (path,) = overlap.paths(grows, rollouts, seed)
    assert wall == pytest.approx(path.seconds, rel=1e-6)
    assert path.free <= path.seconds * (1 + 1e-9)


def test_lockstep_plays_the_same_turns_and_takes_longer(who):
    grows = setting(tasks=3, leaves=8, roots=3)

    async def both():
        now = asyncio.get_running_loop().time
        rollouts = await overlap.grow(who, grows, 0)
        middle = now()
        rounds = await overlap.play_in_rounds(who, grows, [one.grown.tree for one in rollouts], 0)
        return rollouts, middle, now() - middle, rounds

    before = who.engine.requests
    rollouts, ours, theirs, rounds = run(both())
    turns = sum(len(one.grown.tree.turns) for one in rollouts)
    assert who.engine.requests - before == 2 * turns
    assert theirs > ours and rounds >= max(len(leaf) for one in rollouts for leaf in one.grown.tree.leaves())
