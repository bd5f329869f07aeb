"""Tasks that are given as Python objects instead of a source's name, and the file in which a run keeps them.

Knows rows, tasks and one line of JSON for each. Refuses to know where a run's folder lies.

    {"task": {"id": "one", "messages": [...], "answers": ["2"], "source": "", "metadata": {}, "documents": [], "setup": null}}
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from arpo.errors import ConfigError
from arpo.files import write_atomic
from arpo.tasks import Task

KEPT = ("id", "messages", "answers", "source", "metadata", "documents", "setup")  # of a task; tools are objects


class Given:
    """Tasks or rows, read once: what was a generator is a tuple now."""

    def __init__(self, items: Iterable[Any]) -> None:
        self.items = tuple(items)

    def __str__(self) -> str:
        return f"{len(self.items)} rows given in Python"


def as_source(source: Any) -> Any:
    """What `data.train.source` takes: a name as it is; a list, a generator or a data set of rows or tasks as Given. Raises
    ValueError for what is neither."""
    if isinstance(source, str | Given) or source is None:
        return source
    if isinstance(source, Mapping):
        splits = f" It has {', '.join(map(str, source))}: give one of them" if source else ""
        raise ValueError(f"one split is wanted, not a {type(source).__name__}.{splits}")
    if isinstance(source, bytes) or not isinstance(source, Iterable):
        raise ValueError(f"neither the name of a source nor rows or tasks (got a {type(source).__name__})")
    given = Given(source)
    if not given.items:
        raise ValueError(f"there are no rows in this {type(source).__name__}: name a source, or give rows or tasks")
    for number, item in enumerate(given.items, 1):
        if not isinstance(item, Task | Mapping):
            raise ValueError(f"item {number} is neither an arpo.Task nor a row with question and answer (got {item!r:.80})")
    return given


def write_tasks(path: Path, tasks: Sequence[Task]) -> None:
    """One task a line, read back equal. Raises ConfigError for what JSON cannot say."""
    write_atomic(path, "".join(f"{_line(task)}\n" for task in tasks).encode())


def check_can_be_kept(tasks: Sequence[Task], where: str) -> None:
    """Raises ConfigError, naming `where`, for tasks that `write_tasks` could not write."""
    for task in tasks:
        try:
            _line(task)
        except ConfigError as error:
            raise ConfigError(error.message, where=where, value=error.value, hint=error.hint) from error


def _line(task: Task) -> str:
    hint = "Give a function that makes the tasks instead: source: my_pkg.my_data:questions"
    if task.tools:
        raise ConfigError("a task with tools of its own cannot be kept in the run's folder", value=task.id, hint=hint)
    try:
        return json.dumps({"task": {name: getattr(task, name) for name in KEPT}}, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        wrong = f"a task holds what JSON cannot say ({error}), so it cannot be kept in the run's folder"
        raise ConfigError(wrong, value=task.id, hint=hint) from error


def read_task(row: Mapping[str, Any]) -> Task | None:
    """The task that `write_tasks` wrote as `row`; None where the row is another's."""
    kept = row.get("task")
    if set(row) != {"task"} or not isinstance(kept, Mapping) or set(kept) != set(KEPT):
        return None
    values: dict[str, Any] = {
        name: tuple(value) if name in ("messages", "answers", "documents") else value for name, value in kept.items()
    }
    return Task(**values)
