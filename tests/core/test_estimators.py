"""Estimators of credit by turn against brute force over leaves (docs/method.md, section 5)."""

from array import array
from dataclasses import replace
from functools import partial
from math import exp
from random import Random
from statistics import fmean, pstdev

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_credit import scored_tree

from arpo.core.credit import AdvantageConfig, ScoredTree, credit, mixed, teaches
from arpo.core.estimators import ESTIMATORS, MASKS
from arpo.core.score import Score
from arpo.errors import ConfigError

EPS = 1e-6


def with_turns(seed: int) -> ScoredTree:
    """A scored tree with rewards of turns and two parts; leaves that share a turn share its reward."""
    tree, random = scored_tree(seed, rewards=(0.0, 0.5, 1.0)), Random(seed)
    of_turn = {turn: random.choice((0.0, 0.25)) for turn in sorted(tree.tree.turns)}
    scores = {
        leaf: replace(
            score,
            turns=tuple(of_turn[leaf[:d]] for d in range(1, len(leaf) + 1)),
            parts={"right": score.reward, "format": float(random.random() < 0.5)},
        )
        for leaf, score in tree.scores.items()
    }
    return ScoredTree(tree.tree, scores)


def norm(x, values, *, std=True):
    """`(x - mean) / (std + eps)` among `values`, 0 where they are equal."""
    if max(values) - min(values) < 1e-9:
        return 0.0
    return (x - fmean(values)) / (pstdev(values) + EPS if std else 1.0)


def tokens(tree, leaf):
    return sum(len(tree.tree.turns[leaf[:d]].tokens) for d in range(1, len(leaf) + 1))


def discounted(tree, turn, leaf, gamma):
    rewards = [*tree.scores[leaf].turns]
    rewards[-1] += tree.scores[leaf].reward
    return sum(gamma**k * r for k, r in enumerate(rewards[len(turn) - 1 :]))


def value_below(tree, turn, gamma):
    under = [leaf for leaf in tree.scores if leaf[: len(turn)] == turn]
    value = tree.scores[under[0]].turns[len(turn) - 1] + (tree.scores[turn].reward if turn in tree.scores else 0.0)
    children = sorted({leaf[: len(turn) + 1] for leaf in under if len(leaf) > len(turn)})
    return value + (gamma * fmean(value_below(tree, c, gamma) for c in children) if children else 0.0)


def oracle(name, trees, tree, turn, leaf):
    rewards = {i: s.reward for i, s in tree.scores.items()}
    every = [*rewards.values()]
    group = norm(rewards[leaf], every)
    if name == "reinforce++-baseline":
        return norm(
            rewards[leaf] - fmean(every),
            [s.reward - fmean(o.reward for o in t.scores.values()) for t in trees for s in t.scores.values()],
        )
    if name == "opo":
        return rewards[leaf] - sum(tokens(tree, i) * r for i, r in rewards.items()) / sum(
            tokens(tree, i) for i in rewards
        )
    if name == "maxrl":
        return (rewards[leaf] - fmean(every)) / fmean(every) if fmean(every) else 0.0
    if name == "gdpo":

        def total(t, i):
            return sum(norm(t.scores[i].parts[p], [s.parts[p] for s in t.scores.values()]) for p in ("right", "format"))

        return norm(total(tree, leaf), [total(t, i) for t in trees for i in t.scores])
    if name == "tree_grpo":
        return group + norm(rewards[leaf], [r for i, r in rewards.items() if i[0] == leaf[0]])
    if name == "sibling":
        for depth in range(len(turn), 1, -1):
            branch, tip = turn[:depth], turn[: depth - 1]
            below = {}
            for i, r in rewards.items():
                if len(i) >= depth and i[: depth - 1] == tip:
                    below.setdefault(i[:depth], []).append(r)
            if len(below) > 1:
                others = fmean(fmean(v) for c, v in below.items() if c != branch)
                return (fmean(below[branch]) - others) / (pstdev(every) + EPS)
        return group
    if name == "gigpo":
        peers = [i for i in rewards if len(i) >= len(turn) and i[: len(turn) - 1] == turn[:-1]]
        if len({i[: len(turn)] for i in peers}) < 2:
            return group
        at = [discounted(tree, i[: len(turn)], i, 0.95) for i in peers]
        return group + norm(discounted(tree, turn, leaf, 0.95), at)
    pairs = [(i[:d], i) for i in rewards for d in range(1, len(i) + 1)]
    if name == "subtree":
        return norm(value_below(tree, turn, 1.0), [value_below(tree, t, 1.0) for t in {t for t, _ in pairs}])
    if name == "returns":
        return norm(discounted(tree, turn, leaf, 1.0), [discounted(tree, t, i, 1.0) for t, i in pairs])
    raise AssertionError(name)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.builds(with_turns, st.integers(0, 10**6)), min_size=1, max_size=2))
