"""Traces: step-by-step solutions of tasks, for the supervised cold start.

Knows thoughts, calls, answers and, if a file holds them, results. Refuses to know tags and tokens: a chat format writes
them. If a trace holds no results, the cold start runs the real tools.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arpo.core.tree import Call
from arpo.errors import FormatError, first_line, nearest
from arpo.tasks import Task


@dataclass(frozen=True, slots=True)
class RecordedStep:
    """One turn: an optional thought, then calls, or the answer in the last turn.

    `results` holds one recorded text per call, or nothing: then the cold start runs the tools.
    """

    thought: str = ""
    calls: tuple[Call, ...] = ()
    answer: str | None = None
    results: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Trace:
    """A task and the turns that solve it. Every step makes calls, except the last one, which answers."""

    task: Task
    steps: tuple[RecordedStep, ...]


def load_traces(path: str | Path) -> list[Trace]:
    """The traces in a JSONL file, one object per line:

        {"id": "a/1", "question": "...", "answers": ["..."], "steps": [
            {"thought": "...", "calls": [{"name": "search", "arguments": {"query": "..."}}], "results": ["..."]},
            {"answer": "..."}]}

    `id`, `thought`, `results`, `source` and `metadata` are optional; `messages` may replace `question`. Raises
    FormatError, which names file, line, key and value.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").split(
            "\n"
        )  # not splitlines: JSON text may contain other line separators
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: is not UTF-8 text: {error}") from error
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror})") from error
    traces = [_trace(line, f"{path}, line {number}", number) for number, line in enumerate(lines, 1) if line.strip()]
    if not traces:
        raise FormatError(f"{path}: holds no trace (expected one JSON object per line)")
    return traces


def _trace(line: str, where: str, number: int) -> Trace:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise FormatError(f"{where}: not JSON: {error.msg} at column {error.colno} ({line[:60]!r})") from error
    except RecursionError as error:
        raise FormatError(f"{where}: JSON nested too deeply") from error
    except ValueError as error:  # a number of many thousand digits
        raise FormatError(f"{where}: unreadable JSON: {first_line(error)}") from error
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
        metadata=_typed(row, "metadata", dict, where, {}),
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


def _object(value: object, keys: set[str], where: str) -> dict[str, Any]:
    """`value`, if it is an object whose keys are all in `keys`. Raises FormatError."""
    if not isinstance(value, dict):
        raise FormatError(f"{where}: expected an object (got {value!r:.80})")
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
