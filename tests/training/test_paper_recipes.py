"""The paper's recipes, whole: each runs in small, with its own keys, a tiny model of its family, two ranks and vLLM."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from arpo.engines.vllm.versions import Environment
from arpo.recipe.load import load_recipe, show_resolved

BESIDE = Path(__file__).parents[2] / ".venv-vllm/bin/python"
VLLM = os.environ.get("ARPO_VLLM_PYTHON") or (
    str(BESIDE) if BESIDE.exists() else sys.executable if Environment.here().vllm else None
)
FAMILIES = {
    "arpo-reasoning-7b": "Qwen2",
    "arpo-deepsearch-8b": "Qwen3",
    "arpo-deepsearch-14b": "Qwen3",
    "qwen3-8b-lora-24gb": "Qwen3",
}
SMALLER = (  # numbers alone: how long, how many, and where the files lie
    "data.train.source=train.jsonl",
    "data.validation.source=validation.jsonl",
    "data.test.source=test.jsonl",
    "tools=[{use: search, options: {documents: documents.jsonl, k: 3}}, "
    "{use: python, options: {backend: sandbox, imports: [math]}}]",
    "chat.result_tokens=24",
    "rollout.turn_tokens=24",
    "rollout.branch_tokens=2400",
    "rollout.leaves=4",
    "rollout.roots=2",
    "engine.slots=8",
    "engine.max_tokens_per_slot=2400",
    "engine.memory_gb=0.25",
    "engine.dtype=float32",
    "engine.vllm.replicas=1",
    "train.steps=1",
    "train.epochs=null",
    "train.tasks_per_step=4",
    "train.updates_per_step=2",
    "train.token_budget=4096",
    "train.eval_limit=2",
    "train.trackers=[]",
    "evaluation.limit=2",
    "evaluation.greedy_limit=0",
    "optim.lr=1e-3",
    "loss.entropy_coefficient=0.01",  # what random weights write is always wrong: without it nothing would be learned
)


def write_project(folder: Path, family: str, tokenizer: Any) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for split, numbers in {"train": range(8), "validation": range(8, 12), "test": range(12, 16)}.items():
        rows = [{"id": str(n), "question": f"What is {n} + 1?", "answer": str(n + 1)} for n in numbers]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    documents = [{"title": f"Number {n}", "text": f"{n} comes after {n - 1}."} for n in range(1, 20)]
    (folder / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents))


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_its_settings_are_shown_whole(name: str) -> None:
    assert f"name: {name}" in show_resolved(load_recipe(name))


def test_deep_search_of_8b_in_small_is_that_of_14b() -> None:
    """So the run of one in small stands for both."""
    placed = ("engine.vllm.sleep=true", "engine.vllm.gpu_memory_utilization=0.6")
    small = [*SMALLER, "name=small", "model.source=model", *placed]
    resolved = [load_recipe(f"arpo-deepsearch-{size}", small).model_dump() for size in ("8b", "14b")]
    assert resolved[0] == resolved[1]


@pytest.mark.vllm
@pytest.mark.skipif(VLLM is None, reason="there is no environment with vLLM: make test-vllm builds .venv-vllm")
@pytest.mark.parametrize("name", sorted(FAMILIES.keys() - {"arpo-deepsearch-8b"}))
def test_it_runs_in_small(name: str, tokenizer: Any, tmp_path: Path) -> None:
    write_project(tmp_path, FAMILIES[name], tokenizer)
    changes = [*SMALLER, f"model.source={tmp_path / 'model'}", f"engine.vllm.python={VLLM}"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--shutdown-timeout=3600"]
    line = [sys.executable, *launcher, "-m", "arpo", "train", name, *changes, "--out", str(tmp_path / "run")]
    environment = {**os.environ, "ARPO_CACHE": str(tmp_path / "cache"), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        line, cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert done.returncode == 0, done.stdout[-6000:]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "finished"
    [step] = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert step["train/updates"] == 2 and not step["train/skipped_updates"] and step["train/grad_norm"] > 0
    assert step["train/mismatch_abs_mean"] < 0.05, "the engine samples from the learner's weights"
    saved = tmp_path / "run" / "checkpoints" / "step-000001" / "model"
    assert (saved / ("adapter_model.safetensors" if "lora" in name else "model.safetensors")).is_file()