@pytest.mark.parametrize("name", [n for n in ESTIMATORS if n != "empg"])
def test_an_estimator_is_its_formula(name, trees):
    for tree, credited in zip(trees, credit(trees, AdvantageConfig(estimator=name)), strict=True):
        for (turn, leaf), value in credited.credit.items():
            assert value == pytest.approx(oracle(name, trees, tree, turn, leaf), abs=1e-6)


def test_empg_weighs_certain_turns_more_and_centres():
    trees = [with_turns(seed) for seed in (3, 4)]
    group = [credited.advantages for credited in credit(trees, AdvantageConfig())]
    mean_h = [{t: fmean(turn.entropies) for t, turn in tree.tree.turns.items()} for tree in trees]
    pairs = [(n, i[:d], i) for n, t in enumerate(trees) for i in sorted(t.scores) for d in range(1, len(i) + 1)]
    low, high = (f(mean_h[n][t] for n, t, _ in pairs) for f in (min, max))
    h = [{t: (v - low) / (high - low) for t, v in own.items()} for own in mean_h]
    scale = fmean(exp(-h[n][t]) for n, t, _ in pairs)
    raw = {
        (n, t, i): group[n][i] * exp(-h[n][t]) / scale
        + (0.05 * exp(-h[n][i[: len(t) + 1]]) if len(t) < len(i) else 0.0)
        for n, t, i in pairs
    }
    results = credit(trees, AdvantageConfig(estimator="empg"))
    for (n, t, i), value in raw.items():
        assert results[n].credit[t, i] == pytest.approx(value - fmean(raw.values()), abs=1e-9)


def halves(trees, config, *, factor=0.5):
    """An estimator of one's own: GRPO's credit, scaled."""
    return [{pair: factor * a for pair, a in one.credit.items()} for one in credit(trees, AdvantageConfig())]


def test_an_estimator_of_ones_own_and_what_it_must_return():
    trees = [with_turns(5)]
    (own,), (grpo,) = credit(trees, AdvantageConfig(estimator=halves)), credit(trees, AdvantageConfig())
    assert own.credit == pytest.approx({pair: a / 2 for pair, a in grpo.credit.items()})
    assert own.advantages == pytest.approx({leaf: a / 2 for leaf, a in grpo.advantages.items()})
    with pytest.raises(ConfigError, match="no pair"):
        credit(trees, AdvantageConfig(estimator=lambda trees, config: [{}]))
    with pytest.raises(ConfigError, match="returned nan"):
        credit(trees, AdvantageConfig(estimator=lambda t, c: [dict.fromkeys(grpo.credit, float("nan"))]))
    with pytest.raises(ConfigError, match="values for turn"):
        credit(trees, AdvantageConfig(mask=lambda t, c: [dict.fromkeys(grpo.credit, [True] * 999)]))


