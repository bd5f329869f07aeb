"""Packed training is training each context of each trajectory alone: loss and every gradient, for every loss,
attention, split and family."""

from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arpo.core.credit import CreditedTree
from arpo.learner.attention import layout_of, model_inputs, tree_attention
from arpo.learner.config import SURROGATES, Divergence, LossConfig
from arpo.learner.logprobs import LMHead, token_logprobs
from arpo.learner.losses import loss_denominator, policy_loss
from arpo.learner.packing import pack
from random_trees import random_tree
from tiny_models import FAMILIES, tiny_model

LOSSES = {
    "grpo": LossConfig(),
    "dapo": LossConfig(aggregation="token", clip_high=0.28, tis_cap=None),
    "dr-grpo": LossConfig(aggregation=40),
    "dual-clip": LossConfig(dual_clip=1.5, clip_low=0.1),
    "gspo": LossConfig(surrogate="gspo", clip_low=0.05, clip_high=0.05),
    "cispo": LossConfig(surrogate="cispo", aggregation="token"),
    "aepo": LossConfig(surrogate="aepo", clip_high=0.1),
    "sapo": LossConfig(surrogate="sapo"),
    "dppo": LossConfig(surrogate="dppo"),
    "gmpo": LossConfig(surrogate="gmpo"),
    "gspo_turn": LossConfig(surrogate="gspo_turn", clip_low=0.05, clip_high=0.05),
    "weighed": LossConfig(surrogate={"use": "ppo", "options": {"weights": {"off_policy": {"bound": 0.9}}}}),
    "kl": LossConfig(kl_coefficient=Divergence(coefficient=0.3, estimator="reverse")),
    "kl_reward": LossConfig(kl_coefficient=Divergence(coefficient=0.3, estimator="reward")),
    "entropy": LossConfig(aggregation="token", entropy_coefficient=0.2, kl_coefficient=0.1),
}
TEMPERATURE = 0.8


def noise(purpose: str, key: object, length: int) -> torch.Tensor:
    random = Random(f"{purpose}/{key}")
    return torch.tensor([random.gauss(0, 0.3) for _ in range(length)], dtype=torch.float64)


def beside(logprob_BL: torch.Tensor, trees, leaves, turns, purpose: str) -> torch.Tensor:
    """Other log-probabilities near the given ones, keyed by leaf and turn: an older policy, a reference."""
    shift_BL = torch.zeros_like(logprob_BL)
    for row, ((number, leaf), places) in enumerate(zip(leaves, turns, strict=True)):
        tokens = [(place, len(trees[number].tree.turns[place].tokens)) for place in places]
        values = torch.cat([noise(f"{purpose}/{number}", (leaf, place), length) for place, length in tokens])
        shift_BL[row, : len(values)] = values
    return logprob_BL.detach() + shift_BL


def gradients(model, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters()} | {"loss": loss}


def packed(
    model, trees: list[CreditedTree], budget: int, config: LossConfig, name: str, call_pairs: int
) -> dict[str, torch.Tensor]:
    model.zero_grad()
    batches = pack(trees, budget, whole=config.whole_rows)
    total = loss_denominator(sum(len(t.advantages) for t in trees), sum(b.num_policy for b in batches), config)
    sum_loss = torch.zeros((), dtype=torch.float64)
    with tree_attention(model, name):
        for batch in batches:
            hidden_TH = model.model(**model_inputs(batch, layout_of(batch, call_pairs))).last_hidden_state[0]
            logprob_P, entropy_P = token_logprobs(
                batch.predicting(hidden_TH),
                batch.targets_P,
                LMHead.from_model(model),
                temperature=TEMPERATURE,
                entropy_grad=config.entropy_coefficient > 0,
                chunk=7,
            )
            logprob_BL = batch.rows(logprob_P)
            loss, _ = policy_loss(
                logprob_BL,
                beside(logprob_BL, trees, batch.leaves, batch.turns, "old"),
                batch.engine_logprob_BL,
                batch.advantage_BL,
                batch.row_mask_BL,
                config,
                denominator=total,
                reference_logprob_BL=beside(logprob_BL, trees, batch.leaves, batch.turns, "reference"),
                entropy_BL=batch.rows(entropy_P),
                turn_BL=batch.turn_BL,
                length_B=batch.length_B,
            )
            loss.backward()
            sum_loss += loss.detach()
    return gradients(model, sum_loss)


