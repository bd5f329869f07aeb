"""Packs hold every trained token of every leaf exactly once, lay paths out so that they can be walked, and respect the
budget."""

from itertools import chain, combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arpo.core.credit import CreditedTree
from arpo.core.tree import Turn
from arpo.errors import ConfigError, FormatError
from arpo.learner.packing import PackedBatch, pack
from random_trees import credited, random_tree

seeds = st.integers(0, 10_000)
budgets = st.sampled_from([1, 25, 40, 60, 100, 10_000])
shares = st.sampled_from([0.0, 0.3, 1.0])


def trees_of(seed: int, **shape: int | float) -> list[CreditedTree]:
    return [random_tree(seed * 10 + i, roots=1 + (seed + i) % 4, leaves=3 + (seed + i) % 7, **shape) for i in range(3)]


def walk(batch: PackedBatch, token: int) -> list[int]:
    """Indices from the first token of the path to `token`."""
    path = [token]
    while (token := int(batch.prev_T[token])) >= 0:
        path.append(token)
    return path[::-1]


def policy_tokens(tree: CreditedTree, leaf: tuple[int, ...]) -> list[int]:
    return list(chain.from_iterable(turn.tokens for turn in tree.tree.branch(leaf).turns))


def test_the_example_of_the_docstring():
    from array import array

    from arpo.core.tree import Observation, Prompt, Role, RolloutTree, StopReason

    tree = RolloutTree("t", 0, Prompt(tokens=array("i", [1, 2])))
    for place, tokens in (((0,), [3]), ((0, 0), [5]), ((0, 1), [6, 7]), ((1,), [8])):
        if len(place) == 2 and (0,) not in tree.observations:
            tree.grow(Observation(place=(0,), tokens=array("i", [4]), outcomes=()))
        numbers = array("f", [0.5] * len(tokens))
        tree.grow(Turn(place=place, role=Role.ROOT, tokens=array("i", tokens), logprobs=numbers, entropies=numbers))
        if place != (0,):
            tree.end(place, StopReason.FINISHED)
    [batch] = pack([credited(tree, {(0, 0): 1.0, (0, 1): 2.0, (1,): 3.0}, 0.0)], 100)
    assert batch.tokens_T.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert batch.position_T.tolist() == [0, 1, 2, 3, 4, 4, 5, 2]
    assert batch.subtree_end_T.tolist() == [8, 8, 7, 7, 5, 7, 7, 8]
    assert batch.prev_T.tolist() == [-1, 0, 1, 2, 3, 3, 5, 1]
    assert batch.predicts_P.tolist() == [2, 4, 5, 6, 7]
    assert batch.row_place_BL.tolist() == [[0, 1, 0], [0, 2, 3], [4, 0, 0]]
    assert batch.row_mask_BL.tolist() == [[True, True, False], [True, True, True], [True, False, False]]
    assert batch.advantage_BL.tolist() == [[1, 1, 0], [2, 2, 2], [3, 0, 0]]
    assert [(c.start, c.end, c.parent) for c in batch.chains] == [
        (0, 2, -1),
        (2, 4, 0),
        (4, 5, 1),
        (5, 7, 1),
        (7, 8, 0),
    ]
    assert (batch.num_unique, batch.num_flat, batch.num_policy) == (8, 5 + 6 + 3, 6)
    assert batch.rows(torch.arange(5.0)).tolist() == [[0, 1, 0], [0, 2, 3], [4, 0, 0]]


@given(seeds, budgets, st.sampled_from(["tree", "flat", "whole"]), shares)
@settings(max_examples=40, deadline=None)
def test_every_policy_token_of_every_credited_leaf_once(seed: int, budget: int, how: str, contexts: float):
    trees = trees_of(seed, lost=0.2, contexts=contexts)
    seen = []
    for batch in pack(trees, budget, flat=how == "flat", whole=how == "whole"):
        for row, (number, leaf) in enumerate(batch.leaves):
            tree, length = trees[number], int(batch.row_mask_BL[row].sum())
            assert batch.row_mask_BL[row, :length].all()
            index = batch.predicts_P[batch.row_place_BL[row, :length]]
            turns = [tree.tree.turns[place] for place in batch.turns[row]]
            seen += [(number, leaf, turn.place) for turn in turns]
            assert batch.tokens_T[index].tolist() == [token for turn in turns for token in turn.tokens]
            depths = [len(turn.place) - 1 for turn in turns for _ in turn.tokens]
            assert batch.turn_BL[row, :length].tolist() == depths
            assert int(batch.length_B[row]) == len(policy_tokens(tree, leaf))
            assert how != "whole" or len(turns) == len(leaf)
            for name, attribute in (("engine_logprob_BL", "logprobs"), ("entropy_BL", "entropies")):
                expected = list(chain.from_iterable(getattr(turn, attribute) for turn in turns))
                assert getattr(batch, name)[row, :length].tolist() == expected
            credit = [tree.credit[turn.place, leaf] for turn in turns for _ in turn.tokens]
            assert torch.allclose(batch.advantage_BL[row, :length], torch.tensor(credit))
            ends = index[torch.tensor([len(turn.tokens) for turn in turns]).cumsum(0) - 1]
            for turn, end in zip(turns, ends.tolist(), strict=True):
                path = walk(batch, end)
                read = [*tree.tree.context(turn.parent), *turn.tokens]
                assert batch.tokens_T[path].tolist() == read
                assert batch.position_T[path].tolist() == list(range(len(path)))
        used = batch.row_place_BL[batch.row_mask_BL].unique()
        assert torch.equal(used, torch.arange(len(batch.predicts_P)))
    pairs = [(number, leaf, turn) for number, tree in enumerate(trees) for turn, leaf in tree.credit]
    assert sorted(seen) == sorted(pairs)


