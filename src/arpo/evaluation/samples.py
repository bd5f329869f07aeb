"""The samples of an evaluation: one line on disk for each answer, written as soon as the answer is scored.

    samples.jsonl: a JSON object a line: a `SampleRecord`, and under "record" the trajectory in the form of
    `arpo.core.codec`

Knows lines. Refuses to know how answers are generated and what is computed from them. A line that a killed process has
not finished is cut off before the next one is written; of two lines for one sample the later counts.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any

from arpo.core.codec import pack
from arpo.core.record import TreeRecord, record_from
from arpo.core.tree import StopReason
from arpo.errors import FormatError
from arpo.files import cut_unfinished_line, json_line, open_to_append, read_json_lines
from arpo.foreign import checked

FILE = "samples.jsonl"
SCHEMA = "arpo/sample/1"
NOT_ASKED = "not_asked"  # the ending where the prompt is too long to be sent
NOT_SCORED = "not_scored"  # the ending of an answer whose reward failed
Key = tuple[str, str, int]  # benchmark, id, number of the sample
_FAILED = {ending.value for ending in StopReason if ending.aborted} | {NOT_ASKED, NOT_SCORED}


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRecord:
    """One answer to one question, what it cost and, where infrastructure failed, why (`failure`)."""

    benchmark: str  # the benchmark's name, or the split of a recipe's held-out tasks
    id: str  # of the question
    sample: int = 0  # numbers the answers to a question from 0
    family: str = ""
    level: str = ""
    category: str = ""
    metric: str = ""  # the measure behind `accuracy`
    question: str = ""
    gold: Sequence[str] = ()
    answer: str | None = None
    accuracy: float  # 0 to 1, as the reward's Score has it
    correct: bool  # what pass@k counts
    reward: float
    measures: Mapping[str, float] = field(default_factory=dict)  # further measures by name, 0 to 1
    calls: int = 0  # tool calls that ran
    asked_calls: int = 0  # tool calls that the model wrote, refused ones included
    turns: int = 0
    tokens: int = 0  # written by the policy
    read_tokens: int = 0  # of context before each turn, summed: what an endpoint bills as input
    seconds: float = 0.0  # from the question to the score, including time in queues
    tool_s: float = 0.0  # of `seconds`, the time in tools, summed over calls
    cost: float = 0.0  # money: tools, and the engine where it knows its price
    ending: str = ""
    failure: str = ""
    transcript: str = ""  # the trajectory as text

    @property
    def key(self) -> Key:
        return self.benchmark, self.id, self.sample

    @property
    def failed(self) -> bool:
        """True where infrastructure failed, not the model: the answer counts as wrong, and `failure` says why."""
        return self.ending in _FAILED

    @classmethod
    def from_line(cls, value: Mapping[str, Any], where: str) -> "SampleRecord":
        """`value`: a line of samples.jsonl; `where`: its place, for messages. Raises FormatError where it is something
        else."""
        known = {f.name: value[f.name] for f in fields(cls) if f.name in value}
        gold = known.get("gold")
        known["gold"] = tuple(gold) if isinstance(gold, list) else gold
        if (schema := value.get("schema") if isinstance(value, Mapping) else None) != SCHEMA:
            raise FormatError(f"{where}: schema is {schema!r:.80}, expected {SCHEMA!r}")
        try:
            sample = checked(cls(**known))
            if not all(0 <= share <= 1 for share in (sample.accuracy, *sample.measures.values())):
                raise FormatError("an accuracy or a measure is not from 0 to 1")
            if any(type(count) is int and count < 0 for count in known.values()):
                raise FormatError("a count is negative")
            return sample
        except (TypeError, FormatError) as error:
            raise FormatError(f"{where} is no sample: {error!s:.300}") from error


class SampleLog:
    """Appends samples to FOLDER/samples.jsonl, each with one write, whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self._file = open_to_append(folder / FILE)
        cut_unfinished_line(self._file)

    def __enter__(self) -> "SampleLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.fsync(self._file.fileno())
        self._file.close()

    def append(self, sample: SampleRecord, record: TreeRecord | None) -> None:
        """Raises OSError where the disk is full: what was there before stays readable."""
        line = json_line({"schema": SCHEMA, **asdict(sample), "record": None if record is None else pack(record)})
        before, left = os.fstat(self._file.fileno()).st_size, memoryview(line)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            self._file.truncate(before)
            raise


def read_lines(folder: Path) -> Iterator[dict[str, Any]]:
    """The lines of a folder's samples.jsonl as they are, one at a time. Raises FormatError naming file and line."""
    for number, line in enumerate(read_json_lines(folder / FILE), 1):
        if line.get("schema") != SCHEMA:
            raise FormatError(f"{folder / FILE}, line {number}: schema is {line.get('schema')!r}, expected {SCHEMA!r}")
        names = [type(line.get(name)) for name in ("benchmark", "id", "sample")]
        if names != [str, str, int]:
            raise FormatError(f"{folder / FILE}, line {number} does not name its benchmark, id and sample")
        yield line


def read_samples(folder: Path) -> dict[Key, SampleRecord]:
    """The samples in a folder, without their trajectories, in the order in which they were first written."""
    samples: dict[Key, SampleRecord] = {}
    for number, line in enumerate(read_lines(folder), 1):
        sample = SampleRecord.from_line(line, f"{folder / FILE}, line {number}")
        samples[sample.key] = sample
    return samples


def read_record(folder: Path, key: Key) -> TreeRecord | None:
    """The trajectory of one sample; None where it has none. Raises FormatError."""
    last = None
    for line in read_lines(folder):
        if (line.get("benchmark"), line.get("id"), line.get("sample")) == key:
            last = line
    return None if last is None or last.get("record") is None else record_in(last, folder)


def record_in(line: Mapping[str, Any], folder: Path) -> TreeRecord:
    """The trajectory in a line of the samples in `folder`. Raises FormatError."""
    try:
        return record_from(line["record"])
    except FormatError as error:
        raise FormatError(f"{folder / FILE}: the record of {line.get('id')!r:.300} {error}") from error
