"""The limits of a branch: calls, tokens of a turn, tokens in all. None of them ever adds a token that is trained on."""

from itertools import chain

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arpo.chat.template import TemplateFormat
from arpo.core import CallStatus, FinishReason, StopReason
from arpo.errors import ConfigError
from small_world import (
    ANSWER,
    SEARCH,
    Script,
    Search,
    agent,
    config,
    results_in,
    rollouts,
    search,
    statuses,
    task,
    unsure,
)
from virtual_time import run

CALL = '<tool_call>\n{"name": "search", "arguments": {"query": "Peru"}}\n</tool_call>'
TOLD = "(No calls left: answer now.)"


def restless(prompt, params):
    return search()


def grown(tokenizer, play, *tools, form=None, **values):
    who = agent(tokenizer, play, *tools, **({"form": form} if form else {}))
    (one,) = run(rollouts(who, config(**{"leaves": 1, "roots": 1, **values})))
    return one


@pytest.mark.parametrize("at_limit", ["tell", "end"])
def test_a_call_beyond_the_limit_ends_the_branch_and_never_runs(tokenizer, at_limit):
    tool = Search()
    one = grown(tokenizer, restless, tool, max_calls=2, at_call_limit=at_limit)
    assert one.grown.tree.endings == {(0, 0, 0): StopReason.CALL_LIMIT}
    assert tool.calls == 2 and len(one.grown.tree.observations) == 2
    shown = [one.grown.chat.text(seen.tokens) for _, seen in sorted(one.grown.tree.observations.items())]
    assert [TOLD in text for text in shown] == [False, at_limit == "tell"]


def test_told_that_no_calls_are_left_the_model_may_answer(tokenizer):
    def obedient(prompt, params):
        return Script(said=ANSWER) if TOLD in tokenizer.decode(list(prompt)) else search()

    one = grown(tokenizer, obedient, max_calls=3)
    assert one.grown.tree.endings == {(0, 0, 0, 0): StopReason.FINISHED}
    assert one.scored.scores[0, 0, 0, 0].accuracy == 1.0


def test_without_calls_a_first_call_ends_the_branch(tokenizer):
    tool = Search()
    one = grown(tokenizer, restless, tool, max_calls=0, rule="none")
    assert one.grown.tree.endings == {(0,): StopReason.CALL_LIMIT} and tool.calls == 0


def test_of_several_calls_in_a_turn_those_beyond_the_limit_are_refused(tokenizer):
    tool = Search()

    def play(prompt, params):
        return f"{CALL}\n{CALL}\n{CALL}<|im_end|>"

    one = grown(tokenizer, play, tool, form=TemplateFormat, max_calls=2, turn_tokens=300)
    assert statuses(one, (0,)) == [CallStatus.OK, CallStatus.OK, CallStatus.REFUSED]
    assert tool.calls == 2 and one.grown.tree.endings == {(0, 0): StopReason.CALL_LIMIT}
    text = one.grown.chat.text(one.grown.tree.observations[0,].tokens)
    assert TOLD in text and "this one did not run" in text


def test_refused_and_malformed_calls_count_too(tokenizer):
    """Else a model that writes nonsense would go on for ever."""
    tool = Search()

    def play(prompt, params):
        return "<tool_call>\n{nonsense}\n</tool_call><|im_end|>"

    one = grown(tokenizer, play, tool, form=TemplateFormat, max_calls=2)
    assert one.grown.tree.endings == {(0, 0, 0): StopReason.CALL_LIMIT} and tool.calls == 0
    assert statuses(one, (0,)) == [CallStatus.REFUSED]


def test_a_turn_that_reaches_its_limit_ends_the_branch_without_running_calls(tokenizer):
    tool = Search()
    one = grown(tokenizer, lambda prompt, params: Script(said="Lima " * 100 + SEARCH), tool, turn_tokens=30)
    turn = one.grown.tree.turns[0,]
    assert one.grown.tree.endings == {(0,): StopReason.TURN_LENGTH}
    assert (len(turn.tokens), turn.finish, turn.calls, tool.calls) == (30, FinishReason.LENGTH, (), 0)


def test_a_result_that_fills_the_branch_makes_its_turn_the_leaf(tokenizer):
    long = Search(reply=lambda query: "Lima " * 400)
    one = grown(tokenizer, restless, long, branch_tokens=300)
    assert one.grown.tree.endings == {(0,): StopReason.BRANCH_LENGTH} and not one.grown.tree.observations