@given(seeds, budgets, shares, st.booleans())
@settings(max_examples=20, deadline=None)
def test_a_token_sees_exactly_its_path(seed: int, budget: int, contexts: float, whole: bool):
    for batch in pack(trees_of(seed, contexts=contexts), budget, whole=whole):
        index = torch.arange(batch.num_unique)
        visible = (index[None] <= index[:, None]) & (index[:, None] < batch.subtree_end_T[None])
        for token in range(batch.num_unique):
            assert visible[token].nonzero()[:, 0].tolist() == walk(batch, token)


@given(seeds, budgets, shares, st.booleans())
@settings(max_examples=20, deadline=None)
def test_chains_are_maximal_runs_without_a_fork(seed: int, budget: int, contexts: float, whole: bool):
    for batch in pack(trees_of(seed, contexts=contexts), budget, whole=whole):
        assert [t for c in batch.chains for t in range(c.start, c.end)] == list(range(batch.num_unique))
        followers = torch.bincount(batch.prev_T[batch.prev_T >= 0], minlength=batch.num_unique)
        for c in batch.chains:
            assert batch.prev_T[c.start + 1 : c.end].tolist() == list(range(c.start, c.end - 1))
            assert followers[c.end - 1] != 1  # else it would go on
            assert int(batch.prev_T[c.start]) == (batch.chains[c.parent].end - 1 if c.parent >= 0 else -1)


@given(seeds, budgets)
@settings(max_examples=20, deadline=None)
def test_contexts_stand_in_packs_of_their_own(seed: int, budget: int):
    trees = trees_of(seed, contexts=0.6)
    for batch in pack(trees, budget):
        rows = zip(batch.leaves, batch.turns, strict=True)
        contexts = {(number, trees[number].tree.contexts(turns[-1])[-1]) for (number, _), turns in rows}
        assert batch.num_unique <= budget or len(contexts) == 1
    flat, whole = (pack(trees, budget, **how) for how in ({"flat": True}, {"whole": True}))
    assert all(batch.is_path for batch in flat)
    num_flat = sum(batch.num_flat for batch in whole)
    assert num_flat == sum(batch.num_flat for batch in flat) == sum(batch.num_unique for batch in flat)
    assert sum(len(batch.leaves) for batch in whole) == sum(len(tree.advantages) for tree in trees)
    with pytest.raises(ConfigError, match=r"rollout\.context"):
        pack([random_tree(1, contexts=1.0)], budget, flat=True, whole=True)


@given(seeds, budgets)
@settings(max_examples=30, deadline=None)
def test_budget_and_fewest_copies(seed: int, budget: int):
    trees = trees_of(seed)
    batches = pack(trees, budget)
    for batch in batches:
        assert batch.num_unique <= budget or len(batch.leaves) == 1
    for number, tree in enumerate(trees):
        [whole] = pack([tree], 10**6)
        parts = pack([tree], budget)
        homes = [batch for batch in batches if any(n == number for n, _ in batch.leaves)]
        if whole.num_unique <= budget:
            assert len(homes) == 1
        leaves = sorted(tree.advantages)
        best = min(
            tokens for tokens in (split_cost(tree, leaves, cuts, budget) for cuts in all_cuts(len(leaves))) if tokens
        )
        assert sum(part.num_unique for part in parts) == best
    assert sum(b.num_flat for b in batches) == sum(b.num_unique for b in pack(trees, budget, flat=True))


def all_cuts(count: int):
    return chain.from_iterable(combinations(range(1, count), size) for size in range(count))


def split_cost(tree: CreditedTree, leaves: list, cuts: tuple[int, ...], budget: int) -> int | None:
    """Unique tokens when the leaves are cut there, by counting them; None where a group of several does not fit."""
    total = 0
    for start, stop in zip((0, *cuts), (*cuts, len(leaves)), strict=True):
        paths = [tree.tree.branch(leaf).segments for leaf in leaves[start:stop]]
        tokens = sum(len(s.tokens) for s in {id(s): s for path in paths for s in path}.values())
        if tokens > budget and stop - start > 1:
            return None
        total += tokens
    return total


def test_flat_packs_are_single_paths():
    tree = random_tree(3)
    batches = pack([tree], 1, flat=True)
    assert [batch.leaves for batch in batches] == [((0, leaf),) for leaf in sorted(tree.advantages)]
    assert all(batch.is_path and batch.num_unique == batch.num_flat for batch in batches)


def test_nothing_to_train_gives_no_pack():
    assert pack([], 100) == []
    assert pack([random_tree(1, lost=1.0)], 100) == []


def test_bad_input_is_named():
    tree = random_tree(5)
    with pytest.raises(ConfigError, match="token_budget"):
        pack([tree], 0)
    leaf = sorted(tree.advantages)[0]
    without = {key: value for key, value in tree.credit.items() if key != (leaf, leaf)}
    with pytest.raises(FormatError, match="no credit for its turn"):
        pack([CreditedTree(tree.scored, tree.advantages, without)], 100)
    with pytest.raises(FormatError, match="no leaves"):
        pack([CreditedTree(tree.scored, {(9, 9): 1.0}, tree.credit)], 100)
    with pytest.raises(FormatError, match="prompt"):
        pack([random_tree(5, prompt=0)], 100)


def test_moving_keeps_everything():
    [batch] = pack([random_tree(2)], 1000)
    moved = batch.to("cpu")
    assert moved.leaves == batch.leaves and torch.equal(moved.tokens_T, batch.tokens_T)
