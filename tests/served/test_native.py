"""Messages and native tool calls: what an endpoint is sent, and what its messages say."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import arpo
from arpo.core.tree import CallStatus, FinishReason, ToolCallResult
from arpo.endpoint.client import Reply
from arpo.errors import FormatError
from arpo.served import Sampling
from arpo.served.native import NativeDialogue, estimate_tokens
from arpo.tasks import Task

TASK = Task(id="t", messages=({"role": "user", "content": "Capital of Peru?"},), answers=("Lima",))


@arpo.tool
def search(query: str) -> str:
    """Looks things up."""
    return query


@given(st.text(), st.text())
def test_an_estimate_is_at_most_that_of_the_parts(left: str, right: str) -> None:
    assert estimate_tokens(left + right) <= estimate_tokens(left) + estimate_tokens(right) <= len(left) + len(right)


def test_four_characters_of_english_and_one_of_chinese_are_a_token() -> None:
    assert estimate_tokens("abcdefgh") == 2 and estimate_tokens("秘鲁") == 2


def called(*calls: tuple[str, str], content: str | None = None) -> dict[str, Any]:
    made = [
        {"id": f"c{n}", "type": "function", "function": {"name": a, "arguments": b}} for n, (a, b) in enumerate(calls)
    ]
    return {"role": "assistant", "content": content, "tool_calls": made, "reasoning_content": "I look it up."}


class Scripted:
    """An endpoint that says one message."""

    def __init__(self, message: dict[str, Any], finish: str) -> None:
        self.reply = Reply(text="", finish=finish, message=message)

    async def chat(self, messages: Any, **fields: Any) -> Reply:
        self.asked = messages, fields
        return self.reply


async def test_a_conversation_goes_on_with_calls_and_their_results() -> None:
    dialogue = NativeDialogue(system="Be brief.", result_tokens=40)
    endpoint: Any = Scripted(called(("search", '{"query": "Peru"}'), ("search", '{"query": "利马"}')), "tool_calls")
    begun = dialogue.begin(TASK, [search])
    turn = await dialogue.ask(endpoint, begun, Sampling(max_tokens=5, temperature=0, top_p=1, seed=7))
    results = [
        ToolCallResult(tool="search", status=CallStatus.OK, text=text) for text in ('a "quoted"\nline', "x" * 500)
    ]
    context, text, seen = dialogue.observe(turn, results, 0)
    messages = context.messages
    assert endpoint.asked[1]["tools"][0]["function"]["name"] == "search"
    assert endpoint.asked[1]["seed"] is None and endpoint.asked[1]["top_p"] is None
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "tool", "tool"]
    assert "reasoning_content" not in messages[2] and turn.finish is FinishReason.STOP
    assert messages[3] == {"role": "tool", "tool_call_id": "c0", "content": 'a "quoted"\nline'}
    assert messages[4]["content"].endswith("…[cut]\n(No calls left: answer now.)") and len(messages[4]["content"]) < 250
    assert [result.cut for result in seen] == [False, True] and text.count("<tool_response>") == 2
    shown = dialogue.text(context)
    assert "user: Capital of Peru?" in shown and '<tool_call>search({"query": "利马"})</tool_call>' in shown
    assert begun.num_tokens < turn.context.num_tokens < context.num_tokens, (
        "estimates, where the endpoint counts nothing"
    )


def test_a_prompt_that_is_too_long_is_refused() -> None:
    with pytest.raises(FormatError, match=r"task t: the prompt has about \d+ tokens, more than chat.prompt_tokens = 5"):
        NativeDialogue(prompt_tokens=5).begin(TASK, [search])


@pytest.mark.parametrize(
    ("arguments", "error"),
    [('{"query": "x"}', ""), ("{broken", "not a JSON object"), ("[1]", "not a JSON object"), ("", "")],
)
def test_calls_are_read_and_broken_ones_say_why(arguments: str, error: str) -> None:
    said = NativeDialogue().parse(called(("search", arguments)), "tool_calls")
    assert said.calls[0].name == "search" and error in said.calls[0].error and said.well_formed is not bool(error)


def test_a_message_without_calls_is_the_answer() -> None:
    parse = NativeDialogue().parse
    assert parse({"content": "So it is \\boxed{Lima}."}, "stop").answer == "Lima"
    assert parse({"content": "<think>hm</think>Lima"}, "stop").answer == "Lima"
    assert not parse({"content": "Li"}, "length").well_formed
    nothing = parse({"content": None}, "stop")
    assert nothing.answer is None and not nothing.well_formed
