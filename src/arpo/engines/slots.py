"""Key-value slots: one contiguous run of keys and values a request, found again by its tokens.

Finished slots stay as known prefixes until their place is wanted (least recently used first). A fork copies a prefix
from slot to slot; whole blocks that were copied are known to be the same, so that attention reads them once for all who
have them. Capacity grows by doubling up to a memory limit. Knows tokens; knows no model and no sampling.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from arpo.engines.attention import CachePage
from arpo.engines.network import Shape

BLOCK = 64  # tokens; keys of one block of one slot lie together (a page)
_ROWS = 8  # and in number by multiples of this many


class Owner(Protocol):
    """Whoever uses a slot; told when the slot moves."""

    row: int


@dataclass(slots=True)
class CachedTip:
    """The logits after the first `length` tokens of a slot."""

    length: int
    logits: Tensor  # [vocabulary]


@dataclass(slots=True)
class CacheSlot:
    """What lies in one slot. `known` tokens have keys; `planned` also counts those that a live request is about to
    compute."""

    owner: Owner | None = None  # None: retired or empty
    known: int = 0
    planned: int = 0
    used: int = 0  # clock of the last use
    current: bool = True  # False: keys of older weights, not to be reused
    tip: CachedTip | None = None


@dataclass(frozen=True, slots=True)
class Match:
    """The longest known prefix of a prompt: `count` tokens in slot `row`. `coming` tokens would be known after the next
    steps."""

    row: int
    count: int
    coming: int
    tip: Tensor | None = None


class Slots:
    """Memory for `shape` in `dtype`, at most `memory` bytes and `most` rows (a row is a slot).

    evicts: whether retired prefixes give way; if not, `take` returns None when the memory is full.
    """

    def __init__(
        self, shape: Shape, *, dtype: torch.dtype, device: torch.device, memory: int, most: int, evicts: bool = True
    ) -> None:
        self.shape, self.dtype, self.device = shape, dtype, device
        self.memory, self.most, self.evicts = memory, most, evicts
        self.rows: list[CacheSlot] = []
        self.length = 0
        self.copied = 0  # tokens copied between slots
        self.store = self._new(0, 0)
        self.tokens = np.zeros((0, 0), np.int32)
        self.sampled = np.zeros((0, 0), bool)  # True: the key was computed by a decoding step
        self.origins = np.zeros((0, 0), np.int64)  # of each block: where it has the same number it has the same keys
        self._clock = self._blocks = 0
        self._before = (0, 0)  # rows and length when the memory was given back

    def _new(self, rows: int, length: int) -> Tensor:
        """[layers, 2, blocks, rows, kv_heads, BLOCK, head_dim] of zeros: masked keys must be finite, since 0 * NaN is
        NaN.

        On a CPU by numpy, which takes pages that are zero and large, when they are first written to: torch writes the
        zeros itself.
        """
        s = self.shape
        shape = (s.layers, 2, length // BLOCK, rows, s.kv_heads, BLOCK, s.head_dim)
        if self.device.type != "cpu" or 0 in shape:
            return torch.zeros(shape, dtype=self.dtype, device=self.device)
        return torch.from_numpy(np.zeros(math.prod(shape) * self.dtype.itemsize, np.uint8)).view(self.dtype).view(shape)

    @property
    def token_bytes(self) -> int:
        s = self.shape
        return s.layers * 2 * s.kv_heads * s.head_dim * self.dtype.itemsize

    def longest(self) -> int:
        """Tokens that one slot alone could hold within the memory limit."""
        return self.memory // self.token_bytes // BLOCK * BLOCK

    # -- finding
    # ----------------------------------------------------------------------------------------------------------

    def match(self, prompt: np.ndarray) -> Match | None:
        """The best slot to start `prompt` (int32 [n]) from. None: nothing of it is known."""
        count = len(self.rows)
        width = min(len(prompt), self.length)
        if not count or not width:
            return None
        equal = self.tokens[:count, :width] == prompt[:width]
        agree = np.where(equal.all(1), width, equal.argmin(1))
        current = np.array([r.current for r in self.rows])
        known = np.minimum(agree, [r.known for r in self.rows]) * current
        coming = np.minimum(agree, [r.planned for r in self.rows]) * current
        full = len(prompt)
        ranks = [
            (
                int(known[i]) == full and r.tip is not None and r.tip.length == full,
                int(known[i]),
                self._whole(r, int(known[i])),
            )
            for i, r in enumerate(self.rows)
        ]
        best = max(range(count), key=ranks.__getitem__)
        if not known[best] and not coming.any():
            return None
        tip = self.rows[best].tip
        return Match(
            best, int(known[best]), int(coming.max()), tip.logits if tip is not None and ranks[best][0] else None
        )

    @staticmethod
    def _whole(row: CacheSlot, count: int) -> bool:
        """True where a request could take the slot over without losing anything that it holds."""
        return row.owner is None and row.known <= count

    # -- taking and leaving
    # -----------------------------------------------------------------------------------------------

    def take(self, owner: Owner, prompt: np.ndarray, reserve: int, match: Match | None, reuse: int) -> int | None:
        """A live slot for `owner` that holds the first `reuse` tokens of `prompt` and has room for `reserve`. None: no
        room now.

        The prompt's other tokens are entered as planned.
        """
        source = match.row if match is not None and reuse else None
        origins = self.sampled[match.row, : match.count].copy() if match is not None else np.zeros(0, bool)
        if source is not None and self._whole(self.rows[source], reuse) and self._fit(len(self.rows), reserve):
            row = source
        else:
            free = self._empty(reserve, source)
            if free is None:
                return None
            row, source = free
            if source is not None:
                self._copy(source, row, reuse)
        slot = self.rows[row]
        slot.owner, slot.current = owner, True
        self.tokens[row, reuse : len(prompt)] = prompt[reuse:]
        self.sampled[row, reuse:] = False
        self.sampled[row, : len(origins)] = origins
        slot.known, slot.planned = reuse, len(prompt)
        self._own(row, reuse)
        if slot.tip is not None and slot.tip.length > len(prompt):
            slot.tip = None
        self.touch(row)
        owner.row = row
        return row

    def leave(self, row: int) -> None:
        """The owner is done; what is known stays as a prefix for others, unless it belongs to older weights."""
        slot = self.rows[row]
        slot.owner, slot.planned = None, slot.known
        if not slot.current:
            self._wipe(slot)
        self.touch(row)

    def pages(self, rows: Sequence[int], reach: Sequence[int]) -> list[CachePage]:
        """The blocks that hold the first `reach` keys of each of `rows`, those with the same keys as one."""
        readers: dict[int, list[int]] = {}
        homes: dict[int, tuple[int, int]] = {}
        for number, (row, count) in enumerate(zip(rows, reach, strict=True)):
            for block, origin in enumerate(self.origins[row, : -(-count // BLOCK)].tolist()):
                readers.setdefault(origin, []).append(number)
                homes.setdefault(origin, (block, row))
        return [CachePage(*homes[origin], rows=numbers) for origin, numbers in readers.items()]

    def _own(self, row: int, since: int) -> None:
        """Blocks from the one of token `since` on are about to be written: they are nobody else's."""
        first, last = since // BLOCK, self.origins.shape[1]
        self.origins[row, first:] = np.arange(self._blocks, self._blocks + last - first)
        self._blocks += last - first

    def touch(self, row: int) -> None:
        self._clock += 1
        self.rows[row].used = self._clock

    def forget(self) -> None:
        """Drop all retired prefixes; those of live requests are not reused any more."""
        for slot in self.rows:
            if slot.owner is None:
                self._wipe(slot)
            else:
                slot.current, slot.tip = False, None

    @staticmethod
    def _wipe(slot: CacheSlot) -> None:
        slot.known = slot.planned = slot.used = 0
        slot.tip, slot.current, slot.owner = None, True, None

    # -- room
    # -------------------------------------------------------------------------------------------------------------

    def _empty(self, reserve: int, source: int | None) -> tuple[int, int | None] | None:
        """A row without owner for at least `reserve` tokens, and where `source` lies now."""
        free = next((i for i, r in enumerate(self.rows) if r.owner is None and not r.known and i != source), None)
        if free is not None and self._fit(len(self.rows), reserve):
            return free, source
        if free is None and len(self.rows) < self.most:
            rows, longest = self._before if not self.rows else (0, self.length)
            length = max(-(-reserve // BLOCK) * BLOCK, longest)
            more = min(max(len(self.rows) * 2, _ROWS, rows), self.most, self.memory // (length * self.token_bytes))
            if more > len(self.rows) and self._fit(more, length):
                return next(
                    i for i, r in enumerate(self.rows) if r.owner is None and not r.known and i != source
                ), source
        if not self.evicts:
            return None
        return self._evict(reserve, source)

    def _evict(self, reserve: int, source: int | None) -> tuple[int, int | None] | None:
        """Give up retired prefixes, oldest first, until there is a row of the wanted length."""
        while True:
            retired = [i for i, r in enumerate(self.rows) if r.owner is None and i != source]
            if retired and self._fit(len(self.rows), reserve):
                row = min(retired, key=lambda i: self.rows[i].used)
                self._wipe(self.rows[row])
                return row, source
            if not retired:
                return None
            # Longer slots in the same memory: fewer of them. The oldest goes to the end and is cut off.
            row = min(retired, key=lambda i: self.rows[i].used)
            last = len(self.rows) - 1
            if row != last:
                self.swap(row, last)
                source = row if source == last else source
            self.rows.pop()
            self._resize(len(self.rows), self.length)

    def _fit(self, rows: int, length: int) -> bool:
        """Make the store at least this large if the memory limit allows it."""
        length = max(-(-length // BLOCK) * BLOCK, self.length)
        if rows > len(self.rows) or length > self.length:
            if rows * length * self.token_bytes > self.memory:
                return False
            self._resize(rows, length)
        return True

    def _resize(self, rows: int, length: int) -> None:
        old, keep, width = self.store, min(rows, self.store.shape[3]), min(length, self.length)
        self.store = self._new(rows, length)
        self.store[:, :, : width // BLOCK, :keep] = old[:, :, : width // BLOCK, :keep]
        for name, kind in (("tokens", np.int32), ("sampled", bool)):
            fresh = np.zeros((rows, length), kind)
            fresh[:keep, :width] = getattr(self, name)[:keep, :width]
            setattr(self, name, fresh)
        blocks = length // BLOCK
        origins = np.arange(self._blocks, self._blocks + rows * blocks).reshape(rows, blocks)
        self._blocks += rows * blocks
        origins[:keep, : width // BLOCK] = self.origins[:keep, : width // BLOCK]
        self.origins = origins
        self.length = length
        self.rows.extend(CacheSlot() for _ in range(rows - len(self.rows)))

    def _copy(self, source: int, row: int, count: int) -> None:
        for part in _parts(count):
            self.store[:, :, part.block, row, :, : part.count] = self.store[:, :, part.block, source, :, : part.count]
        self.tokens[row, :count] = self.tokens[source, :count]
        self.sampled[row, :count] = self.sampled[source, :count]
        self.origins[row, : count // BLOCK] = self.origins[source, : count // BLOCK]
        tip = self.rows[source].tip
        self.rows[row].tip = tip if tip is not None and tip.length == count else None
        self.touch(source)
        self.copied += count

    def swap(self, a: int, b: int) -> None:
        """Exchange two slots."""
        if self.rows[a].known < self.rows[b].known:
            a, b = b, a
        na, nb = self.rows[a].known, self.rows[b].known
        for part in _parts(na):
            mine, other = (self.store[:, :, part.block, row, :, : part.count] for row in (a, b))
            held = other.clone() if part.block * BLOCK < nb else None
            other.copy_(mine)
            if held is not None:
                mine.copy_(held)
        self.copied += na + nb
        for table in (self.tokens, self.sampled, self.origins):
            table[[a, b]] = table[[b, a]]
        self.rows[a], self.rows[b] = self.rows[b], self.rows[a]
        for row in (a, b):
            owner = self.rows[row].owner
            if owner is not None:
                owner.row = row

    def release(self) -> None:
        """Give the memory back and forget all prefixes, unless a request is live. The next one takes as much again, at
        once."""
        if any(slot.owner is not None for slot in self.rows):
            return
        self._before = max(self._before, (len(self.rows), self.length))
        self.rows.clear()
        self._resize(0, 0)

    def clear(self) -> None:
        """Forget everything, live slots too."""
        for slot in self.rows:
            self._wipe(slot)


@dataclass(frozen=True, slots=True)
class _Part:
    block: int
    count: int


def _parts(tokens: int) -> list[_Part]:
    """The blocks that hold the first `tokens` tokens of a slot, and how many each."""
    return [_Part(i, min(BLOCK, tokens - i * BLOCK)) for i in range(-(-tokens // BLOCK))]
