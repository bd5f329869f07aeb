"""Tasks that a program passes as Python objects instead of naming a source, and the file in which a run keeps them.

Knows rows, tasks and their JSON lines. Refuses to know where a run's folder lies.

    {"task": {"id": "one", "messages": [...], "answers": ["2"], "source": "", "metadata": {},
              "documents": [], "setup": null}}
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from arpo.errors import ConfigError
from arpo.files import write_atomic
from arpo.tasks import Task

FIELDS = ("id", "messages", "answers", "source", "metadata", "documents", "setup")  # without tools, which are objects


class InMemoryTasks:
    """Tasks or rows, read once, so that a generator can be iterated again."""

    def __init__(self, items: Iterable[Any]) -> None:
        self.items = tuple(items)

    def __str__(self) -> str:
        return f"{len(self.items)} rows given in Python"


def as_source(source: Any) -> Any:
    """What `data.train.source` takes: a name as it is; a list, a generator or a data set of rows or tasks as
    InMemoryTasks. Raises ValueError for what is neither."""
    if isinstance(source, str | InMemoryTasks):
        return source
    if isinstance(source, Mapping):
        splits = f" It has {', '.join(map(str, source))}: give one of them" if source else ""
        raise ValueError(f"expected one split, not a {type(source).__name__}.{splits}")
    if isinstance(source, bytes) or not isinstance(source, Iterable):
        raise ValueError(f"should be the name of a source, or rows or tasks, not {type(source).__name__}")
    tasks = InMemoryTasks(source)
    if not tasks.items:
        raise ValueError(f"there are no rows in this {type(source).__name__}: name a source, or give rows or tasks")
    for number, item in enumerate(tasks.items, 1):
        if not isinstance(item, Task | Mapping):
            raise ValueError(f"item {number}, {item!r:.80}, is neither an arpo.Task nor a row with question and answer")
    return tasks


def write_tasks(path: Path, tasks: Sequence[Task]) -> None:
    """Write one task per line; they read back equal. Raises ConfigError for values that JSON cannot hold."""
    write_atomic(path, "".join(f"{_line(task)}\n" for task in tasks).encode())


def check_writable(tasks: Sequence[Task], where: str) -> None:
    """Raise ConfigError, which names `where`, for tasks that `write_tasks` cannot write."""
    for task in tasks:
        try:
            _line(task)
        except ConfigError as error:
            raise ConfigError(error.message, where=where, value=error.value, hint=error.hint) from error


def _line(task: Task) -> str:
    hint = "Give a function that makes the tasks instead: source: my_pkg.my_data:questions"
    if task.tools:
        raise ConfigError("the run's folder cannot hold a task with its own tools", value=task.id, hint=hint)
    try:
        return json.dumps({"task": {name: getattr(task, name) for name in FIELDS}}, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        message = f"the run's folder cannot hold a task with values that JSON cannot hold ({error})"
        raise ConfigError(message, value=task.id, hint=hint) from error


def read_task(row: Mapping[str, Any]) -> Task | None:
    """The task that `write_tasks` wrote as `row`, or None if it did not write this row."""
    fields = row.get("task")
    if set(row) != {"task"} or not isinstance(fields, Mapping) or set(fields) != set(FIELDS):
        return None
    values: dict[str, Any] = {
        name: tuple(value) if name in ("messages", "answers", "documents") else value for name, value in fields.items()
    }
    return Task(**values)
