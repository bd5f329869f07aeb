"""The record of one tree: how it grew, what it was worth, and bytes that keep both (a versioned event log).

A frame is self-delimiting, so frames can be appended to a file and read while it is still written:

    magic "ARPO" | length of the body (uint32) | crc32 of the body (uint32) | body: zlib of JSON (see `codec`)      little-endian

Knows bytes. Refuses to know files: callers open them, flush them and name them.
"""

from __future__ import annotations

import io
import json
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import BinaryIO

from arpo.core.branching import BranchRule
from arpo.core.codec import SCHEMA, pack, unpack
from arpo.core.credit import CreditedTree, ScoredTree
from arpo.core.events import Event
from arpo.core.expansion import Expansion, ExpansionConfig, TipDecision
from arpo.core.place import Place, show
from arpo.core.score import Score
from arpo.core.tree import RolloutTree
from arpo.errors import ConfigError, FormatError

_HEADER = struct.Struct("<4sII")
_MAGIC = b"ARPO"
_NONSENSE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)  # what values of a wrong kind lead to
_TASK = re.compile(
    rb'\{"schema":\d+,"task":("(?:[^"\\]++|\\.)*+")'
)  # how `pack` begins; nothing is tried twice, which takes memory
_HEAD = 1 << 10  # bytes of a record's JSON in which its task stands as a rule
_PIECE = 1 << 20  # bytes read at once
_MOST_BYTES = 1 << 31  # of a record's JSON: about 100 million tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeRecord:
    """Everything needed to rebuild a tree, by replaying its events or by reading it, and what was made of it."""

    growth: ExpansionConfig  # with the seed and the step's statistics
    tree: RolloutTree  # with task, step and prompt
    events: tuple[Event, ...]  # in the order in which they arrived
    decisions: Mapping[Place, TipDecision]
    scores: Mapping[Place, Score] = field(default_factory=dict)
    advantages: Mapping[Place, float] = field(default_factory=dict)
    credit: Mapping[tuple[Place, Place], float] = field(default_factory=dict)
    notes: Mapping[str, object] = field(default_factory=dict)
    """What else a reader needs: JSON values and arrays ('i', 'f', 'd'), e.g. the tokenizer's name, learner log-probabilities."""
    schema: int = SCHEMA

    @classmethod
    def of(
        cls, expansion: Expansion, worth: ScoredTree | CreditedTree | None = None, notes: Mapping[str, object] | None = None
    ) -> TreeRecord:
        """The record of a tree as it stands; `worth` adds scores, or scores and credit. Raises ValueError if that is another's."""
        scored = worth.scored if isinstance(worth, CreditedTree) else worth
        if scored is not None and scored.tree is not expansion.tree:
            raise ValueError(f"the scores of {scored.tree!r} do not belong to {expansion.tree!r}")
        return cls(
            growth=expansion.growth,
            tree=expansion.tree,
            events=tuple(expansion.events),
            decisions=dict(expansion.decisions),
            scores=dict(scored.scores) if scored else {},
            advantages=dict(worth.advantages) if isinstance(worth, CreditedTree) else {},
            credit=dict(worth.credit) if isinstance(worth, CreditedTree) else {},
            notes=dict(notes or {}),
        )

    @property
    def scored(self) -> ScoredTree:
        return ScoredTree(self.tree, self.scores)

    @property
    def credited(self) -> CreditedTree:
        """The tree with its credit (empty where none was recorded)."""
        return CreditedTree(self.scored, self.advantages, self.credit)


def encode(record: TreeRecord) -> bytes:
    """One frame. Raises FormatError where notes or call arguments hold what JSON cannot."""
    try:
        text = json.dumps(pack(record), separators=(",", ":"))
    except TypeError as error:
        raise FormatError(f"the record of task {record.tree.task} cannot be written: {error}") from error
    body = zlib.compress(text.encode("ascii"), level=3)
    return _HEADER.pack(_MAGIC, len(body), zlib.crc32(body)) + body


def decode(stream: BinaryIO | bytes) -> Frames:
    """The records of a stream of frames, read one at a time."""
    return Frames(io.BytesIO(stream) if isinstance(stream, bytes) else stream)


