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
# Anybody may write into the tables behind a virtual one, and its module trusts what it reads there.
VIRTUAL = sqlite3.SQLITE_CREATE_VTABLE
# `fts3_tokenizer(name, pointer)` calls what the pointer says, where SQLite was built with it, as on Debian.
FUNCTIONS = {"fts3_tokenizer", "load_extension"}
OF_SCRIPTS = {"application_id", "encoding", "foreign_keys", "recursive_triggers", "user_version"}  # pragmas of dumps
SCRIPT_S = 60.0  # for the script of a task
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
WRONG = (sqlite3.Error, sqlite3.Warning, UnicodeError)  # what a statement may raise; a message may be no UTF-8


class SqlEnvironment(Environment):
    """`script` makes the tables; a task adds its own in `setup`: `{script: ..., check: "select ...", rows: [...]}`.

    An episode ends with the first turn without a call. It is worth 1 where `check` then gives `rows`, or, in a task
    without `check`, where the answer is one of the task's. A check that fails, for instance because its table was
    removed, gives other rows. `max_rows` of a result are shown; a statement may take `seconds`, the database `max_mb`,
    and a value 100 kB. Every statement is a transaction of its own. Neither statements nor a task's script reach a
    file or make a virtual table; the recipe's `script` may.
    """

    name = "database"

    def __init__(self, script: str = "", max_rows: int = 50, seconds: float = 5.0, max_mb: float = 64.0) -> None:
        self.script, self.max_rows, self.seconds, self.max_mb = script, max_rows, seconds, max_mb
        self.task: Task | None = None

    def reset(self, task: Task) -> None:
        self.task = task
        setup = setup_of(task)
        self._open()
        self.db.executescript(self.script)
        self._fill(setup.get("script", ""))
        self._guard()

    def _open(self) -> None:
        self.db = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        self.db.execute(f"pragma max_page_count = {int(self.max_mb * 2**20 / 4096)}")

    def _fill(self, script: str) -> None:
        """Run a task's script, which comes with the data."""
        self.db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, int(self.max_mb * 2**20))
        self.db.set_authorizer(_allowed_in_scripts)
        with self._until(SCRIPT_S):
            self.db.executescript(script)
            self.db.commit()

    def _guard(self) -> None:
        for limit, most in MOST.items():
            self.db.setlimit(limit, most)
        _bounded(self.db)
        self.db.set_authorizer(_allowed)

    @contextmanager
    def _until(self, seconds: float) -> Iterator[None]:
        """What the database does in this block ends with an error after `seconds`."""
        end = time.monotonic() + seconds
        self.db.set_progress_handler(lambda: time.monotonic() > end, EVERY)
        try:
            yield
        finally:
            self.db.set_progress_handler(None, 0)

    @contextmanager
    def _rows(self, statement: str) -> Iterator[sqlite3.Cursor]:
        """The statement's rows, which end with an error after `seconds`."""
        with self._until(self.seconds), closing(self.db.execute(statement)) as cursor:
            yield cursor

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


def _allowed(action: int, _: str | None, name: str | None, *where: str | None) -> int:
    """What the database asks before it does something for a statement; `name` is a function's."""
    denied = action in DENIED or action == VIRTUAL or name in FUNCTIONS
    return sqlite3.SQLITE_DENY if denied else sqlite3.SQLITE_OK


def _allowed_in_scripts(action: int, pragma: str | None, name: str | None, *where: str | None) -> int:
    """The same for a task's script, which may use transactions, temporary tables, and pragmas of dumps."""
    file = action in (sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH)
    other = action == sqlite3.SQLITE_PRAGMA and str(pragma).lower() not in OF_SCRIPTS
    denied = file or other or action == VIRTUAL or name in FUNCTIONS
    return sqlite3.SQLITE_DENY if denied else sqlite3.SQLITE_OK


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
