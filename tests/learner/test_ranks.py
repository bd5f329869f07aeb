"""N ranks that each hold a shard of the policy come to the parameters of one process."""

import math
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from arpo.core.credit import CreditedTree, ScoredTree
from arpo.core.record import decode
from arpo.core.tree import RolloutTree
from arpo.learner import surrogates
from arpo.learner.config import Divergence, EntropyTarget, LossConfig, OptimConfig
from arpo.learner.driver import LearnerDriver
from arpo.learner.losses import LossReport, Objective
from arpo.learner.rank import Done, ModelSource, RankSettings
from arpo.learner.ranks import OneRank, Ranks
from arpo.learner.sharding import Placement, local
from arpo.models.loading import LoraSettings, with_lora
from random_trees import random_tree
from rank_processes import SteadyRank, on_ranks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gloo ranks are forked from a server")

RECORDED = Path(__file__).parents[2] / "benchmarks" / "quickstart_step.frames"
OPTIM = OptimConfig(lr=1e-3, weight_decay=0.1)


def small(
    *,
    family: str = "Qwen2",
    tied: bool = False,
    lora: bool = False,
    checkpointing: bool = False,
    base: torch.dtype = torch.float32,
    vocab: int = 64,
) -> Any:
    """Three layers of hidden size 32; the weights are the same at every call."""
    config = getattr(transformers, f"{family}Config")(
        vocab_size=vocab,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=4096,
        initializer_range=0.2,
        tie_word_embeddings=tied,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    model: Any = getattr(transformers, f"{family}ForCausalLM")(config).to(base)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if lora:
        if checkpointing:
            model.enable_input_require_grads()
        model = with_lora(model, LoraSettings(rank=4))
    return model.train()


def halves(log_ratio_BL: Any, advantage_BL: Any, mask_BL: Any, config: LossConfig) -> Objective:
    """A surrogate of a user's that fails where it is called without rows."""
    assert log_ratio_BL.max() < 1e9
    return Objective(0.5 * log_ratio_BL.exp() * advantage_BL, {})


@dataclass(frozen=True)
class Case:
    model: dict[str, Any] = field(default_factory=dict)
    loss: LossConfig = field(default_factory=LossConfig)
    updates: int = 1
    trees: int = 5
    budget: int = 60
    tree: bool = True
    dtype: torch.dtype = torch.float32
    recorded: bool = False
    """The trees are those of the recorded step of a quickstart, not random ones."""
    again: bool = False
    """The learner starts anew after the first step, as after a cold start: its reference is the policy of then."""
    last_layers: tuple[int | None, int | None] = (None, None)
    """What it trains before that, and from then on."""
    offload: bool = False
    replicas: int = 1
    steps: int = 3

    @property
    def placement(self) -> Placement:
        return Placement(dtype=self.dtype, offload=self.offload, replicas=self.replicas)

    @property
    def settings(self) -> RankSettings:
        return self.settings_with(self.last_layers[0])

    def settings_with(self, last_layers: int | None) -> RankSettings:
        optim = OPTIM.model_copy(update={"last_layers": last_layers})
        return RankSettings(loss=self.loss, optim=optim, tree=self.tree, temperature=0.9, dtype=self.dtype)


WEIGHTS: dict[str, dict[str, Any]] = {name: {} for name in surrogates.WEIGHTS}
CASES = {
    "full": Case(),
    "tied": Case({"family": "Llama", "tied": True}),
    "flat": Case(tree=False),
    "qwen3": Case({"family": "Qwen3"}),
    "checkpointing": Case({"checkpointing": True}),
    "lora": Case({"lora": True}),
    "lora checkpointing": Case({"lora": True, "checkpointing": True}),
    "kl": Case(loss=LossConfig(kl_coefficient=Divergence(coefficient=0.1, estimator="reward", final=0.0)), again=True),
    "lora kl": Case({"lora": True}, loss=LossConfig(kl_coefficient=0.1), again=True, updates=2),
    "last layers": Case({"family": "Llama", "tied": True}, again=True, last_layers=(None, 2)),
    "last layers, then all": Case(again=True, last_layers=(1, None)),
    "lora last layers": Case({"lora": True}, again=True, last_layers=(None, 1)),
    "entropy bonus": Case(
        loss=LossConfig(entropy_coefficient=EntropyTarget(most=0.05, target=9.0), aggregation="token")
    ),
    "several updates": Case(updates=3, trees=7),
    "aepo": Case(loss=LossConfig(surrogate="aepo", entropy_advantage=0.5, aggregation="token"), updates=2),
    "gspo": Case(loss=LossConfig(surrogate="gspo", clip_low=0.001, clip_high=0.001), updates=2),
    "cispo": Case(loss=LossConfig(surrogate="cispo", aggregation=16), updates=2),
    **{name: Case(loss=LossConfig(surrogate=name), updates=2) for name in ("sapo", "dppo", "gmpo", "gspo_turn")},
    "weights": Case(loss=LossConfig(surrogate={"use": "ppo", "options": {"weights": WEIGHTS}}), updates=2),
    "recorded step": Case({"vocab": 49_152}, recorded=True, updates=2, budget=2048, trees=8),
    "own surrogate": Case(loss=LossConfig(surrogate=halves)),
    "empty packs": Case(trees=1, budget=10_000),
    "replicas": Case(replicas=2),
    "offload": Case(offload=True),
}
RECORDED_CASES = {  # with their tokens' numbers modulo a small vocabulary
    f"recorded {name}": replace(
        case,
        recorded=True,
        model={**case.model, "vocab": 512},
        trees=max(case.trees, 5) if case.budget < 10_000 else 1,
        budget=max(case.budget, 2048),
        steps=2,
    )
    for name, case in CASES.items()
    if not case.recorded
}
# What differs between 2 ranks and 4: how parameters, trees and replicas are cut. Losses see neither.
CUT_OTHERWISE = ["full", "tied", "flat", "lora", "lora kl", "last layers", "empty packs", "replicas", "offload"]
LOW = {  # flat: the packs are the same for any number of ranks, and with them the roundings of each pack's gradient
    "bf16 policy": Case(dtype=torch.bfloat16, tree=False),
    "bf16 tied": Case({"family": "Llama", "tied": True}, dtype=torch.bfloat16, tree=False),
    "lora on a bf16 base": Case({"lora": True, "base": torch.bfloat16}, dtype=torch.bfloat16, tree=False),
    "recorded bf16": Case(
        {"vocab": 512}, dtype=torch.bfloat16, tree=False, recorded=True, trees=2, budget=2048, steps=1
    ),
}
ALL = CASES | RECORDED_CASES | LOW


@dataclass
class Outcome:
    """Parameters by name, and of each step its metrics and log-probabilities."""

    parameters: dict[str, torch.Tensor]
    metrics: list[dict[str, float]]
    logprobs: list[torch.Tensor]


def trees_of(case: Case, step: int) -> list[CreditedTree]:
    if case.recorded:
        with RECORDED.open("rb") as frames:
            newest = {record.tree.task: record.credited for record in decode(frames)}
        trees = [tree for tree in newest.values() if any(tree.credit.values())]
        return [folded(tree, case.model["vocab"]) for tree in trees[: case.trees]]
    return [random_tree(100 * step + number, leaves=4 + number, blend=0.5) for number in range(case.trees)]


def folded(tree: CreditedTree, vocab: int) -> CreditedTree:
    """`tree`, its tokens modulo `vocab`."""

    def fold(segment: Any) -> Any:
        return replace(segment, tokens=array("i", [token % vocab for token in segment.tokens]))

    was = tree.tree
    made = RolloutTree(was.task, was.step, fold(was.prompt))
    for place in sorted(was.turns):
        made.grow(fold(was.turns[place]))
        if place in was.observations:
            made.grow(fold(was.observations[place]))
    for place, ending in was.endings.items():
        made.end(place, ending)
    return replace(tree, scored=ScoredTree(made, tree.scored.scores))


def run(learner: LearnerDriver, case: Case) -> tuple[list[dict[str, float]], list[torch.Tensor]]:
    """Metrics and log-probabilities of some updates, then the metrics of a step of fine-tuning."""
    metrics, logprobs = [], []
    for step in range(case.steps):
        if step == 1 and case.again:
            learner.ranks.call("start", case.settings_with(case.last_layers[1]), None)
        done = learner.update(trees_of(case, step), case.updates, seed=step)
        metrics.append(dict(done.metrics))
        of_turns = [
            done.logprobs[task][place] for task in sorted(done.logprobs) for place in sorted(done.logprobs[task])
        ]
        logprobs.append(torch.tensor([x for values in of_turns for x in values]))
    return [*metrics, learner.sft_step(trees_of(case, 9))], logprobs


@cache
def in_one(name: str) -> Outcome:
    return over(OneRank(SteadyRank()), {name: ALL[name]})[name]


def over(ranks: Ranks, cases: dict[str, Case]) -> dict[str, Outcome]:
    outcomes = {}
    for name, case in cases.items():
        ranks.call("hold", ModelSource(partial(small, **case.model)), 0, case.placement)
        ranks.call("start", case.settings, None)
        learner = LearnerDriver(ranks, case.settings, num_updates=9, token_budget=case.budget)
        outcome = run(learner, case)
        outcomes[name] = Outcome(parameters(learner), *outcome)
    return outcomes


def parameters(learner: LearnerDriver) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in learner.weights().items()}


