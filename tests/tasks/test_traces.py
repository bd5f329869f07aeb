"""Traces from JSONL: what is read, and what a wrong line is told."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arpo.core.tree import Call
from arpo.errors import FormatError
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
        with pytest.raises(FormatError, match=name):
            load_traces(tmp_path / name)


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
