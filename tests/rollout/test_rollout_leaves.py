"""Whatever goes wrong on the way: the leaves add up, limits hold, and only latencies leave no trace in a tree."""

import asyncio
from random import Random
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arpo.chat.template import TemplateFormat
from arpo.core import CallStatus, Pilot, StepStats
from arpo.core.branching import Chance, Fixed, Never, Paper, Threshold
from arpo.rollout.collect import Rollout
from arpo.tools import ToolResult
from small_world import Script, Search, agent, config, rollouts, task, timeless
from virtual_time import run

CALL = '<tool_call>\n{"name": "search", "arguments": {"query": "%s"}}\n</tool_call>'
RULES = [Never(), Fixed(at=2, siblings=2), Chance(rates=(0.8, 0.5)), Paper(siblings=2), Threshold(theta=0.6, window=3)]


class Flaky(Search):
    """Down, broken, empty or long, as the call's own seed has it."""

    async def __call__(self, arguments: Any, context: Any) -> ToolResult:
        await asyncio.sleep(self.latency())
        draw = Random(context.seed).random()
        if draw < 0.15:
            return ToolResult(text="quota used up", status=CallStatus.UNAVAILABLE)
        if draw < 0.3:
            raise RuntimeError("a bug of the tool")
        return ToolResult(text="" if draw < 0.35 else "Peru: Lima " * int(draw * 12))


def play(prompt: Any, params: Any) -> Script:
    """No call, one or several, now and then a malformed one; some requests fail at once, some in the middle."""
    draw = Random(f"{params.seed}/how")
    said = (
        "<tool_call>\nnonsense\n</tool_call>"
        if draw.random() < 0.1
        else "\n".join([CALL % draw.randint(0, 9)] * draw.choice([0, 1, 1, 2, 3]))
    )
    fails = draw.choice([None] * 6 + [0, 2, 9])
    return Script(said=f"{'think ' * draw.randint(0, 8)}{said or 'Lima'}<|im_end|>", fails_after=fails)


def grown(tokenizer: Any, timing: int | None, seed: int, **values: Any) -> Rollout:
    draw = Random(timing)
    slow = timing is not None
    tool = Flaky(latency=lambda: draw.choice([0.0, 0.1, draw.expovariate(1.0)]) if slow else 0.0)
    delay = (lambda: (draw.choice([0.0, draw.expovariate(2.0)]), draw.choice([0.0, 0.01, 0.1]))) if slow else None
    who = agent(tokenizer, play, tool, delay=delay, form=TemplateFormat)
    room = values.pop("room") + len(who.format(who.tools).render(task(), who.tools))
    (one,) = run(
        rollouts(who, config(branch_tokens=room, **values), seed=seed, stats=StepStats(step=3, window=(0.5, 1.2, 0.8)))
    )
    return one


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rule=st.sampled_from(RULES),
    leaves=st.integers(1, 9),
    roots=st.sampled_from([1, 2, 3, 5, Pilot()]),
    calls=st.integers(1, 6),
    retries=st.integers(0, 2),
    room=st.sampled_from([70, 150, 800]),
    at_limit=st.sampled_from(["tell", "end"]),
    seed=st.integers(0, 10**6),
    timing=st.integers(0, 10**6),
)
def test_leaves_add_up_whatever_fails(tokenizer, rule, leaves, roots, calls, retries, room, at_limit, seed, timing):
    roots = roots if isinstance(roots, Pilot) else min(roots, leaves)
    values = {"rule": rule, "leaves": leaves, "roots": roots, "max_calls": calls, "retries": retries, "room": room}
    one = grown(tokenizer, None, seed, at_call_limit=at_limit, **values)
    assert timeless(grown(tokenizer, timing, seed, at_call_limit=at_limit, **values)) == timeless(one)
    tree, growing = one.grown.tree, one.grown.expansion
    planned = one.grown.planned_roots
    assert growing.done and len(tree.endings) == leaves == planned + growing.num_branches + len(growing.fills)
    for root in range(planned):
        assert 1 <= sum(leaf[0] == root for leaf in tree.endings) <= growing.config.cap(planned)
    assert set(one.scored.scores) == {leaf for leaf, ending in tree.endings.items() if not ending.aborted}
    for tip, seen in tree.observations.items():
        asked = sum(len(tree.turns[tip[:depth]].calls) for depth in range(1, len(tip)))
        assert asked < calls and len(seen.outcomes) == len(tree.turns[tip].calls)
        assert all(outcome.status is not CallStatus.UNAVAILABLE for outcome in seen.outcomes), (
            "the model never reads of it"
        )
