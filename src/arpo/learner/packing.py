"""Credited trees laid out for training: unique tokens in preorder, and each leaf a row of indices into them
(docs/method.md, section 8). Each context of a tree is laid out behind the one that it follows and sees nothing of it.

Knows tokens, places and credit. Refuses to know models, losses and how attention is computed.

    prompt a b ─ root (0,) c d ─┬─ (0, 0) e          tokens        a b c d e f g h
                                └─ (0, 1) f g        position      0 1 2 3 4 4 5 2
                 root (1,) h                         subtree_end   8 8 7 7 5 7 7 8
                                                     prev         -1 0 1 2 3 3 5 1

Token k is visible to token q iff `k <= q < subtree_end[k]`; the logit that predicts token t stands at `prev[t]`.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from arpo.core.credit import CreditedTree
from arpo.core.place import Place, show
from arpo.errors import FormatError
from arpo.learner.grouping import LeafGroup, fill, leaf_groups, observed


@dataclass(frozen=True, slots=True)
class Chain:
    """A maximal run of tokens without a fork: `start <= t < end`. `parent` is the number of the chain it grows from, -1
    at the start of a block. Chains stand in preorder."""

    start: int
    end: int
    parent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedBatch:
    """One forward's worth of tokens. T unique tokens, B rows (leaves), L the longest row, P predicted tokens.

    Integers are int64, masks bool, numbers float32. Padding holds 0.
    """

    tokens_T: Tensor
    position_T: Tensor
    """Depth in the path."""
    subtree_end_T: Tensor
    """Token k is visible to token q iff k <= q < subtree_end[k]."""
    prev_T: Tensor
    """Index of the token whose logits predict this one; -1 for the first of a path."""
    predicts_P: Tensor
    """The policy's tokens, ascending: those of at least one row. The head is needed at `prev_T[predicts_P]` only."""
    row_place_BL: Tensor
    """The policy's tokens of each leaf, or of one context on its path, in path order, as indices into P."""
    row_mask_BL: Tensor
    trained_BL: Tensor
    """Policy's tokens that enter the loss: all, unless credit came with a mask."""
    turn_BL: Tensor
    """The number of the turn that a token belongs to, from 0 on its path."""
    length_B: Tensor
    """Policy's tokens of the row's whole trajectory; more than the row has where other contexts stand elsewhere."""
    advantage_BL: Tensor
    engine_logprob_BL: Tensor
    entropy_BL: Tensor
    """By the engine, nats."""
    leaves: tuple[tuple[int, Place], ...]
    """Of each row: the tree's index in the arguments of `pack`, and the leaf."""
    turns: tuple[tuple[Place, ...], ...]
    """Of each row: the places of its turns."""
    chains: tuple[Chain, ...]
    num_flat: int
    """Tokens that training each trajectory alone would compute."""

    @property
    def num_unique(self) -> int:
        """T, the tokens computed."""
        return len(self.tokens_T)

    @property
    def num_policy(self) -> int:
        """Row elements that enter the loss: a shared token counts once for each of its leaves."""
        return int(self.row_mask_BL.sum())

    @property
    def is_path(self) -> bool:
        """Whether the pack is a single path, which ordinary causal attention computes."""
        return len(self.chains) == 1

    @property
    def targets_P(self) -> Tensor:
        return self.tokens_T[self.predicts_P]

    def rows(self, values_P: Tensor) -> Tensor:
        """[B, L] from values of the predicted tokens; autograd sums what rows share. Padding holds 0."""
        return values_P[self.row_place_BL].masked_fill(~self.row_mask_BL, 0.0)

    def predicting(self, hidden_TH: Tensor) -> Tensor:
        """[P, H]: the hidden states whose logits predict the policy's tokens."""
        return hidden_TH[self.prev_T[self.predicts_P]]

    def to(self, device: torch.device | str) -> "PackedBatch":
        moved: dict[str, Any] = {
            f.name: value.to(device) for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)


def pack(
    trees: Sequence[CreditedTree], token_budget: int, *, flat: bool = False, whole: bool = False
) -> list[PackedBatch]:
    """Lay `trees` out in packs of at most `token_budget` unique tokens.

    A tree that fits is never split; one that does not is split into groups of leaves in preorder, so that the copies of
    trunks cost the fewest tokens. A path longer than the budget stands alone in its pack. Every (leaf, token) appears
    exactly once over all packs; leaves without credit do not appear. Trees keep no order among packs: only one global
    normaliser makes losses add up.

    `flat`: every trajectory alone in a pack, whatever the budget (the slow twin, and what models without tree attention
    need). `whole`: a row holds a trajectory with all its contexts (`LossConfig.whole_rows`); else there is one for each
    of its contexts, and they may stand in different packs.

    Raises ConfigError for a budget below 1, or where both are asked of a tree with several contexts; FormatError for a
    tree whose credit or token arrays do not fit it.
    """
    groups = leaf_groups(trees, token_budget, flat=flat, whole=whole)
    return [lay_out(members) for members in ([[group] for group in groups] if flat else fill(groups, token_budget))]


