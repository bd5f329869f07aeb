"""Chat completions as servers write them: the official client's models take every answer, whole or streamed."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from arpo.chat.json_text import read_arguments
from arpo.chat.openai_wire import (
    calls_json,
    choice_json,
    chunk_json,
    completion_json,
    message_json,
    parse_request,
    sse,
    usage_json,
)
from arpo.core.tree import Call

texts = st.text(max_size=20)
values = st.recursive(st.none() | st.booleans() | st.integers() | texts, lambda inner: st.lists(inner, max_size=3))
calls = st.lists(
    st.builds(
        Call,
        name=st.sampled_from(["search", "f"]),
        arguments=st.dictionaries(texts, values, max_size=3),
        id=st.just("a"),
    ),
    max_size=3,
)


@given(content=texts, made=calls)
def test_a_message_is_the_same_whole_and_streamed(content: str, made: list[Call]) -> None:
    message = message_json(content, calls=calls_json(made, [f"call_{n}" for n in range(len(made))]))
    finish = "tool_calls" if made else "stop"
    body = completion_json("a", "arpo", [choice_json(0, finish, message=message)], usage_json(1, 2))
    whole = ChatCompletion.model_validate(body).choices[0]
    deltas = [{"role": "assistant", "content": content}]
    deltas += [{"tool_calls": [{"index": n, **call}]} for n, call in enumerate(message.get("tool_calls", ()))]
    pieces = [choice_json(0, None, delta=delta) for delta in deltas] + [choice_json(0, finish)]
    read = []
    for piece in pieces:
        line = sse(chunk_json("a", "arpo", [piece])).decode()
        assert line.startswith("data: ") and line.endswith("\n\n") and line.count("\n") == 2
        read.append(ChatCompletionChunk.model_validate(json.loads(line[6:])).choices[0])
    assert "".join(piece.delta.content or "" for piece in read) == whole.message.content == content
    streamed = [call.function for piece in read for call in piece.delta.tool_calls or () if call.function]
    expected: list[Any] = [call.function for call in whole.message.tool_calls or () if call.type == "function"]
    assert [(f.name, f.arguments) for f in streamed] == [(f.name, f.arguments) for f in expected]
    assert [(f.name, read_arguments(f.arguments)[0]) for f in expected] == [(c.name, dict(c.arguments)) for c in made]
    again = parse_request({"model": "arpo", "messages": [whole.message.model_dump()]}).messages[
        0
    ]  # as a client sends it
    assert again.content == content and [c.id for c in again.tool_calls or ()] == [
        f"call_{n}" for n in range(len(made))
    ]
