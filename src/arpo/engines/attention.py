"""Attention of a ragged batch over key-value slots: what each token of one forward pass may see.

A forward pass holds tokens of many requests in one flat row: one token of each request that decodes, then runs of
prompt tokens ("spans"). Everything in a transformer but attention works token by token, so only attention needs to
know. It reaches the model through transformers' attention interface under a name of its own; the layout travels as a
model argument, so that no state is shared between engines, and a model without a layout raises. Knows nothing of
requests, sampling or tokens' ids.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, scaled_dot_product_attention

NAME = "arpo_slots"
_SHARED = 8  # requests that read a shared page in one product; more take further ones


@dataclass(frozen=True, slots=True)
class Span:
    """Prompt tokens of one slot: rows [first, first + count) of the flat batch are positions [start, start + count)."""

    slot: int
    start: int
    count: int
    first: int
    seen: int  # keys [0, seen) are read; those after a query's own position are masked


@dataclass(frozen=True, slots=True)
class CachePage:
    """A block of one slot, and the flat rows that read it. Others may know the same keys by copies of their own."""

    block: int
    slot: int
    rows: Sequence[int]


@dataclass(frozen=True, slots=True)
class _Entry:
    """A page as one product reads it: its number in a layer's store, its block and at most `width` readers."""

    page: int
    column: int
    rows: Sequence[int]


class _Bundle:
    """Pages that a decoding pass reads, `width` queries of each at once: a page that several requests share is read
    once for all.

    pages [P]: numbers of pages in a layer's store. queries [P * kv_heads * width]: rows of queries by key head, in the
    order of the products; a page with fewer readers repeats its first. hidden [P * kv_heads, width * heads_per_key,
    block]: added to scores, None where every reader sees all of every page. held: keys or values of the layer at hand,
    one buffer for all layers, since fresh memory costs more than the copy. mass, found: where every page's ln sum exp
    and result go.
    """

    __slots__ = ("found", "held", "hidden", "mass", "pages", "queries")

    def __init__(
        self, entries: Sequence[_Entry], width: int, reach: np.ndarray, layer: Tensor, heads_per_key: int
    ) -> None:
        """layer: the keys of one layer, [blocks, slots, kv_heads, block, d]."""
        kv_heads, block = layer.shape[2], layer.shape[3]
        readers = np.array([[*e.rows, *[e.rows[0]] * (width - len(e.rows))] for e in entries])
        queries = readers[:, None, :] * kv_heads + np.arange(kv_heads)[:, None]
        self.queries = torch.from_numpy(queries.ravel()).to(layer.device)
        self.pages = torch.tensor([e.page for e in entries], device=layer.device)
        self.mass: Tensor  # [P * kv_heads, width * heads_per_key]
        self.found: Tensor  # the same, d each
        self.held = layer.new_empty(len(entries), layer.shape[2:].numel())
        left = reach[readers] - np.array([e.column for e in entries])[:, None] * block
        self.hidden: Tensor | None = None
        if left.min() < block:
            dark = torch.from_numpy(np.arange(block) >= left[:, :, None])[:, None, :, None, :]
            bias = torch.zeros(dark.shape, dtype=layer.dtype).masked_fill_(dark, float("-inf"))
            bias = bias.expand(-1, kv_heads, -1, heads_per_key, -1).reshape(len(entries) * kv_heads, -1, block)
            self.hidden = bias.to(layer.device)

    def attend(self, rows: Tensor, keys: Tensor, values: Tensor) -> None:
        """rows [R * kv_heads, heads_per_key * d]: scaled queries. Fills `mass` and `found`."""
        folded = rows.index_select(0, self.queries).view(*self.found.shape)
        scores = torch.bmm(folded, self._read(keys).transpose(1, 2))
        if self.hidden is not None:
            scores += self.hidden
        wide = scores.float()  # one conversion: bfloat16's own maximum is slower than it and float32's together
        weights = torch.softmax(wide, -1)
        torch.sub(
            wide.amax(-1), weights.amax(-1).log_(), out=self.mass
        )  # the likeliest key's share tells what all come to
        torch.bmm(weights.to(keys.dtype), self._read(values), out=self.found)

    def _read(self, store: Tensor) -> Tensor:
        """store [blocks, slots, kv_heads, block, d] -> [P * kv_heads, block, d], until the next call."""
        torch.index_select(store.view(-1, self.held.shape[1]), 0, self.pages, out=self.held)
        return self.held.view(-1, *store.shape[3:])


