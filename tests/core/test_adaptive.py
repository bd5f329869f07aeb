"""Rules and a root plan that look back: against brute force, and what they must reach."""

import math
from dataclasses import replace
from random import Random
from statistics import fmean, pstdev

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_credit import scored_tree
from test_rules import tip

from arpo.core.adaptive import Spread, Steered
from arpo.core.branching import Rank, StepStats
from arpo.core.entropy import head_entropy
from arpo.core.roots import PassRate
from arpo.core.window import outcomes_of, pass_rates

unit = st.floats(0, 1)
known_heads = st.lists(st.floats(0, 4), max_size=30).map(tuple)


@settings(deadline=None)
@given(known_heads, st.lists(st.floats(0, 4), max_size=5).map(tuple), st.floats(0, 4), unit, unit, st.integers(0, 5))
def test_steered_is_its_formula(window, heads, head, rate, gain, wanted):
    seen = replace(tip(head, 1.5, depth=len(heads) + 1), heads=heads, wanted_on_path=min(wanted, len(heads)))
    rule = Steered(rate=rate, gain=gain, window=20, siblings=2)
    decision = rule(seen, StepStats(step=1, window=window), Random(0))
    share = min(1.0, max(0.0, rate + gain * (rate * len(heads) - seen.wanted_on_path)))
    known = [*window[-20:], *heads] or [1.5]
    below = sum(1 if h < head else 0.5 if h == head else 0 for h in known)
    assert decision.wanted == (2 if share > 0 and below / len(known) >= 1 - share else 0) <= rule.most(seen.depth)


@pytest.mark.parametrize("shift", [-3.0, -0.3, 0.0, 0.3, 3.0])
@pytest.mark.parametrize("rate", [0.25, 0.5, 0.75])
def test_steering_keeps_the_rate_where_entropies_have_moved(shift, rate):
    """The window holds another policy's heads. Unsteered, nearly all or nearly no tips branch."""
    random = Random(1)
    stats = StepStats(step=1, window=tuple(random.gauss(2, 0.3) for _ in range(100)))

    def share(gain):
        count, lines, length = 0, 200, 8
        for _ in range(lines):
            seen = replace(tip(2.0), heads=(), wanted_on_path=0)
            for _ in range(length):
                now = random.gauss(2 + shift, 0.3)
                seen = replace(seen, head=now, head_low=now, head_high=now)
                wants = Steered(rate=rate, gain=gain)(seen, stats, random).wanted > 0
                count += wants
                seen = replace(seen, heads=(*seen.heads, now), wanted_on_path=seen.wanted_on_path + wants)
        return count / (lines * length)

    assert abs(share(0.5) - rate) < 0.15
    if abs(shift) == 3.0:
        assert abs(share(0.0) - rate) > 0.2


outcomes = st.lists(st.tuples(st.integers(1, 4).map(float), st.floats(0, 3), unit), max_size=40).map(tuple)


@settings(deadline=None)
@given(outcomes, st.floats(0, 3), st.integers(1, 5), st.integers(1, 8))
def test_a_tip_is_scored_by_the_outcomes_nearest_to_it(known, head, depth, nearest):
    decision = Spread(memory=32, nearest=nearest)(
        tip(head, 0.5, depth=depth), StepStats(step=1, outcomes=known), Random(0)
    )
    left, taken = [*known[-32:]], []
    if len(left) < nearest:
        assert decision.score == head - 0.5
        return
    for _ in range(nearest):
        best = min(left, key=lambda one: (abs(one[0] - depth), abs(one[1] - head)))
        left.remove(best)
        taken.append(best[2])
    assert decision.score == pytest.approx(fmean(taken)) and decision.wanted == 0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_outcomes_are_the_spread_of_branches_below_a_tip(seed):
    tree = scored_tree(seed, rewards=(0.0, 0.5, 1.0))
    expected = []
    for place in sorted(tree.tree.observations, key=lambda p: (len(p), p)):
        below: dict[int, list[float]] = {}
        for leaf, score in tree.scores.items():
            if len(leaf) > len(place) and leaf[: len(place)] == place:
                below.setdefault(leaf[len(place)], []).append(score.reward)
        probe = tree.tree.turns.get((*place, 0))
        if len(below) > 1 and probe is not None:
            spread = pstdev(fmean(own) for own in below.values())
            expected.append((len(place), head_entropy(probe.entropies, 3), spread))
    ours = outcomes_of(tree, 3)
    assert len(ours) == len(expected) and [x for one in ours for x in one] == pytest.approx(
        [x for one in expected for x in one]
    )


def test_rank_can_prefer_depth():
    def scores(deeper):
        return [Rank(deeper=deeper)(tip(1.0, 0.5, depth=d), StepStats(step=0), Random(0)).score for d in (1, 2, 3)]

    assert scores(0.0) == [0.5] * 3 and scores(-0.1) == pytest.approx([0.4, 0.3, 0.2])


@given(st.integers(1, 64), st.integers(1, 64), unit, unit)
def test_a_task_that_is_seldom_solved_starts_more_often(leaves, least, one, other):
    plan = PassRate(least=min(least, leaves))
    low, high = sorted((one, other))
    assert plan.roots(leaves, 1.0) == plan.least and plan.roots(leaves, 0.0) == leaves
    assert plan.least <= plan.roots(leaves, high) <= plan.roots(leaves, low) <= leaves
    assert plan.roots(leaves, None) == plan.roots(leaves, 0.5)
    assert plan.roots(leaves, one) == pytest.approx(leaves - (leaves - plan.least) * one, abs=0.5 + 1e-9)


def test_a_pass_rate_runs():
    tree = scored_tree(4, rewards=(0.0, 1.0))
    mean = fmean(score.accuracy for score in tree.scores.values())
    task = tree.tree.task
    assert pass_rates({}, [tree], 0.25) == {task: mean}
    assert pass_rates({task: 0.4, "other": 1.0}, [tree], 0.25) == {task: pytest.approx(0.75 * 0.4 + 0.25 * mean)}
    assert math.isfinite(mean)
