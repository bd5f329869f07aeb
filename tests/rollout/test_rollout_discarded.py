"""Every call that ran is counted, also where the model never saw its result: calls are what a run is said to have
cost."""

import asyncio

import pytest

from arpo.chat.template import TemplateFormat
from arpo.core import CallStatus, StopReason
from arpo.core.credit import CreditedTree
from arpo.evaluation.generate import EvalQuestion, Generated, generate
from arpo.rollout.collect import record_of
from arpo.tools import ToolResult
from arpo.training.metrics import Metrics, TreeStats, step_metrics
from small_world import ANSWER, Search, agent, config, results_in, right, rollouts, search, task, unsure
from virtual_time import run

DOWN = ToolResult(text="quota used up", status=CallStatus.UNAVAILABLE)
BOTH = "".join(
    f'<tool_call>\n{{"name": "{n}", "arguments": {{"query": "x"}}}}\n</tool_call>' for n in ("lookup", "search")
)


def long() -> Search:
    return Search(reply=lambda query: "Lima " * 400)


def again(prompt, params):
    return search()


def measured(*found) -> Metrics:
    return step_metrics([TreeStats.from_rollout(one, CreditedTree(one.scored, {}, {})) for one in found])


def test_a_result_that_overflows_its_branch_was_paid_for(tokenizer):
    tool = long()
    (one,) = run(rollouts(agent(tokenizer, again, tool), config(leaves=1, roots=1, branch_tokens=300)))
    assert one.grown.tree.endings == {(0,): StopReason.BRANCH_LENGTH} and not one.grown.tree.observations
    figures = measured(one)
    assert tool.calls == figures["calls/executed"] == figures["calls/discarded"] == figures["outcomes/ok"] == 1
    assert figures["rates/tool_use"] == 1 and figures["calls/a_leaf"] == 1
    assert record_of(one).notes["discarded"] == {"0": ["search"]}


def test_so_was_a_call_beside_one_whose_provider_stayed_down(tokenizer):
    steady, flaky = Search(name="lookup"), Search(reply=lambda query: DOWN)
    who = agent(tokenizer, lambda prompt, params: f"{BOTH}<|im_end|>", steady, flaky, form=TemplateFormat)
    (one,) = run(rollouts(who, config(leaves=1, roots=1, turn_tokens=200)))
    assert one.grown.tree.endings == {(0,): StopReason.TOOL_FAILED} and steady.calls == 1 < flaky.calls
    figures = measured(one)
    assert figures["calls/executed"] == figures["calls/discarded"] == 1, "a provider that is down has run nothing"


@pytest.mark.parametrize("branch_tokens", [140, 2000])
def test_what_is_counted_is_what_tools_were_asked(tokenizer, branch_tokens):
    tool = Search()
    rules = config(leaves=8, roots=3, max_calls=4, branch_tokens=branch_tokens)
    found = run(rollouts(agent(tokenizer, unsure, tool), rules, *map(task, range(6))))
    figures = measured(*found)
    assert figures["calls/executed"] == tool.calls > 0
    assert (figures["calls/discarded"] > 0) == (branch_tokens < 2000)


def test_an_evaluation_counts_them_too(tokenizer):
    def play(prompt, params):
        return search() if results_in(tokenizer, prompt) < 1 else ANSWER

    for tool, ending in ((long(), "branch_length"), (Search(), "finished")):
        who = agent(tokenizer, play, tool)
        flat = config(branch_tokens=300).flat(leaves=1, temperature=1.0, top_p=1.0)

        async def generated(who=who, flat=flat) -> list[Generated]:
            return [
                each async for each in generate(who, [EvalQuestion("n", task(), 0)], right, flat, seed=0, in_flight=1)
            ]

        [only] = asyncio.run(generated())
        assert (only.sample.calls, only.sample.ending, tool.calls, len(only.outcomes)) == (1, ending, 1, 1)
