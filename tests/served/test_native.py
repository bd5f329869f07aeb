"""Messages and native tool calls: what an endpoint is sent, and what its messages say."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import arpo
from arpo.core.tree import CallStatus, FinishReason, ToolCallResult
from arpo.endpoint.client import Reply
from arpo.endpoint.config import EndpointConfig
from arpo.errors import ConfigError, FormatError
from arpo.served import Sampling
from arpo.served.native import NativeDialogue, endpoint_names, estimate_tokens
from arpo.tasks import Task
from arpo.tools.schemas import from_openai

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

    def __init__(self, message: dict[str, Any], finish: str, omit: tuple[str, ...] = ()) -> None:
        self.config = EndpointConfig(url="http://127.0.0.1/v1", model="m", options=dict.fromkeys(omit))
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
    assert messages[2]["reasoning_content"] == "I look it up." and turn.finish is FinishReason.STOP
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
    [
        ('{"query": "x"}', ""),
        ("{broken", "closing } is missing at the end ({broken)"),
        ("[1]", "not a JSON object"),
        ("", ""),
    ],
)
def test_calls_are_read_and_broken_ones_say_why(arguments: str, error: str) -> None:
    said = NativeDialogue().parse(called(("search", arguments)), "tool_calls")
    assert said.calls[0].name == "search" and error in said.calls[0].error and said.well_formed is not bool(error)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)
CALLS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "id": st.sampled_from(["call_0", "call_1", "", None, 3]),
            "function": st.fixed_dictionaries({}, optional={"name": JSON, "arguments": JSON | JSON.map(json.dumps)}),
        },
    ),
    min_size=1,
    max_size=4,
)


@given(CALLS)
async def test_whatever_a_model_calls_goes_back_as_endpoints_take_it(calls: list[dict[str, Any]]) -> None:
    """Valid JSON, names and ids, a result for each id; what was wrong with a call is its error."""
    dialogue, endpoint = NativeDialogue(), Scripted({"content": None, "tool_calls": calls}, "tool_calls")
    asked: Any = endpoint
    turn = await dialogue.ask(
        asked, dialogue.begin(TASK, [search]), Sampling(max_tokens=5, temperature=0, top_p=1, seed=7)
    )
    results = [ToolCallResult(tool="x", status=CallStatus.OK, text="r") for _ in turn.parsed.calls]
    context, _, _ = dialogue.observe(turn, results, None)
    message, *answers = context.messages[1:]
    sent = message["tool_calls"]
    assert [answer["tool_call_id"] for answer in answers] == [call["id"] for call in sent]
    assert len({call["id"] for call in sent}) == len(sent) == len(calls)
    for call, parsed in zip(sent, turn.parsed.calls, strict=True):
        assert call["id"] and re.fullmatch(r"[A-Za-z0-9_-]{1,64}", call["function"]["name"])
        arguments = json.loads(call["function"]["arguments"])
        assert isinstance(arguments, dict) and (parsed.error or arguments == parsed.arguments)


@given(st.lists(st.text(max_size=3) | st.text("a.b/_", min_size=60, max_size=70), unique=True))
def test_names_that_an_endpoint_forbids_are_mapped_both_ways(names: list[str]) -> None:
    mapped = endpoint_names(names)
    assert list(mapped.values()) == names and all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) for name in mapped)
    assert all(mapped[name] == name for name in names if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name))


async def test_a_tool_is_called_by_the_name_that_the_endpoint_knows() -> None:
    tool = from_openai(lambda path: path, {"name": "files.read/any file", "parameters": {"type": "object"}})
    dialogue, endpoint = NativeDialogue(), Scripted(called(("files_read_any_file", "{}")), "tool_calls")
    asked: Any = endpoint
    turn = await dialogue.ask(
        asked, dialogue.begin(TASK, [tool]), Sampling(max_tokens=5, temperature=0, top_p=1, seed=7)
    )
    assert endpoint.asked[1]["tools"][0]["function"]["name"] == "files_read_any_file"
    assert turn.parsed.calls[0].name == "files.read/any file"
    with pytest.raises(ConfigError, match="two tools have one name"):
        dialogue.begin(TASK, [search, search])


@pytest.mark.parametrize("omit", [(), ("reasoning_content",)])
async def test_content_as_parts_is_read_and_goes_back_as_it_came(omit: tuple[str, ...]) -> None:
    parts = [
        {"type": "thinking", "thinking": "hm"},
        {"type": "text", "text": "It is "},
        {"type": "text", "text": "Lima"},
    ]
    dialogue = NativeDialogue()
    endpoint: Any = Scripted({"content": parts, "reasoning_content": "Peru?"}, "stop", omit)
    turn = await dialogue.ask(
        endpoint, dialogue.begin(TASK, []), Sampling(max_tokens=5, temperature=0, top_p=1, seed=7)
    )
    assert turn.parsed.answer == "It is Lima" and "<think>Peru?</think>" in turn.parsed.text
    message = turn.context.messages[-1]
    assert message["content"] == parts and ("reasoning_content" in message) is not bool(omit)


def test_a_message_without_calls_is_the_answer() -> None:
    parse = NativeDialogue().parse
    assert parse({"content": "So it is \\boxed{Lima}."}, "stop").answer == "Lima"
    assert parse({"content": "<think>hm</think>Lima"}, "stop").answer == "Lima"
    assert not parse({"content": "Li"}, "length").well_formed
    nothing = parse({"content": None}, "stop")
    assert nothing.answer is None and not nothing.well_formed
