"""Figures about the policy do not depend on the rule that branches it."""

import pytest
from expansion_world import HEAD, World, grow

from arpo.core import Aepo, Fixed, Never, Paper, Score, ScoredTree
from arpo.core.credit import AdvantageConfig, credit
from arpo.core.record import TreeRecord
from arpo.evaluation.entropy import entropy_study
from arpo.evaluation.quality import quality
from arpo.evaluation.trajectories import Recorded
from arpo.training.metrics import TreeStats, step_metrics

RULES = [Never(), Fixed(), Paper(alpha=0.9, beta=1.0), Aepo()]


def grown_by(rule):
    """One policy: what a turn would be is fixed by its place."""
    return [grow(World(seed=seed, go_on=0.9), seed, rule=rule, leaves=9, roots=3) for seed in range(12)]


def figures(rule):
    grown = grown_by(rule)
    trees = [
        ScoredTree(g.tree, {leaf: Score(reward=float(leaf[0]), accuracy=1.0) for leaf in g.tree.leaves()})
        for g in grown
    ]
    stats = [TreeStats(one, 3) for one in credit(trees, AdvantageConfig())]
    training = {k: v for k, v in step_metrics(stats, head_tokens=HEAD).items() if k.startswith("entropy")}
    recorded = [Recorded(question=str(n), record=TreeRecord.from_expansion(g, None, {})) for n, g in enumerate(grown)]
    siblings = sum(any(place[1:]) for g in grown for place in g.tree.turns)
    return training, entropy_study(recorded), quality(recorded), siblings


def test_one_policy_has_the_same_figures_under_every_rule():
    training, entropies, calls, none = figures(RULES[0])
    assert none == 0 and training["entropy/after_tool"] > 0 and entropies.all.results > 20
    for rule in RULES[1:]:
        own, study, made, siblings = figures(rule)
        assert siblings > 0, f"{rule} branched nothing, which tests nothing"
        assert own == pytest.approx(training)
        assert repr(study) == repr(entropies), "to the last bit; NaN is not equal to itself"
        assert repr(made) == repr(calls)
