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
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, BinaryIO, TypeVar

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

T = TypeVar("T")
_HEADER = struct.Struct("<4sII")
_MAGIC = b"ARPO"
_BAD_VALUES = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError)  # what values of a wrong type raise
# how `pack` begins; possessive, since backtracking takes memory
_TASK = re.compile(rb'\{"schema":\d+,"task":("(?:[^"\\]++|\\.)*+")')
_PREFIX_BYTES = 1 << 10  # of a record's JSON; they usually hold the task's id
_CHUNK_BYTES = 1 << 20  # read at once
_BEGINNING = re.compile(rb"ARPO(.{4}).{4}\x78", re.DOTALL)  # of a frame: its header, then zlib's first byte
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

    Raises FormatError, which names the frame and the byte at which it starts, for anything else that is not a frame
    (also for one whose damaged length reaches over other frames to the end), and for a record of a schema that this
    version does not know.
    """

    def __init__(self, stream: BinaryIO, offset: int = 0) -> None:
        self._stream = stream
        self.num_read = 0
        self.offset = offset  # bytes of whole frames read so far: a writer may continue here after a truncated tail
        self.tail = 0  # bytes after the last whole frame; set when the iteration ends

    def __next__(self) -> TreeRecord:
        return self._next(_record_in)

    def tasks(self) -> Iterator[tuple[int, str]]:
        """The offset and the task id of every whole frame, without decoding the records: if a task has several frames,
        only the last one counts. Raises FormatError as iterating over records does, but verifies no checksums."""
        while True:
            start = self.offset
            try:
                task = self._next(_task_in)
            except StopIteration:
                return
            yield start, task

    def _next(self, read: Callable[[bytes, int], T]) -> T:
        """`read`, called with the next frame's body and checksum. Raises StopIteration at the end."""
        if self.tail:
            raise StopIteration
        try:
            header = self._stream.read(_HEADER.size)
            if not _MAGIC.startswith(header[:4]):
                raise FormatError(f"starts with {header[:4]!r} instead of {_MAGIC!r}")
            length, checksum = _HEADER.unpack(header)[1:] if len(header) == _HEADER.size else (1, 0)
            if length > _MAX_BYTES:
                raise FormatError(
                    f"is damaged: it says that it has {length:,} bytes, and a frame has at most {_MAX_BYTES:,}"
                )
            body = self._body(length)
            if len(body) < length:
                if _holds_frame(body):
                    raise FormatError(f"is damaged: it says that it has {length:,} bytes, and other frames are in them")
                self.tail = len(header) + len(body)
                raise StopIteration
            result = read(body, checksum)
        except FormatError as error:
            raise FormatError(f"frame {self.num_read} at byte {self.offset} {error}") from error
        self.num_read += 1
        self.offset += len(header) + length
        return result

    def _body(self, length: int) -> bytes:
        """As many of the next `length` bytes as there are. A damaged length allocates no more than the stream holds."""
        parts: list[bytes] = []
        while length and (part := self._stream.read(min(length, _CHUNK_BYTES))):
            parts.append(part)
            length -= len(part)
        return b"".join(parts)


def _holds_frame(body: bytes) -> bool:
    """Whether a whole frame seems to stand anywhere in `body`: by chance in one of 10^9 bodies of a megabyte."""
    lengths = ((match.end(), int.from_bytes(match[1], "little")) for match in _BEGINNING.finditer(body))
    return any(0 < length <= len(body) - end + 1 for end, length in lengths)


def _record_in(body: bytes, checksum: int) -> TreeRecord:
    if zlib.crc32(body) != checksum:
        raise FormatError("is damaged: its checksum does not match")
    try:
        return record_from(loads(_decompressed(body)))
    except FormatError:
        raise
    except (*_BAD_VALUES, zlib.error) as error:
        raise FormatError(f"is not a record: {error!r:.300}") from error


def _turn_text(notes: Mapping[str, Any], place: Place) -> str:
    """What a rule reads of a turn: its text without what ended it."""
    text, read = notes.get("texts", {}).get(show(place), ""), notes.get("read", {}).get(show(place), {})
    return str(text)[: read.get("length")]


def _task_in(body: bytes, _checksum: int) -> str:
    try:
        match = _TASK.match(zlib.decompressobj().decompress(body, _PREFIX_BYTES)) or _TASK.match(_decompressed(body))
        return str(json.loads(match[1]) if match else loads(_decompressed(body))["task"])
    except (*_BAD_VALUES, FormatError, RecursionError, zlib.error) as error:
        raise FormatError(f"is not a record: {error!r:.300}") from error


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
