"""Estimates against closed forms and brute force."""

import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arpo.evaluation.statistics import (
    Estimate,
    bootstrap,
    by_group,
    keyed_generator,
    over_seeds,
    paired_difference,
    pass_at,
    pass_at_k,
    rate,
    ratio,
    wilson,
)


@given(n=st.integers(1, 9), data=st.data())
def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_answer(n, data):
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    right = [i < c for i in range(n)]
    draws = list(itertools.combinations(right, k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws), abs=1e-12)


def test_pass_at_k_over_many_questions_and_large_n():
    n, c = np.array([1000, 1000, 4]), np.array([0, 1000, 1])
    assert pass_at_k(n, c, 1).tolist() == pytest.approx([0, 1, 0.25])
    assert pass_at_k(1000, 1, 500) == pytest.approx(0.5)


def test_pass_at_k_refuses_what_has_no_estimate():
    with pytest.raises(ValueError, match="pass@3 needs"):
        pass_at_k([4, 2], [1, 1], 3)
    with pytest.raises(ValueError, match="between 0 and"):
        pass_at_k(4, 5, 1)


def test_bootstrap_interval_agrees_with_the_normal_one_on_many_questions():
    values = [random.Random(i).gauss(2, 3) for i in range(2000)]
    found = bootstrap(values, seed=1)
    error = 1.96 * np.std(values) / math.sqrt(len(values))
    assert found.mean == pytest.approx(np.mean(values))
    assert found.low == pytest.approx(found.mean - error, abs=0.02) and found.high == pytest.approx(
        found.mean + error, abs=0.02
    )


def test_bootstrap_of_three_values_against_all_resamples():
    values = [0.0, 0.5, 2.0]  # 1 in 27 resamples is three times the same value: more than 2.5 %
    means = sorted(sum(draw) / 3 for draw in itertools.product(values, repeat=3))
    low, high = np.quantile(means, [0.025, 0.975], method="inverted_cdf")
    found = bootstrap(values, seed=3, resamples=50_000)
    assert (found.low, found.high) == pytest.approx((low, high))


def test_the_same_key_gives_the_same_interval_whatever_was_drawn_before():
    values = [math.sin(i) for i in range(50)]
    first = bootstrap(values, seed=5)
    bootstrap(values, seed=6)
    assert bootstrap(values, seed=5) == first
    assert bootstrap(values, seed=6) != first
    assert keyed_generator(1, "a").random() != keyed_generator(1, "b").random()


def test_too_few_questions_have_no_interval():
    assert math.isnan(bootstrap([]).mean)
    one = bootstrap([0.5])
    assert one.mean == 0.5 and math.isnan(one.low) and one.n == 1


@pytest.mark.parametrize(("right", "asked"), [(0, 10), (10, 10), (7, 20), (1, 1)])
def test_wilson_bounds_solve_its_equation(right, asked):
    found = wilson(right, asked)
    z, p = 1.959963984540054, right / asked
    for bound in (found.low, found.high):
        if 0 < bound < 1:
            assert (p - bound) ** 2 == pytest.approx(z * z * bound * (1 - bound) / asked, abs=1e-9)
    assert 0 <= found.low <= p <= found.high <= 1 and found.low < found.high


def test_wilson_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    for truth in (0.1, 0.5, 0.9):
        counts = rng.binomial(100, truth, 2000)
        covered = [(w := wilson(int(c), 100)).low <= truth <= w.high for c in counts]
        assert 0.92 <= np.mean(covered) <= 0.98


def test_a_question_weighs_the_same_however_often_it_was_asked():
    assert rate({"a": [1, 1, 1, 1], "b": [0]}).mean == 0.5


def test_a_few_half_right_answers_are_no_certainty():
    almost_none = {**{str(i): [0.0] for i in range(124)}, "half": [0.5]}
    assert rate(almost_none) == wilson(0.5, 125) and rate(almost_none).high > 0.03
    almost_all = {key: [1 - value for value in values] for key, values in almost_none.items()}
    assert rate(almost_all).low == pytest.approx(1 - rate(almost_none).high)
    assert wilson(0, 125).high < rate(almost_none).high < wilson(1, 125).high


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_a_rate_lies_in_its_interval(means):
    found = rate({str(i): [mean] for i, mean in enumerate(means)})
    assert 0 <= found.low <= found.mean + 1e-12 and found.mean - 1e-12 <= found.high <= 1


def test_plain_rates_get_wilson_and_clusters_a_bootstrap():
    assert rate({str(i): [1.0] for i in range(20)}) == wilson(20, 20)
    assert rate({str(i): [1.0, 0.0] for i in range(20)}) == bootstrap([0.5] * 20, purpose="accuracy")


def test_pass_at_grows_with_k():
    by_question = {str(i): [random.Random(f"{i}/{s}").random() < 0.3 for s in range(8)] for i in range(40)}
    found = [pass_at(by_question, k).mean for k in (1, 2, 4, 8)]
    assert found == sorted(found)
    assert found[0] == pytest.approx(np.mean([np.mean(v) for v in by_question.values()]))
    assert found[-1] == pytest.approx(np.mean([any(v) for v in by_question.values()]))


