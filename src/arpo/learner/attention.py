"""Attention over a packed tree: each token sees its own path (docs/method.md, section 8), through transformers'
attention interface.

Knows chains, masks and kernels. Refuses to know models' weights, rows and losses. Two names for one result:

    arpo_tree        on a CPU, blocks of chains against their paths' keys; on a GPU, FlexAttention with a block mask
    arpo_tree_dense  a T x T mask: the oracle of the tests

Sampling never runs through these: `tree_attention` lends them to a model for a forward and its backward, and without a
layout they raise.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from arpo.errors import ConfigError
from arpo.learner.packing import Chain, PackedBatch

AttentionName = Literal["arpo_tree", "arpo_tree_dense"]

CALL_PAIRS = 10_000
"""(query, key) pairs that take about as long as the calls of one more block: a subtree that wastes fewer is computed as
one block. Measured on a CPU at 9 heads of 64: bf16 38 ms against 47 for chains alone, float32 the same either way."""

BLOCK = 128
"""Queries or keys of a block of FlexAttention's."""

KEPT_BYTES = 64 * 2**20
"""Attention weights that one layer may keep for its backward. Up to here matrix products are fastest (bf16 2.4 times as
fast as SDPA's CPU kernel); beyond, SDPA recomputes them."""


@dataclass(frozen=True, slots=True)
class Block:
    """Queries [start, end), computed together against their `num_keys` keys: the path before them, then themselves."""

    start: int
    end: int
    num_keys: int


