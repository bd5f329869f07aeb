"""Packed training is training each trajectory alone: loss and every gradient, for every loss, attention, split and
family."""

from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arpo.core.credit import CreditedTree
from arpo.learner.attention import layout_of, model_inputs, tree_attention
from arpo.learner.config import LossConfig
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
    "kl": LossConfig(kl_coefficient=0.3),
    "entropy": LossConfig(aggregation="token", entropy_coefficient=0.2, kl_coefficient=0.1),
}
TEMPERATURE = 0.8


def noise(purpose: str, leaf: tuple[int, ...], length: int) -> torch.Tensor:
    random = Random(f"{purpose}/{leaf}")
    return torch.tensor([random.gauss(0, 0.3) for _ in range(length)], dtype=torch.float64)


def beside(logprob_BL: torch.Tensor, mask_BL: torch.Tensor, leaves, purpose: str) -> torch.Tensor:
    """Other log-probabilities near the given ones, keyed by leaf: an older policy, a reference."""
    shift_BL = torch.zeros_like(logprob_BL)
    for row, (number, leaf) in enumerate(leaves):
        length = int(mask_BL[row].sum())
        shift_BL[row, :length] = noise(f"{purpose}/{number}", leaf, length)
    return logprob_BL.detach() + shift_BL


def gradients(model, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters()} | {"loss": loss}


def packed(
    model, trees: list[CreditedTree], budget: int, config: LossConfig, name: str, call_pairs: int
) -> dict[str, torch.Tensor]:
    model.zero_grad()
    batches = pack(trees, budget)
    total = loss_denominator(sum(len(b.leaves) for b in batches), sum(b.num_policy for b in batches), config)
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
                beside(logprob_BL, batch.row_mask_BL, batch.leaves, "old"),
                batch.engine_logprob_BL,
                batch.advantage_BL,
                batch.row_mask_BL,
                config,
                denominator=total,
                reference_logprob_BL=beside(logprob_BL, batch.row_mask_BL, batch.leaves, "reference"),
                entropy_BL=batch.rows(entropy_P),
            )
            loss.backward()
            sum_loss += loss.detach()
    return gradients(model, sum_loss)


def alone(model, trees: list[CreditedTree], config: LossConfig) -> dict[str, torch.Tensor]:
    """The slow twin: transformers' own attention on each trajectory, all logits, nothing of packing."""
    model.zero_grad()
    leaves = [(number, leaf) for number, tree in enumerate(trees) for leaf in sorted(tree.advantages)]
    branches = {(number, leaf): trees[number].tree.branch(leaf) for number, leaf in leaves}
    total = loss_denominator(len(leaves), sum(len(t.tokens) for b in branches.values() for t in b.turns), config)
    sum_loss = torch.zeros((), dtype=torch.float64)
    for number, leaf in leaves:
        tokens, targets, advantages, engine = [], [], [], []
        for segment in branches[number, leaf].segments:
            if segment in branches[number, leaf].turns:
                targets.extend(range(len(tokens), len(tokens) + len(segment.tokens)))
                advantages.extend([trees[number].credit[segment.place, leaf]] * len(segment.tokens))
                engine.extend(segment.logprobs)
            tokens.extend(segment.tokens)
        ids = torch.tensor([tokens])
        logits = model(input_ids=ids, use_cache=False).logits[0, torch.tensor(targets) - 1]
        logprob = (logits / TEMPERATURE).log_softmax(-1).gather(1, ids[0, targets][:, None])[None, :, 0]
        mask = torch.ones_like(logprob, dtype=torch.bool)
        loss, _ = policy_loss(
            logprob,
            beside(logprob, mask, [(number, leaf)], "old"),
            torch.tensor([engine]),
            torch.tensor([advantages]),
            mask,
            config,
            denominator=total,
            reference_logprob_BL=beside(logprob, mask, [(number, leaf)], "reference"),
            entropy_BL=torch.distributions.Categorical(logits=logits).entropy()[None],
        )
        loss.backward()
        sum_loss += loss.detach()
    return gradients(model, sum_loss)


def assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float = 1e-11) -> None:
    for name, value in other.items():
        assert torch.isfinite(one[name]).all(), name
        assert float((one[name] - value).abs().max()) <= tolerance * (1 + float(value.abs().max())), name
    assert any(float(value.abs().max()) > 1e-3 for name, value in other.items() if name != "loss")


def trees_of(seed: int) -> list[CreditedTree]:
    return [random_tree(seed + i, leaves=4 + i, roots=1 + i, blend=(0.0, 0.5)[i]) for i in range(2)]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("budget", [20, 1000])
def test_every_loss_whole_and_split(loss: str, budget: int):
    model, trees = tiny_model("llama"), trees_of(40)
    assert len(pack(trees, 20)) > 2 and len(pack(trees, 1000)) == 1
    assert_equal(packed(model, trees, budget, LOSSES[loss], "arpo_tree", 0), alone(model, trees, LOSSES[loss]))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["arpo_tree", "arpo_tree_dense"])
def test_every_family_and_attention(family: str, name: str):
    model, trees = tiny_model(family), trees_of(70)
    assert_equal(packed(model, trees, 50, LOSSES["grpo"], name, 100), alone(model, trees, LOSSES["grpo"]))


@given(st.integers(0, 10_000), st.sampled_from([20, 45, 1000]), st.sampled_from([0, 60, 10_000]))
@settings(max_examples=12, deadline=None)
def test_random_trees(seed: int, budget: int, call_pairs: int):
    model, trees = tiny_model("llama", seed), trees_of(seed)
    assert_equal(
        packed(model, trees, budget, LOSSES["grpo"], "arpo_tree", call_pairs), alone(model, trees, LOSSES["grpo"])
    )


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
