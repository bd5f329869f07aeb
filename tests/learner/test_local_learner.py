"""One update: the same however it is packed, each token trained once, nothing kept that is not needed."""

import copy
import math
import statistics
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from arpo.core.credit import CreditedTree
from arpo.core.tree import Prompt, Role, RolloutTree, StopReason, Turn
from arpo.engines import SamplingParams, Weights
from arpo.engines.local import LocalEngine
from arpo.errors import ConfigError
from arpo.learner import Update
from arpo.learner.config import LossConfig, OptimConfig
from arpo.learner.local import LocalLearner
from arpo.learner.lora import full_state, plain_model
from arpo.learner.losses import policy_loss
from arpo.learner.rank import MiniBatch
from arpo.learner.sharding import clip_gradients, copied_model
from arpo.models.loading import LoraSettings, ModelConfig, load_model
from random_trees import credited, random_tree
from tiny_models import tiny_model

SGD_LIKE = OptimConfig(lr=1e-3, weight_decay=0.0, grad_clip=None)
"""With AdamW's eps at 1 (`learner`) a step is nearly the gradient, not its sign."""

LOSSES = {
    "grpo": LossConfig(),
    "dapo": LossConfig(aggregation="token", clip_high=0.28, dual_clip=3.0),
    "dr_grpo": LossConfig(aggregation=16, tis_cap=None),
    "kl": LossConfig(kl_coefficient=0.1),
    "entropy": LossConfig(aggregation="token", entropy_coefficient=0.05),
    "aepo": LossConfig(surrogate="aepo", entropy_advantage=0.5),
    "gspo": LossConfig(surrogate="gspo", clip_low=0.001, clip_high=0.001),
}


def learner(
    model: Any, loss: LossConfig | None = None, *, tree: bool = True, budget: int = 64, **more: Any
) -> LocalLearner:
    given = {
        "loss": loss or LossConfig(),
        "optim": SGD_LIKE,
        "num_updates": 10,
        "token_budget": budget,
        "tree": tree,
        **more,
    }
    own = LocalLearner(model, **given)
    if given["optim"] is SGD_LIKE:
        own.optimizer.param_groups[0]["eps"] = 1.0
    return own


def some_trees(count: int = 4, **shape: Any) -> list[CreditedTree]:
    return [random_tree(seed, **shape) for seed in range(count)]


def silent(tree: CreditedTree) -> CreditedTree:
    return credited(tree.tree, dict.fromkeys(tree.advantages, 0.0), 0.0)


def parameters(own: LocalLearner) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in own.policy.model.named_parameters()}


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize(
    ("name", "temperature", "updates"),
    [
        *((name, 1.0, 2) for name in LOSSES),
        *((name, 0.7, 1) for name in LOSSES),  # the temperature divides logits before any loss sees them
    ],
)
def test_tree_packed_and_flat_updates_move_parameters_alike(name: str, temperature: float, updates: int) -> None:
    contexts = 0.0 if LOSSES[name].whole_rows else 0.4  # flat, rows of several contexts cannot be whole
    trees, moved = some_trees(blend=0.5, contexts=contexts), []
    before = parameters(learner(tiny_model("llama")))
    for tree, budget in (
        (True, 10_000),
        (True, 40),
        (False, 64),
    ):  # one pack; trees split over many; every trajectory alone
        own = learner(tiny_model("llama"), LOSSES[name], tree=tree, budget=budget, temperature=temperature)
        metrics = own.update(trees, updates).metrics
        moved.append((parameters(own), metrics))
    assert furthest(moved[0][0], before) > 1e-5, "nothing was learnt"
    for other, metrics in moved[1:]:
        assert furthest(moved[0][0], other) < 1e-9
        assert metrics["loss"] == pytest.approx(moved[0][1]["loss"], rel=1e-6, abs=1e-7)
        assert metrics["tokens"] == moved[0][1]["tokens"]
    assert moved[0][1]["tokens_trained"] < moved[2][1]["tokens_trained"] == moved[2][1]["tokens_flat"]


# Loss, gradient norm and divergence from the engine in the second step; loss and gradient norm of an SFT step.
RECORDED = {
    "grpo": (-0.04578132310776338, 3.3196057039688025, 169.5273895263672, 6.046681875621067, 3.5394925477175283),
    "kl": (0.33558198440737463, 6.111509165597199, 197.94293212890625, 5.377026019283545, 2.8963672256888953),
    "aepo": (-0.14323128356624015, 2.432675678141523, 376.8646545410156, 5.825503048309129, 4.028900007758021),
}


