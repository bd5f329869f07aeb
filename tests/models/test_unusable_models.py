"""Model folders that are broken, incomplete or of the wrong kind: one ConfigError with the key, before anything is
computed."""

import ast
import asyncio
import json
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from arpo.assembly.components import build_components, read_tasks
from arpo.assembly.memory_plan import meta_model
from arpo.chat.config import ChatConfig, build_chat
from arpo.display.terminal import Console
from arpo.engines.local import LocalEngine
from arpo.errors import ConfigError
from arpo.learner.policy import choose_packing
from arpo.models.loading import ModelConfig, load_model
from arpo.models.sources import fetch
from arpo.recipe.load import load_recipe
from arpo.rewards.config import build_reward
from arpo.rollout.agent import check_prompts
from arpo.training.pipeline import train
from tiny_project import TinyProject


@pytest.fixture
def copy(tiny_project: TinyProject, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_project.model, tmp_path / "copy"))


def refusal(folder: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_model(fetch(str(folder)), ModelConfig(device="cpu"))
    assert str(caught.value).startswith("model.source: ")
    return str(caught.value)


# --- files


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "content", [b"", b"{", b"{}", b"[]", b"3", b"null", b"\xff\xfe\x00", b'{"model_type": 3}'], ids=repr
)
def test_files_that_hold_something_else(name: str, content: bytes, copy: Path) -> None:
    (copy / name).write_bytes(content)
    if name == "tokenizer_config.json" and content in (b"{}", b'{"model_type": 3}'):
        load_model(copy, ModelConfig(device="cpu"))  # nothing in it is needed
    else:
        assert str(copy) in refusal(copy)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", 31),
        ("hidden_size", "big"),
        ("num_attention_heads", 0),
        ("vocab_size", 0),
        ("vocab_size", 7),
        ("hidden_act", "nope"),
        ("max_position_embeddings", None),
        ("rope_parameters", "x"),
        ("num_key_value_heads", 3),
        ("num_hidden_layers", 3),
        ("model_type", "gpt99"),
        ("model_type", "t5"),
    ],
)
def test_a_config_that_does_not_fit_its_weights(key: str, value: object, copy: Path) -> None:
    values = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**values, key: value}))
    assert str(copy) in refusal(copy)


@pytest.mark.parametrize(
    "value",
    [
        {"attn_implementation": "org/kernel"},
        {"_attn_implementation_internal": "org/kernel@main:f"},
        {"text_config": {"experts_implementation": {"": "org/kernel"}}},
    ],
)
def test_a_config_that_names_a_kernel_of_the_hub(value: dict[str, Any], copy: Path) -> None:
    """transformers would fetch it, and run it, where the package `kernels` is installed."""
    values = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**values, **value}))
    assert re.search(r"_implementation\S* names a kernel of the Hub", refusal(copy))


def rewritten(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """The weights' header, changed."""
    raw = (folder / "model.safetensors").read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + size])
    change(header)
    packed = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(packed)) + packed + raw[8 + size :])


def test_weights_with_a_wrong_header(copy: Path) -> None:
    for number, (key, value) in enumerate([("dtype", "F99"), ("shape", [7, 7]), ("data_offsets", [0, 4])]):
        other = Path(shutil.copytree(copy, copy.with_name(f"wrong-{number}")))
        rewritten(other, lambda header, key=key, value=value: header["model.norm.weight"].update({key: value}))  # type: ignore[misc]
        assert str(other) in refusal(other)


def test_parameters_that_the_weights_lack_are_no_random_numbers(copy: Path) -> None:
    """transformers would go on with new ones, and training with a damaged model."""

    def rename(header: dict[str, Any]) -> None:
        header["model.norm.wait"] = header.pop("model.norm.weight")

    rewritten(copy, rename)
    assert "lack 1 of the model's parameters: model.norm.weight" in refusal(copy)


# --- code

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path({ran!r}).touch()

class Config(LlamaConfig):
    model_type = "brought"

class Model(LlamaForCausalLM):
    config_class = Config
