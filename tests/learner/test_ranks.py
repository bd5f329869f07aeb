"""N ranks that each hold a shard of the policy come to the parameters of one process."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from arpo.core.credit import CreditedTree
from arpo.core.record import decode
from arpo.engines.vllm.publisher import Publisher
from arpo.learner import surrogates
from arpo.learner.config import Divergence, EntropyTarget, LossConfig, OptimConfig
from arpo.learner.driver import GatheredWeights, LearnerDriver
from arpo.learner.lora import full_state
from arpo.learner.losses import Objective
from arpo.learner.rank import ModelSource, RankSettings
from arpo.learner.ranks import OneRank, Ranks
from arpo.learner.sharding import Placement
from arpo.models.loading import LoraSettings, ModelConfig, learner_model, load_model, with_lora
from random_trees import random_tree
from rank_processes import Peak, SteadyRank, on_ranks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="gloo ranks are forked from a server")

NUM_STEPS = 3
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
    "recorded step": Case({"vocab": 49_152}, recorded=True, updates=2, budget=2048),
    "own surrogate": Case(loss=LossConfig(surrogate=halves)),
    "empty packs": Case(trees=1, budget=10_000),
    "replicas": Case(replicas=2),
    "offload": Case(offload=True),
}
# What differs between 2 ranks and 4: how parameters, trees and replicas are cut. Losses see neither.
CUT_OTHERWISE = ["full", "tied", "flat", "lora", "lora kl", "last layers", "empty packs", "replicas", "offload"]
LOW = {  # flat: the packs are the same for any number of ranks, and with them the roundings of each pack's gradient
    "bf16 policy": Case(dtype=torch.bfloat16, tree=False),
    "bf16 tied": Case({"family": "Llama", "tied": True}, dtype=torch.bfloat16, tree=False),
    "lora on a bf16 base": Case({"lora": True, "base": torch.bfloat16}, dtype=torch.bfloat16, tree=False),
}


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
        return [tree for tree in newest.values() if any(tree.credit.values())]
    return [random_tree(100 * step + number, leaves=4 + number, blend=0.5) for number in range(case.trees)]


def run(learner: LearnerDriver, case: Case) -> tuple[list[dict[str, float]], list[torch.Tensor]]:
    """Metrics and log-probabilities of some updates, then the metrics of a step of fine-tuning."""
    metrics, logprobs = [], []
    for step in range(NUM_STEPS):
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
    return over(OneRank(SteadyRank()), {name: (CASES | LOW)[name]})[name]


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
    cases = {name: CASES[name] for name in names}
    sharded = on_ranks(size, partial(over, cases=cases), folder)
    for name in names:
        same(f"{name} on {size}", in_one(name), sharded[name])


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_ranks_train_as_one_process_does_whatever_the_loss_and_the_model(size: int, tmp_path: Path) -> None:
    compare(size, list(CASES) if size == 2 else CUT_OTHERWISE, tmp_path)


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


# --- checkpoints


def saved(ranks: Ranks, model: dict[str, Any], folder: Path, optim: OptimConfig = OPTIM) -> dict[str, torch.Tensor]:
    """Train two steps, save, train a third: the parameters after it."""
    learner = started(ranks, model, optim)
    for step in range(2):
        learner.update(trees_of(CASES["full"], step))
    write = learner.snapshot()
    learner.update(trees_of(CASES["full"], 2))
    write(folder)  # what it was before that update
    return parameters(learner)


def loaded(ranks: Ranks, model: dict[str, Any], folder: Path, optim: OptimConfig = OPTIM) -> dict[str, torch.Tensor]:
    """Take up what was saved, train the third step."""
    learner = started(ranks, model, optim, folder / "model")
    learner.load(folder)
    assert learner.updates == 2
    learner.update(trees_of(CASES["full"], 2))
    return parameters(learner)


def started(ranks: Ranks, model: dict[str, Any], optim: OptimConfig, weights: Path | None = None) -> LearnerDriver:
    settings = replace(CASES["full"].settings, optim=optim)
    ranks.call("hold", ModelSource(partial(small_from, model, weights)), 0, Placement())
    ranks.call("start", settings, None)
    return LearnerDriver(ranks, settings, num_updates=9, token_budget=60)


def small_from(model: dict[str, Any], weights: Path | None) -> Any:
    if weights is None:
        return small(**model)
    if model.get("lora"):
        return with_lora(small(**{**model, "lora": False}), LoraSettings(rank=4), weights).train()
    return transformers.AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32).train()


def here(drive: Callable[[Ranks], Any], size: int, folder: Path) -> Any:
    return drive(OneRank(SteadyRank())) if size == 1 else on_ranks(size, drive, folder)


@pytest.mark.parametrize(
    ("model", "sizes"),
    [
        ({}, [1, 2]),
        pytest.param({"family": "Llama", "tied": True}, [1, 2, 4], marks=pytest.mark.slow),
        pytest.param({"lora": True}, [1, 2, 4], marks=pytest.mark.slow),
    ],
    ids=["full", "tied", "lora"],
)  # fmt: skip
def test_what_some_ranks_save_others_take_up(model: dict[str, Any], sizes: list[int], tmp_path: Path) -> None:
    folders = {size: tmp_path / f"by-{size}" for size in sizes}
    for size in sizes:
        folders[size].mkdir()
        after = here(partial(saved, model=model, folder=folders[size]), size, tmp_path)
        names = {path.name for path in folders[size].rglob("*") if path.is_file()}
        assert not any(name.endswith((".pt", ".bin", ".pth", ".distcp", ".metadata")) for name in names)
        for others in sizes:
            again = here(partial(loaded, model=model, folder=folders[size]), others, tmp_path)
            assert max(float((after[n] - again[n]).abs().max()) for n in after) <= 1e-7, (size, others)
    contents = [load_file(next((folders[size] / "model").glob("*.safetensors"))) for size in sizes]
    for other in contents[1:]:
        assert other.keys() == contents[0].keys()


# --- weights that no process holds whole


def sliced(ranks: Ranks, config: ModelConfig, folder: Path, adapters: Path | None, out: Path) -> Any:
    """Each rank reads its rows. Writes what a server would load, and returns the weights looked up one by one."""
    build = partial(learner_model, folder, config, adapters, empty=True)
    ranks.call("hold", ModelSource(build, folder), 5, Placement())
    ranks.call("start", CASES["full"].settings, None)
    weights = GatheredWeights.from_ranks(ranks)
    out.mkdir()
    weights.write(out, torch.bfloat16, unties=True)
    snapshot = Publisher(build(), offers=True).offer(weights, 1)  # for vLLM's own transfer
    assert snapshot.shapes and snapshot.parts
    shapes = {name: value.shape for name, value, _ in snapshot.shapes()}
    sent = {name: value.clone() for name, value, _ in snapshot.parts()}
    assert shapes == {name: value.shape for name, value in sent.items()}
    return {name: value.clone() for name, value in weights.items()}, sent


@pytest.mark.parametrize(("model", "lora"), [({"family": "Llama", "tied": True}, False), ({}, True)])
def test_ranks_read_and_write_their_rows_alone(
    model: dict[str, Any], lora: bool, tokenizer: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    small(**model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = ModelConfig(source=str(folder), device="cpu", dtype="float32", lora=LoraSettings() if lora else None)
    torch.manual_seed(5)
    expected = full_state(load_model(folder, config)[0])
    weights, sent = on_ranks(
        2, partial(sliced, config=config, folder=folder, adapters=None, out=tmp_path / "out"), tmp_path
    )
    assert weights.keys() == expected.keys()
    assert expected.keys() - sent.keys() == ({"lm_head.weight"} if model.get("tied") else set())
    assert all(torch.equal(sent[name], expected[name]) for name in sent)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert written.keys() == expected.keys(), "a tied head too, which vLLM wants"
    assert all(torch.equal(written[name], expected[name].bfloat16()) for name in expected)


def published(ranks: Ranks, folder: Path, out: Path) -> Any:
    """What rank 0 takes of memory while weights go out: written, and gathered one by one for vLLM's own transfer."""
    config = ModelConfig(source=str(folder), device="cpu", dtype="float32")
    build = partial(learner_model, folder, config, None, empty=True)
    ranks.call("hold", ModelSource(build, folder), 5, Placement())
    weights = GatheredWeights.from_ranks(ranks)
    snapshot = Publisher(build(), dtype=torch.bfloat16, offers=True).offer(weights, 1)
    out.mkdir()
    with Peak() as written:
        weights.write(out, torch.bfloat16)
    with Peak() as sent:
        assert snapshot.parts
        for _, value, dtype in snapshot.parts():
            assert value.dtype == dtype == torch.bfloat16
    return written.bytes, sent.bytes


def test_a_rank_never_has_more_than_one_tensor_whole_while_weights_go_out(tokenizer: Any, tmp_path: Path) -> None:
    # What is freed of tensors of more than 32 MiB goes back to the system at once (glibc's mmap threshold), also half a
    # head in bfloat16.
    model = small(vocab=1_150_000)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    largest = max(p.numel() * torch.bfloat16.itemsize for p in model.parameters())
    peaks = on_ranks(2, partial(published, folder=tmp_path / "model", out=tmp_path / "out"), tmp_path)
    assert max(peaks) <= 1.1 * largest, [peak / largest for peak in peaks]
