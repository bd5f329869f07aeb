"""An index over a run's event logs: one row per tree, with the byte at which its frame starts.

It lies in the user's cache, never in the run's folder, and can always be rebuilt: if a step's file has grown or was
replaced, the index reads the whole file again, on demand or in `catch_up`. Knows SQLite. Refuses to know requests over
HTTP.
"""

import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from arpo.core.record import TreeRecord, decode
from arpo.errors import FormatError
from arpo.files import cache_folder
from arpo.foreign import open_file
from arpo.runs.folder import RunFolder, naming
from arpo.view.memo import file_identity
from arpo.view.rows import TreeFacts, facts_of

_VERSION = 2  # of the tables and what stands in them; an index of another version is deleted
_JSON = ("tools", "statuses", "endings")
COLUMNS = (
    *(
        "task",
        "family",
        "question",
        "leaves",
        "reward_mean",
        "reward_max",
        "reward_min",
        "tools",
        "calls",
        "errors",
        "statuses",
    ),
    *("endings", "branches", "refused", "helped", "tokens", "trained"),
)
_TABLES = f"""
CREATE TABLE IF NOT EXISTS files (step INTEGER PRIMARY KEY, size INTEGER, inode INTEGER, changed INTEGER, error TEXT);
CREATE TABLE IF NOT EXISTS trees (
  step INTEGER, number INTEGER, start INTEGER, {", ".join(COLUMNS)}, PRIMARY KEY (step, task));
CREATE TABLE IF NOT EXISTS sums (
  step INTEGER, around TEXT, tool TEXT, position INTEGER, n INTEGER, total REAL, squares REAL);
CREATE TABLE IF NOT EXISTS tips (
  step INTEGER, rise REAL, wanted INTEGER, granted INTEGER, better INTEGER, equal INTEGER, worse INTEGER);
CREATE INDEX IF NOT EXISTS sums_step ON sums (step);
CREATE INDEX IF NOT EXISTS tips_step ON tips (step);
"""


class RunIndex:
    """The index of one run. Safe to use from several threads; several processes may share its file."""

    def __init__(self, run: RunFolder, folder: Path | None = None) -> None:
        """`folder` holds the index (default: `view` in the user's cache). The index is in memory if it cannot be
        written."""
        self.run = run
        self._lock = threading.RLock()
        self._database = _open(run.path, cache_folder() / "view" if folder is None else folder)
        self.version = 0  # grows with every change; results from an earlier version are stale

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def pending(self) -> list[int]:
        """Steps whose file is new or has changed. Drops the rows of steps that are gone."""
        found = {step: file_identity(self.run.events_path(step)) for step in self.run.event_steps()}
        with self._lock:
            known = {
                row[0]: tuple(row[1:]) for row in self._database.execute("SELECT step, size, inode, changed FROM files")
            }
            gone = [step for step in known if step not in found]
            if gone:
                with self._change() as database:
                    for step in gone:
                        _forget(database, step)
        return [step for step, identity in found.items() if known.get(step) != identity]

    def progress(self) -> tuple[int, int]:
        """(number of indexed steps, number of steps)."""
        steps = len(self.run.event_steps())
        return steps - len(self.pending()), steps

    def catch_up(self, go_on: Callable[[], bool] = lambda: True) -> None:
        """Read every pending step, the latest first, since people look there. Stops when `go_on()` returns False."""
        for step in reversed(self.pending()):
            if not go_on():
                return
            self.read_step(step)

    def ensure(self, step: int) -> None:
        """Read this step if it is pending."""
        with self._lock:
            row = self._database.execute("SELECT size, inode, changed FROM files WHERE step = ?", (step,)).fetchone()
        if step in self.run.event_steps() and row != file_identity(self.run.events_path(step)):
            self.read_step(step)

    def read_step(self, step: int) -> None:
        """Read a step's file up to its last whole frame. A damaged frame ends the reading and becomes the step's
        error."""
        path = self.run.events_path(step)
        identity = file_identity(
            path
        )  # taken before reading, so that data appended meanwhile makes the step pending again
        found: list[tuple[int, TreeFacts]] = []
        error = None
        if identity is not None:
            try:
                for start, record in self._last_frames(step):
                    found.append((start, facts_of(record)))
            except FormatError as wrong:
                error = f"{path.name}: {wrong}"
            except FileNotFoundError:  # a resumed run has just removed this step
                identity = None
        with self._change() as database:
            _forget(database, step)
            if identity is not None:
                database.execute("INSERT INTO files VALUES (?, ?, ?, ?, ?)", (step, *identity, error))
                _insert(database, step, found)

    def _last_frames(self, step: int) -> Iterator[tuple[int, TreeRecord]]:
        """The last frame of every task, in the order in which tasks first appear. It yields all whole frames before it
        raises FormatError."""
        latest: dict[str, int] = {}
        wrong = None
        with open_file(self.run.events_path(step)) as file:
            frames = decode(file)
            try:
                latest.update((task, start) for start, task in frames.tasks())
                self.run.check_end(step, frames)
            except FormatError as error:
                wrong = error
            for start in latest.values():
                file.seek(start)
                try:
                    if (record := next(decode(file, start), None)) is not None:  # not truncated meanwhile
                        yield start, record
                except FormatError as error:
                    wrong = FormatError(str(error).replace("frame 0 at", "the frame at", 1))
        if wrong is not None:
            raise wrong

    def errors(self) -> list[tuple[int, str]]:
        """(step, error) for every damaged file."""
        return self.rows("SELECT step, error FROM files WHERE error IS NOT NULL ORDER BY step")

    def record(self, step: int, task: str) -> TreeRecord | None:
        """The record in the last frame of a task, or None. Raises FormatError if it is damaged."""
        self.ensure(step)
        found = self.rows("SELECT start FROM trees WHERE step = ? AND task = ?", (step, _storable(task)))
        if not found:
            return None
        path, start = self.run.events_path(step), found[0][0]
        with open_file(path) as file, naming(path):
            file.seek(start)
            return next(decode(file, start), None)

    def rows(self, query: str, values: Iterable[Any] = ()) -> list[Any]:
        with self._lock:
            return self._database.execute(query, tuple(values)).fetchall()

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._database:
            yield self._database
            self.version += 1