"""
LOADERS: dict[str, Callable[[Path, bool], Any]] = {
    "whole": lambda folder, trust: load_model(folder, ModelConfig(device="cpu", trust_remote_code=trust))[0],
    "without weights": lambda folder, trust: load_model(
        folder, ModelConfig(device="cpu", trust_remote_code=trust), empty=True
    )[0],
    "sizes": lambda folder, trust: meta_model(folder, trust=trust),
}


@pytest.mark.parametrize("loader", LOADERS)
def test_code_that_a_model_brings_runs_only_if_the_recipe_says_so_and_nobody_is_asked(
    loader: str, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda text="": asked.append(text) or "y")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    config = json.loads((copy / "config.json").read_text())
    classes = {"AutoConfig": "brought.Config", "AutoModelForCausalLM": "brought.Model"}
    (copy / "config.json").write_text(json.dumps({**config, "model_type": "brought", "auto_map": classes}))
    (copy / "brought.py").write_text(CODE.format(ran=str(tmp_path / "ran")))
    with pytest.raises(ConfigError, match=r"^model\.trust_remote_code: .*set model\.trust_remote_code: true"):
        LOADERS[loader](copy, False)
    assert not (tmp_path / "ran").exists() and asked == []
    model = LOADERS[loader](copy, True)
    assert type(model).__name__ == "Model" and (tmp_path / "ran").exists()
    if loader != "sizes":  # the learner makes small ones of its kind
        assert choose_packing(model, "auto") == (True, None)
    assert asked == []


def test_every_load_by_transformers_says_whether_code_is_trusted() -> None:
    """Where nobody says so, transformers asks in the middle of a run."""
    root, loads = Path(__file__).parents[2], 0
    for path in [file for folder in ("src", "scripts", "benchmarks") for file in (root / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and re.fullmatch(
                r"Auto\w+\.from_\w+|SentenceTransformer", ast.unparse(node.func)
            ):
                loads += 1
                assert any(keyword.arg == "trust_remote_code" for keyword in node.keywords), (path, node.lineno)
    assert loads > 10


# --- kinds

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}
HEADS = {
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            transformers.MistralConfig(**SIZES, **HEADS, sliding_window=16),
            ["within a window", "max_tokens_per_slot to at most 16"],
        ),
        (transformers.Gemma2Config(**SIZES, **HEADS, head_dim=8), ["Gemma2ForCausalLM", "softcap"]),
        (transformers.MambaConfig(**SIZES, state_size=4), ["MambaForCausalLM", "linear_attention", "cannot branch"]),
        (transformers.RwkvConfig(**SIZES), ["RwkvForCausalLM", "recurrent layers"]),
        (transformers.BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4), ["max_tokens_per_slot"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, transformers.PreTrainedConfig) else "",
)
def test_attention_that_the_engine_does_not_know(config: transformers.PreTrainedConfig, words: list[str]) -> None:
    torch.manual_seed(0)
    with pytest.raises(ConfigError, match=r"^(model\.source|engine\.max_tokens_per_slot): ") as caught:
        LocalEngine(transformers.AutoModelForCausalLM.from_config(config), dtype="float32")
    assert all(word in str(caught.value) for word in words), str(caught.value)


@pytest.mark.parametrize(
    "template", ["{{ 1 / 0 }}", "{% for", "{{ messages.nope.x }}", "{{ raise_exception('no tools') }}", "hello"]
)
@pytest.mark.parametrize("form", ["template", "tags"])
def test_chat_templates_that_cannot_write_a_conversation(
    template: str, form: Any, make_tokenizer: Callable[..., Any]
) -> None:
    with pytest.raises(ConfigError, match="chat template"):
        build_chat(ChatConfig(format=form), make_tokenizer(template), [])


# --- too long


def job_of(project: TinyProject, *overrides: str) -> Any:
    return build_components(load_recipe(project.recipe, ["cold_start=null", *overrides]), project.model)


@pytest.mark.parametrize(
    ("key", "value"), [("rollout.branch_tokens", 513), ("engine.max_tokens_per_slot", 159), ("engine.memory_gb", 1e-5)]
)
def test_branches_that_could_outgrow_the_engine(key: str, value: float, tiny_project: TinyProject) -> None:
    """They were lost one by one, the longest first: training on short answers only."""
    with pytest.raises(
        ConfigError, match=r"rollout\.branch_tokens: branches could outgrow the engine \(got \d+\)\. At most \d+"
    ):
        job_of(tiny_project, f"{key}={value}")


def test_prompts_without_room_are_found_before_anything_is_computed(tiny_project: TinyProject) -> None:
    components = job_of(tiny_project, "rollout.branch_tokens=60", "rollout.turn_tokens=20")
    tasks, _ = read_tasks(components.run, "train")
    try:
        with pytest.raises(
            ConfigError, match=r"prompt of task \S+ has \d+ tokens and leaves no room .* \(27 more tasks"
        ):
            check_prompts(components.agent, tasks, components.run.rollout)
    finally:
        asyncio.run(components.agent.engine.close())
    longest = job_of(tiny_project, "chat.prompt_tokens=20")
    try:
        with pytest.raises(ConfigError, match=r"more than chat\.prompt_tokens = 20 \(27 more"):
            check_prompts(longest.agent, tasks, longest.run.rollout)
        check_prompts(job_of(tiny_project).agent, tasks, load_recipe(tiny_project.recipe).rollout)
    finally:
        asyncio.run(longest.agent.engine.close())


def test_a_reward_that_is_no_function_is_named() -> None:
    run = load_recipe("quickstart", ["reward={use: 'arpo.rewards.config:BUILT'}"])
    with pytest.raises(ConfigError, match=r"reward\.use"):
        build_reward(run.reward)


# --- architectures that compute something else than their parts say


def made(config: transformers.PreTrainedConfig) -> Any:
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, 0.0, 0.2)
    return model.eval()


DEEPSEEK = {
    **SIZES,
    **HEADS,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
}


@pytest.mark.parametrize(
    ("config", "tree"),
    [
        (transformers.LlamaConfig(**SIZES, **HEADS, tie_word_embeddings=True), True),
        (transformers.CohereConfig(**SIZES, **HEADS), True),  # scales its logits
        (transformers.GraniteConfig(**SIZES, **HEADS, logits_scaling=3.0, embedding_multiplier=2.0), True),
        (
            transformers.Phi3Config(
                **SIZES, **HEADS, rope_parameters={"rope_theta": 1e4, "partial_rotary_factor": 0.5}
            ),
            True,
        ),
        (transformers.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=128), True),
        (transformers.DeepseekV3Config(**DEEPSEEK), True),  # values of another size than keys
        (transformers.DiffLlamaConfig(**SIZES, **HEADS), True),
        (transformers.NemotronConfig(**SIZES, **HEADS), "packed, it fails (ValueError"),  # does not pass the layout on
        (transformers.DogeConfig(**SIZES, **HEADS), "packed, it fails (ValueError"),  # makes a mask of its own
        (
            transformers.Gemma2Config(**SIZES, **HEADS, head_dim=8),
            "sliding_attention",
        ),  # caps logits of attention and head
        (transformers.Gemma3TextConfig(**SIZES, **HEADS, head_dim=8), "sliding_attention"),
        (transformers.MistralConfig(**SIZES, **HEADS, sliding_window=16), "window of 16"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, transformers.PreTrainedConfig) else "",
)
def test_the_learner_computes_what_the_model_does(config: transformers.PreTrainedConfig, tree: bool | str) -> None:
    """Tree-packed where that gives the model's own log-probabilities, else flat and said why."""
    model = made(config)
    by_tree, why = choose_packing(model, "auto")
    assert (by_tree, why) == (True, None) if tree is True else (not by_tree and str(tree) in str(why))
    if tree is not True:
        with pytest.raises(ConfigError, match=r"train\.packing: this model cannot be trained tree-packed"):
            choose_packing(model, "tree")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        # no decoder, and a layer before the head
        (transformers.BertConfig(**SIZES, **HEADS), "its log-probabilities would be wrong by"),
        (transformers.RecurrentGemmaConfig(**SIZES, **HEADS, lru_width=32), "its log-probabilities would be wrong by"),
        (transformers.RemBertConfig(**SIZES, **HEADS), "it fails (RuntimeError"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, transformers.PreTrainedConfig) else "",
)
def test_a_model_that_the_learner_would_compute_wrongly_is_refused(
    config: transformers.PreTrainedConfig, words: str
) -> None:
    with pytest.raises(ConfigError, match=rf"^model\.source: \w+ cannot be trained: {re.escape(words)}"):
        choose_packing(made(config), "auto")


