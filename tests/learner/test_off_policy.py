"""Tokens that older weights wrote, trained by newer ones: each is weighed by what it was then against what it is
now."""

import math
from array import array
from typing import Any

import pytest
import torch
import transformers

from arpo.core.credit import CreditedTree
from arpo.core.tree import Observation, Prompt, Role, RolloutTree, StopReason, Turn
from arpo.engines import SamplingParams, Weights
from arpo.engines.local import LocalEngine
from arpo.learner.config import LossConfig, OptimConfig
from arpo.learner.local import LocalLearner
from arpo.learner.losses import metrics, policy_loss
from arpo.rollout.turn_builder import TurnBuilder
from random_trees import credited

CAP = 1.5


@pytest.mark.parametrize("distance", [0.0, 0.3, 2.0])
def test_in_expectation_the_gradient_is_that_of_samples_of_the_policy(distance: float) -> None:
    """Exactly, over all the words that older weights may write; a cap takes from that what the truncated words
    weigh."""
    torch.manual_seed(0)
    now_V = torch.randn(50, dtype=torch.float64, requires_grad=True)
    then_V = (now_V.detach() + distance * torch.randn(50, dtype=torch.float64)).log_softmax(0)
    advantage_V, mask = torch.randn(50, dtype=torch.float64), torch.ones(50, 1, dtype=torch.bool)
    (now_V.softmax(0) * -advantage_V).sum().backward()
    wanted, now_V.grad = now_V.grad.clone(), None  # type: ignore[union-attr]

    def gradient(cap: float) -> tuple[torch.Tensor, Any]:
        """Each word is a row, as often as older weights write it."""
        config = LossConfig(aggregation="token", tis_cap=cap)
        weighed_VL = (then_V.exp() * advantage_V)[:, None]
        loss, report = policy_loss(
            now_V.log_softmax(0)[:, None], None, then_V[:, None], weighed_VL, mask, config, denominator=1.0
        )
        return torch.autograd.grad(loss, now_V)[0], metrics([report], config)

    found, figures = gradient(1e9)
    assert torch.allclose(found, wanted, atol=1e-12) and figures["mismatch_truncated"] == 0
    capped, figures = gradient(CAP)
    over = (now_V.detach().log_softmax(0) - then_V).exp() > CAP
    assert figures["mismatch_truncated"] == pytest.approx(float(over.double().mean()))
    assert torch.allclose(capped, wanted, atol=1e-12) == (not over.any())


async def written(engine: LocalEngine, place: tuple[int, ...], context: Any, reload: Weights | None = None) -> Turn:
    """A turn of 24 tokens; `reload`: weights that come when its first 8 are there."""
    draft = TurnBuilder()
    async for chunk in engine.sample(context, SamplingParams(max_tokens=24, seed=len(context) + place[0], head=8)):
        draft.add(chunk)
        if reload is not None:
            await engine.update_weights(reload)
            reload = None
    return draft.turn(place, Role.ROOT if len(place) == 1 else Role.PROBE, ())


async def tree_of_two_versions(engine: LocalEngine, newer: Weights) -> CreditedTree:
    """Root 0 by version 0, with a second turn by version 1 that follows it; root 1 across the change."""
    prompt, said = array("i", range(3, 12)), array("i", [7, 8])
    tree = RolloutTree("task", 1, Prompt(tokens=prompt))
    tree.grow(await written(engine, (0,), prompt))
    tree.grow(Observation(place=(0,), tokens=said, outcomes=()))
    tree.grow(await written(engine, (1,), prompt, reload=newer))
    tree.grow(await written(engine, (0, 0), tree.context((0,))))
    for leaf in ((0, 0), (1,)):
        tree.end(leaf, StopReason.FINISHED)
    return credited(tree, {(0, 0): 1.0, (1,): -0.5}, 0.0)