def as_row(step: int, values: Iterable[Any]) -> dict[str, Any]:
    """The row of the table (TreeRow in api.ts) from the columns of the index."""
    row = {"step": step, **dict(zip(COLUMNS, values, strict=True))}
    for name in _JSON:
        row[name] = json.loads(row[name])
    row["trained"] = bool(row["trained"])
    return row


def _open(run: Path, folder: Path) -> sqlite3.Connection:
    name = hashlib.sha256(os.fsencode(run.resolve())).hexdigest()[:24]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return _prepared(folder / f"{name}.sqlite")
    except (OSError, sqlite3.OperationalError):  # the cache cannot be written: the index is rebuilt next time
        return _prepared(":memory:")
    except sqlite3.DatabaseError:  # not a database, or damaged
        (folder / f"{name}.sqlite").unlink()
        return _prepared(folder / f"{name}.sqlite")


def _prepared(path: Path | str) -> sqlite3.Connection:
    database = sqlite3.connect(path, timeout=30, check_same_thread=False)
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version != _VERSION:
        for table in ("files", "trees", "sums", "tips"):
            database.execute(f"DROP TABLE IF EXISTS {table}")
    database.executescript(_TABLES)
    database.execute(f"PRAGMA user_version = {_VERSION}")
    database.execute("PRAGMA synchronous = OFF")  # a lost index is rebuilt
    database.commit()
    return database


def _forget(database: sqlite3.Connection, step: int) -> None:
    for table in ("files", "trees", "sums", "tips"):
        database.execute(f"DELETE FROM {table} WHERE step = ?", (step,))


def _insert(database: sqlite3.Connection, step: int, found: Iterable[tuple[int, TreeFacts]]) -> None:
    sums: dict[tuple[str, str, int], tuple[int, float, float]] = {}
    for number, (start, facts) in enumerate(found):
        values = [json.dumps(facts.row[name]) if name in _JSON else facts.row[name] for name in COLUMNS]
        marks = ", ".join("?" * (3 + len(values)))
        database.execute(f"INSERT INTO trees VALUES ({marks})", (step, number, start, *map(_storable, values)))
        rows = [(step, tip.rise, tip.wanted, tip.granted, tip.better, tip.equal, tip.worse) for tip in facts.tips]
        database.executemany("INSERT INTO tips VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        for key, (n, total, squares) in facts.sums.items():
            old = sums.get(key, (0, 0.0, 0.0))
            sums[key] = (old[0] + n, old[1] + total, old[2] + squares)
    summed = [(step, *key, *value) for key, value in sums.items()]
    database.executemany("INSERT INTO sums VALUES (?, ?, ?, ?, ?, ?, ?)", summed)


def _storable(value: Any) -> Any:
    """`text` in UTF-8 for SQLite. It replaces lone surrogates, which hostile data may contain."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