class _Layout:
    """The segments of one pack as they are laid out: numbers a segment, arrays of its tokens. Lives only inside
    `lay_out`."""

    def __init__(self) -> None:
        self.tokens = array("i")
        self.lengths: list[int] = []
        self.depths: list[int] = []  # of a segment's first token
        self.after: list[int] = []  # the token before a segment on its path, -1: none
        self.ends: list[int] = []  # of the subtree under a segment; set when it is closed
        self.chains: list[Chain] = []
        self.rows: list[_Row] = []
        self.leaves: list[tuple[int, Place]] = []
        self.num_flat = 0

    def append(self, after: int, depth: int, *parts: Iterable[int]) -> int:
        """A segment of these tokens, which follow the token at `after` (-1: nothing). Returns its number."""
        start = len(self.tokens)
        for tokens in parts:
            self.tokens.extend(tokens)
        self.lengths.append(len(self.tokens) - start)
        self.depths.append(depth)
        self.after.append(after)
        self.ends.append(-1)
        return len(self.lengths) - 1

    def close(self, segment: int) -> None:
        """The segment's tokens are seen by everything laid out so far behind them."""
        self.ends[segment] = len(self.tokens)

    def chain(self, start: int, end: int, parent: int, joined: bool) -> int:
        """Note the run [start, end) grown from chain `parent`, as its continuation where `joined`. Returns the chain's
        number."""
        if start == end:
            return parent
        if joined and parent >= 0:
            self.chains[parent] = replace(self.chains[parent], end=end)
            return parent
        self.chains.append(Chain(start, end, parent))
        return len(self.chains) - 1


@dataclass(frozen=True, slots=True)
class _Tip:
    """What the next segment of a path follows: the last token (-1: none), how many there are, and their chain."""

    last: int
    depth: int
    chain: int


@dataclass(slots=True)
class _Row:
    """A leaf's turns: where each begins, how long it is, its credit; and the engine's numbers of all their tokens."""

    turns: tuple[Place, ...]
    num_tokens: int  # of all turns of the leaf
    starts: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    credit: list[float] = field(default_factory=list)
    trained: list[bool] = field(default_factory=list)
    logprobs: "array[float]" = field(default_factory=lambda: array("f"))
    entropies: "array[float]" = field(default_factory=lambda: array("f"))


def lay_out(groups: Sequence[LeafGroup]) -> PackedBatch:
    """The pack that holds `groups`."""
    layout = _Layout()
    for group in groups:
        begins: dict[Place, int] = {}
        for start, places in group.contexts.items():
            _lay_out_context(layout, group, start, places, begins)
        for leaf in group.leaves:
            layout.leaves.append((group.number, leaf))
            layout.rows.append(_row(group, leaf, begins))
    return _finish(layout)


def _lay_out_context(
    layout: _Layout, group: LeafGroup, start: Place, places: Sequence[Place], begins: dict[Place, int]
) -> None:
    """Append the context from `start` with the turns at `places`; `begins` takes the index of each turn's first
    token."""
    rollout = group.tree.tree
    num_children = Counter(place[:-1] for place in places)
    begin = len(layout.tokens)
    opening = layout.append(-1, 0, rollout.opening(start))
    end = len(layout.tokens)
    tips = {start: _Tip(end - 1 if end > begin else -1, end - begin, layout.chain(begin, end, -1, joined=False))}
    closing: list[tuple[Place, int]] = [(start, opening)]
    for place in places:
        while closing[-1][0] != place[:-1]:
            layout.close(closing.pop()[1])
        before, begin = tips[place[:-1]], len(layout.tokens)
        segment = layout.append(before.last, before.depth, rollout.turns[place].tokens, observed(rollout, place))
        end = len(layout.tokens)
        chain = layout.chain(begin, end, before.chain, joined=num_children[place[:-1]] == 1)
        tips[place] = _Tip(end - 1 if end > begin else before.last, before.depth + end - begin, chain)
        begins[place] = begin
        closing.append((place, segment))
    while closing:
        layout.close(closing.pop()[1])
    layout.num_flat += sum(tips[last].depth * num_rows for last, num_rows in group.last_turns(start).items())


