"""`arpo plan`: the paper's recipes fit on the node that they are written for, and what does not is refused with a way
out."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest

from arpo.assembly import machine_memory
from arpo.assembly.machine_memory import check_memory
from arpo.assembly.memory_plan import Gpus, check_fits, describe, plan_memory, remedies, shape_of
from arpo.display.terminal import Console
from arpo.errors import ConfigError
from arpo.learner.memory import PER_PASS, LearnerPlan, ModelShape, learner_bytes
from arpo.models.loading import with_lora
from arpo.recipe.load import load_recipe
from arpo.training.pipeline import train
from tiny_project import TinyProject

NODE = Gpus.parse("8xH100-80")
# Sizes as the models' config.json on the Hub have them.
QWEN_8B = ModelShape(
    parameters=8_190_735_360,
    layer=192_946_432,
    adapters=0,
    hidden=4096,
    layers=36,
    heads=32,
    qk_norm=True,
    query_width=4096,
    key_width=1024,
    mlp_width=12288,
    vocab=151936,
)
SHAPES = {
    "arpo-deepsearch-8b": QWEN_8B,
    "arpo-reasoning-7b": ModelShape(
        parameters=7_615_616_512,
        layer=233_057_792,
        adapters=0,
        hidden=3584,
        layers=28,
        heads=28,
        qk_norm=False,
        query_width=3584,
        key_width=512,
        mlp_width=18944,
        vocab=152064,
    ),
    "arpo-deepsearch-14b": ModelShape(
        parameters=14_768_307_200,
        layer=330_311_936,
        adapters=0,
        hidden=5120,
        layers=40,
        heads=40,
        qk_norm=True,
        query_width=5120,
        key_width=1024,
        mlp_width=17408,
        vocab=151936,
    ),
}


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_the_papers_recipes_fit_on_a_node(name: str) -> None:
    plan = plan_memory(load_recipe(name), SHAPES[name], NODE)
    check_fits(plan)
    assert plan.longest_path >= plan.tokens
    assert "in all, of 74 usable" in describe(plan)


def test_lora_fits_on_a_card_of_24_gb_beside_one_of_vllm() -> None:
    run = load_recipe("qwen3-8b-lora-24gb")
    plan = plan_memory(run, replace(QWEN_8B, adapters=43_646_976), Gpus.parse("2xRTX4090-24"))
    assert plan.learner.ranks == 1 and plan.engines == 1
    check_fits(plan)
    in_4_bits = load_recipe("qwen3-8b-lora-24gb", ["model.lora.base=nf4"])
    small = plan_memory(in_4_bits, plan.shape, plan.gpus)
    assert small.parts["weights"] < plan.parts["weights"] / 2
    longer = ["rollout.branch_tokens=8192", "engine.max_tokens_per_slot=8192", "train.token_budget=8192"]
    tight = plan_memory(load_recipe("qwen3-8b-lora-24gb", longer), plan.shape, plan.gpus)
    assert not tight.fits and remedies(tight) == ["model.lora.base=nf4"]


def test_a_refusal_names_the_keys_that_make_it_fit() -> None:
    run = load_recipe("arpo-deepsearch-14b", ["engine.vllm.sleep=false", "model.gradient_checkpointing=false"])
    plan = plan_memory(run, SHAPES["arpo-deepsearch-14b"], NODE)
    with pytest.raises(ConfigError, match=r"model.gradient_checkpointing=true.*--override"):
        check_fits(plan)
    mended = plan_memory(load_recipe("arpo-deepsearch-14b", remedies(plan)), plan.shape, NODE)
    assert mended.fits or "engine.vllm.sleep=true" in remedies(plan)
    share = ["engine.vllm.gpu_memory_utilization=0.95"]  # awake it needs what the learner keeps meanwhile
    with pytest.raises(ConfigError, match=r"gpu_memory_utilization.*vLLM awake and what the learner keeps take 9"):
        check_fits(plan_memory(load_recipe("arpo-deepsearch-14b", share), SHAPES["arpo-deepsearch-14b"], NODE))
    with pytest.raises(ConfigError, match="8 GPUs, from 0 on"):
        plan_memory(load_recipe("arpo-reasoning-7b", ["engine.vllm.replicas=['8']"]), QWEN_8B, NODE)
    for text in ("8 big ones", f"{'9' * 5000}xH100-80"):
        with pytest.raises(ConfigError, match="COUNTxNAME-GB"):
            Gpus.parse(text)


def test_sizes_are_counted_on_a_model_without_memory(tmp_path: Path) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )
    config.vocab_size = 64
    config.save_pretrained(tmp_path)
    shape = shape_of(load_recipe("quickstart", ["model.lora=null"]), tmp_path)
    model = Qwen2ForCausalLM(config)
    assert shape.parameters == model.num_parameters()
    assert (shape.hidden, shape.query_width, shape.key_width, shape.mlp_width) == (32, 32, 16, 48)
    assert shape.root == 2 * 64 * 32 + 32
    for targets in ("all-linear", "[q_proj, down_proj]"):
        run = load_recipe("quickstart", [f"model.lora.targets={targets}"])
        adapted = ModelShape.from_model(with_lora(deepcopy(model), run.model.lora))
        assert shape_of(run, tmp_path) == adapted, "as PEFT counts them"


def test_what_cannot_fit_here_is_refused_before_anything_is_loaded(
    tiny_project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU main memory is the limit, which ranks share."""
    run = load_recipe(tiny_project.recipe, ["train.token_budget=300000"])
    monkeypatch.setattr(machine_memory, "free_memory", lambda: 10**9)
    with pytest.raises(ConfigError, match=r"main memory.*train.token_budget=4096.*--override") as refusal:
        train(run, out=tmp_path / "run", console=Console(quiet=True))
    assert not (tmp_path / "run").exists()
    assert check_memory(run, tiny_project.model, override=True) == str(refusal.value)
    mended = load_recipe(tiny_project.recipe, ["train.token_budget=4096"])
    assert check_memory(mended, tiny_project.model) is None
    monkeypatch.setenv("WORLD_SIZE", "80")
    with pytest.raises(ConfigError, match="for each rank"):
        check_memory(mended, tiny_project.model)
    monkeypatch.setattr(machine_memory, "free_memory", lambda: None)
    assert check_memory(run, tiny_project.model) is None, "the machine does not say"


def test_parts_add_up_and_shards_divide() -> None:
    one, eight = LearnerPlan(ranks=1, checkpointing=True), LearnerPlan(ranks=8, checkpointing=True)
    parts = learner_bytes(QWEN_8B, eight, 8192)
    passing = max(parts[name] for name in PER_PASS if name in parts)
    assert parts["total"] == passing + sum(v for k, v in parts.items() if k not in (*PER_PASS, "total"))
    assert learner_bytes(QWEN_8B, one, 8192)["moments"] == 8 * parts["moments"]
    plan = plan_memory(load_recipe("arpo-deepsearch-8b"), QWEN_8B, NODE)
    coded = replace(eight, moments=2.1, head_chunk=128)
    assert learner_bytes(QWEN_8B, coded, 8192)["moments"] < parts["moments"] / 3
    assert learner_bytes(QWEN_8B, coded, 8192)["head"] < parts["head"]
    at, above = (learner_bytes(plan.shape, plan.learner, plan.longest_path + n)["total"] for n in (0, 1))
    assert at <= plan.limit - plan.engine < above
