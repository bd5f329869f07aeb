"""Chat completions as a server reads and writes them: the official client's models take every answer, whole or
streamed, and a bad request is answered with the field that is wrong."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from arpo.chat.openai_wire import (
    ChatRequest,
    WireError,
    assistant_message,
    calls_of,
    chunk,
    completion,
    deltas,
    event,
)
from arpo.core.tree import Call

texts = st.text(max_size=20)
values = st.recursive(st.none() | st.booleans() | st.integers() | texts, lambda inner: st.lists(inner, max_size=3))
calls = st.lists(
    st.builds(
        Call,
        name=st.sampled_from(["search", "f"]),
        arguments=st.dictionaries(texts, values, max_size=3),
        id=st.from_regex(r"[a-z0-9_]{1,8}", fullmatch=True),
    ),
    max_size=3,
)
ABOUT: dict[str, Any] = {"id": "chatcmpl-1", "model": "arpo", "created": 0}


@given(content=texts, made=calls)
def test_a_message_is_the_same_whole_and_streamed(content: str, made: list[Call]) -> None:
    message = assistant_message(content, made)
    assert [(c.name, c.arguments, c.id) for c in calls_of(message)] == [(c.name, c.arguments, c.id) for c in made]
    finish: Any = "tool_calls" if made else "stop"
    whole = ChatCompletion.model_validate(completion(message, finish, **ABOUT)).choices[0]
    pieces = [chunk(delta, **ABOUT) for delta in deltas(message)] + [chunk({}, finish, **ABOUT)]
    read = []
    for piece in pieces:
        line = event(piece).decode()
        assert line.startswith("data: ") and line.endswith("\n\n") and line.count("\n") == 2
        read.append(ChatCompletionChunk.model_validate(json.loads(line[6:])).choices[0])
    assert "".join(piece.delta.content or "" for piece in read) == (whole.message.content or "")
    streamed = [call.function for piece in read for call in piece.delta.tool_calls or () if call.function]
    expected = [call.function for call in whole.message.tool_calls or () if call.type == "function"]
    assert [(f.name, f.arguments) for f in streamed] == [(f.name, f.arguments) for f in expected]
    assert [piece.finish_reason for piece in read if piece.finish_reason] == [whole.finish_reason] == [finish]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"no", None),
        (b"[]", None),
        (b"{}", "messages"),
        (b'{"messages": []}', "messages"),
        (b'{"messages": [{"content": "a"}]}', "messages.0"),
        (b'{"messages": [{"role": "user", "content": 3}]}', "messages.0"),
        (b'{"messages": [{"role": "user", "content": "a"}], "n": 2}', "n"),
        (b'{"messages": [{"role": "user", "content": "a"}], "temperature": -1}', "temperature"),
    ],
)
def test_a_bad_request_names_its_field(body: bytes, param: str | None) -> None:
    with pytest.raises(WireError) as told:
        ChatRequest.read(body)
    assert told.value.param == param and told.value.status == 400
    assert told.value.body["error"]["type"] == "invalid_request_error"


def test_a_request_as_clients_write_it() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    parts = [{"type": "text", "text": "a"}]
    request = ChatRequest.read(
        json.dumps(
            {"messages": [{"role": "user", "content": parts}], "tools": [tool], "n": None, "user": "someone"}
        ).encode()
    )
    assert list(request.functions()) == [("f", "", {"type": "object", "properties": {}})]
    assert request.n == 1 and not request.stream and request.most_tokens is None
    with pytest.raises(WireError, match="only functions"):
        list(ChatRequest.read(b'{"messages": [{"role": "user"}], "tools": [{"type": "web"}]}').functions())