def _row(group: LeafGroup, leaf: Place, begins: Mapping[Place, int]) -> _Row:
    tree, path = group.tree, [leaf[:depth] for depth in range(1, len(leaf) + 1)]
    turns = tuple(place for place in path if place in begins)
    row = _Row(turns, sum(len(tree.tree.turns[place].tokens) for place in path))
    for place in turns:
        turn = tree.tree.turns[place]
        length = len(turn.tokens)
        if not length == len(turn.logprobs) == len(turn.entropies):
            raise FormatError(
                f"task {tree.tree.task!r}, turn {show(place)}: {length} tokens need as many logprobs and entropies, "
                f"not {len(turn.logprobs)} and {len(turn.entropies)}"
            )
        if (place, leaf) not in tree.credit:
            raise FormatError(
                f"task {tree.tree.task!r}: leaf {show(leaf)} has an advantage, but no credit for its turn {show(place)}"
            )
        row.starts.append(begins[place])
        row.lengths.append(length)
        row.credit.append(tree.credit[place, leaf])
        row.trained.extend(tree.mask.get((place, leaf), [True] * length))
        row.logprobs.extend(turn.logprobs)
        row.entropies.extend(turn.entropies)
    return row


def _finish(layout: _Layout) -> PackedBatch:
    length_S = torch.tensor(layout.lengths)
    start_S = length_S.cumsum(0) - length_S
    index_T = torch.arange(len(layout.tokens))
    prev_T = index_T - 1
    prev_T[start_S[length_S > 0]] = torch.tensor(layout.after)[length_S > 0]
    index_N, length_B = _spans(layout.rows)
    predicted_T = torch.zeros(len(index_T), dtype=torch.bool).index_fill_(0, index_N, True)
    predicts_P = predicted_T.nonzero()[:, 0]
    if len(predicts_P) and int(prev_T[predicts_P].min()) < 0:
        number, leaf = layout.leaves[0]
        raise FormatError(
            f"tree {number}, leaf {show(leaf)}: nothing stands before the policy's first token; a prompt is needed"
        )
    mask_BL = torch.arange(int(length_B.max())) < length_B[:, None]
    turn_lengths = torch.tensor([length for row in layout.rows for length in row.lengths])
    credit = torch.tensor([value for row in layout.rows for value in row.credit], dtype=torch.float32)
    turns = torch.tensor([len(place) - 1 for row in layout.rows for place in row.turns])
    trained = torch.tensor([value for row in layout.rows for value in row.trained], dtype=torch.bool)
    return PackedBatch(
        tokens_T=_tensor(layout.tokens).long(),
        position_T=index_T + (torch.tensor(layout.depths) - start_S).repeat_interleave(length_S),
        subtree_end_T=torch.tensor(layout.ends).repeat_interleave(length_S),
        prev_T=prev_T,
        predicts_P=predicts_P,
        row_place_BL=_padded((predicted_T.cumsum(0) - 1)[index_N], mask_BL),
        row_mask_BL=mask_BL,
        trained_BL=_padded(trained, mask_BL),
        turn_BL=_padded(turns.repeat_interleave(turn_lengths), mask_BL),
        length_B=torch.tensor([row.num_tokens for row in layout.rows]),
        advantage_BL=_padded(credit.repeat_interleave(turn_lengths), mask_BL),
        engine_logprob_BL=_padded(torch.cat([_tensor(row.logprobs) for row in layout.rows]), mask_BL),
        entropy_BL=_padded(torch.cat([_tensor(row.entropies) for row in layout.rows]), mask_BL),
        leaves=tuple(layout.leaves),
        turns=tuple(row.turns for row in layout.rows),
        chains=tuple(layout.chains),
        num_flat=layout.num_flat,
    )


def _spans(rows: Sequence[_Row]) -> tuple[Tensor, Tensor]:
    """Indices of the policy's tokens of all rows, one row after another [N], and how many each row has [B]."""
    start = torch.tensor([start for row in rows for start in row.starts])
    length = torch.tensor([length for row in rows for length in row.lengths])
    index_N = torch.arange(int(length.sum())) + (start - (length.cumsum(0) - length)).repeat_interleave(length)
    return index_N, torch.tensor([sum(row.lengths) for row in rows])


def _tensor(values: "array[Any]") -> Tensor:
    """A copy as int32 or float32."""
    dtype = torch.int32 if values.typecode == "i" else torch.float32
    return torch.frombuffer(values, dtype=dtype).clone() if values else torch.empty(0, dtype=dtype)


def _padded(values_N: Tensor, mask_BL: Tensor) -> Tensor:
    return torch.zeros(mask_BL.shape, dtype=values_N.dtype).masked_scatter_(mask_BL, values_N)