def test_paired_difference_sees_a_small_gain_that_unpaired_intervals_hide():
    ease = {str(i): random.Random(i).random() for i in range(200)}
    better = {key: value + 0.02 + random.Random(key).gauss(0, 0.02) for key, value in ease.items()}
    found = paired_difference(ease, better)
    assert found.difference.low > 0 and found.p_value < 0.001
    assert rate({k: [v] for k, v in better.items()}).low < rate({k: [v] for k, v in ease.items()}).high


def test_paired_difference_turns_its_sign_with_the_runs():
    a, b = {"x": 0.0, "y": 1.0, "only a": 1.0}, {"x": 1.0, "y": 1.0, "only b": 0.0}
    assert paired_difference(a, b).difference.mean == 0.5 and paired_difference(a, b).difference.n == 2
    assert paired_difference(b, a).difference.mean == -0.5
    with pytest.raises(ValueError, match="share no question"):
        paired_difference({"x": 1.0}, {"y": 1.0})


def test_few_questions_that_differ_do_not_make_a_difference_certain():
    """20 questions, of which a run gains 3 % and loses 1 %: a bootstrap's interval holds the 2 points half the time."""
    held, draws, none = 0, np.random.default_rng(0), dict.fromkeys(map(str, range(20)), 0.0)
    for _ in range(200):
        other = {key: float(draw < 0.03) - float(draw > 0.99) for key, draw in zip(none, draws.random(20), strict=True)}
        found = paired_difference(none, other, resamples=100).difference
        assert found.low < found.mean < found.high
        held += found.low <= 0.02 <= found.high
    assert held >= 190


@given(st.lists(st.sampled_from([-1.0, -0.5, 0.5, 1.0]), max_size=4), st.integers(2, 60))
def test_the_interval_of_few_that_differ_turns_with_the_runs(differences, same):
    b = {str(i): d for i, d in enumerate([*differences, *[0.0] * same])}
    one, other = (
        paired_difference(*pair).difference for pair in ((dict.fromkeys(b, 0.0), b), (b, dict.fromkeys(b, 0.0)))
    )
    assert (one.mean, one.low, one.high) == pytest.approx((-other.mean, -other.high, -other.low))
    assert -1 <= one.low <= one.mean <= one.high <= 1


@given(st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.5, 1.0]), min_size=1, max_size=8))
def test_sign_flip_p_value_counts_all_flips(differences):
    a = {str(i): 0.0 for i in range(len(differences))}
    b = {str(i): d for i, d in enumerate(differences)}
    observed = abs(sum(differences))
    flips = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((-1, 1), repeat=len(b))
    ]
    expected = sum(f >= observed - 1e-12 for f in flips) / len(flips)
    assert paired_difference(a, b, resamples=50).p_value == pytest.approx(expected)


def test_sampled_sign_flips_agree_with_the_binomial_test():
    # 30 questions move, 22 of them up: the sign-flip test of equal steps is the two-sided binomial test
    b = {str(i): 1.0 if i < 22 else -1.0 for i in range(30)}
    exact = 2 * sum(math.comb(30, k) for k in range(22, 31)) / 2**30
    assert paired_difference(dict.fromkeys(b, 0.0), b, resamples=40_000).p_value == pytest.approx(exact, abs=0.004)


def test_groups_keep_their_questions_apart():
    rows = [("hard", "q1", 0.0), ("hard", "q1", 1.0), ("easy", "q2", 1.0), ("easy", "q3", 1.0)]
    found = by_group(rows)
    assert list(found) == ["easy", "hard"]
    assert found["easy"] == wilson(2, 2) and found["hard"].mean == 0.5 and found["hard"].n == 1


def test_seeds_get_a_t_interval():
    found = over_seeds([1.0, 2.0, 3.0])
    assert found.mean == 2 and found.high - 2 == pytest.approx(4.302653 * 1 / math.sqrt(3), rel=1e-6)
    assert math.isnan(over_seeds([1.0]).low) and over_seeds([]).n == 0


def test_estimates_read_back_with_their_holes():
    assert math.isnan(Estimate.from_json({"mean": 0.5, "low": None, "high": None, "n": 1}).low)
    assert str(Estimate(math.nan, math.nan, math.nan, 0)) == "-"
    assert Estimate(0.5, 0.4, 0.6, 9).percent == "50.0 % [40.0, 60.0]"


def test_a_ratio_of_which_resampling_knows_too_little_has_no_interval():
    """Ten questions, one of which made calls: in a third of resamples there are none, and no share of right answers to
    a call."""
    one = ratio([1.0] * 10, [2.0] + [0.0] * 9, resamples=500)
    none = ratio([0.0] * 10, [2.0] * 10, resamples=500)
    assert (one.mean, none.mean) == (5.0, 0.0) and math.isnan(one.low) and math.isnan(none.high)
    assert not math.isnan(ratio([1.0] * 10, [2.0] * 10, resamples=500).low)
