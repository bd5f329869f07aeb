"""Entropy in nats, exact and bounded (docs/method.md, section 3)."""

import math
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arpo.core import bounds_from_top_k, entropy_of_logits, entropy_of_probabilities, head_entropy

logits = st.lists(st.floats(-30, 30), min_size=1, max_size=40)


def softmax(values):
    top = max(values)
    weights = [math.exp(v - top) for v in values]
    return [w / sum(weights) for w in weights]


@settings(deadline=None)
@given(logits)
def test_logits_and_probabilities_agree(values):
    assert entropy_of_logits(values) == pytest.approx(entropy_of_probabilities(softmax(values)), abs=1e-9)


@settings(deadline=None)
@given(logits, st.floats(-1000, 1000))
def test_entropy_lies_between_0_and_ln_V_and_ignores_a_shift(values, shift):
    entropy = entropy_of_logits(values)
    assert 0 <= entropy <= math.log(len(values)) + 1e-9
    assert entropy_of_logits([v + shift for v in values]) == pytest.approx(entropy, abs=1e-6)


def test_known_entropies():
    assert entropy_of_probabilities([0.5, 0.5]) == pytest.approx(math.log(2))
    assert entropy_of_probabilities([1.0, 0.0]) == 0
    assert entropy_of_logits([5.0] * 8) == pytest.approx(math.log(8))
    assert entropy_of_logits([3.0, -math.inf]) == 0


@settings(deadline=None)
@given(logits, st.integers(1, 40))
def test_bounds_hold_the_true_entropy(values, k):
    probabilities = sorted(softmax(values), reverse=True)
    top = [math.log(p) if p > 0 else -math.inf for p in probabilities[: min(k, len(values))]]
    low, high = bounds_from_top_k(top, len(values))
    truth = entropy_of_probabilities(probabilities)
    assert low - 1e-9 <= truth <= high + 1e-9
    assert low <= high
    if k >= len(values):
        assert low == high


def test_bounds_are_reached_by_the_two_extreme_tails():
    top = [math.log(0.6), math.log(0.1)]  # 0.3 left for 8 tokens
    low, high = bounds_from_top_k(top, 10)
    assert high == pytest.approx(entropy_of_probabilities([0.6, 0.1] + [0.3 / 8] * 8))
    assert low == pytest.approx(entropy_of_probabilities([0.6, 0.1, 0.1, 0.1, 0.1] + [0.0] * 5))


def test_an_interval_is_often_wider_than_a_rise():
    """K = 20, tail 0.1, p_K = 0.01: the tail alone adds 0.46 to 1.31 nats for a vocabulary of about 50,000."""
    top = [math.log(0.9 - 19 * 0.01)] + [math.log(0.01)] * 19
    low, high = bounds_from_top_k(top, 49_152)
    known = -sum(math.exp(x) * x for x in top)
    assert low - known == pytest.approx(0.46, abs=0.005)
    assert high - known == pytest.approx(1.31, abs=0.005)


@pytest.mark.parametrize("values", [[], [0.5], [math.nan], [-1.0] * 4])
def test_bounds_refuse_what_is_no_distribution(values):
    with pytest.raises(ValueError):
        bounds_from_top_k(values, 3)


@pytest.mark.parametrize("values", [[], [-math.inf], [math.nan, 1.0], [math.inf, 0.0]])
def test_logits_refuse_what_is_no_distribution(values):
    with pytest.raises(ValueError):
        entropy_of_logits(values)


@pytest.mark.parametrize("values", [[], [0.5], [1.5, -0.5]])
def test_probabilities_must_sum_to_1(values):
    with pytest.raises(ValueError):
        entropy_of_probabilities(values)


@settings(deadline=None)
@given(st.lists(st.floats(0, 12, width=32), max_size=30), st.integers(1, 25))
def test_head_is_the_mean_of_the_first_k_stored_values_in_float64(values, k):
    stored = array("f", values)
    head = [float(v) for v in stored[:k]]
    assert head_entropy(stored, k) == (pytest.approx(math.fsum(head) / len(head), rel=1e-12) if head else 0.0)
    assert head_entropy(stored, k) == head_entropy(stored[:k], k)
