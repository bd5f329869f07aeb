"""The branching rules, each against its formula (docs/method.md, section 4)."""

import math
from random import Random
from typing import Annotated

import pytest
from expansion_world import VOCAB, World, expansion, grow
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field, ValidationError

from arpo.core import (
    Aepo,
    Chance,
    Constant,
    Fixed,
    Never,
    Paper,
    Pilot,
    Released,
    Rule,
    StepStats,
    Threshold,
    Tip,
    next_stats,
    post_tool_heads,
)

STATS = StepStats(step=0)
ALL = [Never(), Fixed(at=2), Chance(), Paper(), Released(draws=3), Threshold(), Aepo()]


def tip(head=1.0, baseline=1.0, *, width=0.0, depth=1, wanted_before=0, k=20):
    return Tip(
        place=(0,) * depth,
        head=head,
        head_low=head - width,
        head_high=head + width,
        baseline=baseline,
        baseline_low=baseline - width,
        baseline_high=baseline + width,
        heads=(),
        wanted_before=wanted_before,
        head_tokens=k,
        vocab_size=VOCAB,
    )


heads = st.floats(0, 7)
tips = st.builds(tip, heads, heads, width=st.floats(0, 1), depth=st.integers(1, 6), wanted_before=st.integers(0, 40))


@settings(deadline=None)
@given(st.sampled_from(ALL), tips, st.integers(0, 100))
def test_rules_are_pure_and_keep_to_their_most(rule, seen, seed):
    one, other = rule(seen, STATS, Random(seed)), rule(seen, STATS, Random(seed))
    assert one == other
    assert 0 <= one.wanted <= rule.most(seen.depth)
    assert math.isfinite(one.score) and one.terms


@settings(deadline=None)
@given(tips)
def test_paper_with_alpha_equal_tau_follows_the_sign_of_the_rise_alone(seen):
    decision = Paper()(seen, STATS, Random(0))
    assert decision.wanted == (seen.rise > 0)
    assert decision.score == seen.rise
    assert decision.terms["probability"] == pytest.approx(0.5 + 0.2 * seen.rise / math.log(VOCAB))


def test_paper_sees_a_rise_that_adding_to_alpha_would_round_away():
    assert Paper()(tip(1e-18, 0.0), STATS, Random(0)).wanted == 1


@settings(deadline=None)
@given(tips, st.floats(0.3, 0.7), st.floats(0.3, 0.7))
def test_paper_with_other_tau(seen, alpha, tau):
    wanted = Paper(alpha=alpha, tau=tau, siblings=2)(seen, STATS, Random(0)).wanted
    probability = alpha + 0.2 * seen.rise / math.log(VOCAB)
    if abs(probability - tau) > 1e-9:
        assert wanted == 2 * (probability > tau)


def test_released_draws_with_the_released_probability():
    rise, k = 0.3, 20
    expected = 0.5 + 0.2 * k * rise / math.log(VOCAB)
    draws = [Released(draws=4)(tip(1 + rise, k=k), STATS, Random(seed)).wanted for seed in range(5000)]
    assert sum(draws) / 20000 == pytest.approx(expected, abs=0.015)
    assert Released(draws=3)(tip(7.0, 0.0), STATS, Random(0)).wanted == 3  # clipped at 1
    assert Released(draws=3)(tip(0.0, 7.0), STATS, Random(0)).wanted == 0  # clipped at 0


@pytest.mark.parametrize(("head", "wanted"), [(0.5, 0), (0.51, 1), (1.0, 2), (1.6, 3), (2.0, 4), (9.0, 4)])
def test_threshold_counts_multiples_of_theta(head, wanted):
    decision = Threshold(theta=0.5)(tip(head), STATS, Random(0))
    assert (decision.wanted, decision.score) == (wanted, head)


def test_threshold_at_or_below_0_means_the_maximum():
    assert Threshold(theta=0.0)(tip(0.0), STATS, Random(0)).wanted == 4
    assert Threshold(theta=-1.0, max_siblings=2)(tip(0.0), STATS, Random(0)).wanted == 2