def alone(model, trees: list[CreditedTree], config: LossConfig) -> dict[str, torch.Tensor]:
    """The slow twin: transformers' own attention on each context of each trajectory, all logits, nothing of packing."""
    model.zero_grad()
    leaves = [(number, leaf) for number, tree in enumerate(trees) for leaf in sorted(tree.advantages)]
    num_tokens = sum(len(t.tokens) for number, leaf in leaves for t in trees[number].tree.branch(leaf).turns)
    total = loss_denominator(len(leaves), num_tokens, config)
    sum_loss = torch.zeros((), dtype=torch.float64)
    for number, leaf in leaves:
        tree, branch = trees[number].tree, trees[number].tree.branch(leaf)
        logprobs, entropies = [], []
        for turn in branch.turns:  # a context once for each of its turns: slow, and nothing to get wrong
            read = [*tree.context(turn.parent), *turn.tokens]
            logits = model(input_ids=torch.tensor([read]), use_cache=False).logits[0, -len(turn.tokens) - 1 : -1]
            scaled = (logits / TEMPERATURE).log_softmax(-1)
            logprobs.append(scaled.gather(1, torch.tensor(turn.tokens)[:, None])[:, 0])
            entropies.append(torch.distributions.Categorical(logits=logits).entropy())
        logprob = torch.cat(logprobs)[None]
        mask, places = torch.ones_like(logprob, dtype=torch.bool), [turn.place for turn in branch.turns]
        loss, _ = policy_loss(
            logprob,
            beside(logprob, trees, [(number, leaf)], [places], "old"),
            torch.tensor([[value for turn in branch.turns for value in turn.logprobs]]),
            torch.tensor([[trees[number].credit[turn.place, leaf] for turn in branch.turns for _ in turn.tokens]]),
            mask,
            config,
            denominator=total,
            reference_logprob_BL=beside(logprob, trees, [(number, leaf)], [places], "reference"),
            entropy_BL=torch.cat(entropies)[None],
            turn_BL=torch.tensor([[number for number, turn in enumerate(branch.turns) for _ in turn.tokens]]),
        )
        loss.backward()
        sum_loss += loss.detach()
    return gradients(model, sum_loss)


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float = 1e-11) -> None:
    for name, value in other.items():
        assert torch.isfinite(one[name]).all(), name
        assert float((one[name] - value).abs().max()) <= tolerance * (1 + float(value.abs().max())), name
    assert any(float(value.abs().max()) > 1e-3 for name, value in other.items() if name != "loss")


def trees_of(seed: int, contexts: float = 0.0) -> list[CreditedTree]:
    """Two trees, of which the second has several contexts a branch."""
    shares = (0.0, contexts)
    return [random_tree(seed + i, leaves=4 + i, roots=1 + i, blend=(0.0, 0.5)[i], contexts=shares[i]) for i in (0, 1)]


def test_no_surrogate_is_left_out():
    assert {config.surrogate_name for config in LOSSES.values()} >= SURROGATES.keys()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("budget", [20, 1000])
def test_every_loss_whole_and_split(loss: str, budget: int):
    model, trees = tiny_model("llama"), trees_of(41, 0.6)
    assert len(pack(trees, 20)) > 2 and len(pack(trees, 1000)) == 1
    assert max(len(trees[1].tree.contexts(leaf)) for leaf in trees[1].advantages) == 3
    assert_equal(packed(model, trees, budget, LOSSES[loss], "arpo_tree", 0), alone(model, trees, LOSSES[loss]))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["arpo_tree", "arpo_tree_dense"])
def test_every_family_and_attention(family: str, name: str):
    model, trees = tiny_model(family), trees_of(70)
    assert_equal(packed(model, trees, 50, LOSSES["grpo"], name, 100), alone(model, trees, LOSSES["grpo"]))


@given(
    st.integers(0, 10_000),
    st.sampled_from([20, 45, 1000]),
    st.sampled_from([0, 60, 10_000]),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.sampled_from(["grpo", "dapo", "gspo"]),
)
@settings(max_examples=12, deadline=None)
def test_random_trees(seed: int, budget: int, call_pairs: int, contexts: float, loss: str):
    model, trees = tiny_model("llama", seed), trees_of(seed, contexts)
    expected = alone(model, trees, LOSSES[loss])
    assert_equal(packed(model, trees, budget, LOSSES[loss], "arpo_tree", call_pairs), expected)


def test_gradient_checkpointing_changes_nothing():
    model, trees = tiny_model("llama"), trees_of(11)
    expected = packed(model, trees, 1000, LOSSES["grpo"], "arpo_tree", 0)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    assert_equal(packed(model, trees, 1000, LOSSES["grpo"], "arpo_tree", 0), expected)


def test_bf16_autocast_stays_near_float32():
    trees = [random_tree(4, prompt=30, turn=(5, 15), observation=(5, 20))]
    model = tiny_model("llama").float()
    config = LOSSES["grpo"]
    exact = packed(model, trees, 1000, config, "arpo_tree", 0)
    exact = {name: value.clone() for name, value in exact.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = packed(model, trees, 1000, config, "arpo_tree", 0)
    for name, value in exact.items():
        if name != "loss" and float(value.norm()) > 0:
            assert torch.nn.functional.cosine_similarity(value.flatten(), rough[name].flatten(), 0) > 0.97, name
