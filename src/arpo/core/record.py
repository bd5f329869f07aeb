"""The record of one tree: its events, scores and credit, and their encoding as bytes (a versioned event log).

A frame delimits itself, so a writer can append frames to a file while a reader reads it:

    magic "ARPO" | length of the body (uint32) | crc32 of the body (uint32) | body: zlib of JSON (see `codec`)

Integers are little-endian.

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
from functools import partial
from typing import Any, BinaryIO

from arpo.core.branching import BranchRule
from arpo.core.codec import SCHEMA, pack, unpack
from arpo.core.credit import CreditedTree, ScoredTree
from arpo.core.estimators import Mask
from arpo.core.events import Event
from arpo.core.expansion import Expansion, ExpansionConfig, TipDecision
from arpo.core.place import Place, show
from arpo.core.score import Score
from arpo.core.tree import RolloutTree
from arpo.errors import ConfigError, FormatError
from arpo.foreign import loads

_HEADER = struct.Struct("<4sII")
_MAGIC = b"ARPO"
_BAD_VALUES = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)  # what values of a wrong type raise
# how `pack` begins; possessive, since backtracking takes memory
_TASK = re.compile(rb'\{"schema":\d+,"task":("(?:[^"\\]++|\\.)*+")')
_PREFIX_BYTES = 1 << 10  # of a record's JSON; they usually hold the task's id
_CHUNK_BYTES = 1 << 20  # read at once
_MAX_BYTES = 1 << 28  # of a record's JSON, and of a frame: about 10 million tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeRecord:
    """Everything needed to rebuild a tree, by replay or by reading it, with its scores and credit."""

    config: ExpansionConfig  # with the seed and the step's statistics
    tree: RolloutTree  # with task, step and prompt
    events: tuple[Event, ...]  # in the order in which they arrived
    decisions: Mapping[Place, TipDecision]
    scores: Mapping[Place, Score] = field(default_factory=dict)
    advantages: Mapping[Place, float] = field(default_factory=dict)
    credit: Mapping[tuple[Place, Place], float] = field(default_factory=dict)
    mask: Mask = field(default_factory=dict)
    notes: Mapping[str, object] = field(default_factory=dict)
    """What else a reader needs, as JSON values and arrays ('i', 'f', 'd'): the tokenizer's name, learner
    log-probabilities."""
    schema: int = SCHEMA

    @classmethod
    def from_expansion(
        cls,
        expansion: Expansion,
        result: ScoredTree | CreditedTree | None = None,
        notes: Mapping[str, object] | None = None,
    ) -> TreeRecord:
        """The record of an expansion's current tree; `result` adds scores, or scores and credit. Raises ValueError if
        `result` belongs to another tree."""
        scored = result.scored if isinstance(result, CreditedTree) else result
        if scored is not None and scored.tree is not expansion.tree:
            raise ValueError(f"the scores of {scored.tree!r} do not belong to {expansion.tree!r}")
        return cls(
            config=expansion.config,
            tree=expansion.tree,
            events=tuple(expansion.events),
            decisions=dict(expansion.decisions),
            scores=dict(scored.scores) if scored else {},
            advantages=dict(result.advantages) if isinstance(result, CreditedTree) else {},
            credit=dict(result.credit) if isinstance(result, CreditedTree) else {},
            mask=dict(result.mask) if isinstance(result, CreditedTree) else {},
            notes=dict(notes or {}),
        )

    @property
    def scored(self) -> ScoredTree:
        return ScoredTree(self.tree, self.scores)

    @property
    def credited(self) -> CreditedTree:
        """The tree with its credit (empty if the record holds none)."""
        return CreditedTree(self.scored, self.advantages, self.credit, self.mask)


def encode(record: TreeRecord) -> bytes:
    """The record as one frame. Raises FormatError if notes or call arguments hold a value that JSON cannot."""
    try:
        text = json.dumps(pack(record), separators=(",", ":"))
    except TypeError as error:
        raise FormatError(f"the record of task {record.tree.task} cannot be written: {error}") from error
    body = zlib.compress(text.encode("ascii"), level=3)
    return _HEADER.pack(_MAGIC, len(body), zlib.crc32(body)) + body


def record_from(value: object) -> TreeRecord:
    """The record that `pack` wrote as JSON values. Raises FormatError."""
    try:
        return unpack(TreeRecord, value)
    except ConfigError as error:
        raise FormatError(str(error)) from error
    except (*_BAD_VALUES, RecursionError) as error:
        raise FormatError(f"is not a record: {error!r:.300}") from error


def decode(stream: BinaryIO | bytes, offset: int = 0) -> Frames:
    """The records of a stream of frames, one at a time. `offset`: where in its file the stream stands, for messages."""
    return Frames(io.BytesIO(stream) if isinstance(stream, bytes) else stream, offset)


class Frames(Iterator[TreeRecord]):
    """Iterates over records up to the last whole frame. A frame that a killed writer left incomplete is no error:
    `tail` counts its bytes.

    Raises FormatError, which names the frame and the byte at which it starts, for anything else that is not a frame,
    and for a record of a schema that this version does not know.
    """

    def __init__(self, stream: BinaryIO, offset: int = 0) -> None:
        self._stream = stream
        self.num_read = 0
        self.offset = offset  # bytes of whole frames read so far: a writer may continue here after a truncated tail
        self.tail = 0  # bytes after the last whole frame; set when the iteration ends

    def __next__(self) -> TreeRecord:
        if self.tail:
            raise StopIteration
        header = self._stream.read(_HEADER.size)
        if not _MAGIC.startswith(header[:4]):
            raise self._error(f"starts with {header[:4]!r} instead of {_MAGIC!r}")
        if len(header) < _HEADER.size:
            return self._stop(header)
        _, length, checksum = _HEADER.unpack(header)
        if length > _MAX_BYTES:
            raise self._error(_too_long(length))
        body = self._body(length)
        if len(body) < length:
            return self._stop(header + body)
        if zlib.crc32(body) != checksum:
            raise self._error("is damaged: its checksum does not match")
        try:
            record = record_from(loads(_decompressed(body)))
        except FormatError as error:
            raise self._error(str(error)) from error
        except (*_BAD_VALUES, zlib.error) as error:
            raise self._error(f"is not a record: {error!r:.300}") from error
        self.num_read += 1
        self.offset += len(header) + length
        return record

    def _body(self, length: int) -> bytes:
        """As many of the next `length` bytes as there are. A damaged length allocates no more than the stream holds."""
        parts: list[bytes] = []
        while length and (part := self._stream.read(min(length, _CHUNK_BYTES))):
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def _stop(self, rest: bytes) -> TreeRecord:
        self.tail = len(rest)
        raise StopIteration

    def _error(self, problem: str) -> FormatError:
        return FormatError(f"frame {self.num_read} at byte {self.offset} {problem}")


def peek(stream: BinaryIO) -> Iterator[tuple[int, str]]:
    """The offset and the task id of every whole frame of a stream, without decoding the records: if a task has several
    frames, only the last one counts. Raises FormatError as `decode` does, but does not verify checksums.
    """
    number = offset = 0
    while len(header := stream.read(_HEADER.size)) == _HEADER.size:
        magic, length, _ = _HEADER.unpack(header)
        if magic != _MAGIC:
            raise FormatError(f"frame {number} at byte {offset} starts with {magic!r} instead of {_MAGIC!r}")
        if length > _MAX_BYTES:
            raise FormatError(f"frame {number} at byte {offset} {_too_long(length)}")
        body = stream.read(length)
        if len(body) < length:
            return
        yield offset, _task_in(body, number, offset)
        number, offset = number + 1, offset + _HEADER.size + length
    if header and not _MAGIC.startswith(header[:4]):
        raise FormatError(f"frame {number} at byte {offset} starts with {header[:4]!r} instead of {_MAGIC!r}")


def _turn_text(notes: Mapping[str, Any], place: Place) -> str:
    """What a rule reads of a turn: its text without what ended it."""
    text, read = notes.get("texts", {}).get(show(place), ""), notes.get("read", {}).get(show(place), {})
    return str(text)[: read.get("length")]


def _too_long(length: int) -> str:
    return f"is damaged: it says that it has {length:,} bytes, and a frame has at most {_MAX_BYTES:,}"


def _task_in(body: bytes, number: int, offset: int) -> str:
    try:
        match = _TASK.match(zlib.decompressobj().decompress(body, _PREFIX_BYTES)) or _TASK.match(_decompressed(body))
        return str(json.loads(match[1]) if match else loads(_decompressed(body))["task"])
    except (*_BAD_VALUES, FormatError, RecursionError, zlib.error) as error:
        raise FormatError(f"frame {number} at byte {offset} is not a record: {error!r:.300}") from error


def _decompressed(body: bytes) -> bytes:
    """The JSON in a frame's body. Raises FormatError if it is truncated, or larger than any tree can be."""
    decompressor = zlib.decompressobj()
    text = decompressor.decompress(body, _MAX_BYTES)
    if not decompressor.eof:
        raise FormatError(
            f"decompresses to more than {_MAX_BYTES} bytes" if decompressor.unconsumed_tail else "is truncated"
        )
    return text


