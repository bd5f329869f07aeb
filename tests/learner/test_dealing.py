"""Packs dealt to ranks hold every trained token once, in equal numbers a rank, within the budget, and alike in a
round."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arpo.core.credit import CreditedTree
from arpo.learner.dealing import deal, deal_bins, time_of
from arpo.learner.packing import PackedBatch, pack
from random_trees import random_tree

seeds = st.integers(0, 10_000)
budgets = st.sampled_from([1, 25, 40, 60, 100, 10_000])
ranks = st.sampled_from([1, 2, 3, 4, 8])
pair_costs = st.sampled_from([0.0, 0.01, 1.0])


def trees_of(seed: int) -> list[CreditedTree]:
    return [
        random_tree(seed * 10 + i, roots=1 + (seed + i) % 4, leaves=3 + (seed + i) % 7, lost=0.2)
        for i in range(1 + seed % 5)
    ]


def teaching(packs: list[PackedBatch]) -> list[PackedBatch]:
    return [one for one in packs if one.leaves]


def same(one: PackedBatch, other: PackedBatch) -> bool:
    names = ("tokens_T", "position_T", "subtree_end_T", "prev_T", "row_place_BL", "row_mask_BL", "advantage_BL")
    return one.leaves == other.leaves and all(torch.equal(getattr(one, n), getattr(other, n)) for n in names)


@given(seeds, budgets, ranks, pair_costs, st.booleans())
@settings(max_examples=25, deadline=None)
def test_every_leaf_once_equal_numbers_within_the_budget_and_the_same_again(seed, budget, num_ranks, pair_cost, flat):
    trees = trees_of(seed)
    dealt = deal(trees, budget, num_ranks, pair_cost=pair_cost, flat=flat)
    assert len(dealt) == num_ranks and len({len(packs) for packs in dealt}) == 1
    every = [one for packs in dealt for one in packs]
    rows = sorted(leaf for one in every for leaf in one.leaves)
    assert rows == sorted((number, leaf) for number, tree in enumerate(trees) for leaf in tree.advantages)
    assert sum(one.num_policy for one in every) == sum(one.num_policy for one in pack(trees, budget, flat=flat))
    for one in teaching(every):
        if flat:
            assert len(one.leaves) == 1
        else:
            assert one.num_unique <= budget or (len(one.leaves) == 1 and one.is_path)
    again = deal(trees, budget, num_ranks, pair_cost=pair_cost, flat=flat)
    assert all(same(a, b) for left, right in zip(dealt, again, strict=True) for a, b in zip(left, right, strict=True))


@given(seeds, budgets, ranks, pair_costs)
@settings(max_examples=20, deadline=None)
def test_bins_cost_what_their_packs_cost_and_rounds_fall_in_cost(seed, budget, num_ranks, pair_cost):
    trees = trees_of(seed)
    rounds = deal_bins(trees, budget, num_ranks, pair_cost=pair_cost)
    dealt = deal(trees, budget, num_ranks, pair_cost=pair_cost)
    for number, row in enumerate(rounds):
        assert any(one.groups for one in row)
        for rank, one in enumerate(row):
            batch = dealt[rank][number]
            if one.groups:
                assert one.num_tokens == batch.num_unique
                pairs = int((batch.subtree_end_T - torch.arange(batch.num_unique)).sum())  # of each key: its queries
                assert abs(one.cost - batch.num_unique - pair_cost * pairs) < 1e-6 * one.cost
            else:
                assert batch.num_policy == 0 and batch.num_unique == 1
    costs = [one.cost for row in rounds for one in row]
    assert costs == sorted(costs, reverse=True)
    total = sum(one.cost for row in rounds for one in row)
    assert time_of(rounds) >= total / num_ranks * (1 - 1e-9)


def test_trees_without_credit_are_dealt_as_nothing():
    assert deal([], 100, 4) == [[], [], [], []]