def test_masks():
    trees = [with_turns(5), with_turns(6)]
    (one, two) = MASKS["high_entropy"](trees, AdvantageConfig(), share=0.2)
    unique = {(n, turn): m for n, own in enumerate((one, two)) for (turn, _), m in own.items()}
    tokens = [z for (n, t), m in unique.items() for z in zip(trees[n].tree.turns[t].entropies, m, strict=True)]
    entering, leaving = ([e for e, keep in tokens if keep is side] for side in (True, False))
    assert min(entering) >= max(leaving, default=0) and len(entering) >= 0.2 * (len(entering) + len(leaving))
    for tree, mask in zip(trees, MASKS["overlong"](trees, AdvantageConfig()), strict=True):
        cut = {leaf for leaf in tree.scores if tree.tree.endings[leaf] in ("turn_length", "branch_length")}
        assert {leaf for _, leaf in mask} == cut and not any(any(values) for values in mask.values())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_gigpo_by_text_compares_tips_that_read_the_same(seed):
    tree = with_turns(seed)
    for place, seen in tree.tree.observations.items():  # two different results in all
        tree.tree.observations[place] = replace(seen, tokens=array("i", [sum(place) % 2]))
    rewards = {leaf: score.reward for leaf, score in tree.scores.items()}
    pairs = [(leaf[:d], leaf) for leaf in rewards for d in range(1, len(leaf) + 1)]

    def state(turn):
        return tree.tree.observations[turn[:-1]].tokens.tolist() if len(turn) > 1 else None

    (credited,) = credit([tree], AdvantageConfig(estimator=partial(ESTIMATORS["gigpo"], anchor="text", weight=0.5)))
    for turn, leaf in pairs:
        peers = [(t, i) for t, i in pairs if state(t) == state(turn)]
        step = norm(discounted(tree, turn, leaf, 0.95), [discounted(tree, t, i, 0.95) for t, i in peers])
        alone = len({t for t, _ in peers}) == 1
        expected = norm(rewards[leaf], [*rewards.values()]) + (0.0 if alone else 0.5 * step)
        assert credited.credit[turn, leaf] == pytest.approx(expected, abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.01, 1))
def test_clip_cov_drops_a_share_among_tokens_that_covary(seed, share):
    trees = [with_turns(seed), with_turns(seed + 1)]
    mask = partial(MASKS["clip_cov"], share=share, low=0.1, high=0.6)
    masked = credit(trees, AdvantageConfig(mask=mask))
    tokens = {
        (n, t, i, at): (logprob, one.credit[t, i])
        for n, one in enumerate(masked)
        for t, i in one.credit
        for at, logprob in enumerate(trees[n].tree.turns[t].logprobs)
    }
    means = [fmean(values[k] for values in tokens.values()) for k in (0, 1)]
    able = {key for key, (p, a) in tokens.items() if 0.1 <= (p - means[0]) * (a - means[1]) <= 0.6}
    dropped = {
        (n, t, i, at)
        for n, one in enumerate(masked)
        for (t, i), own in one.mask.items()
        for at, enters in enumerate(own)
        if not enters
    }
    assert dropped <= able and len(dropped) == min(len(able), int(share * len(tokens)))
    assert [one.mask for one in credit(trees, AdvantageConfig(mask=mask))] == [one.mask for one in masked]


def test_which_groups_teach():
    tree = scored_tree(3, rewards=(0.1,))
    assert not mixed(tree) and not teaches(tree, AdvantageConfig())
    assert teaches(tree, AdvantageConfig(estimator="reinforce++")), "it compares tasks"
    noise = {leaf: Score(reward=0.1 + 1e-17 * n, accuracy=0) for n, leaf in enumerate(tree.scores)}
    noise[min(noise)] = Score(reward=0.1 + 2e-16, accuracy=0)
    noisy = ScoredTree(tree.tree, noise)
    assert not mixed(noisy) and set(credit([noisy], AdvantageConfig())[0].advantages.values()) == {0.0}
    with pytest.raises(ValueError, match=r"Score\.turns"):
        credit(
            [ScoredTree(tree.tree, {min(tree.scores): Score(reward=1, accuracy=1, turns=(1.0,) * 99)})],
            AdvantageConfig(),
        )
