"""Reads the answers of an evaluation of benchmarks from its log, while it runs and afterwards.

Knows `samples.jsonl` (`arpo.evaluation.samples`) and the byte at which every line starts. Refuses to know figures.
"""

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from arpo.core.record import TreeRecord
from arpo.core.tree import StopReason
from arpo.errors import FormatError
from arpo.evaluation.samples import FILE, NOT_ASKED, NOT_SCORED, SCHEMA, Key, SampleRecord, record_in

ABORTED = {ending.value for ending in StopReason if ending.aborted} | {
    NOT_ASKED,
    NOT_SCORED,
}  # endings that say nothing about the model


@dataclass(frozen=True, slots=True)
class Logged:
    answer: SampleRecord
    start: int  # the byte at which its line starts


class SampleLogReader:
    """The log in a folder. It reads every line once, since a log grows at its end. Safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._lock = threading.Lock()
        self._held: dict[Key, Logged] = {}
        self._inode, self._end = 0, 0
        self.damage: list[str] = []  # errors of invalid lines; the other lines count

    def answers(self) -> Mapping[Key, Logged]:
        """Read new lines. Of two lines for one answer the later one counts. A last line without a newline is incomplete
        and left out."""
        with self._lock:
            try:
                found = self.path.stat()
            except FileNotFoundError:
                return {}
            if found.st_ino != self._inode or found.st_size < self._end:  # another file, or truncated: start again
                self._held, self._inode, self._end, self.damage = {}, found.st_ino, 0, []
            if found.st_size > self._end:
                self._held = self._held | self._read_on()
            return self._held

    def _read_on(self) -> dict[Key, Logged]:
        read: dict[Key, Logged] = {}
        with self.path.open("rb") as file:
            file.seek(self._end)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                try:
                    answer = _answer(line, f"{self.path.name}, byte {self._end}")
                    read[answer.key] = Logged(answer, self._end)
                except FormatError as wrong:
                    self.damage.append(str(wrong))
                self._end += len(line)
        return read

    def record(self, key: Key) -> TreeRecord | None:
        """The trajectory of an answer, or None. Raises FormatError if it is damaged."""
        logged = self.answers().get(key)
        if logged is None:
            return None
        with self.path.open("rb") as file:
            file.seek(logged.start)
            line = json.loads(file.readline())
        return None if line.get("record") is None else record_in(line)


def _answer(line: bytes, where: str) -> SampleRecord:
    """Raises FormatError."""
    try:
        value = json.loads(line)
        if value.get("schema") != SCHEMA:
            raise FormatError(f"{where}: schema is {value.get('schema')!r}, expected {SCHEMA!r}")
        return SampleRecord.of(value)
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise FormatError(f"{where}: this line is no answer: {error!r:.300}") from error
