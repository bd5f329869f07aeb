"""What the world does wrong ends a leaf at worst; what is a bug comes out as itself. Nothing hangs, nothing stays
behind."""

import asyncio
from dataclasses import replace

import pytest

from arpo.chat.template import TemplateFormat
from arpo.core import CallStatus, Decision, Failed, FinishReason, HeadKnown, Role, StopReason
from arpo.engines import Chunk
from arpo.errors import ConfigError, EngineError, RewardError
from arpo.tools import ToolResult
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
    statuses,
    task,
    unsure,
)
from virtual_time import run

DOWN = ToolResult(text="quota used up", status=CallStatus.UNAVAILABLE)


def one_leaf(**values):
    return config(**{"leaves": 1, "roots": 1, **values})


def failing(times: int, script: Script, seeds: list | None = None):
    """Plays `script`, but fails after two tokens for the first `times` requests."""
    left = [times]

    def play(prompt, params):
        if seeds is not None:
            seeds.append(params.seed)
        left[0] -= 1
        return replace(script, fails_after=2 if left[0] >= 0 else None)

    return play


def test_a_failed_request_is_asked_again_under_another_key(tokenizer):
    seeds: list[int] = []
    (one,) = run(rollouts(agent(tokenizer, failing(2, Script(said=ANSWER), seeds)), one_leaf(retries=2)))
    assert one.grown.tree.endings == {(0,): StopReason.FINISHED}
    assert len(set(seeds)) == 3
    assert [place for place, _ in one.grown.failures] == [(0,), (0,)]
    assert "fails after 2 tokens" in one.grown.failures[0][1]


def test_a_request_that_always_fails_leaves_a_leaf_without_a_score(tokenizer):
    (one,) = run(
        rollouts(agent(tokenizer, failing(99, Script(said=ANSWER))), config(leaves=2, roots=2, rule="none", retries=1))
    )
    assert one.grown.tree.endings == {(0,): StopReason.ENGINE_FAILED, (1,): StopReason.ENGINE_FAILED}
    assert one.scored.scores == {} == one.transcripts
    assert len(one.grown.failures) == 4


def test_an_answer_that_breaks_off_is_a_failure_and_no_turn(tokenizer):
    class Broken:
        def __init__(self, inner):
            self.inner = inner

        async def sample(self, prompt, params):
            async for chunk in self.inner.sample(prompt, params):
                if chunk.finish is None:
                    yield chunk

    who = agent(tokenizer, unsure)
    (one,) = run(rollouts(replace(who, engine=Broken(who.engine)), one_leaf()))
    assert one.grown.tree.endings == {(0,): StopReason.ENGINE_FAILED} and not one.grown.tree.turns
    assert one.grown.failures[0] == ((0,), "the engine's answer broke off")


def test_a_probe_that_fails_after_its_head_keeps_its_sibling(tokenizer):
    def play(prompt, params):
        if not results_in(tokenizer, prompt):
            return search(entropies=0.1)
        long = Script(said="<think>Lima it is, so I am done.</think>" + ANSWER, entropies=2.0)
        return replace(long, fails_after=12) if params.head else long

    (one,) = run(rollouts(agent(tokenizer, play), config(leaves=2, roots=1, head=2, retries=1)))
    assert one.grown.tree.endings == {(0, 0): StopReason.ENGINE_FAILED, (0, 1): StopReason.FINISHED}
    assert list(one.scored.scores) == [(0, 1)]


def test_a_probe_asked_again_is_judged_by_its_head_like_any_other(tokenizer):
    """Its first answer ended before a single token. The sibling starts at the head of the second, not at its end."""

    class Empty:
        def __init__(self, inner):
            self.inner, self.left = inner, 1

        async def sample(self, prompt, params):
            async for chunk in self.inner.sample(prompt, params):
                if params.head and self.left:
                    self.left -= 1
                    yield Chunk(tokens=(), logprobs=(), entropies=(), version=0, finish=FinishReason.STOP)
                    return
                yield chunk

    def play(prompt, params):
        if not results_in(tokenizer, prompt):
            return search(entropies=0.1)
        return Script(said="<think>Lima it is, so I am done.</think>" + ANSWER, entropies=2.0)

    who = agent(tokenizer, play)
    (one,) = run(rollouts(replace(who, engine=Empty(who.engine)), config(leaves=2, roots=1, head=2)))
    assert [place for place, _ in one.grown.failures] == [(0, 0)]
    assert [event.place for event in one.grown.expansion.events if isinstance(event, HeadKnown)] == [(0, 0)]
    assert one.grown.tree.leaves() == [(0, 0), (0, 1)]


def test_a_provider_that_is_down_is_asked_again_and_then_ends_the_leaf(tokenizer):
    tool = Search(reply=lambda query: DOWN)
    (one,) = run(rollouts(agent(tokenizer, unsure_search, tool), one_leaf(retries=2)))
    assert one.grown.tree.endings == {(0,): StopReason.TOOL_FAILED} and tool.calls == 3
    assert one.scored.scores == {} and not one.grown.tree.observations
    assert one.grown.failures == (((0,), "search: quota used up"),) * 3


def unsure_search(prompt, params):
    return search()


def test_a_provider_that_comes_back_is_no_failure(tokenizer):
    replies = iter([DOWN, "Lima"])
    seeds: list[int] = []

    class Seen(Search):
        async def __call__(self, arguments, context):
            seeds.append(context.seed)
            return await super().__call__(arguments, context)

    def play(prompt, params):
        return Script(said=ANSWER) if results_in(tokenizer, prompt) else search()

    (one,) = run(rollouts(agent(tokenizer, play, Seen(reply=lambda query: next(replies))), one_leaf()))
    assert one.grown.tree.endings == {(0, 0): StopReason.FINISHED} and statuses(one, (0,)) == [CallStatus.OK]
    assert len(set(seeds)) == 2
    assert Failed((0,), StopReason.TOOL_FAILED) in one.grown.expansion.events