def test_adaptive_threshold_is_mean_plus_deviations_of_the_last_w_heads():
    rule = Threshold(theta=0.7, deviations=2.0, window=3)
    assert rule.theta_for(STATS) == 0.7  # the first step
    stats = StepStats(step=1, window=(100.0, 1.0, 2.0, 3.0))
    assert rule.theta_for(stats) == pytest.approx(2 + 2 * math.sqrt(2 / 3))
    assert Threshold(theta=0.7).theta_for(stats) == 0.7
    certain = StepStats(step=4, window=(0.0, 0.0, 0.0))
    assert [rule(tip(head), certain, Random(0)).wanted for head in (0.0, 0.1)] == [0, 4], "0 is not above 0"


def test_aepo_is_damped_by_consecutive_wants():
    rule = Aepo()
    for before in (0, 1, 2, 10, 19):
        least = (0.5 / (1 - 0.05 * before) - 0.5) / 0.2
        assert rule(tip(1 + least + 1e-6, wanted_before=before), STATS, Random(0)).wanted == 1
        assert rule(tip(1 + least - 1e-6, wanted_before=before), STATS, Random(0)).wanted == 0
    assert (
        rule(tip(0.0, 7.0, wanted_before=40), STATS, Random(0)).wanted == 0
    )  # the penalty stops at 1: two negatives make no P


def test_fixed_forks_at_its_depth_alone():
    rule = Fixed(at=2, siblings=3)
    assert [rule(tip(depth=d), STATS, Random(0)).wanted for d in (1, 2, 3)] == [0, 3, 0]
    assert [rule.most(d) for d in (1, 2, 3)] == [0, 3, 0]


def test_chance_branches_at_its_rates():
    rule = Chance(rates=(0.25, 0.0, 0.8))
    for depth, rate in ((1, 0.25), (2, 0.0), (3, 0.8), (6, 0.8)):
        wanted = sum(rule(tip(depth=depth), STATS, Random(f"{depth}/{seed}")).wanted for seed in range(3000)) / 3000
        assert wanted == pytest.approx(rate, abs=0.03)
    assert [rule.most(d) for d in (1, 2, 3, 9)] == [1, 0, 1, 1]


@settings(deadline=None)
@given(
    st.sampled_from([Paper(), Paper(tau=0.52), Released(draws=3), Threshold(), Threshold(theta=1.0), Aepo()]),
    tips,
    st.integers(0, 50),
)
def test_flips_says_whether_any_value_between_the_bounds_decides_otherwise(rule, seen, seed):
    exact = {"head_low", "head_high", "baseline_low", "baseline_high"}
    decision = rule(seen, STATS, Random(seed))
    others = set()
    for head, baseline in [
        (seen.head_low, seen.baseline_high),
        (seen.head_high, seen.baseline_low),
        (seen.head_low, seen.baseline_low),
        (seen.head_high, seen.baseline_high),
        (seen.head, seen.baseline),
    ]:
        values = {name: head if "head" in name else baseline for name in exact}
        point = Tip(
            **{**{f: getattr(seen, f) for f in Tip.__dataclass_fields__}, **values, "head": head, "baseline": baseline}
        )
        others.add(rule(point, STATS, Random(seed)).wanted)
    assert decision.flips == (len(others) > 1)


def test_bounds_of_turns_reach_the_decision():
    grown = grow(World(seed=2, go_on=1.0, interval=True), rule=Paper(), leaves=8, roots=4)
    flips = [made.decided.decision.flips for made in grown.decisions.values()]
    assert any(flips) and not all(flips)
    assert not any(
        made.decided.decision.flips for made in grow(World(seed=2, go_on=1.0), rule=Paper()).decisions.values()
    )


def test_pilot_plans_by_the_sigmoid():
    plan = Pilot(beta=1.0)
    assert plan.roots(16, 1.0, (1.0, 1.0)) == 8
    assert plan.roots(16, 2.0, (0.5, 1.5)) == round(16 / (1 + math.exp(-1)))
    assert plan.roots(16, 1.0, ()) == 16
    assert Pilot(beta=1e6).roots(16, 0.0, (5.0,)) == 1
    assert Pilot(beta=1e6).roots(16, 5.0, (0.0,)) == 16
    assert plan.roots(5, 1.0, (1.0,)) == 3  # a half goes up, whatever the parity


