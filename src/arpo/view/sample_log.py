"""The samples of an evaluation, read from its log: while it goes on, and after.

Knows `samples.jsonl` (`arpo.evaluation.samples`) and at which byte each sample's line starts. Refuses to know figures.
"""

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from arpo.core.record import TreeRecord
from arpo.errors import FormatError
from arpo.evaluation.samples import FILE, Key, SampleRecord, record_in
from arpo.foreign import MOST_BYTES, loads, open_file


@dataclass(frozen=True, slots=True)
class LoggedSample:
    sample: SampleRecord
    start: int  # the byte at which its line starts


class SampleLogReader:
    """The log in a folder. It reads every line once, since a log grows at its end. Safe to use from several threads."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._lock = threading.Lock()
        self._held: dict[Key, LoggedSample] = {}
        self._inode, self._end = 0, 0
        self.damage: list[str] = []  # lines that are no samples, in words; the others count all the same

    def samples(self) -> Mapping[Key, LoggedSample]:
        """Of two lines for one sample the later. A last line without its newline is one that is being written: it is
        left out."""
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

    def _read_on(self) -> dict[Key, LoggedSample]:
        read: dict[Key, LoggedSample] = {}
        with open_file(self.path) as file:
            file.seek(self._end)
            while line := file.readline(MOST_BYTES):
                if not line.endswith(b"\n"):
                    break
                try:
                    sample = _sample(line, f"{self.path.name}, byte {self._end}")
                    read[sample.key] = LoggedSample(sample, self._end)
                except FormatError as wrong:
                    self.damage.append(str(wrong))
                self._end += len(line)
        return read

    def record(self, key: Key) -> TreeRecord | None:
        """The trajectory of a sample; None where it has none. Raises FormatError where it is damaged."""
        logged = self.samples().get(key)
        if logged is None:
            return None
        with open_file(self.path) as file:
            file.seek(logged.start)
            line = json.loads(file.readline())
        return None if line.get("record") is None else record_in(line, self.path.parent)


def _sample(line: bytes, where: str) -> SampleRecord:
    """Raises FormatError."""
    try:
        value = loads(line)
    except ValueError as error:
        raise FormatError(f"{where} is no sample: {error!r:.300}") from error
    return SampleRecord.from_line(value, where)
