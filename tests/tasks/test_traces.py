"""Traces from JSONL: what is read, and what a wrong line is told."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arpo.core.tree import Call
from arpo.errors import ArpoError, FormatError
from arpo.tasks.traces import RecordedStep, Trace, load_traces

SEARCH = {"name": "search", "arguments": {"query": "Lyon"}}
GOOD = {
    "id": "a/1",
    "question": "Where is Lyon?",
    "answers": ["France"],
    "steps": [{"thought": "Look.", "calls": [SEARCH], "results": ["Lyon is in France."]}, {"answer": "France"}],
}


def written(tmp_path: Path, *rows: object) -> Path:
    path = tmp_path / "traces.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_a_trace_is_read_as_it_stands(tmp_path: Path) -> None:
    (trace,) = load_traces(written(tmp_path, GOOD, ""))
    call = Call(name="search", arguments={"query": "Lyon"})
    assert trace.steps == (RecordedStep("Look.", (call,), None, ("Lyon is in France.",)), RecordedStep(answer="France"))
    assert (trace.task.id, trace.task.question, trace.task.answers) == ("a/1", "Where is Lyon?", ("France",))


def test_messages_may_stand_for_the_question_and_most_keys_may_be_missing(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "2+2?"}], "answers": [4], "steps": [{"answer": "4"}]}
    (trace,) = load_traces(written(tmp_path, row))
    assert trace == Trace(trace.task, (RecordedStep(answer="4"),))
    assert (trace.task.id, trace.task.question, trace.task.answers) == ("trace/1", "2+2?", ("4",))


def test_line_separators_inside_a_text_do_not_break_lines(tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"
    path.write_text(json.dumps(GOOD | {"question": "Lyon\u2028?"}, ensure_ascii=False) + "\r\n", encoding="utf-8")
    assert load_traces(path)[0].task.question == "Lyon\u2028?"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": []}, ["steps", "[]"]),
        ({"steps": "go"}, ["steps", "list", "'go'"]),
        ({"steps": [{"calls": [SEARCH]}]}, ["steps[0]", "last step answers"]),
        ({"steps": [{"answer": "x"}, {"answer": "y"}]}, ["steps[0]", "before the last"]),
        ({"steps": [{"calls": [SEARCH], "answer": "x"}]}, ["steps[0]", "last step answers"]),
        ({"steps": [{"calls": [SEARCH], "results": []}, {"answer": 4}]}, ["steps[1]", "'answer'", "4"]),
        ({"steps": [{"calls": [SEARCH], "results": ["a", "b"]}, {"answer": "4"}]}, ["steps[0]", "results", "1 in all"]),
        ({"steps": [{"calls": [SEARCH], "results": [1]}, {"answer": "4"}]}, ["results", "[1]"]),
        (
            {"steps": [{"calls": [{"name": "search"}]}, {"answer": "4"}]},
            ["steps[0].calls[0]", "'arguments'", "missing"],
        ),
        ({"steps": [{"calls": [{"name": "", "arguments": {}}]}, {"answer": "4"}]}, ["calls[0]", "'name'"]),
        ({"steps": [{"calls": ["search"]}, {"answer": "4"}]}, ["calls[0]", "'search'"]),
        ({"steps": [{"thougth": "x", "calls": [SEARCH]}, {"answer": "4"}]}, ["thougth", "did you mean 'thought'"]),
        ({"answers": []}, ["answers", "[]"]),
        ({"answers": [" "]}, ["answers", "blank"]),
        ({"answers": "France"}, ["answers", "list", "'France'"]),
        ({"question": " "}, ["question", "blank"]),
        ({"messages": [{"role": "user"}]}, ["messages[0]", "content"]),
        ({"question": 3}, ["question", "str", "3"]),
        ({"stpes": []}, ["stpes", "did you mean 'steps'"]),
        ({"metadata": []}, ["metadata", "dict"]),
    ],
)
def test_a_wrong_line_is_named_with_key_and_value(tmp_path: Path, change: dict, words: list[str]) -> None:
    path = written(tmp_path, GOOD, GOOD | change)
    with pytest.raises(FormatError) as caught:
        load_traces(path)
    assert all(word in str(caught.value) for word in [f"{path}, line 2", *words]), str(caught.value)


@pytest.mark.parametrize("line", ["{", "[1]", "null", '"text"', "nonsense"])
def test_a_line_that_is_no_object_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(FormatError, match="line 2"):
        load_traces(written(tmp_path, GOOD, line))


def test_a_missing_empty_or_binary_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    for name in ("missing.jsonl", "empty.jsonl", "binary.jsonl"):
        with pytest.raises(ArpoError, match=name):
            load_traces(tmp_path / name)


CALL = {"id": "c1", "type": "function", "function": {"name": "search", "arguments": '{"query": "Lyon"}'}}
CHAT = [
    {"role": "developer", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Where is Lyon?"}]},
    {"role": "assistant", "reasoning_content": "Look.", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "Lyon is in France."},
    {"role": "assistant", "content": "<think>Found.</think><answer>France</answer>"},
]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": CHAT},
        {"prompt": CHAT[:2], "completion": CHAT[2:], "tools": []},
        {"messages": json.dumps(CHAT), "question": "other"},
        {"messages": [{**message, "tool_calls": message.get("tool_calls"), "name": None} for message in CHAT]},
    ],
    ids=["messages", "prompt and completion", "text", "nulls"],
)
def test_a_conversation_is_the_trace_that_its_steps_are(tmp_path: Path, row: dict) -> None:
    (trace,) = load_traces(written(tmp_path, row))
    (by_steps,) = load_traces(written(tmp_path, GOOD))
    assert trace.steps == (by_steps.steps[0], RecordedStep("Found.", answer="France"))
    assert (trace.task.messages, trace.task.answers) == (by_steps.task.messages, by_steps.task.answers)
    assert trace.task.metadata["system_prompt"] == "Be brief."


@given(st.permutations(range(4)), st.booleans())
def test_results_belong_to_their_calls(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], as_text: bool
) -> None:
    """By their ids, in whatever order they come; without ids in the order of the calls."""
    names = [f"t{number}" for number in range(4)]
    arguments = [json.dumps({"n": n}) if as_text else {"n": n} for n in range(4)]
    calls = [{"id": name, "function": {"name": name, "arguments": arguments[n]}} for n, name in enumerate(names)]
    for ids in (True, False):
        results = [
            {"role": "tool", "content": f"of {names[n]}", **({"tool_call_id": names[n]} if ids else {})} for n in order
        ]
        asked = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": calls}]
        row = {"messages": [*asked, *results, {"role": "assistant", "content": "a"}]}
        (trace,) = load_traces(written(tmp_path_factory.getbasetemp(), row))
        expected = range(4) if ids else order
        assert trace.steps[0].results == tuple(f"of {names[n]}" for n in expected)
        assert [dict(call.arguments) for call in trace.steps[0].calls] == [{"n": n} for n in range(4)]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"question": "q", "answers": ["a"]}, ["'steps'", "'messages'", "tool_calls"]),
        ({"messages": CHAT[:2]}, ["'messages'", "roles developer, user"]),
        ({"messages": CHAT[:4]}, ["messages[2]", "last message answers"]),
        ({"messages": [*CHAT, CHAT[1], CHAT[4]]}, ["messages[2]", "one question"]),
        ({"messages": [*CHAT[:2], CHAT[4], CHAT[4]]}, ["messages[2]", "before the last one calls"]),
        ({"messages": [*CHAT[:4], CHAT[3], CHAT[4]]}, ["messages[2]", "one result per call, 1 in all"]),
        ({"messages": [CHAT[1], {"role": "assistant", "tool_calls": ["x"]}, CHAT[4]]}, ["tool_calls[0]", "'x'"]),
    ],
)
def test_a_wrong_conversation_is_named(tmp_path: Path, row: dict, words: list[str]) -> None:
    path = written(tmp_path, GOOD, row)
    with pytest.raises(FormatError) as caught:
        load_traces(path)
    assert all(word in str(caught.value) for word in [f"{path}, line 2", *words]), str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*GOOD, "calls", "name", "thought"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(row=st.one_of(JSON, st.dictionaries(st.sampled_from(list(GOOD)), JSON).map(lambda change: GOOD | change)))
def test_whatever_stands_there_is_a_trace_or_a_format_error(
    tmp_path_factory: pytest.TempPathFactory, row: object
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text(json.dumps(row), encoding="utf-8")
    try:
        (trace,) = load_traces(path)
    except FormatError as error:
        assert str(path) in str(error)
    else:
        assert trace.steps[-1].answer is not None
