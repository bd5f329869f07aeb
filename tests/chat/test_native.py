"""The format of chat endpoints' own tool calls, and text as numbers without a vocabulary."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import arpo
from arpo.chat import packed
from arpo.chat.native import NativeFormat, conversation, turn_from_message
from arpo.core.tree import CallStatus, FinishReason, Role, ToolCallResult, Turn
from arpo.errors import FormatError
from arpo.tasks import Task
from arpo.tasks.traces import RecordedStep

TASK = Task(id="t", messages=({"role": "user", "content": "Capital of Peru?"},), answers=("Lima",))


@arpo.tool
def search(query: str) -> str:
    """Looks things up."""
    return query


@given(st.text(), st.text())
def test_packed_text_comes_back_whole_however_it_was_cut(left: str, right: str) -> None:
    clean = [text.encode("utf-8", "replace").decode().replace("\0", "\ufffd") for text in (left, right)]
    assert packed.decode([*packed.encode(left), *packed.encode(right)]) == "".join(clean)
    assert all(0 <= number < packed.SIZE for number in packed.encode(left))


def test_four_characters_of_english_and_one_of_chinese_are_a_number() -> None:
    assert len(packed.encode("abcdefgh")) == 2 and len(packed.encode("秘鲁")) == 2


def called(*calls: tuple[str, str], content: str | None = None) -> dict[str, Any]:
    made = [{"id": f"c{n}", "type": "function", "function": {"name": a, "arguments": b}} for n, (a, b) in enumerate(calls)]
    return {"role": "assistant", "content": content, "tool_calls": made, "reasoning_content": "I look it up."}


def turn(tokens: Any) -> Turn:
    return Turn(place=(0,), role=Role.ROOT, tokens=tokens, logprobs=tokens, entropies=tokens, finish=FinishReason.STOP)


def test_a_conversation_survives_the_way_through_the_tree() -> None:
    chat = NativeFormat([search], system="Be brief.", result_tokens=40)
    context = list(chat.render(TASK, [search]))
    written = turn_from_message(called(("search", '{"query": "Peru"}'), ("search", '{"query": "利马"}')), "tool_calls")
    results = [ToolCallResult(tool="search", status=CallStatus.OK, text=text) for text in ('a "quoted"\nline', "x" * 500)]
    observed, seen = chat.observe(turn(written), results, 0)
    messages, tools = conversation([*context, *written, *observed])
    assert [m["role"] for m in messages] == ["system", "user", "assistant", "tool", "tool"]
    assert "reasoning_content" not in messages[2] and "finish_reason" not in messages[2]
    assert messages[3] == {"role": "tool", "tool_call_id": "c0", "content": 'a "quoted"\nline'}
    assert messages[4]["content"].endswith("…[cut]\n(No calls left: answer now.)") and len(messages[4]["content"]) < 250
    assert [outcome.cut for outcome in seen] == [False, True] and tools[0]["function"]["name"] == "search"
    shown = chat.text([*context, *written, *observed])
    assert "user: Capital of Peru?" in shown and '<tool_call>search({"query": "利马"})</tool_call>' in shown


@pytest.mark.parametrize(
    ("arguments", "error"),
    [('{"query": "x"}', ""), ("{broken", "not a JSON object"), ("[1]", "not a JSON object"), ("", "")],
)
def test_calls_are_read_and_broken_ones_say_why(arguments: str, error: str) -> None:
    said = NativeFormat([search]).parse(turn_from_message(called(("search", arguments)), "tool_calls"))
    assert said.calls[0].name == "search" and error in said.calls[0].error and said.well_formed is not bool(error)


def test_a_message_without_calls_is_the_answer() -> None:
    chat = NativeFormat([])
    assert chat.parse(turn_from_message({"content": "So it is \\boxed{Lima}."}, "stop")).answer == "Lima"
    assert chat.parse(turn_from_message({"content": "<think>hm</think>Lima"}, "stop")).answer == "Lima"
    cut = chat.parse(turn_from_message({"content": "Li"}, "length"))
    assert not cut.well_formed
    nothing = chat.parse(turn_from_message({"content": None}, "stop"))
    assert nothing.answer is None and not nothing.well_formed


def test_a_demonstration_is_written_as_an_endpoint_would() -> None:
    chat = NativeFormat([search])
    call = chat.parse(turn_from_message(called(("search", json.dumps({"query": "Perú"}))), "stop")).calls[0]
    assert chat.parse(chat.encode_turn(chat.write(RecordedStep(thought="look", calls=(call,))))).calls == (call,)
    assert chat.parse(chat.encode_turn(chat.write(RecordedStep(answer="Lima")))).answer == "Lima"
    with pytest.raises(FormatError, match="as JSON"):
        chat.encode_turn("Lima")


def test_other_tokens_are_refused() -> None:
    with pytest.raises(FormatError, match="not of the format"):
        conversation(packed.encode("hello"))