class Frames(Iterator[TreeRecord]):
    """Iterates over records up to the last whole frame. What a killed writer left behind it is no error: `tail` counts its bytes.

    Raises FormatError, naming the frame and the byte it starts at, for anything else that is no frame, and for a record of a schema
    that this version does not know.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.num_read = 0
        self.offset = 0  # bytes of whole frames read so far: where a writer may go on after a truncated tail
        self.tail = 0  # bytes after the last whole frame, known when the iteration has ended

    def __next__(self) -> TreeRecord:
        if self.tail:
            raise StopIteration
        header = self._stream.read(_HEADER.size)
        if not _MAGIC.startswith(header[:4]):
            raise self._wrong(f"starts with {header[:4]!r} instead of {_MAGIC!r}")
        if len(header) < _HEADER.size:
            return self._stop(header)
        _, length, checksum = _HEADER.unpack(header)
        body = self._body(length)
        if len(body) < length:
            return self._stop(header + body)
        if zlib.crc32(body) != checksum:
            raise self._wrong("is damaged: its checksum does not fit")
        try:
            record = unpack(TreeRecord, json.loads(_unfolded(body)))
        except (FormatError, ConfigError) as error:
            raise self._wrong(str(error)) from error
        except (*_NONSENSE, RecursionError, zlib.error) as error:
            raise self._wrong(f"is no record: {error!r:.300}") from error
        self.num_read += 1
        self.offset += len(header) + length
        return record

    def _body(self, length: int) -> bytes:
        """As much of the next `length` bytes as there is; a damaged length costs no memory that the stream does not fill."""
        parts: list[bytes] = []
        while length and (part := self._stream.read(min(length, _PIECE))):
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def _stop(self, rest: bytes) -> TreeRecord:
        self.tail = len(rest)
        raise StopIteration

    def _wrong(self, what: str) -> FormatError:
        return FormatError(f"frame {self.num_read} at byte {self.offset} {what}")


def peek(stream: BinaryIO) -> Iterator[tuple[int, str]]:
    """Where each whole frame of a stream starts, and the task that it is of, without making records of them: of several frames of
    a task only the last is worth that. Raises FormatError as `decode` does, but looks at no checksum.
    """
    number = offset = 0
    while len(header := stream.read(_HEADER.size)) == _HEADER.size:
        magic, length, _ = _HEADER.unpack(header)
        if magic != _MAGIC:
            raise FormatError(f"frame {number} at byte {offset} starts with {magic!r} instead of {_MAGIC!r}")
        body = stream.read(length)
        if len(body) < length:
            return
        yield offset, _task_in(body, number, offset)
        number, offset = number + 1, offset + _HEADER.size + length
    if header and not _MAGIC.startswith(header[:4]):
        raise FormatError(f"frame {number} at byte {offset} starts with {header[:4]!r} instead of {_MAGIC!r}")


def _task_in(body: bytes, number: int, offset: int) -> str:
    try:
        found = _TASK.match(zlib.decompressobj().decompress(body, _HEAD)) or _TASK.match(_unfolded(body))
        return str(json.loads(found[1]) if found else json.loads(_unfolded(body))["task"])
    except (*_NONSENSE, FormatError, RecursionError, zlib.error) as error:
        raise FormatError(f"frame {number} at byte {offset} is no record: {error!r:.300}") from error


def _unfolded(body: bytes) -> bytes:
    """The JSON in a frame's body. Raises FormatError where it is cut off, or larger than any tree is."""
    unfolding = zlib.decompressobj()
    text = unfolding.decompress(body, _MOST_BYTES)
    if not unfolding.eof:
        raise FormatError(f"unfolds to more than {_MOST_BYTES} bytes" if unfolding.unconsumed_tail else "ends in the middle")
    return text


def replay(record: TreeRecord, rule: BranchRule | None = None) -> RolloutTree:
    """Grow the tree again from its prompt and its events.

    `rule` stands in for a rule that is not one of arpo's own, of which a record keeps only the name. Raises FormatError where the
    events do not fit, or lead to another tree or other decisions than the recorded ones.
    """
    growth = record.growth
    tree = RolloutTree(record.tree.task, record.tree.step, record.tree.prompt)
    number = -1
    try:
        expansion = Expansion.of(tree, growth if rule is None else replace(growth, rule=rule))
        expansion.start()
        for number, event in enumerate(record.events):  # noqa: B007 - named where it does not fit
            expansion.feed(event)
    except _NONSENSE as error:
        at = f"event {number} of {len(record.events)} does not fit" if number >= 0 else "its growth cannot be"
        raise FormatError(f"task {tree.task}: {at}: {error}") from error
    for place in sorted({*expansion.decisions, *record.decisions}):
        now, then = expansion.decisions.get(place), record.decisions.get(place)
        if now != then:
            raise FormatError(f"task {tree.task}: replay decides otherwise at {show(place)}: {now} instead of {then}")
    if tree != record.tree:
        raise FormatError(f"task {tree.task}: replay grows another tree: {tree!r} instead of {record.tree!r}")
    return tree
