"""Tools with state: every branch has its own, shares its trunk's past, and all of them are closed at the end."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arpo.chat.template import TemplateFormat
from arpo.core import CallStatus, StepStats, StopReason
from arpo.errors import RewardError, ToolError
from arpo.rollout.collect import collect
from arpo.rollout.states import ToolStates, line_of
from arpo.tools import ToolBase, ToolResult
from small_world import (
    ANSWER,
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


@dataclass
class Ledger(ToolBase):
    """A tool that remembers what it was asked in a branch, and answers with all of it. Its states know whether they are
    open."""

    name: str = "search"
    description: str = "Writes down."
    latency: Callable[[], float] = lambda: 0.0
    broken: dict[str, list[Exception | float]] = field(default_factory=dict)  # what the next open, fork, ... does
    states: list["Pages"] = field(default_factory=list)

    schema = Search.schema

    async def _may_fail(self, what: str) -> None:
        await asyncio.sleep(self.latency())
        trouble = self.broken[what].pop(0) if self.broken.get(what) else 0.0
        if isinstance(trouble, Exception):
            raise trouble
        await asyncio.sleep(trouble)

    async def open(self, task):
        await self._may_fail("open")
        return self._new([str(task.setup)])

    async def fork(self, state):
        assert state.open
        lines = list(state.lines)
        await self._may_fail("fork")
        assert state.lines == lines, "the trunk went on while it was forked"
        return self._new(lines)

    async def close(self, state):
        assert state.open, "closed twice"
        state.open = False
        await self._may_fail("close")

    async def __call__(self, arguments, context):
        state = context.state
        assert state.open and not state.busy, "two calls at once in one state"
        state.busy = True
        await self._may_fail("call")
        state.busy = False
        state.lines.append(f"{arguments['query']}#{context.seed % 1000}")
        return ToolResult(text=" ".join(state.lines))

    def _new(self, lines: list[str]) -> "Pages":
        self.states.append(Pages(lines))
        return self.states[-1]

    @property
    def all_closed(self) -> bool:
        return bool(self.states) and not any(state.open for state in self.states)


@dataclass(eq=False)
class Pages:
    lines: list[str]
    open: bool = True
    busy: bool = False


def expected(branch: Any) -> list[str]:
    """What the ledger must hold at the end of a branch: what its own calls wrote, in order, nothing of any other
    branch."""
    lines = ["blank"]
    for seen in branch.observations:
        for outcome in seen.outcomes:
            lines.append(outcome.text.split()[-1])
            assert outcome.text.split() == lines
    return lines


def read_states(kept: dict) -> Any:
    async def reward(asked, said):
        assert said.states["search"].open
        kept[tuple(turn.text for turn in said.turns), said.outcomes] = list(said.states["search"].lines)
        return await right(asked, said)

    return reward


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rule=st.sampled_from(
        ["paper", {"rule": "fixed", "siblings": 2}, {"rule": "random", "rates": [0.8]}, "none", "aepo"]
    ),
    roots=st.sampled_from([1, 2, "pilot"]),
    seed=st.integers(0, 1000),
    timing=st.integers(0, 10**6),
)
def test_branches_share_the_past_of_their_trunk_and_nothing_else(tokenizer, rule, roots, seed, timing):
    draw = Random(timing)
    tool, kept = Ledger(latency=lambda: draw.expovariate(2.0)), {}
    who = agent(tokenizer, unsure, tool, delay=lambda: (draw.expovariate(2.0), draw.choice([0.0, 0.1])))
    rules = config(rule=rule, roots=roots, leaves=8, deadline_s=1e6)
    (one,) = run(rollouts(who, rules, task(setup="blank"), seed=seed, reward=read_states(kept)))
    for branch in one.grown.tree.branches():
        said = one.transcripts[branch.leaf]
        assert kept[tuple(turn.text for turn in said.turns), said.outcomes] == expected(branch)
    assert tool.all_closed
    still = Ledger()
    (again,) = run(rollouts(agent(tokenizer, unsure, still), rules, task(setup="blank"), seed=seed))
    assert timeless(again) == timeless(one)


def test_a_line_is_a_turn_with_the_probes_after_it():
    assert [line_of(p) for p in [(0,), (3, 0, 0), (0, 1), (0, 1, 0, 0), (0, 1, 0, 2, 0)]] == [
        (0,),
        (3,),
        (0, 1),
        (0, 1),
        (0, 1, 0, 2),
    ]


def test_a_sibling_granted_late_still_starts_from_the_tip(tokenizer):
    """The pilot has called twice more, and ended, when its first tip is decided: the sibling knows the first call
    alone."""

    def play(prompt, params):
        unsure_now = params.head > 0 and results_in(tokenizer, prompt) == 1
        calls = results_in(tokenizer, prompt) < 3
        script = search() if calls else Script(said=ANSWER)
        return Script(said=script.said, entropies=2.0 if unsure_now else 0.5)

    tool, kept = Ledger(), {}
    (one,) = run(
        rollouts(
            agent(tokenizer, play, tool), config(roots="pilot", leaves=6), task(setup="blank"), reward=read_states(kept)
        )
    )
    made = one.grown.expansion.decisions[0,]
    assert made.decided.waited and made.decided.granted == 1
    for branch in one.grown.tree.branches():
        assert len(expected(branch)) == 4
    assert sorted(map(len, kept.values())) == [4] * 6


def test_two_calls_of_one_turn_run_in_their_order_on_one_state(tokenizer):
    call = '<tool_call>\n{{"name": "search", "arguments": {{"query": "{}"}}}}\n</tool_call>'
    turns = iter(["".join(call.format(q) for q in "abc") + "<|im_end|>"])
    draw = Random(0)
    tool = Ledger(latency=lambda: draw.expovariate(1.0))
    who = agent(tokenizer, lambda prompt, params: next(turns, "Lima<|im_end|>"), tool, form=TemplateFormat)
    rules = config(leaves=1, roots=1, turn_tokens=300, deadline_s=1e6)
    (one,) = run(rollouts(who, rules, task(setup="blank")))
    assert [len(o.text.split()) for o in one.grown.tree.observations[0,].outcomes] == [2, 3, 4]


def test_states_are_captured_only_where_a_branch_may_start(tokenizer):
    def play(prompt, params):
        return Script(said=ANSWER) if results_in(tokenizer, prompt) > 1 else search()

    tool = Ledger()
    run(rollouts(agent(tokenizer, play, tool), config(rule="none", leaves=3, roots=3)))
    assert len(tool.states) == 3 and tool.all_closed  # one a branch
    tool = Ledger()
    run(rollouts(agent(tokenizer, play, tool), config(rule={"rule": "fixed", "at": 2}, leaves=2, roots=1)))
    assert len(tool.states) == 3 and tool.all_closed  # the root's, the one captured at its second tip, the sibling's


def test_a_branch_that_never_called_has_the_state_of_its_trunk(tokenizer):
    def play(prompt, params):
        return search(entropies=0.1) if not results_in(tokenizer, prompt) else Script(said=ANSWER, entropies=2.0)

    tool = Ledger()
    (one,) = run(rollouts(agent(tokenizer, play, tool), config(leaves=2, roots=1), task(setup="blank")))
    probe, sibling = (one.transcripts[leaf].states["search"] for leaf in [(0, 0), (0, 1)])
    assert probe.lines == sibling.lines and len(probe.lines) == 2 and probe is not sibling


@pytest.mark.parametrize("what", ["open", "fork"])
@pytest.mark.parametrize("trouble", [ToolError("no container"), 1e9], ids=["error", "hangs"])
def test_a_state_that_cannot_be_had_is_the_worlds_fault(tokenizer, what, trouble):
    for times, leaf, ending in ((1, (0, 0), StopReason.FINISHED), (9, (0,), StopReason.TOOL_FAILED)):
        tool = Ledger(broken={what: [trouble] * times})

        def play(prompt, params):
            return Script(said=ANSWER) if results_in(tokenizer, prompt) else search()

        (one,) = run(rollouts(agent(tokenizer, play, tool), config(leaves=1, roots=1, retries=1)))
        assert one.grown.tree.endings == {leaf: ending}
        reason = one.grown.failures[0][1]
        assert reason == (
            "no container" if isinstance(trouble, ToolError) else "the state of search was not there after 30 s"
        )
        assert not any(state.open for state in tool.states)
        if ending is StopReason.FINISHED:  # the call itself ran once, whatever came after it
            assert len(one.transcripts[leaf].states["search"].lines) == 2


def test_of_several_tools_states_all_are_had_or_none(tokenizer):
    first, second = Ledger(), Ledger(name="lookup", broken={"open": [ToolError("no container")] * 2})
    (one,) = run(
        rollouts(agent(tokenizer, lambda p, params: search(), first, second), config(leaves=1, roots=1, retries=1))
    )
    assert one.grown.tree.endings == {(0,): StopReason.TOOL_FAILED}
    assert len(first.states) == 2 and first.all_closed and not second.states


def test_a_leaf_whose_final_state_cannot_be_had_goes_without_a_score(tokenizer):
    tool = Ledger(broken={"open": [ToolError("no container")]})
    (one,) = run(rollouts(agent(tokenizer, lambda p, params: ANSWER, tool), config(rule="none", leaves=2, roots=2)))
    assert len(one.scored.scores) == 1 == len(one.transcripts)
    assert "no container" in one.grown.states.lost[0]


def test_a_state_that_does_not_close_is_noted_and_the_others_close(tokenizer):
    tool = Ledger(broken={"close": [ToolError("gone"), 1e9]})
    (one,) = run(rollouts(agent(tokenizer, unsure, tool), config()))
    assert tool.all_closed and len(one.scored.scores) == 4
    assert sorted(one.grown.states.lost) == [
        "search was not closed: gone",
        "search was not closed: not done after 30 s",
    ]


class Bug(Exception):
    pass


@pytest.mark.parametrize("what", ["open", "fork", "close"])
def test_a_bug_in_a_state_comes_out_and_all_others_are_closed(tokenizer, what):
    draw = Random(3)
    tool = Ledger(latency=lambda: draw.expovariate(1.0), broken={what: [0.0, Bug(what)]})
    with pytest.raises(Bug):
        run(
            rollouts(
                agent(tokenizer, unsure, tool),
                config(rule={"rule": "fixed"}, leaves=8, roots=4, deadline_s=1e6),
                seed=4,
            )
        )
    assert tool.all_closed


def test_states_close_when_a_reward_fails_but_not_before(tokenizer):
    async def reward(asked, said):
        assert said.states["search"].open
        await asyncio.sleep(len(said.turns))
        assert said.states["search"].open
        if len(said.turns) == 2:
            raise RuntimeError("no judge")
        return await right(asked, said)

    tool = Ledger()
    with pytest.raises(RewardError, match="no judge"):
        run(rollouts(agent(tokenizer, unsure, tool), config(leaves=8, roots=8, rule="none"), reward=reward))
    assert tool.all_closed


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 30), seed=st.integers(0, 100))
def test_states_close_whenever_the_run_is_cancelled(tokenizer, at, seed):
    draw = Random(seed)
    tool = Ledger(latency=lambda: draw.expovariate(1.0))
    who = agent(tokenizer, unsure, tool, delay=lambda: (draw.expovariate(1.0), 0.05))
    rules = config(rule={"rule": "fixed"}, leaves=6, roots=2, deadline_s=1e6)

    async def slow_reward(asked, said):
        await asyncio.sleep(3)
        return await right(asked, said)

    async def cancelled():
        running = asyncio.create_task(rollouts(who, rules, task(0), task(1), reward=slow_reward, seed=seed))
        await asyncio.sleep(at)
        running.cancel()
        await asyncio.wait({running})

    run(cancelled())
    assert not any(state.open for state in tool.states) and who.engine.live == 0


def test_a_task_brings_tools_documents_and_state(tokenizer):
    class Own(Search):
        async def __call__(self, arguments, context):
            return ToolResult(text=context.task.documents[0]["text"])

    own, general = Own(name="lookup"), Search(name="search")
    where = {1: "lookup", 2: "search"}

    def play(prompt, params):
        which = where.get(results_in(tokenizer, prompt) + 1)
        return f"<think>I look up.</think><{which}>Peru</{which}>" if which else ANSWER

    brought = task(1, tools=(own,), documents=({"title": "Peru", "text": "Lima, says the task"},))
    plain = task(0)
    first, second = run(rollouts(agent(tokenizer, play, general), config(leaves=1, roots=1), plain, brought))
    assert [o.status for seen in second.transcripts[0, 0, 0].outcomes for o in seen] == [CallStatus.OK, CallStatus.OK]
    assert second.transcripts[0, 0, 0].outcomes[0][0].text == "Lima, says the task"
    assert list(first.transcripts[(0,)].outcomes) == []  # without the tool its tag means nothing
    assert "<lookup>" in second.grown.chat.text(second.grown.tree.prompt.tokens)
    assert "<lookup>" not in first.grown.chat.text(first.grown.tree.prompt.tokens)


def test_a_tasks_tool_stands_in_for_the_agents_of_that_name(tokenizer):
    own, general = Search(reply=lambda query: "own"), Search(reply=lambda query: "general")

    def play(prompt, params):
        return ANSWER if results_in(tokenizer, prompt) else search()

    (one,) = run(rollouts(agent(tokenizer, play, general), config(leaves=1, roots=1), task(tools=(own,))))
    assert one.transcripts[0, 0].outcomes[0][0].text == "own" and general.calls == 0
    assert one.grown.chat.text(one.grown.tree.prompt.tokens).count("<search>") == 1


def test_stopping_early_closes_the_states_of_what_was_growing(tokenizer):
    draw = Random(1)
    tool = Ledger(latency=lambda: draw.expovariate(1.0))

    async def first():
        trees = collect(
            agent(tokenizer, unsure, tool),
            map(task, range(9)),
            right,
            config(),
            stats=StepStats(step=0),
            seed=0,
            in_flight=3,
        )
        async for one in trees:
            await trees.aclose()
            return one

    assert run(first()).task.id == "task-0"
    assert tool.all_closed


async def test_states_of_a_tool_need_not_be_asynchronous():
    class Counter:
        name, description, schema = "count", "Counts.", {"type": "object", "properties": {}}
        closed: ClassVar[list[list[int]]] = []

        def open(self, task):
            return [0]

        def fork(self, state):
            return list(state)

        def close(self, state):
            self.closed.append(state)

        def __call__(self, arguments, context):
            context.state[0] += 1
            return ToolResult(text=str(context.state[0]))

    states = ToolStates([Counter()], task(), 5.0)
    (await states.at((0,)))["count"][0] += 1
    await states.capture((0,))
    (await states.at((0, 0)))["count"][0] += 1
    assert (await states.at((0, 1)))["count"] == [1] and (await states.at((0,)))["count"] == [2]
    await states.close()
    assert sorted(Counter.closed) == [[1], [1], [2]]
