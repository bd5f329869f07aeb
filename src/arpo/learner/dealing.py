"""Packs dealt to ranks in rounds: in a round every rank computes one pack, and waits for the slowest, since the weights
of a layer are gathered by all ranks together (docs/method.md, section 8).

So the packs of a round must be alike, which is more than equal sums over ranks. Knows groups of leaves and what a pack
costs. Refuses to know ranks, models and tensors' devices.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from arpo.core.credit import CreditedTree
from arpo.learner.grouping import LeafGroup, leaf_groups
from arpo.learner.packing import Chain, PackedBatch, lay_out

SHARES = (*(1 - number / 40 for number in range(20)), 0.5, 0.375, 0.25, 0.1875, 0.125)
"""Of the budget: how finely trees may be cut. Finer groups fill bins more evenly and copy more trunks; the cheapest
wins."""

Costs = dict[LeafGroup, tuple[int, float]]
"""Tokens of a group, and its cost in units of a token (see `deal`)."""


@dataclass(slots=True)
class Bin:
    """What becomes a pack. `cost`: in units of a token (see `deal`)."""

    groups: list[LeafGroup] = field(default_factory=list)
    num_tokens: int = 0
    cost: float = 0.0


def deal(
    trees: Sequence[CreditedTree],
    token_budget: int,
    ranks: int,
    *,
    pair_cost: float = 0.0,
    flat: bool = False,
    whole: bool = False,
) -> list[list[PackedBatch]]:
    """The packs of each rank, as many for one as for another: pack r of every rank belongs to round r.

    As in `pack`, every (leaf, token) appears exactly once over all packs, and no pack exceeds the budget but a single
    path that is longer. Where there are fewer packs than places, ranks get packs that teach nothing (`empty_pack`).
    `pair_cost`: what a (query, key) pair costs, in units of a token (`Policy.pair_cost`). The same
    arguments give the same packs.
    """
    rounds = deal_bins(trees, token_budget, ranks, pair_cost=pair_cost, flat=flat, whole=whole)
    return [
        [lay_out(row[rank].groups) if row[rank].groups else empty_pack() for row in rounds] for rank in range(ranks)
    ]


def deal_bins(
    trees: Sequence[CreditedTree],
    token_budget: int,
    ranks: int,
    *,
    pair_cost: float = 0.0,
    flat: bool = False,
    whole: bool = False,
) -> list[list[Bin]]:
    """[rounds][ranks] bins, dearest round first: of all ways to cut `trees` that are tried, the one whose rounds take
    the least time together."""
    if flat:  # every trajectory alone
        groups = leaf_groups(trees, token_budget, flat=True, whole=whole)
        costs = _costs(groups, pair_cost)
        return _rounds([_with(Bin(), group, *costs[group]) for group in groups], ranks)
    best: list[list[Bin]] = []
    for share in SHARES if ranks > 1 else SHARES[:1]:
        groups = leaf_groups(trees, max(1, int(token_budget * share)), whole=whole)
        costs = _costs(groups, pair_cost)
        if best and sum(cost for _, cost in costs.values()) / ranks >= time_of(best):
            break  # copies alone take as long, and finer groups have more of them
        rounds = _rounds(_fill(costs, token_budget, ranks), ranks)
        best = min(best or rounds, rounds, key=time_of)
    return best


def time_of(rounds: Sequence[Sequence[Bin]]) -> float:
    """What all rounds take, in units of a token: each as long as its dearest bin."""
    return sum(max(one.cost for one in row) for row in rounds)


def empty_pack() -> PackedBatch:
    """A pack of one token that predicts nothing: a rank that has nothing to compute takes part in the round with it."""
    none_P = torch.zeros(0, dtype=torch.int64)
    row_BL = torch.zeros(0, 0)
    return PackedBatch(
        tokens_T=torch.zeros(1, dtype=torch.int64),
        position_T=torch.zeros(1, dtype=torch.int64),
        subtree_end_T=torch.ones(1, dtype=torch.int64),
        prev_T=torch.full((1,), -1),
        predicts_P=none_P,
        row_place_BL=row_BL.long(),
        row_mask_BL=row_BL.bool(),
        trained_BL=row_BL.bool(),
        turn_BL=row_BL.long(),
        length_B=none_P,
        advantage_BL=row_BL,
        engine_logprob_BL=row_BL,
        entropy_BL=row_BL,
        leaves=(),
        turns=(),
        chains=(Chain(0, 1, -1),),
        num_flat=0,
    )


def _costs(groups: Sequence[LeafGroup], pair_cost: float) -> Costs:
    costs = Costs()
    for group in groups:
        tokens = group.num_tokens
        costs[group] = tokens, tokens + (pair_cost * group.num_pairs if pair_cost else 0.0)
    return costs


def _with(one: Bin, group: LeafGroup, num_tokens: int, cost: float) -> Bin:
    one.groups.append(group)
    one.num_tokens += num_tokens
    one.cost += cost
    return one


def _fill(costs: Costs, token_budget: int, ranks: int) -> list[Bin]:
    """Whole rounds of bins, as few as hold all groups: dearest group first, each into the cheapest bin with room."""
    order = sorted(costs, key=lambda group: (-costs[group][1], group.number, group.context or (), group.leaves))
    rounds = max(1, -(-sum(tokens for tokens, _ in costs.values()) // (ranks * token_budget)))
    while True:
        bins = [Bin() for _ in range(rounds * ranks)]
        for group in order:
            num_tokens, cost = costs[group]
            room = [one for one in bins if not one.groups or one.num_tokens + num_tokens <= token_budget]
            if not room:
                rounds += 1
                break
            _with(min(room, key=lambda one: one.cost), group, num_tokens, cost)
        else:
            return bins


def _rounds(bins: Sequence[Bin], ranks: int) -> list[list[Bin]]:
    """Bins of like cost side by side; empty ones fill the last round. Rounds in which every bin is empty are left
    out."""
    order = sorted((one for one in bins if one.groups), key=lambda one: -one.cost)
    order += [Bin() for _ in range(-len(order) % ranks)]
    return [order[at : at + ranks] for at in range(0, len(order), ranks)]
