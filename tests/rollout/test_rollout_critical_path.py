"""No tree takes longer than its critical path: the driver and the budget wait for what a turn depends on, and for
nothing else.

The critical path is computed by a slow twin (`critical_path.py`), which serves the budget from the beginning at every
event.
"""

import asyncio

import pytest
import timed_agent
from hypothesis import given, settings
from hypothesis import strategies as st

from arpo.core.branching import Aepo, Chance, Fixed, Never, Paper, Threshold
from arpo.rollout.config import RolloutConfig
from virtual_time import run

TIMES = timed_agent.Times()
RULES = [
    Never(),
    Paper(),
    Paper(siblings=3),
    Fixed(at=2, siblings=2),
    Chance(rates=(0.9, 0.3)),
    Threshold(theta=0.6),
    Aepo(),
]


@pytest.fixture(scope="module")
def who():
    return timed_agent.agent(TIMES)


@settings(max_examples=30, deadline=None)
@given(
    rule=st.sampled_from(RULES),
    shape=st.sampled_from([(4, 1), (8, 3), (8, 4), (12, 3), (16, 8)]),
    calls=st.integers(1, 4),
    seed=st.integers(0, 10**6),
)
def test_a_tree_ends_with_its_critical_path(who, rule, shape, calls, seed):
    leaves, roots = shape
    sizes = {**timed_agent.SIZES, "leaves": leaves, "roots": roots, "rule": rule, "max_calls": calls}
    grows = timed_agent.Growing(num_tasks=1, config=RolloutConfig(**sizes), times=TIMES)

    async def timed():
        return await timed_agent.grow(who, grows, seed), asyncio.get_running_loop().time()

    rollouts, wall = run(timed())
    (rollout,) = rollouts
    path = timed_agent.path_of(grows, rollout, seed)
    assert wall == pytest.approx(path.seconds, rel=1e-6)
    assert path.free <= path.seconds * (1 + 1e-9)