@dataclass(frozen=True, slots=True, eq=False)
class TreeLayout:
    """What attention needs to know of a pack. Blocks follow each other and cover all tokens."""

    subtree_end_T: Tensor
    blocks: tuple[Block, ...]
    keys_K: Tensor
    """Indices of the keys of all blocks, one block after another."""
    _made: dict[Any, Any] = field(default_factory=dict, repr=False)

    @property
    def num_pairs(self) -> int:
        """(query, key) pairs computed by blocks."""
        return sum((block.end - block.start) * block.num_keys for block in self.blocks)

    def masks(self, dtype: torch.dtype, repeats: int) -> list[Tensor]:
        """Of each block the additive mask [repeats * queries, keys]: 0 where a key is visible, -inf elsewhere. Made
        once a pack."""
        if (dtype, repeats) not in self._made:
            made, first = [], 0
            for block in self.blocks:
                key_K = self.keys_K[first : first + block.num_keys]
                visible = self._visible(torch.arange(block.start, block.end, device=key_K.device)[:, None], key_K[None])
                mask = torch.zeros(visible.shape, dtype=dtype, device=key_K.device).masked_fill_(
                    ~visible, float("-inf")
                )
                made.append(mask.repeat(repeats, 1))
                first += block.num_keys
            self._made[dtype, repeats] = made
        return self._made[dtype, repeats]

    def dense(self) -> Tensor:
        """[T, T] bool: row q sees column k."""
        index_T = torch.arange(len(self.subtree_end_T), device=self.subtree_end_T.device)
        return self._visible(index_T[:, None], index_T[None])

    def flex(self) -> Any:
        """FlexAttention's block mask of the tokens and of what fills their last block, where each sees itself alone.
        Made once a pack, from the subtrees' ends: a mask of T x T, as `create_block_mask` makes one, takes 1 GB at
        32,768 tokens."""
        if "flex" not in self._made:
            from torch.nn.attention.flex_attention import BlockMask

            size = len(self.subtree_end_T)
            end_T = torch.arange(1, size + -size % BLOCK + 1, device=self.subtree_end_T.device)
            end_T[:size] = self.subtree_end_T

            def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
                return (key <= query) & (query < end_T[key])

            ends_NB, number_N = end_T.view(-1, BLOCK), torch.arange(len(end_T) // BLOCK, device=end_T.device)
            before_NN, first_N = number_N[None] < number_N[:, None], BLOCK * number_N[:, None]  # [queries, keys]
            full_NN = before_NN & (ends_NB.amin(1) >= first_N + BLOCK)
            some_NN = (before_NN & (ends_NB.amax(1) > first_N) & ~full_NN) | (number_N[None] == number_N[:, None])
            some, full = _ordered(some_NN[None, None]), _ordered(full_NN[None, None])
            self._made["flex"] = BlockMask.from_kv_blocks(*some, *full, BLOCK_SIZE=BLOCK, mask_mod=sees)
        return self._made["flex"]

    def _visible(self, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < self.subtree_end_T[key])


def _ordered(mask_11NN: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries sees, and their numbers, before those of the others."""
    order = mask_11NN.int().argsort(dim=-1, descending=True, stable=True)
    return mask_11NN.sum(-1, dtype=torch.int32), order.int().contiguous()


def layout_of(batch: PackedBatch, call_pairs: int = CALL_PAIRS) -> TreeLayout:
    """The layout of a pack, on the pack's device. `call_pairs` 0: every chain a block of its own."""
    subtree_end = batch.subtree_end_T.tolist()
    chains = batch.chains
    children: dict[int, list[int]] = {}
    for number, chain in enumerate(chains):
        children.setdefault(chain.parent, []).append(number)
    blocks: list[Block] = []
    keys: list[Tensor] = []
    for number, end in _cut(chains, children, subtree_end, call_pairs):
        spans = [*_path(chains, chains[number].parent), (chains[number].start, end)]
        keys.extend(torch.arange(first, last) for first, last in spans)
        blocks.append(Block(chains[number].start, end, sum(last - first for first, last in spans)))
    keys_K = torch.cat(keys) if keys else torch.zeros(0, dtype=torch.int64)
    return TreeLayout(batch.subtree_end_T, tuple(blocks), keys_K.to(batch.tokens_T.device))


def _path(chains: tuple[Chain, ...], number: int) -> list[tuple[int, int]]:
    """Spans of the chains from the start of the block's path to chain `number`."""
    spans = []
    while number >= 0:
        spans.append((chains[number].start, chains[number].end))
        number = chains[number].parent
    return spans[::-1]


def _cut(
    chains: tuple[Chain, ...], children: dict[int, list[int]], subtree_end: list[int], call_pairs: int
) -> list[tuple[int, int]]:
    """(first chain, end) of each block in preorder: a whole subtree where that costs less than its chain and its
    children apart."""
    cost: dict[int, int] = {}
    whole: dict[int, bool] = {}
    before = {
        number: sum(end - start for start, end in _path(chains, chain.parent)) for number, chain in enumerate(chains)
    }
    for number in range(len(chains) - 1, -1, -1):  # children come after their parents
        chain = chains[number]
        length, size = chain.end - chain.start, subtree_end[chain.start] - chain.start
        apart = call_pairs + length * (before[number] + length) + sum(cost[child] for child in children.get(number, ()))
        together = call_pairs + size * (before[number] + size)
        whole[number], cost[number] = together <= apart, min(together, apart)
    blocks, done = [], 0
    for number, chain in enumerate(chains):
        if chain.start >= done:
            done = subtree_end[chain.start] if whole[number] else chain.end
            blocks.append((number, done))
    return blocks


def model_inputs(batch: PackedBatch, layout: TreeLayout | None = None) -> dict[str, Any]:
    """Keyword arguments for a model's forward over the pack. Without a layout the pack must be a single path, which the
    model's own attention computes; then ValueError for any other."""
    if layout is None and not batch.is_path:
        raise ValueError("a pack of several chains needs its layout")
    inputs = {"input_ids": batch.tokens_T[None], "position_ids": batch.position_T[None], "use_cache": False}
    return inputs if layout is None else {**inputs, "tree_layout": layout}


@contextmanager
def tree_attention(model: Any, name: AttentionName = "arpo_tree") -> Iterator[None]:
    """Within the block `model` attends by tree; afterwards by what it had before. Keep the backward pass inside, too:
    gradient checkpointing runs forwards there. Raises ConfigError where the model cannot."""
    if reason := supports_tree(model.config):
        raise ConfigError(f"this model cannot be trained tree-packed: {reason}", hint="train it flat")
    _register()
    before = model.config._attn_implementation
    model.config._attn_implementation = name
    try:
        yield
    finally:
        model.config._attn_implementation = before


@cache
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    for name, attend in (("arpo_tree", attend_tree), ("arpo_tree_dense", attend_dense)):
        AttentionInterface.register(name, attend)
        AttentionMaskInterface.register(name, _no_mask)


def _no_mask(*_: Any, **__: Any) -> None:
    """In place of transformers' T x T causal mask, which would be wrong here and large."""


def supports_tree(model_config: Any) -> str | None:
    """None where the model can be trained tree-packed, else why not. Takes a transformers config of a causal language
    model."""
    from transformers import AutoModelForCausalLM

    kinds = set(getattr(model_config, "layer_types", None) or ()) - {"full_attention"}
    rope = getattr(model_config, "rope_parameters", None) or {}
    rope_kind = rope.get("rope_type", "default") if isinstance(rope, dict) else "default"
    if kinds:
        return f"it has layers of the kind {', '.join(sorted(kinds))}"
    if getattr(model_config, "sliding_window", None):  # Qwen2-MoE says 0 for none
        return f"it attends to a sliding window of {model_config.sliding_window} tokens"
    if getattr(model_config, "attention_chunk_size", None) is not None:
        return f"it attends in chunks of {model_config.attention_chunk_size} tokens"
    if getattr(model_config, "attn_logit_softcapping", None) is not None:
        return "it caps attention logits"
    if getattr(model_config, "attention_dropout", 0.0):
        return "it drops attention weights at random (attention_dropout is not 0)"
    if rope_kind in ("dynamic", "longrope"):
        return f"its rotary embedding ({rope_kind}) depends on the longest path beside it"
    model_class: Any = AutoModelForCausalLM._model_mapping.get(type(model_config), None)
    if model_class is None:
        return f"{type(model_config).__name__} is no causal language model that transformers knows"
    if getattr(model_class, "_is_stateful", False):
        return "it has recurrent layers"
    if not getattr(model_class, "_supports_attention_backend", False):
        return f"{model_class.__name__} does not let its attention be replaced"
    return None


def attend_tree(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    tree_layout: TreeLayout | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    """Tree attention as transformers calls it: query [1, heads, T, D], key and value [1, key heads, T, D] to [1, T,
    heads, D].

    Raises ValueError without a layout, and for what it does not compute (windows, caps, sinks, dropout, padding)."""
    layout = _checked(query, key, attention_mask, dropout, tree_layout, extra)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    with torch.autocast(query.device.type, enabled=False):
        query, key, value = _lowered(query, key, value)
        if query.device.type == "cuda":
            return _by_flex(query, key, value, layout, scale), None
        return _by_blocks(query[0], key[0], value[0], layout, scale), None


def attend_dense(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    tree_layout: TreeLayout | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    """The same by a T x T mask: simple, and quadratic in the pack."""
    layout = _checked(query, key, attention_mask, dropout, tree_layout, extra)
    with torch.autocast(query.device.type, enabled=False):
        query, key, value = _lowered(query, key, value)
        out = scaled_dot_product_attention(query, key, value, attn_mask=layout.dense(), scale=scaling, enable_gqa=True)
    return out.transpose(1, 2).contiguous(), None


def _checked(
    query: Tensor, key: Tensor, mask: Tensor | None, dropout: float, layout: TreeLayout | None, extra: dict[str, Any]
) -> TreeLayout:
    if layout is None:
        raise ValueError(
            "tree attention needs the pack's layout (tree_layout=layout_of(batch)); sampling must not run through it"
        )
    unknown = [name for name in ("softcap", "s_aux", "position_bias") if extra.get(name) is not None]
    unknown += ["sliding_window"] if extra.get("sliding_window") else []
    if unknown or dropout or mask is not None:
        raise ValueError(
            f"tree attention does not compute {', '.join(unknown) or ('dropout' if dropout else 'a given mask')}"
        )
    num_tokens = len(layout.subtree_end_T)
    if query.shape[0] != 1 or query.shape[2] != num_tokens or key.shape[2] != num_tokens:
        raise ValueError(f"the layout is of 1 x {num_tokens} tokens; queries are {query.shape[0]} x {query.shape[2]}")
    return layout


def _lowered(*tensors: Tensor) -> tuple[Tensor, ...]:
    """In one precision: rotary embeddings leave queries and keys in float32 under autocast, beside values in bf16."""
    dtype = min((t.dtype for t in tensors), key=lambda dtype: dtype.itemsize)
    return tuple(t.to(dtype) for t in tensors)


@cache
def _flex_attention() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def _by_flex(query: Tensor, key: Tensor, value: Tensor, layout: TreeLayout, scale: float) -> Tensor:
    """In whole blocks, so that shapes repeat, and with them what is compiled. Returns [1, T, H, D]."""
    num_tokens = query.shape[2]
    whole = (pad(each, (0, 0, 0, -num_tokens % BLOCK)) for each in (query, key, value))
    out = _flex_attention()(*whole, block_mask=layout.flex(), scale=scale, enable_gqa=True)
    return out[:, :, :num_tokens].transpose(1, 2).contiguous()


def _by_blocks(query_HTD: Tensor, key_GTD: Tensor, value_GTD: Tensor, layout: TreeLayout, scale: float) -> Tensor:
    """Each block's queries against the keys of its path. Keys and values of all blocks are gathered at once and then
    split, so that the backward adds up each token's gradients once a layer. Returns [1, T, H, D]."""
    num_heads, num_tokens, width = query_HTD.shape
    repeats = num_heads // len(key_GTD)
    lengths = [block.end - block.start for block in layout.blocks]
    num_keys = [block.num_keys for block in layout.blocks]
    queries = query_HTD.reshape(len(key_GTD), repeats, num_tokens, width).split(lengths, 2)
    keys = key_GTD.transpose(0, 1).index_select(0, layout.keys_K).transpose(0, 1).split(num_keys, 1)
    values = value_GTD.transpose(0, 1).index_select(0, layout.keys_K).transpose(0, 1).split(num_keys, 1)
    weight_bytes = layout.num_pairs * num_heads * query_HTD.element_size()
    one = _products if weight_bytes <= KEPT_BYTES else _fused
    masks = layout.masks(query_HTD.dtype, repeats)
    outs = [one(*block, scale) for block in zip(queries, keys, values, masks, strict=True)]
    return torch.cat(outs, 2).reshape(1, num_heads, num_tokens, -1).transpose(1, 2)


def _products(query_GRQD: Tensor, key_GKD: Tensor, value_GKD: Tensor, mask: Tensor, scale: float) -> Tensor:
    """Query heads that share a key head stand one below the other, so that keys need no repeating and products are
    larger."""
    query = query_GRQD.flatten(1, 2)
    weights = torch.baddbmm(mask[None], query, key_GKD.transpose(1, 2), alpha=scale).softmax(-1)
    return torch.bmm(weights, value_GKD).unflatten(1, query_GRQD.shape[1:3])


def _fused(query_GRQD: Tensor, key_GKD: Tensor, value_GKD: Tensor, mask: Tensor, scale: float) -> Tensor:
    query = query_GRQD.flatten(1, 2)
    out = scaled_dot_product_attention(query[None], key_GKD[None], value_GKD[None], attn_mask=mask, scale=scale)
    return out[0].unflatten(1, query_GRQD.shape[1:3])
