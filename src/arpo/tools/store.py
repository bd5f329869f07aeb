"""Cached results of tool calls: one SQLite file that any number of processes share.

    calls    one result a row, with the call in words, when it was made and when it was last used
    leases   which process makes which call now; a lease that is not renewed expires: nobody waits for a dead process
    failed   failures, for some seconds: for processes that waited for the call, and no others
    offers   the tools of recorded servers, so that a replay starts none
    totals   entries and bytes, kept by triggers
    held     bytes of what is not recorded, kept by triggers: the size limit costs nothing to check

Write-ahead logging: readers never wait, and a killed writer leaves the last whole transaction. It needs a local disk.
Knows keys, rows and the wall clock. Refuses to know tools, and why a result is kept.
"""

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arpo.core.tree import CallStatus, ToolCallResult
from arpo.errors import ConfigError, FormatError
from arpo.foreign import loads

FORMAT = 4
OTHER_FILE = "Name another file (tools.cache.file), or remove this one"
BUSY_S = 30.0  # that a writer waits for the others
LONGEST_LEASE_S = 600.0  # a longer lease was written before the clock was set back, and does not count
BATCH = 500
FAILED_S = 10.0  # for which a failure stays
ROOM = 0.9  # of the limit, which eviction goes back to, so that not every call evicts