@pytest.mark.parametrize("name", RECORDED)
def test_an_update_computes_what_it_did_when_this_was_recorded(name: str) -> None:
    """In float64, whose last digits another machine rounds otherwise. Recorded by the class before the protocol; on one
    machine the two gave the same parameters, metrics and log-probabilities bit for bit."""
    loss = {
        "grpo": LossConfig(),
        "kl": LossConfig(kl_coefficient=0.1, entropy_coefficient=0.05),
        "aepo": LossConfig(surrogate="aepo", entropy_advantage=0.5, aggregation="token"),
    }[name]
    own, trees = learner(tiny_model("llama"), loss, optim=OptimConfig(lr=1e-2), num_updates=9), some_trees(blend=0.5)
    own.update(trees, 2)
    metrics, sft = own.update(trees, 2).metrics, own.sft_step(trees)
    figures = [metrics["loss"], metrics["grad_norm"], metrics["mismatch_kl"], sft["loss"], sft["grad_norm"]]
    assert figures == pytest.approx(RECORDED[name], rel=1e-5)


def test_later_mini_batches_compare_with_the_policy_before_the_first() -> None:
    trees = some_trees()
    own = learner(tiny_model("llama"), optim=OptimConfig(lr=5e-3), budget=10_000)
    old = own.rank.logprobs(own.packs(trees[2:])[0])
    metrics = own.update(trees, 2).metrics
    assert metrics["updates"] == 2 and own.updates == 2
    assert metrics["kl_old"] > 0 and metrics["ratio_max"] > 1, "the second update saw weights that had not moved"
    # by hand: first half with its own log-probabilities, second half with those from before
    twin = learner(tiny_model("llama"), optim=OptimConfig(lr=5e-3), budget=10_000)
    twin.update(trees[:2])
    by_hand(twin, trees[2:], old)
    assert furthest(parameters(own), parameters(twin)) < 1e-9


@pytest.mark.parametrize("lora", [False, True])
def test_only_the_last_layers_are_trained(lora: bool, plain_folder: Path) -> None:
    """The backward pass ends before them; a checkpoint of adapters holds those of all layers nevertheless."""
    model = with_lora(plain_folder) if lora else tiny_model("llama")
    own = learner(model, optim=OptimConfig(lr=1e-2, last_layers=1))
    before, copied = parameters(own), copied_model(own.policy.model, sharded=False, first=True)
    own.update(some_trees())
    moved = {name for name, value in parameters(own).items() if not torch.equal(value, before[name])}
    last = len(own.policy.base_model.get_decoder().layers) - 1
    assert last > 0 and any(f"layers.{last}." in name for name in moved)
    assert all(f"layers.{last}." in name or name.endswith(("model.norm.weight", "lm_head.weight")) for name in moved)
    assert not lora or {name for name in before if ".lora_" in name} == set(copied)
    with pytest.raises(ConfigError, match=r"optim\.last_layers: the model has"):
        learner(tiny_model("llama"), optim=OptimConfig(last_layers=99))


def test_old_log_probabilities_of_the_engine() -> None:
    """They stand in for the learner's in the first mini-batch and in the later ones; no mismatch is left."""
    trees, loss, optim = some_trees(), LossConfig(old_logprobs="engine"), OptimConfig(lr=5e-3)
    own, twin = (learner(tiny_model("llama"), loss, optim=optim, budget=10_000) for _ in range(2))
    metrics = own.update(trees, 2).metrics
    assert metrics["mismatch_abs_max"] == 0 and metrics["ratio_max"] > 1
    for half in (trees[:2], trees[2:]):
        by_hand(twin, half, twin.packs(half)[0].engine_logprob_BL)
    assert furthest(parameters(own), parameters(twin)) < 1e-9


def by_hand(twin: LocalLearner, trees: Sequence[CreditedTree], old_BL: torch.Tensor) -> None:
    """One update on `trees` in one pack, whose old log-probabilities are `old_BL`."""
    (batch,) = twin.packs(trees)
    with twin.policy.attention():
        logprob_P, _ = twin.policy(batch)
        loss, _ = policy_loss(
            batch.rows(logprob_P),
            old_BL,
            batch.engine_logprob_BL,
            batch.advantage_BL,
            batch.row_mask_BL,
            twin.loss,
            denominator=len(batch.leaves),
        )
        loss.backward()
    twin.rank._step((), True, 5e-3)


