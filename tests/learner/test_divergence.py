"""Divergence and entropy bonus: gradients against exact expectations over all sequences; coefficients by update."""

from itertools import pairwise, product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_local_learner import learner, some_trees
from torch import Tensor

from arpo.config import checked
from arpo.errors import ConfigError
from arpo.learner.config import Divergence, EntropyTarget, LossConfig
from arpo.learner.losses import policy_loss
from arpo.yaml_positions import Located
from tiny_models import tiny_model

V, T, BETA = 3, 3, 0.3
SEQUENCES = [*product(range(V), repeat=T)]
PREFIXES = [prefix for length in range(T) for prefix in product(range(V), repeat=length)]


def policy(seed: int) -> dict[tuple[int, ...], Tensor]:
    """Logits of the next token by prefix."""
    generator = torch.Generator().manual_seed(seed)
    return {p: torch.randn(V, generator=generator, dtype=torch.float64).requires_grad_() for p in PREFIXES}


def logprobs(of: dict[tuple[int, ...], Tensor], tokens: tuple[int, ...]) -> Tensor:
    return torch.stack([of[tokens[:at]].log_softmax(0)[token] for at, token in enumerate(tokens)])


def gradient(value: Tensor, of: dict[tuple[int, ...], Tensor]) -> Tensor:
    return torch.cat([*torch.autograd.grad(value, [*of.values()], allow_unused=True, materialize_grads=True)])


def expected_loss(config: LossConfig, old, new, reference, rewards: dict[tuple[int, ...], float]) -> Tensor:
    """The loss, summed over tokens, averaged over every sequence as `old` samples it."""
    total = torch.zeros((), dtype=torch.float64)
    for tokens in SEQUENCES:
        sampled = logprobs(old, tokens).detach()
        loss, _ = policy_loss(
            logprobs(new, tokens)[None],
            sampled[None],
            sampled[None],
            torch.full((1, T), rewards[tokens], dtype=torch.float64),
            torch.ones(1, T, dtype=torch.bool),
            config,
            denominator=1.0,
            reference_logprob_BL=logprobs(reference, tokens)[None],
        )
        total = total + sampled.sum().exp() * loss
    return total


def kl(p: Tensor, q: Tensor) -> Tensor:
    return (p.softmax(0) * (p.log_softmax(0) - q.log_softmax(0))).sum()


def config_of(estimator: str) -> LossConfig:
    return LossConfig(
        aggregation="token",
        clip_low=0.99,
        clip_high=1e9,
        kl_coefficient=Divergence(coefficient=BETA, estimator=estimator),  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("seed", range(3))
def test_in_the_reward_it_is_the_gradient_of_reward_less_divergence(seed: int) -> None:
    """`E[R] - beta KL(policy || reference)` over whole sequences, later tokens included."""
    new, reference = policy(seed), policy(seed + 10)
    rewards = {tokens: float(hash(tokens) % 5) for tokens in SEQUENCES}
    ours = gradient(expected_loss(config_of("reward"), new, new, reference, rewards), new)
    exact = torch.zeros((), dtype=torch.float64)
    for tokens in SEQUENCES:
        whole, other = logprobs(new, tokens).sum(), logprobs(reference, tokens).sum().detach()
        exact = exact - whole.exp() * (rewards[tokens] - BETA * (whole - other))
    assert torch.allclose(ours, gradient(exact, new), atol=1e-12)


@pytest.mark.parametrize(("estimator", "on_policy"), [("reverse", True), ("reverse", False), ("k3", True)])
def test_a_term_has_the_gradient_that_its_name_says(estimator: str, on_policy: bool) -> None:
    """Summed over the prefixes that the old policy comes to: `reverse` that of KL(policy || reference), whatever policy
    sampled; k3 that of KL(reference || policy), where the policy itself did."""
    new, reference = policy(1), policy(2)
    old = new if on_policy else policy(3)
    ours = gradient(expected_loss(config_of(estimator), old, new, reference, dict.fromkeys(SEQUENCES, 0.0)), new)
    exact = torch.zeros((), dtype=torch.float64)
    for prefix in PREFIXES:
        reach = logprobs(old, prefix).sum().exp().detach() if prefix else 1.0
        p, q = new[prefix], reference[prefix].detach()
        exact = exact + BETA * reach * (kl(p, q) if estimator == "reverse" else kl(q, p))
    assert torch.allclose(ours, gradient(exact, new), atol=1e-12)


@given(st.floats(0, 1), st.floats(0, 1), st.integers(1, 9))
def test_a_coefficient_goes_from_the_first_update_to_the_last(first: float, final: float, updates: int) -> None:
    rates = [Divergence(coefficient=first, final=final).at(update, updates) for update in range(updates + 2)]
    steps = [b - a for a, b in pairwise(rates[:updates])]
    assert rates[0] == first and (updates == 1 or rates[updates - 1 :] == pytest.approx([final] * 3))
    assert steps == pytest.approx([(final - first) / max(updates - 1, 1)] * (updates - 1))
    assert Divergence(coefficient=first).at(7, updates) == first


def test_a_bonus_is_steered_by_how_far_the_entropy_is_below_its_target() -> None:
    bonus = EntropyTarget(most=0.02, target=0.4)
    assert [bonus.at(h) for h in (0.0, 0.1, 0.2, 0.4, 3.0)] == pytest.approx([0.02, 0.015, 0.01, 0.0, 0.0])


def test_the_learner_takes_them_by_update_and_reports_them() -> None:
    config = LossConfig(
        kl_coefficient=Divergence(coefficient=0.2, estimator="reverse", final=0.0),
        entropy_coefficient=EntropyTarget(most=0.01, target=1e3),
    )
    own = learner(tiny_model("llama"), config, reference=tiny_model("llama", seed=1))
    own.num_updates = 3
    figures = [own.update(some_trees()).metrics for _ in range(3)]
    assert [f["kl_coefficient"] for f in figures] == pytest.approx([0.2, 0.1, 0.0])
    entropies = [e for t in some_trees() for turn in t.tree.turns.values() for e in turn.entropies]
    mean = sum(entropies) / len(entropies)
    assert figures[0]["entropy_coefficient"] == pytest.approx(0.01 * (1 - mean / 1e3))


@pytest.mark.parametrize(
    ("given_value", "where"),
    [
        ({"estimator": "reverse"}, "kl_coefficient.coefficient"),
        ({"coefficient": 0.1, "estimator": "k2"}, "kl_coefficient.estimator"),
        ({"coefficient": -0.1}, "kl_coefficient.coefficient"),
        ({"coefficient": 0.1, "end": 0}, "kl_coefficient.end"),
        (-1, "kl_coefficient"),
    ],
)
def test_a_wrong_divergence_is_named(given_value: object, where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        checked(LossConfig, Located({"kl_coefficient": given_value}))
    assert caught.value.where == where