def test_calls_that_came_to_an_outcome_are_not_repeated_for_one_that_did_not(tokenizer):
    """A call may have cost money or changed the world: when its neighbour's provider was down, only the neighbour runs
    again."""
    replies = iter([DOWN, "Lima"])
    steady, flaky = Search(name="lookup"), Search(reply=lambda query: next(replies))
    both = "".join(
        f'<tool_call>\n{{"name": "{n}", "arguments": {{"query": "x"}}}}\n</tool_call>' for n in ("lookup", "search")
    )
    turns = iter([f"{both}<|im_end|>"])
    who = agent(tokenizer, lambda prompt, params: next(turns, "Lima<|im_end|>"), steady, flaky, form=TemplateFormat)
    (one,) = run(rollouts(who, one_leaf(turn_tokens=200)))
    assert (steady.calls, flaky.calls) == (1, 2)
    assert [o.tool for o in one.grown.tree.observations[0,].outcomes] == ["lookup", "search"]


def test_a_deadline_of_the_recipe_holds_for_tools_without_their_own(tokenizer):
    """Function tools have a deadline of None, which means: the recipe's."""
    slow = Search(latency=lambda: 1e6)
    slow.deadline_s = None
    (one,) = run(rollouts(agent(tokenizer, unsure_search, slow), one_leaf(max_calls=1, deadline_s=3)))
    assert statuses(one, (0,)) == [CallStatus.TIMEOUT]
    assert one.grown.tool_s > 0


class Bug(Exception):
    pass


class BuggyRule:
    def __call__(self, tip, stats, random):
        raise Bug("in a rule")

    def most(self, depth):
        return 1


class BuggyEngine:
    """Fails in the third request, while the others hang until they are cancelled."""

    def __init__(self):
        self.requests, self.closed = 0, 0

    async def sample(self, prompt, params):
        self.requests += 1
        number = self.requests
        try:
            if number == 3:
                await asyncio.sleep(1)
                raise Bug("in an engine")
            await asyncio.sleep(1e9)
            yield None
        finally:
            self.closed += 1


def test_a_bug_in_an_engine_comes_out_as_itself_and_cancels_everything(tokenizer):
    engine = BuggyEngine()
    who = replace(agent(tokenizer, unsure), engine=engine)
    with pytest.raises(Bug, match="in an engine"):
        run(rollouts(who, config(leaves=4, roots=4, rule="none"), task(0), task(1)))
    assert engine.requests == engine.closed == 8


def test_a_bug_in_a_rule_comes_out_as_itself_and_closes_the_engines_requests(tokenizer):
    who = agent(
        tokenizer, lambda p, params: search() if not results_in(tokenizer, p) else Script(said=ANSWER * 20, token_s=1)
    )
    with pytest.raises(Bug, match="in a rule"):
        run(rollouts(who, config(rule=BuggyRule(), leaves=4, roots=3)))
    assert who.engine.live == 0


def test_an_own_rule_branches(tokenizer):
    class Always:
        def __call__(self, tip, stats, random):
            return Decision(wanted=1, score=0.0)

        def most(self, depth):
            return 1 if depth == 1 else 0

    def play(prompt, params):
        return Script(said=ANSWER) if results_in(tokenizer, prompt) else search()

    (one,) = run(rollouts(agent(tokenizer, play), config(rule=Always(), leaves=4, roots=2)))
    assert [one.grown.tree.turns[p].role for p in one.grown.tree.leaves()] == [Role.PROBE, Role.SIBLING] * 2


def test_a_mistake_of_the_user_in_an_engine_is_a_config_error(tokenizer):
    with pytest.raises(ConfigError, match="must say something"):
        run(rollouts(agent(tokenizer, lambda prompt, params: ""), one_leaf()))


def test_a_chunk_whose_arrays_do_not_fit_is_a_bug_of_the_engine(tokenizer):
    class Short:
        def __init__(self, inner):
            self.inner = inner

        async def sample(self, prompt, params):
            async for chunk in self.inner.sample(prompt, params):
                yield replace(chunk, logprobs=chunk.logprobs[:-1])

    who = agent(tokenizer, unsure)
    with pytest.raises(ValueError, match="an engine's chunk"):
        run(rollouts(replace(who, engine=Short(who.engine)), one_leaf()))


def test_a_reward_that_fails_is_a_reward_error_and_cancels_the_others(tokenizer):
    cancelled = []

    async def reward(asked, said):
        if asked.id == "task-1":
            raise RuntimeError("no judge")
        try:
            await asyncio.sleep(20 if asked.id == "task-2" else 0)
        except asyncio.CancelledError:
            cancelled.append(asked.id)
            raise
        return await right(asked, said)

    with pytest.raises(RewardError, match=r"task-1.*no judge"):
        run(rollouts(agent(tokenizer, unsure), one_leaf(), task(0), task(1), task(2), reward=reward))
    assert cancelled == ["task-2"]


def test_a_closed_engine_ends_all_leaves_with_its_reason(tokenizer):
    who = agent(tokenizer, unsure)

    async def closed():
        await who.engine.close()
        return await rollouts(who, config())

    (one,) = run(closed())
    assert all(ending is StopReason.ENGINE_FAILED for ending in one.grown.tree.endings.values())
    assert {reason for _, reason in one.grown.failures} == {"the engine is closed"}
    assert issubclass(EngineError, Exception) and one.grown.expansion.done