@pytest.mark.parametrize("updates", [1, 2])
def test_entropy_weighs_advantages_by_the_steps_own_mean_and_spread(updates: int) -> None:
    """AEPO's `A (1 + a z(H))`, each trajectory's tokens laid out by hand; z over all of the step, not of a
    mini-batch."""
    trees = some_trees(4)
    seen = [h for t in trees for leaf in t.advantages for turn in t.tree.branch(leaf).turns for h in turn.entropies]
    mean, std = statistics.fmean(seen), statistics.pstdev(seen)
    expected = [abs(t.advantages[leaf] * (1 + 0.7 * (h - mean) / std)) for t in trees for leaf in t.advantages
                for turn in t.tree.branch(leaf).turns for h in turn.entropies]  # fmt: skip
    metrics = learner(tiny_model("llama"), LossConfig(entropy_advantage=0.7)).update(trees, updates).metrics
    assert metrics["advantage_abs"] == pytest.approx(statistics.fmean(expected), rel=1e-5)
    plain, same = (learner(tiny_model("llama"), LossConfig(entropy_advantage=a)) for a in (0.0, 0.7))
    for tree in trees:
        for turn in tree.tree.turns.values():
            turn.entropies[:] = array("f", [0.5] * len(turn.entropies))
    plain.update(trees, updates)
    same.update(trees, updates)
    assert furthest(parameters(plain), parameters(same)) == 0, "nowhere more unsure than elsewhere"


def test_each_token_is_trained_once_over_the_mini_batches() -> None:
    trees = some_trees(5)
    own = learner(tiny_model("llama"))
    seen = [p for part in (trees[:2], trees[2:]) for p in own.packs(part)]
    metrics = own.update(trees, 2).metrics
    assert metrics["tokens"] == sum(p.num_policy for p in seen) == sum(p.num_policy for p in own.packs(trees))


def test_it_notes_what_the_policy_thought_before_the_step() -> None:
    trees = some_trees(4)
    own, before = learner(tiny_model("llama")), learner(tiny_model("llama"))
    logprobs = own.update(trees, 2).logprobs
    for tree in trees:
        for batch in before.packs([tree]):
            for (_, leaf), row, mask in zip(batch.leaves, before.rank.logprobs(batch), batch.row_mask_BL, strict=True):
                noted = [value for depth in range(1, len(leaf) + 1) for value in logprobs[tree.tree.task][leaf[:depth]]]
                assert noted == pytest.approx(row[mask].tolist(), abs=1e-5)


def test_more_mini_batches_than_trees_are_as_many_as_trees() -> None:
    own = learner(tiny_model("llama"))
    assert own.update(some_trees(2), 5).metrics["updates"] == 2 and own.updates == 5, (
        "and the schedule goes on as planned"
    )