def replay(record: TreeRecord, rule: BranchRule | None = None) -> RolloutTree:
    """Grow the tree again from its prompt and its events.

    `rule` replaces a rule from outside arpo, of which a record holds only the name. Raises FormatError if the events do
    not fit, or lead to another tree or to other decisions than the record holds.
    """
    config = record.config
    tree = RolloutTree(record.tree.task, record.tree.step, record.tree.prompt)
    number = -1
    try:
        expansion = Expansion.from_config(tree, config if rule is None else replace(config, rule=rule))
        expansion.text_of = partial(_turn_text, record.notes)
        expansion.start()
        for number, event in enumerate(record.events):  # noqa: B007 - the error message names it
            expansion.feed(event)
    except _BAD_VALUES as error:
        problem = (
            f"event {number} of {len(record.events)} does not fit" if number >= 0 else "the expansion cannot start"
        )
        raise FormatError(f"task {tree.task}: {problem}: {error}") from error
    for place in sorted({*expansion.decisions, *record.decisions}):
        replayed, recorded = expansion.decisions.get(place), record.decisions.get(place)
        if replayed != recorded:
            raise FormatError(f"task {tree.task}: replay decides {replayed} at {show(place)} instead of {recorded}")
    if tree != record.tree:
        raise FormatError(f"task {tree.task}: replay grows the tree {tree!r} instead of {record.tree!r}")
    return tree