def furthest(one: Outcome, other: Outcome) -> float:
    assert one.parameters.keys() == other.parameters.keys()
    return max(float((one.parameters[n] - other.parameters[n]).abs().max()) for n in one.parameters)


def same(name: str, one: Outcome, other: Outcome) -> None:
    assert furthest(one, other) <= 1e-6, name
    for metrics, expected in zip(other.metrics, one.metrics, strict=True):
        assert metrics["loss"] == pytest.approx(expected["loss"], rel=1e-5, abs=1e-5), name
        assert metrics["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-5), name
        assert metrics.get("tokens") == expected.get("tokens"), name


def compare(size: int, names: Sequence[str], folder: Path) -> None:
    cases = {name: ALL[name] for name in names}
    sharded = on_ranks(size, partial(over, cases=cases), folder)
    for name in names:
        same(f"{name} on {size}", in_one(name), sharded[name])


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_train_as_one_process_does_whatever_the_loss_and_the_model(size: int, tmp_path: Path) -> None:
    compare(size, list(CASES) if size == 2 else CUT_OTHERWISE, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_train_on_a_recorded_step_as_one_process_does(size: int, tmp_path: Path) -> None:
    compare(size, list(RECORDED_CASES), tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="products in bfloat16")
def test_products_in_bfloat16_are_those_of_any_number_of_ranks(tmp_path: Path) -> None:
    by_size = {size: on_ranks(size, partial(over, cases=LOW), tmp_path) for size in (2, 4)}
    for name in LOW:
        two, four, one = by_size[2][name], by_size[4][name], in_one(name)
        assert furthest(two, four) <= 1e-6, name
        exact = over(OneRank(SteadyRank()), {name: replace(LOW[name], dtype=torch.float32)})[name]
        # Of the first step, when all have the same weights: sharded products round as far as autocast does.
        off, usual = ((side.logprobs[0] - exact.logprobs[0]).abs().mean() for side in (two, one))
        assert off <= 3e-3 + 1.5 * usual, (name, off, usual)


# --- what is not finite


class StumblingRank(SteadyRank):
    """In the step after `stumble` the last rank alone meets a gradient or a loss that is not finite."""

    meets = ""

    def stumble(self, meets: str) -> None:
        self.meets = meets

    def has_skipped(self) -> bool:
        return self._done.skipped

    def _step(self, reports: Sequence[LossReport], finite: bool, lr: float) -> Done:
        meets, self.meets = self.meets, ""
        if meets and (self.mesh is None or self.mesh.get_rank() == self.mesh.size() - 1):
            if meets == "loss":
                finite = False
            else:
                own = (local(p.grad) for p in self.policy.parameters() if p.grad is not None)
                next(part for part in own if part.numel()).view(-1)[0] = float(meets)
        self._done = super()._step(reports, finite, lr)
        return self._done


def stumbling(ranks: Ranks) -> tuple[list[Any], dict[str, torch.Tensor]]:
    """Of each update whether every rank left it out and whether no weight changed; and the parameters in the end."""
    case, seen = CASES["full"], list[Any]()
    ranks.call("hold", ModelSource(partial(small, **case.model)), 0, case.placement)
    ranks.call("start", case.settings, None)
    learner = LearnerDriver(ranks, case.settings, num_updates=9, token_budget=case.budget)
    endless = [replace(tree, credit=dict.fromkeys(tree.credit, math.inf)) for tree in trees_of(case, 7)[:1]]
    for number, meets in enumerate(("", "inf", "nan", "loss", "credit", "")):
        before = parameters(learner)
        ranks.call("stumble", meets if meets != "credit" else "")
        done = learner.update(trees_of(case, number) + (endless if meets == "credit" else []))
        skipped = ranks.call("has_skipped")
        assert len(set(skipped)) == 1 and done.metrics["skipped_updates"] == float(skipped[0])
        now = parameters(learner)
        seen.append((meets, skipped[0], all(torch.equal(before[name], now[name]) for name in now)))
    return seen, parameters(learner)


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_what_is_not_finite_on_one_rank_is_skipped_by_all(size: int, tmp_path: Path) -> None:
    seen, after = on_ranks(size, stumbling, tmp_path, rank=StumblingRank)
    assert seen == [(meets, bool(meets), bool(meets)) for meets in ("", "inf", "nan", "loss", "credit", "")]
    alone, expected = stumbling(OneRank(StumblingRank()))
    assert seen == alone and max(float((after[n] - expected[n]).abs().max()) for n in expected) <= 1e-6
