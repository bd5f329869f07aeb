"""Credit against brute force on flattened trajectories (docs/method.md, sections 5 and 6)."""

from random import Random
from statistics import fmean, pstdev

import pytest
from expansion_world import Whim, World, grow
from hypothesis import given, settings
from hypothesis import strategies as st

from arpo.core import AdvantageConfig, Fixed, Score, ScoredTree, mixed
from arpo.core.credit import credit
from arpo.errors import ConfigError


def scored_tree(seed, *, rewards=(-1.0, 0.0, 0.5, 1.0), leaves=8, fails=0.1):
    grown = grow(World(seed=seed, fails=fails), seed, rule=Whim(seed), leaves=leaves, roots=min(3, leaves))
    random = Random(seed)
    scores = {
        leaf: Score(reward=random.choice(rewards), accuracy=0.0)
        for leaf in grown.tree.leaves()
        if not grown.tree.endings[leaf].aborted
    }
    return ScoredTree(grown.tree, scores)


batches = st.lists(st.builds(scored_tree, st.integers(0, 10**6), leaves=st.integers(1, 12)), min_size=1, max_size=3)


def rewards_of(tree):
    return {leaf: score.reward for leaf, score in tree.scores.items()}


def root_means(rewards):
    roots = sorted({leaf[0] for leaf in rewards})
    return {root: fmean(r for leaf, r in rewards.items() if leaf[0] == root) for root in roots}


def by_hand(tree, estimator, weighting):
    """One group, each formula written out on its own; None where nothing can be learned."""
    rewards = rewards_of(tree)
    if len(set(rewards.values())) < 2:
        return dict.fromkeys(rewards, 0.0)
    means = root_means(rewards)
    if weighting == "leaves":
        mean, std = fmean(rewards.values()), pstdev(rewards.values())
    else:
        mean = fmean(means.values())
        spread = fmean(fmean((r - mean) ** 2 for leaf, r in rewards.items() if leaf[0] == root) for root in means)
        std = spread**0.5
    if estimator == "grpo":
        return {leaf: (r - mean) / (std + 1e-6) for leaf, r in rewards.items()}
    if estimator == "dr_grpo":
        return {leaf: r - mean for leaf, r in rewards.items()}
    if weighting == "leaves":
        return {leaf: r - fmean(o for other, o in rewards.items() if other != leaf) for leaf, r in rewards.items()}
    if len(means) == 1:
        return dict.fromkeys(rewards, 0.0)
    return {leaf: r - fmean(m for root, m in means.items() if root != leaf[0]) for leaf, r in rewards.items()}