def test_a_model_that_cannot_be_trained_packed_is_refused_before_anything_is_measured(
    tiny_project: TinyProject, copy: Path, tmp_path: Path
) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.1}))
    run = load_recipe(
        tiny_project.recipe, [f"model.source={copy}", "train.packing=tree", "cold_start=null", "name=refused"]
    )
    with pytest.raises(ConfigError, match=r"train\.packing: .*at random"):
        train(run, out=tmp_path / "refused", console=Console(quiet=True))
    assert not list((tmp_path / "refused" / "evaluation").iterdir())


def test_layers_that_attend_twice_are_refused() -> None:
    """The second call's keys would overwrite the first one's."""
    with pytest.raises(ConfigError, match="attend more than once"):
        LocalEngine(made(transformers.DiffLlamaConfig(**SIZES, **HEADS)), dtype="float32")


def test_positions_that_turn_with_the_length_of_the_context_are_refused() -> None:
    """Phi-3 and Phi-4 with 128k: keys of a short context are others than those of a long one, also in the same
    batch."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
    model = made(
        transformers.Phi3Config(
            **SIZES,
            **HEADS,
            original_max_position_embeddings=32,
            rope_parameters={**rope, "original_max_position_embeddings": 32},
        )
    )
    with pytest.raises(ConfigError, match=r"engine\.max_tokens_per_slot: .*longrope.* \(got 128\)\. .*at most 32"):
        LocalEngine(model, dtype="float32")
    LocalEngine(model, dtype="float32", max_tokens_per_slot=32)
    by_tree, why = choose_packing(model, "auto")
    assert not by_tree and "longrope" in str(why)


def test_adapters_on_the_head_are_refused() -> None:
    peft = pytest.importorskip("peft")
    model = made(transformers.LlamaConfig(**SIZES, **HEADS))
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    )
    with pytest.raises(ConfigError, match=r"model\.lora\.targets: the output layer cannot have adapters"):
        choose_packing(adapted, "auto")
