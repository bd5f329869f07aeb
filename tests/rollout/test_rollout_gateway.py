"""Rollouts under limits and from a record: the world's troubles pause or stop a run, and never turn into what is
trained on."""

import asyncio
from dataclasses import replace

import pytest

from arpo.core import CallStatus, StopReason
from arpo.core.record import decode, encode, replay
from arpo.errors import ProviderError, ToolError, ToolsStoppedError
from arpo.rollout.collect import check_scored, record_of
from arpo.tools.config import ToolsConfig
from arpo.tools.gateway import build_gateway
from arpo.training.metrics import TreeStats, step_metrics
from small_world import Search, agent, config, rollouts, statuses, task, timeless, unsure
from virtual_time import run

TASKS = [task(number) for number in range(4)]


class Web(Search):
    cacheable = True


def with_gateway(tokenizer, tool, play=unsure, **settings):
    who = agent(tokenizer, play, tool)
    return replace(who, tool_gateway=build_gateway(ToolsConfig(offered=(tool,), **settings), [(tool,)]))


def grown(tokenizer, tool, rules, **settings):
    return asyncio.run(rollouts(with_gateway(tokenizer, tool, **settings), rules, *TASKS))


def test_training_a_second_time_costs_no_call_and_grows_the_same_trees(tokenizer, tmp_path):
    file = {"cache": {"file": str(tmp_path / "record.sqlite")}}
    rules, first, second, third = config(leaves=6, roots=3, rule="released"), Web(), Web(), Web()
    once = grown(tokenizer, first, rules, mode="record", **file)
    again = grown(tokenizer, second, rules, mode="replay", **file)
    assert first.calls > 0 and second.calls == 0
    assert [timeless(one) for one in once] == [timeless(one) for one in again]
    grown(tokenizer, third, rules, mode="record", **file)
    assert third.calls == 0, "a record is taken up where it ended"


def test_a_call_that_was_not_recorded_ends_its_branch_under_that_name(tokenizer, tmp_path):
    file = {"cache": {"file": str(tmp_path / "record.sqlite")}}
    rules = config(leaves=4, roots=4, rule="none")
    asyncio.run(rollouts(with_gateway(tokenizer, Web(), mode="record", **file), rules, task(0)))
    missed = grown(tokenizer, tool := Web(), rules, mode="replay", **file)
    endings = [ending for one in missed for ending in one.grown.tree.endings.values()]
    assert StopReason.REPLAY_MISS in endings and StopReason.TOOL_FAILED not in endings and tool.calls == 0
    for one in missed:
        lost = {leaf for leaf, ending in one.grown.tree.endings.items() if ending is StopReason.REPLAY_MISS}
        assert lost.isdisjoint(one.scored.scores), "what was not recorded is nobody's fault"
        assert len(one.grown.failures) == len(lost), "and not asked for a second time"
        (again,) = decode(encode(record_of(one)))
        assert replay(again) == one.grown.tree
    empty = [one for one in missed if not one.scored.scores]
    if empty:
        with pytest.raises(ToolError, match="is not in the record"):
            check_scored(empty, "step 1")


def test_an_error_is_told_in_short_counted_and_kept_in_the_record(tokenizer):
    def broken(query):
        raise ToolError("the page " + "x" * 10_000 + " does not exist")

    (one,) = run(rollouts(agent(tokenizer, unsure, Search(reply=broken)), config()))
    place = next(iter(one.grown.tree.observations))
    (outcome,) = one.grown.tree.observations[place].outcomes
    assert outcome.status is CallStatus.ERROR and outcome.fault == "told" and len(outcome.text) <= 500
    shown = one.grown.chat.text(one.grown.tree.observations[place].tokens)
    assert "the page xxx" in shown
    (again,) = decode(encode(record_of(one)))
    assert again.tree.observations[place].outcomes[0].fault == "told"
    figures = step_metrics([TreeStats.from_rollout(one, _credited(one))])
    assert figures["faults/told"] == figures["outcomes/error"] > 0


def _credited(one):
    from arpo.core.credit import AdvantageConfig, credit

    return credit([one.scored], AdvantageConfig())[0]


def test_while_a_provider_is_down_branches_wait_and_lose_nothing(tokenizer):
    class Down(Search):
        async def __call__(self, arguments, context):
            if asyncio.get_running_loop().time() < 300:
                raise ProviderError("503", provider="web")
            return await super().__call__(arguments, context)

    said = []
    who = agent(tokenizer, unsure, Down())
    who.tool_gateway.tell = lambda text, level: said.append(text)
    calm = run(rollouts(agent(tokenizer, unsure, Search()), config(), *TASKS))
    paused = run(rollouts(who, config(), *TASKS))
    assert [timeless(one) for one in paused] == [timeless(one) for one in calm]
    assert len(said) == 2 and "paused" in said[0] and "answers again" in said[1]
    assert not any(one.grown.failures for one in paused)
    assert all(
        s is not CallStatus.UNAVAILABLE for one in paused for p in one.grown.tree.observations for s in statuses(one, p)
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"calls": 3}, "budget for calls of tools is used up"), ({"error_rate": 0.5}, "KeyError")],
)
def test_what_stops_the_run_comes_out_as_it_is(tokenizer, settings, words, monkeypatch):
    monkeypatch.setattr("arpo.tools.gateway.ERROR_WINDOW", 4)

    def reply(query):
        if "error_rate" in settings:
            raise KeyError("broken")
        return "fine"

    who = with_gateway(tokenizer, Search(reply=reply), limits=settings)
    with pytest.raises(ToolsStoppedError, match=words):
        run(rollouts(who, config(leaves=8, roots=8, rule="none"), *TASKS))
