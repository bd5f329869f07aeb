"""The table of trees: the trees that match a query, their order, and the effect of branching in them (Trees in api.ts).

Knows the index's columns and the query's words. The words are never part of an SQL statement, only its values.
"""

from collections.abc import Sequence
from typing import Any

from arpo.core.tree import CallStatus, StopReason
from arpo.errors import ConfigError
from arpo.view.index import COLUMNS, RunIndex, as_row
from arpo.view.query import Query

Answer = dict[str, Any]
Where = tuple[str, list[Any]]  # an SQL condition, and the values of its placeholders
_SORTS = (
    *(
        "step",
        "task",
        "family",
        "leaves",
        "reward_mean",
        "reward_max",
        "reward_min",
        "calls",
        "errors",
        "branches",
        "tokens",
    ),
    "helped",
)
_WHOLE = {"step": "step = ?", "min_step": "step >= ?", "max_step": "step <= ?", "branches": "branches >= ?"}
_NUMBERS = {"min_reward": "reward_mean >= ?", "max_reward": "reward_mean <= ?"}
_TEXTS = {
    "family": "family = ?",
    "ending": "EXISTS (SELECT 1 FROM json_each(endings) WHERE key = ?)",
    "tool": "EXISTS (SELECT 1 FROM json_each(tools) WHERE value = ?)",
}
_HELPED = {1: "helped", 0: "same", -1: "hurt", None: "unbranched"}


def table_answer(index: RunIndex, query: Query) -> Answer:
    """Trees. It indexes a requested step at once; the library's thread indexes the others."""
    step, helped = query.maybe_whole("step"), query.maybe_whole("helped")
    others = _where(query)
    order, offset, limit = (
        _order(query.text("sort")),
        query.whole("offset", 0),
        query.whole("limit", 100, most=query.most_rows),
    )
    query.finish()
    if step is not None:
        index.ensure(step)
    read, of = index.progress()
    where, values = _and(others, ("1", []) if helped is None else ("helped = ?", [helped]))
    ((total, reward_mean),) = index.rows(f"SELECT COUNT(*), AVG(reward_mean) FROM trees WHERE {where}", values)
    select = f"SELECT step, {', '.join(COLUMNS)} FROM trees WHERE {where} ORDER BY {order} LIMIT ? OFFSET ?"
    return {
        "total": total,
        "rows": [as_row(*_split(row)) for row in index.rows(select, (*values, limit, offset))],
        "indexed": {"steps": read, "of": of},
        "reward_mean": reward_mean,
        "branching": _branching(index, others),
        "facets": _facets(index),
    }


def no_table() -> Answer:
    """The empty table of a folder with only evaluations."""
    facets: Answer = {name: [] for name in ("steps", "families", "tools", "endings", "errors")}
    nothing: Answer = {"total": 0, "rows": [], "indexed": {"steps": 0, "of": 0}, "reward_mean": None}
    return {**nothing, "branching": dict.fromkeys(_HELPED.values(), 0), "facets": facets}


def _split(row: Sequence[Any]) -> tuple[int, Sequence[Any]]:
    return row[0], row[1:]


def _where(query: Query) -> Where:
    """The conditions of the query, except whether branching helped."""
    found: Where = ("1", [])
    for name, condition in _WHOLE.items():
        found = _and(found, _if(condition, query.maybe_whole(name)))
    for name, condition in _NUMBERS.items():
        found = _and(found, _if(condition, query.number(name)))
    for name, condition in _TEXTS.items():
        found = _and(found, _if(condition, _sql_text(query.text(name))))
    if (error := query.text("error")) == "any":
        found = _and(found, ("errors > 0", []))
    else:
        found = _and(found, _if("EXISTS (SELECT 1 FROM json_each(statuses) WHERE value = ?)", _sql_text(error)))
    if (words := _sql_text(query.text("q"))) is not None:
        found = _and(found, ("(instr(lower(question), ?) OR instr(lower(task), ?))", [words.lower()] * 2))
    return found


def _if(condition: str, value: Any) -> Where:
    return ("1", []) if value is None else (condition, [value])


def _and(one: Where, other: Where) -> Where:
    return f"{one[0]} AND {other[0]}", [*one[1], *other[1]]


def _sql_text(text: str | None) -> str | None:
    return None if text is None else text.encode("utf-8", "replace").decode()


def _order(sort: str | None) -> str:
    if sort is None:
        return "step, number"
    column = sort.removeprefix("-")
    if column not in _SORTS:
        raise ConfigError(
            "no such column to sort by", where="query sort", value=sort, hint=f"one of {', '.join(_SORTS)}"
        )
    return f"{column} {'DESC' if sort.startswith('-') else 'ASC'} NULLS LAST, step, number"


def _branching(index: RunIndex, where: Where) -> Answer:
    """The numbers of trees in which branching helped, hurt, made no difference, or could not be judged."""
    counted = dict(index.rows(f"SELECT helped, COUNT(*) FROM trees WHERE {where[0]} GROUP BY helped", where[1]))
    return {name: counted.get(value, 0) for value, name in _HELPED.items()}


def _facets(index: RunIndex) -> Answer:
    """The choices for the filters, over the whole run."""

    def distinct(query: str) -> list[str]:
        return [value for (value,) in index.rows(f"SELECT DISTINCT {query} ORDER BY 1")]

    def listed(column: str, what: str) -> list[str]:
        return distinct(f"{what} FROM (SELECT DISTINCT {column} FROM trees) AS t, json_each(t.{column})")

    endings, statuses = listed("endings", "key"), listed("statuses", "value")
    return {
        "steps": index.run.event_steps(),
        "families": distinct("family FROM trees WHERE family != ''"),
        "tools": listed("tools", "value"),
        "endings": [ending.value for ending in StopReason if ending.value in endings],
        "errors": [status.value for status in CallStatus if status.value in statuses],
    }