@settings(max_examples=50, deadline=None)
@given(batches, st.sampled_from(["grpo", "dr_grpo", "rloo"]), st.sampled_from(["leaves", "tree"]))
def test_group_estimators(trees, estimator, weighting):
    if estimator == "rloo" and weighting == "tree":
        trees = [tree for tree in trees if len({leaf[0] for leaf in tree.tree.endings}) > 1]
    config = AdvantageConfig(estimator=estimator, weighting=weighting)
    for tree, credited in zip(trees, credit(trees, config), strict=True):
        assert credited.scored is tree and credited.tree is tree.tree
        assert credited.advantages == pytest.approx(by_hand(tree, estimator, weighting), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(batches, st.sampled_from(["leaves", "tree"]))
def test_reinforce_plus_plus_normalises_over_the_batch(trees, weighting):
    rewards = {(number, leaf): r for number, tree in enumerate(trees) for leaf, r in rewards_of(tree).items()}
    found = credit(trees, AdvantageConfig(estimator="reinforce++", weighting=weighting))
    if len(set(rewards.values())) < 2:
        expected = dict.fromkeys(rewards, 0.0)
    elif weighting == "leaves":
        mean, std = fmean(rewards.values()), pstdev(rewards.values())
        expected = {key: (r - mean) / (std + 1e-6) for key, r in rewards.items()}
    else:
        roots = sorted({(number, leaf[0]) for number, leaf in rewards})
        own = {root: [r for (number, leaf), r in rewards.items() if (number, leaf[0]) == root] for root in roots}
        mean = fmean(map(fmean, own.values()))
        std = fmean(fmean((r - mean) ** 2 for r in values) for values in own.values()) ** 0.5
        expected = {key: (r - mean) / (std + 1e-6) for key, r in rewards.items()}
    flat = {(number, leaf): a for number, credited in enumerate(found) for leaf, a in credited.advantages.items()}
    assert flat == pytest.approx(expected, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(batches, st.sampled_from([0.0, 0.3, 0.5, 1.0]))
def test_attribution_by_brute_force(trees, blend):
    for credited in credit(trees, AdvantageConfig(estimator="dr_grpo", blend=blend)):
        advantages = credited.advantages
        pairs = {(leaf[:d], leaf) for leaf in advantages for d in range(1, len(leaf) + 1)}
        assert set(credited.credit) == pairs
        for turn, leaf in pairs:
            below = [a for other, a in advantages.items() if other[: len(turn)] == turn]
            assert credited.credit[turn, leaf] == pytest.approx(
                blend * fmean(below) + (1 - blend) * advantages[leaf], abs=1e-12
            )


@settings(max_examples=60, deadline=None)
@given(batches, st.floats(0, 1))
def test_blends_move_credit_between_leaves_but_not_between_turns(trees, blend):
    """With the ratio at 1 and a token mean, the gradient of a shared token is the sum of its credits: the same for
    every blend."""
    soft = credit(trees, AdvantageConfig(blend=0.0))
    other = credit(trees, AdvantageConfig(blend=blend))
    for one, two in zip(soft, other, strict=True):
        for turn in one.tree.turns:
            total = [sum(value for (segment, _), value in c.credit.items() if segment == turn) for c in (one, two)]
            assert total[0] == pytest.approx(total[1], abs=1e-9)
        for (turn, leaf), value in two.credit.items():
            if sum(segment == turn for segment, _ in two.credit) == 1:
                assert value == one.advantages[leaf]  # an unshared turn: all forms agree, to the last bit


def test_soft_is_grpo_on_flattened_trajectories_and_hard_is_equal_for_all_that_share():
    tree = scored_tree(11, fails=0.0)
    (soft,), (hard,) = (credit([tree], AdvantageConfig(blend=blend)) for blend in (0.0, 1.0))
    assert all(value == soft.advantages[leaf] for (_, leaf), value in soft.credit.items())
    for turn in tree.tree.turns:
        assert len({round(value, 12) for (segment, _), value in hard.credit.items() if segment == turn}) == 1


def test_worked_example():
    """Root 0 forks into two leaves with rewards 1 and 0, root 1 is a leaf with 0."""
    grown = grow(World(seed=0, go_on=1.0, deepest=1), rule=Fixed(), leaves=3, roots=1)
    assert grown.tree.leaves() == [(0, 0), (0, 1), (1, 0)]
    tree = ScoredTree(
        grown.tree,
        {leaf: Score(reward=r, accuracy=r) for leaf, r in zip(grown.tree.leaves(), (1.0, 0.0, 0.0), strict=True)},
    )
    (plain,) = credit([tree], AdvantageConfig(estimator="dr_grpo"))
    assert plain.advantages == pytest.approx({(0, 0): 2 / 3, (0, 1): -1 / 3, (1, 0): -1 / 3})
    (weighted,) = credit([tree], AdvantageConfig(estimator="dr_grpo", weighting="tree", blend=0.5))
    assert weighted.advantages == pytest.approx(
        {(0, 0): 0.75, (0, 1): -0.25, (1, 0): -0.25}
    )  # a fill is a root of its own
    assert weighted.credit[(0,), (0, 0)] == pytest.approx(0.5 * 0.25 + 0.5 * 0.75)
    (out,) = credit([tree], AdvantageConfig(estimator="rloo", weighting="tree"))
    assert out.advantages == pytest.approx({(0, 0): 1.0, (0, 1): 0.0, (1, 0): -0.5})


def test_leaves_without_a_score_leave_the_group():
    tree = scored_tree(5, fails=0.0)
    gone = tree.tree.leaves()[0]
    fewer = ScoredTree(tree.tree, {leaf: score for leaf, score in tree.scores.items() if leaf != gone})
    (credited,) = credit([fewer], AdvantageConfig())
    assert gone not in credited.advantages and all(leaf != gone for _, leaf in credited.credit)
    assert credited.advantages == pytest.approx(by_hand(fewer, "grpo", "leaves"))


@pytest.mark.parametrize("estimator", ["grpo", "dr_grpo", "rloo", "reinforce++"])
def test_groups_that_teach_nothing_get_zero(estimator):
    same = scored_tree(3, rewards=(0.1,))
    one = ScoredTree(same.tree, dict(list(same.scores.items())[:1]))
    for tree in (same, one, ScoredTree(same.tree, {})):
        assert not mixed(tree)
        (credited,) = credit([tree], AdvantageConfig(estimator=estimator))
        assert set(credited.advantages.values()) <= {0.0} and set(credited.credit.values()) <= {0.0}
    assert mixed(scored_tree(5))


def test_leave_one_out_by_root_needs_two_roots():
    grown = grow(World(seed=1, go_on=1.0, deepest=2), rule=Fixed(siblings=3), leaves=4, roots=1, root_cap=4)
    tree = ScoredTree(
        grown.tree, {leaf: Score(reward=float(n), accuracy=0) for n, leaf in enumerate(grown.tree.leaves())}
    )
    assert {leaf[0] for leaf in grown.tree.leaves()} == {0}
    with pytest.raises(ConfigError, match="single root"):
        credit([tree], AdvantageConfig(estimator="rloo", weighting="tree"))
    credit([tree], AdvantageConfig(estimator="rloo"))
    credit([tree], AdvantageConfig(weighting="tree"))


def test_scores_of_what_is_no_finished_leaf_are_refused():
    tree = scored_tree(5, fails=0.0)
    fine = Score(reward=1.0, accuracy=1.0)
    failed = next(
        t for t in (scored_tree(n, fails=0.6) for n in range(50)) if any(e.aborted for e in t.tree.endings.values())
    )
    aborted = next(leaf for leaf, ending in failed.tree.endings.items() if ending.aborted)
    for wrong in (
        ScoredTree(tree.tree, {(77,): fine}),
        ScoredTree(failed.tree, {aborted: fine}),
        ScoredTree(tree.tree, {tree.tree.leaves()[0]: Score(reward=float("nan"), accuracy=0.0)}),
    ):
        with pytest.raises(ValueError, match="task"):
            credit([wrong], AdvantageConfig())


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"estimator": "ppo"}, "estimator"),
        ({"weighting": "root"}, "weighting"),
        ({"blend": 1.1}, "blend"),
        ({"eps": -1.0}, "eps"),
    ],
)
def test_wrong_settings_are_refused_by_name(values, named):
    with pytest.raises(ValueError, match=named):
        AdvantageConfig(**values)
