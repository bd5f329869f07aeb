"""An SQL database (SQLite, in memory): every branch has its own copy, and a query at the end says what was reached."""

import sqlite3
import time
from typing import Self

from arpo.environments import AgentTurn, Environment, Step, setup_of
from arpo.errors import ToolError
from arpo.tasks import Task
from arpo.tools.function import tool

DENIED = (sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH, sqlite3.SQLITE_PRAGMA)  # nothing reaches a file
EVERY = 10_000  # instructions of the database between looks at the clock


class SqlEnvironment(Environment):
    """`script` makes the tables; a task adds its own in `setup`: `{script: ..., check: "select ...", rows: [...]}`.

    An episode ends with the first turn without a call. It is worth 1 where `check` then gives `rows`, or, in a task
    without `check`, where the answer is one of the task's. `max_rows` of a result are shown; a statement may take
    `seconds` and the database `max_mb`.
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
        self.db.set_authorizer(lambda action, *_: sqlite3.SQLITE_DENY if action in DENIED else sqlite3.SQLITE_OK)

    @tool
    def sql(self, statement: str) -> str:
        """Runs one SQL statement on the database and shows the rows.

        Args:
            statement: in SQLite's dialect
        """
        end = time.monotonic() + self.seconds
        self.db.set_progress_handler(lambda: time.monotonic() > end, EVERY)
        try:
            cursor = self.db.execute(statement)
            rows = cursor.fetchmany(self.max_rows + 1)
        except sqlite3.Error as error:
            raise ToolError(f"{type(error).__name__}: {error}") from error
        finally:
            self.db.set_progress_handler(None, 0)
        if cursor.description is None:
            return f"{max(cursor.rowcount, 0)} rows changed"
        lines = [" | ".join(column[0] for column in cursor.description)]
        lines += [" | ".join(map(str, row)) for row in rows[: self.max_rows]]
        return "\n".join([*lines, *(["..."] if len(rows) > self.max_rows else [])])

    def step(self, turn: AgentTurn) -> Step:
        if turn.calls:
            return Step()
        assert self.task is not None
        setup = setup_of(self.task)
        if "check" in setup:
            reached = [list(row) for row in self.db.execute(setup["check"])] == [list(row) for row in setup["rows"]]
        else:
            reached = turn.said in self.task.answers
        return Step(done=True, reward=float(reached))

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
