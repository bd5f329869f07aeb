"""Sampling: the distribution, its entropy, and a token that depends on seed and index alone."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arpo.engines.sampling import Pick, sample, uniform


def picks(count, temperature=1.0, top_p=1.0, seed=0):
    return [Pick(temperature=temperature, top_p=top_p, seed=seed, index=i) for i in range(count)]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 1500), st.integers(0, 10**6), st.sampled_from([0.3, 1.0, 1.7]), st.floats(0.1, 20.0))
def test_agrees_with_the_slow_way(vocabulary, seed, temperature, scale):
    logits = torch.randn(4, vocabulary, generator=torch.Generator().manual_seed(seed)) * scale
    found = sample(logits, picks(4, temperature, seed=seed))
    for row, token, logprob, entropy, index in zip(
        logits.double(), found.tokens, found.logprobs, found.entropies, range(4), strict=True
    ):
        logp = torch.log_softmax(row / temperature, -1)
        assert abs(logp[token] - logprob) < 1e-4
        one = torch.log_softmax(row, -1)
        assert abs(-(one.exp() * one).sum() - entropy) < 1e-4
        ends, draw = logp.exp().cumsum(0), uniform(seed, index)
        before = ends[token - 1] if token else 0.0
        assert before - 1e-5 <= draw <= ends[token] + 1e-5


def test_a_row_does_not_depend_on_its_neighbours():
    logits = torch.randn(9, 5000)
    ways = [Pick(temperature=t, top_p=p, seed=i, index=i) for i, (t, p) in enumerate([(1, 1), (0, 1), (0.5, 0.9)] * 3)]
    together = sample(logits, ways).tokens
    assert together == [sample(logits[i : i + 1], ways[i : i + 1]).tokens[0] for i in range(9)]


def test_frequencies_are_the_probabilities():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, float("-inf"), 1.5])
    count = 20_000
    found = sample(logits.expand(count, -1), picks(count, temperature=0.8))
    expected = torch.softmax(logits / 0.8, -1)
    seen = torch.bincount(torch.tensor(found.tokens), minlength=6) / count
    assert seen[4] == 0
    torch.testing.assert_close(seen, expected, atol=4 * 0.5 / math.sqrt(count), rtol=0)


def test_the_nucleus_is_the_smallest_set_that_holds_top_p():
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    assert set(sample(logits.expand(2000, -1), picks(2000, top_p=0.65)).tokens) == {0, 1}
    assert set(sample(logits.expand(2000, -1), picks(2000, top_p=0.75)).tokens) == {0, 1, 2}
    assert set(sample(logits.expand(2000, -1), picks(2000, top_p=0.01)).tokens) == {0}
    assert sample(logits[None], picks(1, top_p=0.01)).logprobs[0] == pytest.approx(math.log(0.4), abs=1e-6)


def test_greedy_takes_the_likeliest_and_reports_temperature_one():
    logits = torch.randn(3, 700)
    found = sample(logits, picks(3, temperature=0.0))
    assert found.tokens == logits.argmax(-1).tolist()
    expected = torch.log_softmax(logits, -1).amax(-1)
    torch.testing.assert_close(torch.tensor(found.logprobs), expected, atol=1e-5, rtol=0)


def test_a_sure_row_has_no_entropy_and_one_token():
    logits = torch.full((1, 1000), float("-inf"))
    logits[0, 999] = 3.0
    for index in range(50):
        found = sample(logits, [Pick(temperature=1.0, top_p=1.0, seed=index, index=index)])
        assert found.tokens == [999] and found.entropies == [0.0] and found.logprobs == [0.0]


def test_rows_that_are_no_numbers_raise():
    with pytest.raises(FloatingPointError):
        sample(torch.full((1, 10), float("nan")), picks(1))


def test_uniform_numbers_are_uniform_and_keyed():
    draws = [uniform(seed, index) for seed in range(100) for index in range(100)]
    assert min(draws) > 0 and max(draws) < 1 and len(set(draws)) == len(draws)
    assert abs(sum(draws) / len(draws) - 0.5) < 0.02
    assert uniform(-3, 5) == uniform(-3, 5) != uniform(-3, 6)