class _Decoding:
    """Attention of one token a request, page by page: each page's own softmax, then the pages of a row by what they
    weigh.

    The parts lie one after another as the products leave them; nothing is moved but by `table`, which names the parts
    of each row and head, [R * heads, columns] (the last part is empty and stands where a row has no page).
    """

    def __init__(self, layer: Tensor, reach: Sequence[int], pages: Sequence[CachePage], heads_per_key: int) -> None:
        kv_heads, block, dim = layer.shape[2:]
        slots, columns = layer.shape[1], -(-max(reach) // block)
        alone = [_Entry(p.block * slots + p.slot, p.block, p.rows) for p in pages if len(p.rows) == 1]
        shared = [
            _Entry(p.block * slots + p.slot, p.block, p.rows[i : i + _SHARED])
            for p in pages
            if len(p.rows) > 1
            for i in range(0, len(p.rows), _SHARED)
        ]
        sides = [(width, entries) for width, entries in ((1, alone), (_SHARED, shared)) if entries]
        parts = sum(width * len(entries) for width, entries in sides) * kv_heads * heads_per_key
        self._mass = torch.full((parts + 1,), float("-inf"), device=layer.device)
        self._found = layer.new_zeros(parts + 1, dim)
        first, stride = np.full((len(reach), columns), parts), np.zeros((len(reach), columns), np.int64)
        self._bundles: list[_Bundle] = []
        at = 0
        for width, entries in sides:
            for entry in entries:
                first[entry.rows, entry.column] = at + heads_per_key * np.arange(len(entry.rows))
                stride[entry.rows, entry.column] = width * heads_per_key
                at += kv_heads * width * heads_per_key
            own = slice(at - len(entries) * kv_heads * width * heads_per_key, at)
            bundle = _Bundle(entries, width, np.asarray(reach), layer, heads_per_key)
            bundle.mass = self._mass[own].view(-1, width * heads_per_key)
            bundle.found = self._found[own].view(-1, width * heads_per_key, dim)
            self._bundles.append(bundle)
        inner = stride[:, None, None] * np.arange(kv_heads)[:, None, None] + np.arange(heads_per_key)[:, None]
        table = np.where(first[:, None, None] == parts, parts, first[:, None, None] + inner)
        self._table = torch.from_numpy(table.reshape(-1, columns)).to(layer.device)
        self._columns = self._table.T.contiguous()

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
        """query [R, heads, d] -> [R, heads, d]. Heads that share a key are folded into rows, so that no key is
        repeated.

        Measured for SmolLM2, 64 branches of 290 tokens of which 64 are a row's own: 0.55 ms of the processor a layer.
        """
        rows = (query * scale).reshape(len(query) * keys.shape[2], -1)
        for bundle in self._bundles:
            bundle.attend(rows, keys, values)
        shares = torch.softmax(self._mass[self._columns], 0).to(keys.dtype).T.contiguous()
        return embedding_bag(self._table, self._found, per_sample_weights=shares, mode="sum").view(query.shape)


class Layout:
    """Where the tokens of one forward pass write their keys, and which keys each of them reads.

    store: [layers, 2, blocks, slots, kv_heads, block, head_dim], keys and values, written in place.
    write: flat rows that store keys, with their slots and positions.
    reach: the flat rows [0, len(reach)) are one decoding token each, which reads so many keys.
    pages: the blocks of slots that hold these keys, as (block, slot, flat rows that read it).
    """

    __slots__ = ("_decoding", "_spans", "_write", "reach", "store")

    def __init__(
        self,
        store: Tensor,
        *,
        reach: Sequence[int] = (),
        pages: Sequence[CachePage] = (),
        spans: Sequence[Span] = (),
        heads_per_key: int,
        write: tuple[Sequence[int], Sequence[int], Sequence[int]],
    ) -> None:
        self.store, self.reach = store, reach
        device = store.device
        slot_count, kv_heads, block = store.shape[3], store.shape[4], store.shape[5]
        rows, slots, positions = (torch.tensor(x, dtype=torch.long) for x in write)
        place = (positions // block * slot_count + slots)[:, None] * kv_heads + torch.arange(kv_heads)
        place = (place * block + (positions % block)[:, None]).flatten()
        self._write = (
            None if torch.equal(rows, torch.arange(len(rows))) else rows.to(device),
            len(rows),
            place.to(device),
        )
        self._decoding = _Decoding(store[0, 0], reach, pages, heads_per_key) if reach else None
        self._spans = [(span, _causal(span, heads_per_key, device, store.dtype)) for span in spans]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """query [1, heads, T, d], key and value [1, kv_heads, T, d] -> [1, T, heads, d]. Rows without a role give
        zeros."""
        keys, values = self.store[layer, 0], self.store[layer, 1]
        rows, count, place = self._write
        width = key.shape[-1]
        for store, new in ((keys, key), (values, value)):
            fresh = new[0].transpose(0, 1)
            fresh = fresh[:count] if rows is None else fresh[rows]
            store.view(-1, width).index_copy_(0, place, fresh.reshape(-1, width))
        heads, total, dim = query.shape[1], query.shape[2], query.shape[3]
        decoding = len(self.reach)
        single = query[0, :, :decoding].transpose(0, 1)
        first = None if self._decoding is None else self._decoding.attend(single, keys, values, scale)
        if first is not None and decoding == total:
            return first.unsqueeze(0)
        out = query.new_zeros(total, heads, dim)
        if first is not None:
            out[:decoding] = first
        for span, bias in self._spans:
            part = query[0, :, span.first : span.first + span.count].reshape(1, keys.shape[2], -1, dim)
            output = scaled_dot_product_attention(
                part, _read(keys, span), _read(values, span), attn_mask=bias, scale=scale
            )
            out[span.first : span.first + span.count] = output.view(heads, span.count, dim).transpose(0, 1)
        return out.unsqueeze(0)


def _read(store: Tensor, span: Span) -> Tensor:
    """Keys or values [blocks, slots, kv_heads, block, d] of one slot -> [1, kv_heads, seen, d]."""
    blocks = -(-span.seen // store.shape[3])
    if blocks == 1:
        return store[0, span.slot, :, : span.seen].unsqueeze(0)
    return (
        store[:blocks, span.slot]
        .transpose(0, 1)
        .reshape(store.shape[2], -1, store.shape[4])[:, : span.seen]
        .unsqueeze(0)
    )


def _causal(span: Span, heads_per_key: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Additive mask [heads_per_key * count, seen]: a query reads its own position and those before it."""
    own = torch.arange(span.start, span.start + span.count)
    hidden = torch.arange(span.seen)[None, :] > own[:, None]
    bias = torch.zeros(hidden.shape, dtype=dtype).masked_fill_(hidden, float("-inf"))
    return bias.repeat(heads_per_key, 1).to(device)


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    layout: Any = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The function transformers calls. `layout` is anything with `attend(layer, query, key, value, scale)`."""
    if layout is None:
        raise RuntimeError("this model attends over an engine's slots: it cannot run without a layout")
    for name in ("softcap", "s_aux", "position_bias"):
        if options.get(name) is not None:
            raise ValueError(f"attention with {name!r} is not supported")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    check: Callable[[int | None], None] | None = getattr(layout, "check_window", None)
    if check is not None:
        check(options.get("sliding_window"))
    return layout.attend(module.layer_idx, query, key, value, scale), None


class Probe:
    """A layout that only learns the model's shape: run one forward with it and read what the layers stored."""

    def __init__(self) -> None:
        self.shapes: dict[int, tuple[int, int, int]] = {}  # layer -> heads, kv_heads, head_dim
        self.windows: set[int] = set()

    def check_window(self, window: int | None) -> None:
        if window is not None:
            self.windows.add(window)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        if key.shape != value.shape or query.shape[-1] != key.shape[-1]:
            raise ValueError("keys, values and queries of different sizes are not supported")
        if layer in self.shapes:
            raise ValueError("layers that attend more than once are not supported")
        self.shapes[layer] = (query.shape[1], key.shape[1], key.shape[3])
        return torch.zeros_like(query).transpose(1, 2)


def register() -> None:
    """Make `NAME` known to transformers. Doing so again changes nothing."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attention)