@pytest.mark.parametrize("name", ["grpo", "dapo", "dr_grpo"])
def test_trees_without_credit_are_not_computed_and_change_nothing(name: str) -> None:
    teaching, quiet = some_trees(2), [silent(tree) for tree in some_trees(4)[2:]]
    own = learner(tiny_model("llama"), LOSSES[name], budget=10_000)
    metrics = own.update([quiet[0], teaching[0], quiet[1], teaching[1]]).metrics
    assert metrics["tokens_trained"] == sum(p.num_unique for p in own.packs(teaching))
    # the twin trains on all four: zeros among the rows, and the same mean over all rows
    twin = learner(tiny_model("llama"), LOSSES[name], budget=10_000)
    everything = [*teaching, *quiet]
    rows = sum(len(tree.advantages) for tree in everything)
    packs = twin.packs(everything)
    size = {"grpo": rows, "dapo": sum(p.num_policy for p in packs), "dr_grpo": rows * 16}[name]
    [done] = twin.rank.update([MiniBatch(packs, size, SGD_LIKE.lr)], None)
    assert furthest(parameters(own), parameters(twin)) < 1e-9
    assert metrics["loss"] == pytest.approx(done.reports[0].loss, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("name", ["kl", "entropy"])
def test_a_divergence_or_a_bonus_also_acts_where_rewards_are_equal(name: str) -> None:
    own = learner(tiny_model("llama"), LOSSES[name], reference=tiny_model("llama", seed=1))
    metrics = own.update([silent(tree) for tree in some_trees(2)]).metrics
    assert metrics["tokens_trained"] > 0 and metrics["grad_norm"] > 0


def test_nothing_to_learn_is_no_update() -> None:
    own = learner(tiny_model("llama"))
    before = parameters(own)
    assert own.update([silent(tree) for tree in some_trees(2)]) == own.update([]) == Update(metrics={}, logprobs={})
    assert furthest(before, parameters(own)) == 0 and own.optimizer.state_dict()["state"] == {}


def test_the_schedule_ends_with_the_run_although_some_groups_teach_nothing() -> None:
    """Four steps of two updates each; of the second step one group teaches, of the third none."""
    own = learner(tiny_model("llama"), optim=OptimConfig(lr=1e-3, schedule="linear", final_lr=0.1), num_updates=8)
    one, two = some_trees(2)
    steps = [
        own.update(trees, 2).metrics
        for trees in ([one, two], [one, silent(two)], [silent(one), silent(two)], [one, two])
    ]
    assert [step.get("updates", 0) for step in steps] == [2, 1, 0, 2]
    assert [steps[step]["lr"] for step in (0, 1, 3)] == pytest.approx(
        [own.settings.optim.rate(update, 8) for update in (1, 3, 7)]
    )
    assert steps[-1]["lr"] == pytest.approx(1e-3 * (0.1 + 0.9 / 8)), "the last of eight is an eighth above the end"


def test_an_update_that_is_not_finite_is_skipped_whole() -> None:
    own = learner(tiny_model("llama"), optim=OptimConfig(lr=1e-2))
    own.update(some_trees())
    before, moments = parameters(own), copy.deepcopy(own.optimizer.state_dict()["state"])
    (leaf, *_), tree = sorted((poisoned := some_trees()[0]).advantages), poisoned.tree
    spoilt = credited(tree, {**poisoned.advantages, leaf: math.inf}, 0.0)
    metrics = own.update([spoilt, *some_trees()[1:]]).metrics
    assert metrics["skipped_updates"] == 1 and furthest(before, parameters(own)) == 0
    after = own.optimizer.state_dict()["state"]
    assert all(torch.equal(moments[i][k], after[i][k]) for i in moments for k in ("exp_avg", "exp_avg_sq", "step"))
    assert own.update(some_trees()).metrics["skipped_updates"] == 0 and furthest(before, parameters(own)) > 0


def test_gradients_are_clipped_to_a_norm_that_is_exact() -> None:
    sizes, draws = (300_000, 7, 1), torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.zeros(size)) for size in sizes]
    before = [torch.randn(size, generator=draws) for size in sizes]
    exact = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in before))
    for limit, factor in ((math.inf, 1), (2 * exact, 1), (exact / 3, 1 / 3)):
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient.clone()
        assert clip_gradients(parameters, limit) == pytest.approx(exact, rel=1e-6)
        for parameter, gradient in zip(parameters, before, strict=True):
            assert torch.allclose(parameter.grad, factor * gradient, rtol=1e-6), limit