def test_a_result_that_leaves_no_room_for_a_token_ends_the_branch_and_one_token_is_room(tokenizer):
    whole = grown(tokenizer, restless, max_calls=2)
    used = len(whole.grown.tree.context((0,)))
    for room, leaf in [(0, (0,)), (1, (0, 0))]:
        one = grown(tokenizer, restless, max_calls=2, branch_tokens=used + room)
        assert one.grown.tree.endings == {leaf: StopReason.BRANCH_LENGTH}


def test_a_turn_that_fills_the_branch_calls_nobody(tokenizer):
    """Its result could not be read any more, so the call would be for nothing."""
    tool = Search()
    probe = grown(tokenizer, restless, tool, max_calls=0, rule="none")
    exact = len(probe.grown.tree.prompt.tokens) + len(probe.grown.tree.turns[0,].tokens)
    one = grown(tokenizer, restless, tool, branch_tokens=exact, turn_tokens=exact - 1)
    assert one.grown.tree.endings == {(0,): StopReason.BRANCH_LENGTH} and tool.calls == 0


def test_the_room_left_in_the_branch_limits_a_turn(tokenizer):
    def play(prompt, params):
        return Script(said="Lima " * 100) if results_in(tokenizer, prompt) else search()

    whole = grown(tokenizer, play, turn_tokens=60)
    used = len(whole.grown.tree.context((0,)))
    one = grown(tokenizer, play, turn_tokens=60, branch_tokens=used + 7)
    assert one.grown.tree.endings == {(0, 0): StopReason.BRANCH_LENGTH}
    assert len(one.grown.tree.turns[0, 0].tokens) == 7


def test_a_prompt_longer_than_the_branch_is_the_users_mistake(tokenizer):
    length = len(grown(tokenizer, unsure).grown.tree.prompt.tokens)
    with pytest.raises(ConfigError, match=r"task-0.*no room for a turn") as caught:
        grown(tokenizer, unsure, branch_tokens=length, turn_tokens=length - 1)
    assert caught.value.value == length
    one = grown(tokenizer, unsure, branch_tokens=length + 1, turn_tokens=length)
    assert one.grown.tree.endings == {(0,): StopReason.BRANCH_LENGTH}


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 10**6),
    turn=st.integers(4, 40),
    more=st.integers(1, 300),
    calls=st.integers(0, 4),
    at_limit=st.sampled_from(["tell", "end"]),
    form=st.sampled_from(["tags", "template"]),
)
def test_no_limit_is_ever_passed_and_all_that_is_trained_on_was_sampled(
    tokenizer, seed, turn, more, calls, at_limit, form
):
    """Defect 12 among others: every token of a turn, and no other token, came from the engine."""
    sampled: dict[int, list] = {}

    class Watched:
        def __init__(self, inner):
            self.inner = inner

        async def sample(self, prompt, params):
            said = sampled.setdefault(params.seed, [])
            async for chunk in self.inner.sample(prompt, params):
                said.extend(chunk.tokens)
                yield chunk

    def hermes(prompt, params):
        script = unsure(prompt, params)
        return f"{CALL}\n" * (params.seed % 3) + f"{script.said}<|im_end|>"

    values = {"form": TemplateFormat} if form == "template" else {}
    who = agent(tokenizer, hermes if values else unsure, **values)
    length = len(who.format(who.tools).render(task(), who.tools))
    who = type(who)(engine=Watched(who.engine), tools=who.tools, format=who.format, vocab_size=who.vocab_size)
    limits = {
        "turn_tokens": turn,
        "branch_tokens": max(turn + 1, length + more),
        "max_calls": calls,
        "at_call_limit": at_limit,
    }
    (one,) = run(rollouts(who, config(rule="none", leaves=5, roots=5, **limits), seed=seed))
    for branch in one.grown.tree.branches():
        assert len(branch.tokens) <= limits["branch_tokens"]
        assert all(len(turn_.tokens) <= turn for turn_ in branch.turns)
        ran = [
            o
            for o in chain.from_iterable(seen.outcomes for seen in branch.observations)
            if o.status is not CallStatus.REFUSED
        ]
        assert len(ran) <= calls
    turns = sorted(list(turn_.tokens) for turn_ in one.grown.tree.turns.values())
    assert turns == sorted(sampled.values())
