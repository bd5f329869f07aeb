"""Traces: step-by-step solutions of tasks, for the supervised cold start.

Knows thoughts, calls, answers and, if a file holds them, results. Refuses to know tags and tokens: a chat format writes
them. If a trace holds no results, the cold start runs the real tools.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arpo.core.tree import Call
from arpo.errors import FormatError, first_line, nearest
from arpo.final_answer import enclosed, final_answer
from arpo.tasks import Task
from arpo.tasks.data import file_rows
from arpo.tasks.rows import Skipped, TextRepair, as_messages, has_answer, task_from_row, text_of, without_nulls

RESULTS = ("tool", "function")  # roles of a message that holds a result
REASONING = ("reasoning_content", "reasoning", "thinking")  # keys of a message
FORMS = (
    "a trace has 'steps' (calls of tools, and in the last one the answer), or chat 'messages' of user, assistant "
    "(with tool_calls) and tool, of which the last is the assistant's answer"
)


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """One turn: an optional thought, then calls, or the answer in the last turn.

    `results` holds one recorded text per call, or nothing: then the cold start runs the tools.
    """

    thought: str = ""
    calls: tuple[Call, ...] = ()
    answer: str | None = None
    results: tuple[str, ...] = ()
    text: str = ""  # what the message says beside its calls


@dataclass(frozen=True, slots=True)
class Trace:
    """A task and the turns that solve it. Every step makes calls, except the last one, which answers."""

    task: Task
    steps: tuple[RecordedStep, ...]


def load_traces(path: str | Path) -> list[Trace]:
    """The traces in a file (.jsonl, .json, .parquet), one object per row. Either with steps:

        {"id": "a/1", "question": "...", "answers": ["..."], "steps": [
            {"thought": "...", "calls": [{"name": "search", "arguments": {"query": "..."}}], "results": ["..."]},
            {"answer": "..."}]}

    `id`, `thought`, `results`, `source` and `metadata` are optional; `messages` may replace `question`. Or as chat
    messages with `tool_calls` and role `tool`, as chat APIs and other trainers write them; `prompt` and `completion`
    may replace `messages`, and without an answer column the last message holds the answer. Raises ConfigError for a
    file that is not there, FormatError, which names file, line, key and value.
    """
    path = Path(path)
    traces = [_trace(row, where, number) for number, (where, row) in enumerate(file_rows(path, "cold_start.traces"), 1)]
    if not traces:
        raise FormatError(f"{path}: holds no trace (expected one JSON object per line)")
    return traces


def _trace(row: Mapping[str, Any], where: str, number: int) -> Trace:
    if "steps" not in row:
        return _conversation(row, where, number)
    row = _object(row, {"id", "question", "messages", "answers", "steps", "source", "metadata"}, where)
    steps = _typed(row, "steps", list, where)
    if not steps:
        raise FormatError(f"{where}: key 'steps': a trace needs at least one step (got [])")
    parsed = tuple(_step(step, f"{where}: steps[{i}]", last=i == len(steps) - 1) for i, step in enumerate(steps))
    values = _typed(row, "answers", list, where)
    if not all(isinstance(value, str | int | float) and not isinstance(value, bool) for value in values):
        raise FormatError(f"{where}: key 'answers': answers must be texts or numbers (got {values!r})")
    answers = tuple(map(str, values))
    if not answers or not all(answer.strip() for answer in answers):
        raise FormatError(f"{where}: key 'answers': needs at least one answer that is not blank (got {values!r})")
    task = Task(
        id=str(row.get("id", f"trace/{number}")),
        messages=_messages(row, where),
        answers=answers,
        source=str(row.get("source", "")),
        metadata=without_nulls(_typed(row, "metadata", dict, where, {})),
    )
    return Trace(task, parsed)


def _messages(row: Mapping[str, object], where: str) -> tuple[Mapping[str, str], ...]:
    if "messages" not in row:
        question = _typed(row, "question", str, where)
        if not question.strip():
            raise FormatError(f"{where}: key 'question': must not be blank (got {question!r})")
        return ({"role": "user", "content": question},)
    messages = _typed(row, "messages", list, where)
    for i, message in enumerate(messages):
        here = f"{where}: messages[{i}]"
        message = _object(message, {"role", "content"}, here)
        for key in ("role", "content"):
            _typed(message, key, str, here)
    if not messages:
        raise FormatError(f"{where}: key 'messages': needs at least one message (got [])")
    return tuple(messages)


def _step(step: object, where: str, *, last: bool) -> RecordedStep:
    step = _object(step, {"thought", "calls", "answer", "results"}, where)
    calls = tuple(_call(call, f"{where}.calls[{i}]") for i, call in enumerate(_typed(step, "calls", list, where, [])))
    results = tuple(_typed(step, "results", list, where, []))
    answer = _typed(step, "answer", str, where, None)
    if last != (answer is not None) or last == bool(calls):
        rule = (
            "the last step answers and calls nothing"
            if last
            else "a step before the last one calls and does not answer"
        )
        raise FormatError(f"{where}: {rule} (got {step!r})")
    if results and (len(results) != len(calls) or not all(isinstance(text, str) for text in results)):
        raise FormatError(
            f"{where}: key 'results': needs one text per call, {len(calls)} in all (got {list(results)!r})"
        )
    return RecordedStep(_typed(step, "thought", str, where, ""), calls, answer, results)


def _call(call: object, where: str) -> Call:
    call = _object(call, {"name", "arguments"}, where)
    name = _typed(call, "name", str, where)
    if not name:
        raise FormatError(f"{where}: key 'name': needs the name of a tool (got '')")
    return Call(name=name, arguments=_typed(call, "arguments", dict, where))


def _conversation(row: Mapping[str, Any], where: str, number: int) -> Trace:
    """The trace in a row of chat messages: the question ends with the last message of the user."""
    messages = _all_messages(row, where)
    roles = [message.get("role") for message in messages]
    if "user" not in roles or "assistant" not in roles:
        raise FormatError(f"{where}: {FORMS} (got keys {', '.join(map(str, row))}; roles {', '.join(map(str, roles))})")
    begin = len(roles) - roles[::-1].index("user")
    if early := [at for at in range(begin) if roles[at] in RESULTS or messages[at].get("tool_calls")]:
        raise FormatError(
            f"{where}: messages[{early[0]}]: a call comes before the last question; a trace has one question, "
            "so write one for each"
        )
    steps = []
    while begin < len(messages):
        end = begin + 1
        while end < len(messages) and roles[end] in RESULTS:
            end += 1
        here = f"{where}: messages[{begin}]"
        if roles[begin] != "assistant":
            raise FormatError(f"{here}: expected a message of the assistant (got {messages[begin]!r:.80})")
        last = end == len(messages)
        steps.append(_turn(messages[begin], messages[begin + 1 : end], here, last=last))
        begin = end
    if not steps:
        raise FormatError(f"{where}: messages[{begin - 1}]: a trace ends with the assistant's answer, not the question")
    asked = messages[: len(roles) - roles[::-1].index("user")]
    others = {key: value for key, value in row.items() if key not in ("prompt", "completion", "tools")}
    if not has_answer(others):
        others["answer"] = steps[-1].answer
    columns = {"question": "messages"}
    name = f"trace/{number}"
    task = task_from_row(
        {**others, "messages": asked}, place=where, name=name, source="", columns=columns, mend=TextRepair()
    )
    if isinstance(task, Skipped):
        raise FormatError(str(task))
    return Trace(task, tuple(steps))


def _all_messages(row: Mapping[str, Any], where: str) -> list[Mapping[str, Any]]:
    pieces = [row[key] for key in ("messages",) if row.get(key) is not None]
    pieces = pieces or [row[key] for key in ("prompt", "completion") if row.get(key) is not None]
    read = [as_messages(piece, role) for piece, role in zip(pieces, ("user", "assistant"), strict=False)]
    messages = [message for piece in read if piece is not None for message in piece]
    if not messages or None in read or not all(isinstance(message, Mapping) for message in messages):
        raise FormatError(f"{where}: {FORMS} (got keys {', '.join(map(str, row))})")
    return messages


def _turn(message: Mapping[str, Any], results: Sequence[Mapping[str, Any]], where: str, *, last: bool) -> RecordedStep:
    """The step that a message of the assistant is, with the messages of its results."""
    calls = message.get("tool_calls") or [each for each in [message.get("function_call")] if each]
    if not isinstance(calls, list) or last == bool(calls):
        rule = "the last message answers and calls nothing" if last else "a message before the last one calls tools"
        raise FormatError(f"{where}: {rule} (got {message!r:.200})")
    before, _, content = (text_of(message.get("content") or "", where) or "").rpartition("</think>")
    reasoning = next((message[key] for key in REASONING if isinstance(message.get(key), str)), "")
    thoughts = [reasoning, before.strip().removeprefix("<think>")]
    if last:
        tagged, rest = enclosed(content, "answer")
        answer = final_answer(content)
        if answer is None:
            raise FormatError(f"{where}: the last message holds no answer (got {message!r:.200})")
        thoughts.append(rest if tagged else content if answer != content.strip() else "")
    else:
        answer = None
        if not any(text.strip() for text in thoughts):  # a message's only text before its calls is its thought
            thoughts, content = [content], ""
    read = tuple(_tool_call(call, f"{where}.tool_calls[{at}]") for at, call in enumerate(calls))
    thought = "\n".join(text.strip() for text in thoughts if text.strip())
    said = "" if last else content.strip()
    return RecordedStep(thought, read, answer, _results(calls, results, where), said)


def _tool_call(call: object, where: str) -> Call:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise FormatError(f"{where}: a call has a name and arguments (got {call!r:.80})")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise FormatError(
                f"{where}: 'arguments' is not JSON: {first_line(error)} (got {arguments!r:.80})"
            ) from None
    if not isinstance(arguments, Mapping):
        raise FormatError(f"{where}: 'arguments' is not an object (got {arguments!r:.80})")
    return Call(name=function["name"], arguments=arguments)


def _results(calls: Sequence[Mapping[str, Any]], results: Sequence[Mapping[str, Any]], where: str) -> tuple[str, ...]:
    """The text of one result per call, in the calls' order; none where the trace holds none."""
    if not results:
        return ()
    ids = [call.get("id") for call in calls]
    named = [result.get("tool_call_id") for result in results]
    if None not in named and len(set(ids)) == len(ids) and set(named) <= set(ids):
        results = sorted(results, key=lambda result: ids.index(result.get("tool_call_id")))
    texts = [text_of(result.get("content") or "", where) for result in results]
    if len(texts) != len(calls) or len(set(named)) not in (1, len(named)) or None in texts:
        raise FormatError(
            f"{where}: needs the text of one result per call, {len(calls)} in all (got {list(results)!r:.200})"
        )
    return tuple(text for text in texts if text is not None)


def _object(value: object, keys: set[str], where: str) -> dict[str, Any]:
    """`value`, if it is an object whose keys are all in `keys`. Raises FormatError."""
    if not isinstance(value, dict):
        raise FormatError(f"{where}: expected an object (got {value!r:.80})")
    value = {key: item for key, item in value.items() if item is not None}  # Arrow gives all objects the same keys
    for key in value:
        if key not in keys:
            raise FormatError(f"{where}: unknown key {key!r} (value {value[key]!r:.80}); {nearest(str(key), keys)}")
    return value


def _typed(row: Mapping[str, Any], key: str, kind: type, where: str, *default: Any) -> Any:
    """`row[key]` if it is a `kind`, or the default if the key is missing. Raises FormatError."""
    if key not in row:
        if not default:
            raise FormatError(f"{where}: key {key!r} is missing")
        return default[0]
    if not isinstance(row[key], kind):
        raise FormatError(f"{where}: key {key!r}: expected {kind.__name__} (got {row[key]!r:.80})")
    return row[key]