# --- as a part of a recipe


class Recipe(BaseModel):
    rule: Annotated[Rule, Field(discriminator="rule")]
    roots: int | Pilot = 8


def test_recipes_build_rules_by_name():
    names = {
        "none": Never,
        "fixed": Fixed,
        "random": Chance,
        "paper": Paper,
        "released": Released,
        "threshold": Threshold,
        "aepo": Aepo,
    }
    for name, cls in names.items():
        assert Recipe.model_validate({"rule": {"rule": name}}).rule == cls()
    assert Recipe.model_validate({"rule": {"rule": "random", "rates": [0.1, 0.2]}}).rule == Chance(rates=(0.1, 0.2))
    assert Recipe.model_validate({"rule": {"rule": "paper", "tau": 0.6}, "roots": {"beta": 2}}).roots == Pilot(beta=2.0)
    assert Recipe(rule=Paper()).model_dump()["rule"] == {
        "rule": "paper",
        "alpha": 0.5,
        "beta": 0.2,
        "tau": 0.5,
        "siblings": 1,
    }


@pytest.mark.parametrize(
    ("mapping", "named"),
    [
        ({"rule": "paper", "tua": 1}, "tua"),
        ({"rule": "papr"}, "papr"),
        ({"rule": "random", "rates": [1.5]}, "rates"),
        ({"rule": "random", "rates": []}, "rates"),
        ({"rule": "fixed", "at": 0}, "at"),
        ({"rule": "paper", "siblings": 0}, "siblings"),
        ({"rule": "paper", "beta": -1}, "beta"),
        ({"rule": "released", "draws": 0}, "draws"),
        ({"rule": "released", "weight": math.inf}, "weight"),
        ({"rule": "threshold", "window": -1}, "window"),
        ({"rule": "threshold", "max_siblings": 0}, "max_siblings"),
        ({"rule": "aepo", "slope": 2}, "slope"),
    ],
)
def test_recipes_refuse_wrong_parameters_by_name(mapping, named):
    with pytest.raises(ValidationError, match=named):
        Recipe.model_validate({"rule": mapping})


def test_root_plans_refuse_wrong_parameters():
    with pytest.raises(ValueError, match="roots"):
        Constant(roots=0)
    with pytest.raises(ValueError, match="beta"):
        Pilot(beta=math.nan)


# --- the window of the adaptive threshold


def test_window_is_in_canonical_order_and_keeps_the_last_w():
    trees = [grow(World(seed=seed, go_on=0.9), timing=seed, rule=Paper(), leaves=6).tree for seed in range(3)]
    again = [grow(World(seed=seed, go_on=0.9), timing=seed + 50, rule=Paper(), leaves=6).tree for seed in range(3)]
    stats = StepStats(step=4, window=(9.0, 8.0))
    wide = next_stats(stats, trees, step=5, head=4, window=1000)
    assert wide == next_stats(stats, again, step=5, head=4, window=1000)
    assert wide.step == 5 and wide.window[:2] == (9.0, 8.0)
    tree = trees[0]
    slow = []
    for depth in range(1, 10):
        for place in sorted(p for p in tree.observations if len(p) == depth):
            head = tree.turns[(*place, 0)].entropies[:4]
            slow.append(sum(head) / len(head))
    assert post_tool_heads(tree, 4) == pytest.approx(slow)
    assert list(wide.window[2 : 2 + len(slow)]) == pytest.approx(slow)
    assert next_stats(stats, trees, step=5, head=4, window=3).window == wide.window[-3:]
    assert next_stats(stats, trees, step=5, head=4, window=0).window == ()


def test_rules_get_the_steps_statistics():
    frozen = StepStats(step=1, window=(50.0, 50.0))
    rule = Threshold(theta=0.01, window=2, deviations=0.0)
    assert grow(World(seed=1, go_on=1.0), rule=rule).num_branches > 0
    assert grow(World(seed=1, go_on=1.0), rule=rule, stats=frozen).num_branches == 0
    assert expansion(rule=rule).rule is rule