async def test_every_token_is_weighed_by_the_version_that_wrote_it() -> None:
    """The learner's step against one by hand, from a plain forward over each trajectory."""
    older, newer = small_model(), small_model()
    with torch.no_grad():
        for parameter in newer.parameters():
            parameter.add_(0.03 * torch.randn_like(parameter))
    engine = LocalEngine(older, slots=4, dtype=torch.float32)
    try:
        tree = await tree_of_two_versions(engine, Weights(1, newer.state_dict(), changing=True))
    finally:
        await engine.close()
    turns = tree.tree.turns
    assert turns[0,].versions == ((0, 24),) and turns[0, 0].versions == ((1, 24),)
    (first, early), (second, late) = turns[1,].versions
    assert (first, second, early + late) == (0, 1, 24) and early >= 8

    optim = OptimConfig(lr=1e-3, weight_decay=0.0, grad_clip=None)
    own, twin = (
        LocalLearner(
            _same(newer), loss=LossConfig(tis_cap=CAP), optim=optim, num_updates=9, token_budget=999, tree=True
        )
        for _ in range(2)
    )
    for each in (own, twin):
        each.optimizer.param_groups[0]["eps"] = 1.0  # the step is nearly the gradient, not its sign
    figures = own.update([tree]).metrics
    loss, mismatches = _by_hand(twin.policy.model, tree)
    loss.backward()
    twin.rank._step((), True, 1e-3)
    moved = zip(*(each.parameters() for each in (own.policy.model, twin.policy.model, newer)), strict=True)
    with torch.no_grad():
        found = [(float((a - b).abs().max()), float((a - before).abs().max())) for a, b, before in moved]
    assert max(apart for apart, _ in found) < 1e-7 < 1e-5 < max(far for _, far in found)

    assert max(map(abs, mismatches[0, 0])) < 1e-4, "of the version that is trained"
    assert sum(map(abs, mismatches[0,])) / 24 > 0.01, "of the one before"
    every = [value for leaf in ((0,), (0, 0), (1,)) for value in mismatches[leaf]]
    assert figures["mismatch_abs_mean"] == pytest.approx(sum(map(abs, every)) / 72, rel=1e-3)
    assert figures["mismatch_abs_max"] == pytest.approx(max(map(abs, every)), rel=1e-3)
    assert figures["mismatch_kl"] == pytest.approx(sum(math.expm1(x) - x for x in every) / 72, rel=1e-3)
    assert figures["mismatch_truncated"] == pytest.approx(sum(math.exp(x) > CAP for x in every) / 72)
    assert figures["ratio_min"] == figures["ratio_max"] == 1, "the old policy is the learner's at the start of the step"


def small_model() -> Any:
    """In float32, as engines compute."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(vocab_size=64, num_key_value_heads=2, initializer_range=0.3, **sizes)
    return transformers.LlamaForCausalLM(config)


def _same(model: Any) -> Any:
    twin = small_model()
    twin.load_state_dict(model.state_dict())
    return twin


def _by_hand(model: Any, tree: CreditedTree) -> tuple[torch.Tensor, dict[tuple[int, ...], list[float]]]:
    """GRPO's loss over the two trajectories, and by turn learner minus engine."""
    total = torch.zeros(())
    mismatches: dict[tuple[int, ...], list[float]] = {}
    for leaf, advantage in tree.advantages.items():
        row, tokens = [], list(tree.tree.prompt.tokens)
        for place in (leaf[:depth] for depth in range(1, len(leaf) + 1)):
            turn = tree.tree.turns[place]
            start, tokens = len(tokens), [*tokens, *turn.tokens]
            logits = model(torch.tensor([tokens])).logits[0, start - 1 : -1]
            logprob = logits.log_softmax(-1).gather(1, torch.tensor(turn.tokens)[:, None])[:, 0]
            mismatch = logprob.detach() - torch.tensor(turn.logprobs)
            mismatches[place] = mismatch.tolist()
            row.append(mismatch.exp().clamp(max=CAP) * advantage * logprob)
            if place in tree.tree.observations:
                tokens += tree.tree.observations[place].tokens
        total = total - torch.cat(row).mean() / len(tree.advantages)
    return total, mismatches
