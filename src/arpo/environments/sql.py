"""An SQL database (SQLite, in memory): every branch has its own copy, and a query at the end says what was reached."""

import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import islice
from typing import Any, Self

from arpo.environments import AgentTurn, Environment, Step, setup_of
from arpo.errors import ToolError
from arpo.tasks import Task
from arpo.tools.function import tool

DENIED = {getattr(sqlite3, f"SQLITE_{name}") for name in ("ATTACH", "DETACH", "PRAGMA")}  # nothing reaches a file
# A copy for a branch has neither temporary tables nor an open transaction: there are none.
DENIED |= {getattr(sqlite3, f"SQLITE_CREATE_TEMP_{name}") for name in ("TABLE", "INDEX", "TRIGGER", "VIEW")}
DENIED |= {sqlite3.SQLITE_TRANSACTION, sqlite3.SQLITE_SAVEPOINT}
# One function of SQL may take the product of its arguments' lengths, and no clock is looked at before it returns.
# (`trim` would take a minute, and `printf` what its widths say: see `_bounded`.)
MOST = {
    sqlite3.SQLITE_LIMIT_LENGTH: 100_000,  # bytes of a value, of a row, and of a statement
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 1_000,
    sqlite3.SQLITE_LIMIT_COLUMN: 500,
}
EVERY = 100  # instructions of the database between looks at the clock
SHOWN_CHARS = 4_000  # of one value
WIDE = re.compile(r"%[^a-zA-Z%]*(\*|\d{4})")  # in a format
WRONG = (sqlite3.Error, sqlite3.Warning, UnicodeEncodeError)  # what a statement may raise


class SqlEnvironment(Environment):
    """`script` makes the tables; a task adds its own in `setup`: `{script: ..., check: "select ...", rows: [...]}`.

    An episode ends with the first turn without a call. It is worth 1 where `check` then gives `rows`, or, in a task
    without `check`, where the answer is one of the task's. A check that fails, for instance because its table was
    removed, gives other rows. `max_rows` of a result are shown; a statement may take `seconds`, the database `max_mb`,
    and a value 100 kB. Every statement is a transaction of its own.
    """

    name = "database"

    def __init__(self, script: str = "", max_rows: int = 50, seconds: float = 5.0, max_mb: float = 64.0) -> None:
        self.script, self.max_rows, self.seconds, self.max_mb = script, max_rows, seconds, max_mb
        self.task: Task | None = None

    def reset(self, task: Task) -> None:
        self.task = task
        setup = setup_of(task)
        self._open()
        self.db.executescript(f"{self.script}\n{setup.get('script', '')}")
        self._guard()

    def _open(self) -> None:
        self.db = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        self.db.execute(f"pragma max_page_count = {int(self.max_mb * 2**20 / 4096)}")

    def _guard(self) -> None:
        for limit, most in MOST.items():
            self.db.setlimit(limit, most)
        _bounded(self.db)
        self.db.set_authorizer(lambda action, *_: sqlite3.SQLITE_DENY if action in DENIED else sqlite3.SQLITE_OK)

    @contextmanager
    def _rows(self, statement: str) -> Iterator[sqlite3.Cursor]:
        """The statement's rows, which end with an error after `seconds`."""
        end = time.monotonic() + self.seconds
        self.db.set_progress_handler(lambda: time.monotonic() > end, EVERY)
        try:
            with closing(self.db.execute(statement)) as cursor:
                yield cursor
        finally:
            self.db.set_progress_handler(None, 0)

    @tool
    def sql(self, statement: str) -> str:
        """Runs one SQL statement on the database and shows the rows.

        Args:
            statement: in SQLite's dialect
        """
        try:
            with self._rows(statement) as cursor:
                if cursor.description is None:
                    return f"{max(cursor.rowcount, 0)} rows changed"
                lines = [" | ".join(column[0] for column in cursor.description)]
                lines += [" | ".join(map(_shown, row)) for row in islice(cursor, self.max_rows)]
                return "\n".join([*lines, *("..." for _ in islice(cursor, 1))])
        except WRONG as error:
            raise ToolError(f"{type(error).__name__}: {error}") from error

    def step(self, turn: AgentTurn) -> Step:
        if turn.calls:
            return Step()
        assert self.task is not None
        setup = setup_of(self.task)
        if "check" in setup:
            reached = self._gives(setup["check"], [tuple(row) for row in setup["rows"]])
        else:
            reached = turn.said in self.task.answers
        return Step(done=True, reward=float(reached))

    def _gives(self, check: str, rows: list[tuple[Any, ...]]) -> bool:
        """Whether `check` gives `rows`. What the agent made of the database may also let it fail, or never end."""
        try:
            with self._rows(check) as cursor:
                return list(islice(cursor, len(rows) + 1)) == rows
        except WRONG:
            return False

    def fork(self) -> Self:
        other = type(self)(self.script, self.max_rows, self.seconds, self.max_mb)
        other.task = self.task
        other._open()
        self.db.backup(other.db)
        other._guard()
        return other

    def close(self) -> None:
        if self.task is not None:
            self.db.close()


def _shown(value: Any) -> str:
    return str(value[:SHOWN_CHARS]) if isinstance(value, str | bytes) else str(value)


def _bounded(db: sqlite3.Connection) -> None:
    """Replace the functions of SQL that take far longer than their arguments are long."""
    builtin = sqlite3.connect(":memory:", check_same_thread=False)

    def formatted(pattern: Any, *values: Any) -> Any:
        if WIDE.search(str(pattern)):
            raise ValueError("a width is not 1,000 or more, nor another value")
        marks = ", ".join("?" * (len(values) + 1))
        return builtin.execute(f"select printf({marks})", (pattern, *values)).fetchone()[0]

    def stripped(strip: Callable[[str, str], str]) -> Callable[[Any, Any], str | None]:
        return lambda text, chars: None if text is None or chars is None else strip(str(text), str(chars))

    for name in ("printf", "format"):
        db.create_function(name, -1, formatted, deterministic=True)
    for name, strip in (("trim", str.strip), ("ltrim", str.lstrip), ("rtrim", str.rstrip)):
        db.create_function(name, 2, stripped(strip), deterministic=True)