_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS calls (
    key BLOB PRIMARY KEY, tool TEXT NOT NULL, version TEXT NOT NULL, arguments TEXT NOT NULL, status TEXT NOT NULL,
    text TEXT NOT NULL, fault TEXT NOT NULL, empty INTEGER NOT NULL, made REAL NOT NULL, used REAL NOT NULL,
    recorded INTEGER NOT NULL, size INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS oldest ON calls (used) WHERE recorded = 0;
CREATE TABLE IF NOT EXISTS leases (key BLOB PRIMARY KEY, owner TEXT NOT NULL, expires REAL NOT NULL);
CREATE TABLE IF NOT EXISTS failed (
    key BLOB PRIMARY KEY, tool TEXT NOT NULL, status TEXT NOT NULL, text TEXT NOT NULL, fault TEXT NOT NULL,
    ended REAL NOT NULL);
CREATE TABLE IF NOT EXISTS offers (server TEXT PRIMARY KEY, tools TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS totals (entries INTEGER NOT NULL, bytes INTEGER NOT NULL, recorded INTEGER NOT NULL);
INSERT INTO totals SELECT 0, 0, 0 WHERE NOT EXISTS (SELECT * FROM totals);
CREATE TRIGGER IF NOT EXISTS added AFTER INSERT ON calls BEGIN
    UPDATE totals SET entries = entries + 1, bytes = bytes + NEW.size, recorded = recorded + NEW.recorded; END;
CREATE TRIGGER IF NOT EXISTS gone AFTER DELETE ON calls BEGIN
    UPDATE totals SET entries = entries - 1, bytes = bytes - OLD.size, recorded = recorded - OLD.recorded; END;
CREATE TRIGGER IF NOT EXISTS changed AFTER UPDATE OF size, recorded ON calls BEGIN
    UPDATE totals SET bytes = bytes + NEW.size - OLD.size, recorded = recorded + NEW.recorded - OLD.recorded; END;
CREATE TABLE IF NOT EXISTS held (bytes INTEGER NOT NULL);
INSERT INTO held SELECT coalesce((SELECT sum(size) FROM calls WHERE recorded = 0), 0)
    WHERE NOT EXISTS (SELECT * FROM held);
CREATE TRIGGER IF NOT EXISTS held_more AFTER INSERT ON calls WHEN NOT NEW.recorded BEGIN
    UPDATE held SET bytes = bytes + NEW.size; END;
CREATE TRIGGER IF NOT EXISTS held_less AFTER DELETE ON calls WHEN NOT OLD.recorded BEGIN
    UPDATE held SET bytes = bytes - OLD.size; END;
CREATE TRIGGER IF NOT EXISTS held_other AFTER UPDATE OF size ON calls WHEN NOT NEW.recorded BEGIN
    UPDATE held SET bytes = bytes + NEW.size - OLD.size; END;
PRAGMA user_version = {FORMAT};
COMMIT;
"""
_SHAPE = "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%' ORDER BY type, name"
_PUT = """
INSERT INTO calls VALUES
    (:key, :tool, :version, :arguments, :status, :text, :fault, :empty, :made, :made, :recorded, :size)
ON CONFLICT (key) DO UPDATE SET status = excluded.status, text = excluded.text, fault = excluded.fault,
    empty = excluded.empty, made = excluded.made, used = excluded.used, size = excluded.size
WHERE excluded.status = 'ok' OR calls.status != 'ok'
"""  # an error never takes the place of a result
_CLAIM = """
INSERT INTO leases VALUES (?, ?, ?) ON CONFLICT (key) DO UPDATE SET owner = excluded.owner, expires = excluded.expires
WHERE leases.expires NOT BETWEEN ? AND ?
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What one call came to, as it is kept. `arguments` is canonical JSON, `made` seconds since 1970.
    `recorded` entries are a run's record, or were imported: they have keys of their own and are never evicted."""

    key: bytes
    tool: str
    version: str
    arguments: str
    status: CallStatus
    text: str
    fault: str = ""
    empty: bool = False
    made: float
    recorded: bool = False

    @property
    def outcome(self) -> ToolCallResult:
        return ToolCallResult(tool=self.tool, status=self.status, text=self.text, fault=self.fault, cached=True)

    @property
    def row(self) -> dict[str, Any]:
        values = {name: getattr(self, name) for name in Entry.__dataclass_fields__}
        size = 200 + len(self.tool) + len(self.version) + len(self.arguments.encode()) + len(self.text.encode())
        return {**values, "status": self.status.value, "size": size}


COLUMNS = tuple(Entry.__dataclass_fields__)


class Store:
    """The file at `path`, made where it is not there; at most about `max_bytes` of results that are not recorded, the
    least recently used of which go first. Every method may be called from any thread; a connection is never taken
    across a fork.

    Raises ConfigError for a file that is no store of this version or cannot be written.
    """

    def __init__(self, path: Path | str, *, max_bytes: int = 2**30) -> None:
        self.path, self.max_bytes = Path(path).expanduser(), max_bytes
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._reading, self._writing = _Connection(self.path), _Connection(self.path)
            self._set_up()
        except (sqlite3.Error, OSError) as error:
            raise ConfigError(f"cannot be used as a cache: {error}", where=str(self.path), hint=OTHER_FILE) from error

    def _set_up(self) -> None:
        """Tables and journal, once in the life of the file. Another process may be at it: changing the journal does not
        wait."""
        db = self._writing.db
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version not in (0, FORMAT):  # 0: a new file
            wrong = f"holds results in format {version}, and this version of arpo reads {FORMAT}"
            raise ConfigError(wrong, where=str(self.path), hint=OTHER_FILE)
        give_up = time.monotonic() + BUSY_S
        if version == FORMAT:
            return self._check_shape()
        while version < FORMAT:
            try:
                db.execute("PRAGMA journal_mode = WAL")
                db.executescript(_SCHEMA)
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > give_up:
                    raise
                time.sleep(0.02)
                (version,) = db.execute("PRAGMA user_version").fetchone()

    def _check_shape(self) -> None:
        """Raises ConfigError for a file that nobody's version of arpo made: a view may have rows without an end, and a
        trigger may do anything. Values are looked at where they are read."""
        with closing(sqlite3.connect(":memory:")) as own:
            own.executescript(_SCHEMA)
            made = own.execute(_SHAPE).fetchall()
        db = self._reading.db
        whole = db.execute(_SHAPE).fetchall() == made
        counts = (
            [*db.execute("SELECT * FROM totals LIMIT 2"), *db.execute("SELECT * FROM held LIMIT 2")] if whole else []
        )
        if [len(row) for row in counts] != [3, 1] or not all(isinstance(n, int) for row in counts for n in row):
            raise ConfigError("holds what is no cache", where=str(self.path), hint=OTHER_FILE)

    def close(self) -> None:
        self._reading.close()
        self._writing.close()

    def _reader(self) -> AbstractContextManager[sqlite3.Connection]:
        """A connection for reading, which waits for no writer."""
        return self._reading.turn()

    def _writer(self) -> AbstractContextManager[sqlite3.Connection]:
        """A connection for writing, in one transaction."""
        return self._writing.turn("BEGIN IMMEDIATE")

    @contextmanager
    def _whole_file(self) -> Iterator[sqlite3.Connection]:
        """A connection for reading all of it. Raises ConfigError for a file that is damaged, whose calls could perhaps
        be read one by one."""
        try:
            with self._reader() as db:
                yield db
        except sqlite3.DatabaseError as error:
            raise ConfigError(f"cannot be read: {error}", where=str(self.path), hint=OTHER_FILE) from error

    # --- one call

    def get(self, keys: Sequence[bytes]) -> list[Entry]:
        """The entries under `keys`, in their order, however old."""
        with self._reader() as db:
            found = (
                db.execute(f"SELECT {', '.join(COLUMNS)} FROM calls WHERE key = ?", (key,)).fetchone() for key in keys
            )
            return [_entry(row) for row in found if row is not None]

    def claim(self, key: bytes, owner: str, lease_s: float) -> bool:
        """True where `owner` is now to make this call: it holds the lease for `lease_s` seconds, unless it renews."""
        now = time.time()
        with self._writing.turn() as db:
            return db.execute(_CLAIM, (key, owner, now + lease_s, now, now + LONGEST_LEASE_S)).rowcount == 1

    def claimed(self, key: bytes) -> bool:
        """Whether a process makes this call now."""
        with self._reader() as db:
            now = time.time()
            lease = "SELECT 1 FROM leases WHERE key = ? AND expires BETWEEN ? AND ?"
            return db.execute(lease, (key, now, now + LONGEST_LEASE_S)).fetchone() is not None

    def renew(self, key: bytes, owner: str, lease_s: float) -> None:
        with self._writing.turn() as db:
            db.execute("UPDATE leases SET expires = ? WHERE key = ? AND owner = ?", (time.time() + lease_s, key, owner))

    def finish(self, key: bytes, owner: str, entry: Entry | None, failure: ToolCallResult | None = None) -> None:
        """End the lease of a call: keep `entry` (None: no result is kept) and leave `failure` for the processes that
        waited. Evicts where the file is over its limit."""
        with self._writer() as db:
            if entry is not None:
                db.execute(_PUT, entry.row)
            if failure is not None:
                now = time.time()
                values = (key, failure.tool, failure.status.value, failure.text, failure.fault, now)
                db.execute("DELETE FROM failed WHERE ended < ?", (now - FAILED_S,))
                db.execute("INSERT OR REPLACE INTO failed VALUES (?, ?, ?, ?, ?, ?)", values)
            db.execute("DELETE FROM leases WHERE key = ? AND owner = ?", (key, owner))
        if entry is not None:
            self._evict()

    def failure(self, key: bytes, since: float) -> ToolCallResult | None:
        """How this call failed, if it did at `since` (seconds since 1970) or later: who waited from then on need not
        ask again."""
        columns = "tool, status, text, fault"
        with self._reader() as db:
            # later than now: before it was set back
            ended = f"SELECT {columns} FROM failed WHERE key = ? AND ended BETWEEN ? AND ?"
            row = db.execute(ended, (key, since, time.time())).fetchone()
        return (
            None if row is None else ToolCallResult(tool=row[0], status=CallStatus(row[1]), text=row[2], fault=row[3])
        )

    def touch(self, keys: Iterable[bytes]) -> None:
        """These entries were used just now."""
        now = time.time()
        with self._writer() as db:
            db.executemany("UPDATE calls SET used = ? WHERE key = ?", [(now, key) for key in keys])

    # --- servers

    def note_offers(self, server: str, tools: Sequence[Mapping[str, Any]]) -> None:
        """Note name, description and schema of a server's tools, beside those that are noted already."""
        with self._writer() as db:
            row = db.execute("SELECT tools FROM offers WHERE server = ?", (server,)).fetchone()
            known = {offer["name"]: offer for offer in json.loads(row[0])} if row else {}
            known |= {offer["name"]: dict(offer) for offer in tools}
            db.execute("INSERT OR REPLACE INTO offers VALUES (?, ?)", (server, json.dumps(list(known.values()))))

    def offers(self) -> dict[str, list[dict[str, Any]]]:
        """What is noted, by server."""
        with self._whole_file() as db:
            noted = db.execute("SELECT server, tools FROM offers").fetchall()
        try:
            offers = {server: loads(str(tools).encode()) for server, tools in noted}
        except ValueError as error:
            raise FormatError(f"{self.path} holds tools of a server that are no JSON: {error}") from error
        return {server: [*filter(_is_offer, tools)] for server, tools in offers.items() if isinstance(tools, list)}

    # --- the whole file

    def put(self, entries: Iterable[Entry]) -> int:
        """Keep many entries at once. Returns how many there were."""
        count = 0
        batch: list[dict[str, Any]] = []
        for entry in entries:
            batch.append(entry.row)
            count += 1
            if len(batch) == BATCH:
                self._put(batch)
        self._put(batch)
        self._evict()
        return count

    def _put(self, batch: list[dict[str, Any]]) -> None:
        with self._writer() as db:
            db.executemany(_PUT, batch)
        batch.clear()

    def entries(self, tool: str = "") -> Iterator[Entry]:
        """Every entry (of `tool`), by tool and arguments."""
        which, values = ("WHERE tool = ?", (tool,)) if tool else ("", ())
        with self._whole_file() as db:
            rows = db.execute(
                f"SELECT {', '.join(COLUMNS)} FROM calls {which} ORDER BY tool, arguments, version", values
            )
            while batch := rows.fetchmany(BATCH):
                yield from map(_entry, batch)

    def totals(self) -> tuple[int, int, int]:
        """Entries, their bytes, and how many of them are recorded."""
        with self._whole_file() as db:
            entries, size, recorded = db.execute("SELECT entries, bytes, recorded FROM totals").fetchone()
            return entries, size, recorded

    def by_tool(self) -> list[tuple[str, str, int, int, int, float, float]]:
        """(tool, version, entries, recorded ones, bytes, made first, made last)."""
        columns = "tool, version, count(*), sum(recorded), sum(size), min(made), max(made)"
        with self._whole_file() as db:
            rows = db.execute(f"SELECT {columns} FROM calls GROUP BY 1, 2 ORDER BY 1, 2").fetchall()
        numbers = [number for _, _, *numbers in rows for number in numbers]
        if not all(isinstance(number, int | float) and abs(number) < 1e15 for number in numbers):
            raise FormatError(f"{self.path} holds what is no result of a tool: arpo cache clear")
        return rows

    def clear(self, tool: str = "", *, recorded: bool = True) -> int:
        """Remove everything (of `tool`; without `recorded`, what is no record) and give its room back. Returns how
        many."""
        conditions = [*(["tool = :tool"] if tool else []), *([] if recorded else ["recorded = 0"])]
        where = f"WHERE {' AND '.join(conditions)}" if conditions else "WHERE true"
        try:
            with self._writer() as db:
                count = db.execute(f"DELETE FROM calls {where}", {"tool": tool}).rowcount
            with self._writing.turn() as db:
                db.execute("VACUUM")
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.DatabaseError as error:
            raise ConfigError(f"cannot be cleared: {error}", where=str(self.path), hint=OTHER_FILE) from error
        return count

    def _evict(self) -> None:
        """Back below the limit, the least recently used first."""
        with self._reader() as db:
            (held,) = db.execute("SELECT bytes FROM held").fetchone()
        if held <= self.max_bytes:
            return
        gone = "DELETE FROM calls WHERE key IN (SELECT key FROM calls WHERE recorded = 0 ORDER BY used LIMIT ?)"
        while True:
            with self._writer() as db:
                (held,) = db.execute("SELECT bytes FROM held").fetchone()
                if held <= self.max_bytes * ROOM or not db.execute(gone, (BATCH,)).rowcount:
                    return


class _Connection:
    """One thread at a time may use it. A forked process opens its own, and leaves what it inherited alone: closing that
    would checkpoint what the parent still writes."""

    def __init__(self, path: Path) -> None:
        self.path, self.lock, self.inherited = path, threading.RLock(), list[sqlite3.Connection]()
        self._open()

    def _open(self) -> None:
        self.db = sqlite3.connect(self.path, timeout=BUSY_S, check_same_thread=False, isolation_level=None)
        self.owner = os.getpid()
        for setting in (
            "synchronous = NORMAL",
            "cache_size = -16000",
            "mmap_size = 268435456",
            "temp_store = MEMORY",
            "trusted_schema = OFF",
        ):
            self.db.execute(f"PRAGMA {setting}")

    @contextmanager
    def turn(self, begin: str = "") -> Iterator[sqlite3.Connection]:
        """With `begin`, a transaction around it."""
        with self.lock:
            if self.owner != os.getpid():
                self.inherited.append(self.db)
                self._open()
            if not begin:
                yield self.db
                return
            self.db.execute(begin)
            try:
                yield self.db
            except BaseException:
                self.db.execute("ROLLBACK")
                raise
            self.db.execute("COMMIT")

    def close(self) -> None:
        with self.lock:
            if self.owner == os.getpid():
                self.db.close()


def _is_offer(tool: Any) -> bool:
    return isinstance(tool, dict) and isinstance(tool.get("name"), str)


def _entry(row: Sequence[Any]) -> Entry:
    """Raises FormatError for what no version of arpo wrote: such a file may come from anywhere."""
    values = dict(zip(COLUMNS, row, strict=True))
    try:
        texts = all(isinstance(values[name], str) for name in ("tool", "version", "arguments", "text", "fault"))
        if (
            not texts
            or not isinstance(values["made"], int | float)
            or not isinstance(json.loads(values["arguments"]), dict)
        ):
            raise ValueError("a value is of another kind")
        flags = {
            "status": CallStatus(values["status"]),
            "empty": bool(values["empty"]),
            "recorded": bool(values["recorded"]),
        }
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the cache holds what is no result of a tool ({error}): arpo cache clear") from error
    return Entry(**{**values, **flags})


def as_line(entry: Entry) -> str:
    """An entry as a JSON object, for `arpo cache export`."""
    values = {name: getattr(entry, name) for name in COLUMNS if name != "key"}
    return json.dumps({**values, "arguments": json.loads(entry.arguments)}, ensure_ascii=False)


def read_line(line: str, where: str) -> dict[str, Any]:
    """The values of an exported line. Raises FormatError naming `where`."""
    try:
        values = loads(line.encode())
    except ValueError as error:
        raise FormatError(f"{where}: not JSON: {error}") from error
    if (
        not isinstance(values, dict)
        or not isinstance(values.get("tool"), str)
        or not isinstance(values.get("arguments"), dict)
    ):
        raise FormatError(f"{where}: a line is an object with `tool`, `arguments` and `text`, not {line[:80]!r}")
    return values