def test_no_reference_is_kept_without_a_coefficient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Defect 17 of the released code: a reference model loaded and run with coefficient 0."""
    copied: list[object] = []
    really = copy.deepcopy

    def noting(value: Any, memo: Any = None) -> Any:
        copied.append(value)
        return really(value, memo)

    monkeypatch.setattr(copy, "deepcopy", noting)
    model = tiny_model("llama")
    own = learner(model)
    assert own.rank.reference is None and "kl_reference" not in own.update(some_trees()).metrics and model not in copied
    assert learner(model, LOSSES["kl"]).rank.reference is not None and model in copied


def test_the_reference_stays_where_it_was() -> None:
    own = learner(tiny_model("llama"), LOSSES["kl"], optim=OptimConfig(lr=1e-2))
    first = own.update(some_trees()).metrics
    second = own.update(some_trees()).metrics
    assert first["kl_reference"] == pytest.approx(0, abs=1e-12) and second["kl_reference"] > 1e-5
    other = learner(tiny_model("llama"), LOSSES["kl"], reference=tiny_model("llama", seed=1))
    assert other.update(some_trees()).metrics["kl_reference"] > 1e-3, "a reference of one's own, as after a resumption"


def test_the_head_in_other_chunks_gives_the_same_update() -> None:
    own, other = (learner(tiny_model("llama"), LOSSES["entropy"], head_chunk=chunk) for chunk in (512, 3))
    for each in (own, other):
        each.update(some_trees())
    assert furthest(parameters(own), parameters(other)) < 1e-6


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_gradient_checkpointing_gives_the_same_update(family: str) -> None:
    moved = []
    for checkpointing in (False, True):
        model = tiny_model(family).train()
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        own = learner(model)
        own.update(some_trees())
        moved.append(parameters(own))
    assert furthest(*moved) < 1e-12


def test_imitation_maximises_the_plain_likelihood_of_turns_alone() -> None:
    trees = [random_tree(seed, roots=1, leaves=1) for seed in range(3)]
    own = learner(tiny_model("llama"), temperature=0.7, optim=OptimConfig(lr=1e-2))
    model = copy.deepcopy(own.policy.model)
    nats, count = 0.0, 0
    for tree in trees:
        (leaf,) = tree.tree.leaves()
        segments = tree.tree.path(leaf)
        tokens = [token for segment in segments for token in segment.tokens]
        logprobs = model(torch.tensor([tokens])).logits[0].detach().log_softmax(-1)
        at = 0
        for segment in segments:
            if hasattr(segment, "logprobs"):
                nats -= sum(float(logprobs[i - 1, tokens[i]]) for i in range(at, at + len(segment.tokens)))
                count += len(segment.tokens)
            at += len(segment.tokens)
    before = [p.detach().clone() for p in own.policy.parameters()]
    for most in (0, 2, 4):  # before it begins, in the forward pass, in the backward pass of the two layers
        asked = iter(range(99))
        assert own.sft_step(trees, lambda asked=asked, most=most: next(asked) >= most) == {}
        assert all(p.grad is None for p in own.policy.parameters()) and own.updates == 0
        assert all(torch.equal(p, was) for p, was in zip(own.policy.parameters(), before, strict=True))
    losses = [own.sft_step(trees)["loss"] for _ in range(10)]
    assert losses[0] == pytest.approx(nats / count, rel=1e-6)
    assert losses[-1] < 0.8 * losses[0]


def test_two_precisions_live_in_one_process() -> None:
    plain = learner(tiny_model("llama").float())
    half = learner(tiny_model("llama").float(), dtype=torch.bfloat16)
    (batch,) = plain.packs(some_trees(1))
    exact, rough = plain.rank.logprobs(batch), half.rank.logprobs(batch)
    assert rough.dtype == torch.float32 and 0 < float((exact - rough).abs().max()) < 1
    assert half.update(some_trees()).metrics["skipped_updates"] == 0


# --- LoRA


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    from tiny_project import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("plain"), tokenizer)


def with_lora(folder: Path, weights: Path | None = None, dtype: str = "float32", checkpointing: bool = False) -> Any:
    lora = LoraSettings(rank=4, alpha=8)
    config = ModelConfig(source=str(folder), device="cpu", dtype=dtype, lora=lora, gradient_checkpointing=checkpointing)
    torch.manual_seed(0)
    return load_model(folder, config, weights)[0]


def trained(folder: Path, trees: Sequence[CreditedTree], **more: Any) -> LocalLearner:
    own = learner(with_lora(folder, **more), optim=OptimConfig(lr=1e-2))
    for _ in range(3):
        own.update(trees)
    return own


def test_a_divergence_with_lora_is_from_the_base_without_a_copy_of_it(plain_folder: Path) -> None:
    """The adapters of the start take the place of the trained ones for as long as the reference is asked."""
    own = learner(with_lora(plain_folder), LOSSES["kl"], optim=OptimConfig(lr=1e-2))
    adapters = sum(p.numel() for p in own.policy.parameters() if p.requires_grad)
    assert isinstance(own.rank.reference, dict)
    assert sum(value.numel() for value in own.rank.reference.values()) == adapters
    for _ in range(2):
        own.update(some_trees())
    packs, now = own.packs(some_trees()), parameters(own)
    asked = [*own.rank._reference_logprobs(packs)]
    with own.policy.model.disable_adapter():
        base = [own.rank.logprobs(pack) for pack in packs]
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(asked, base, strict=True))
    assert any(not torch.allclose(one, own.rank.logprobs(p), atol=1e-4) for one, p in zip(base, packs, strict=True))
    assert all(torch.equal(value, now[name]) for name, value in parameters(own).items()), "and come back"


def test_lora_trains_adapters_alone(plain_folder: Path) -> None:
    model = with_lora(plain_folder)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    own = learner(model, optim=OptimConfig(lr=1e-2))
    own.update(some_trees())
    moved = {name for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert moved and all(".lora_" in name for name in moved)


def test_state_is_what_peft_merges_and_wears_nothing_down(plain_folder: Path) -> None:
    own = trained(plain_folder, some_trees())
    frozen = {n: v.detach().clone() for n, v in own.policy.model.named_parameters() if ".lora_" not in n}
    state = own.weights()
    merged = copy.deepcopy(own.policy.model).merge_and_unload()
    assert set(state) == set(merged.state_dict())
    assert all(torch.allclose(state[name], value, atol=1e-6) for name, value in merged.state_dict().items())
    plain = with_lora(plain_folder).unload().state_dict()
    assert any(not torch.equal(value, plain[name]) for name, value in state.items())
    after = {n: v for n, v in own.policy.model.named_parameters() if ".lora_" not in n}
    assert all(torch.equal(frozen[name], after[name]) for name in frozen)


def test_what_adapters_add_is_not_rounded_away(plain_folder: Path) -> None:
    """Merged into weights held in bf16, the first steps of adapters vanish: the engine would sample from the old
    policy."""
    own = trained(plain_folder, some_trees(), dtype="bfloat16")
    module = own.policy.model.get_base_model().model.layers[0].self_attn.q_proj
    assert module.base_layer.weight.dtype == torch.bfloat16
    added = own.weights()["model.layers.0.self_attn.q_proj.weight"] - module.base_layer.weight.float()
    assert (
        torch.allclose(added, module.get_delta_weight("default").float(), atol=1e-7) and float(added.abs().max()) > 1e-6
    )


def test_lora_under_checkpointing_gives_the_same_update(plain_folder: Path) -> None:
    one, other = (trained(plain_folder, some_trees(), checkpointing=c) for c in (False, True))
    assert furthest(parameters(one), parameters(other)) < 1e-6


def test_the_plain_model_of_adapters_computes_what_they_do(plain_folder: Path) -> None:
    own = trained(plain_folder, some_trees())
    tokens = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        plain = plain_model(own.policy.model)
        assert not any("lora" in name for name, _ in plain.named_modules())
        assert torch.allclose(plain(tokens).logits, own.policy.model(tokens).logits, atol=1e-5)
    assert plain.get_output_embeddings().weight is plain.get_input_embeddings().weight
    assert plain_model(plain) is plain


def test_full_state_of_a_plain_model_is_its_state() -> None:
    model = tiny_model("llama")
    assert all(
        value is not None and torch.equal(value, model.state_dict()[name]) for name, value in full_state(model).items()
    )


# --- engine and learner agree


async def sampled(engine: LocalEngine, prompt: Sequence[int], temperature: float, seed: int) -> CreditedTree:
    """A tree of two roots, as the engine wrote them."""
    tree = RolloutTree("task", 1, Prompt(tokens=array("i", prompt)))
    for root in range(2):
        params = SamplingParams(max_tokens=30, temperature=temperature, seed=seed + root)
        chunks = [chunk async for chunk in engine.sample(prompt, params)]
        tokens, logprobs, entropies = (
            array(kind, [x for chunk in chunks for x in getattr(chunk, name)])
            for kind, name in (("i", "tokens"), ("f", "logprobs"), ("f", "entropies"))
        )
        tree.grow(Turn(place=(root,), role=Role.ROOT, tokens=tokens, logprobs=logprobs, entropies=entropies))
        tree.end((root,), StopReason.FINISHED)
    return credited(tree, {(0,): 1.0, (1,): -1.0}, 0.0)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
async def test_engine_and_learner_give_a_token_the_same_probability(
    plain_folder: Path, tokenizer: Any, temperature: float, lora: bool
) -> None:
    """Before the first update and after each, with the weights that `state` hands over."""
    config = ModelConfig(
        source=str(plain_folder), device="cpu", dtype="float32", lora=LoraSettings(rank=4) if lora else None
    )
    model, _ = load_model(plain_folder, config)
    engine = LocalEngine(plain_model(model), tokenizer, slots=4, dtype="float32")
    own = learner(model, optim=OptimConfig(lr=3e-2), temperature=temperature)
    start = {name: value.clone() for name, value in own.weights().items()}
    try:
        for step in range(3):
            tree = await sampled(engine, range(3, 40), temperature, seed=10 * step)
            metrics = own.update([tree]).metrics
            assert metrics["mismatch_abs_max"] < 1e-4, step
            assert metrics["mismatch_weight_min"] == pytest.approx(1, abs=1e-4) == metrics["mismatch_weight_max"]
            await engine.update_weights(Weights(step + 1, own.weights()))
    finally:
        await engine.close()
    assert furthest(start, own.weights()) > 1e-2, "the weights have not moved: that they agree says nothing"
