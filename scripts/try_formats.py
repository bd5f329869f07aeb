"""Trains a tiny model from scratch to call a tool in the syntaxes of several families: the share of leaves that called
it in the right format before, after the cold start, and after a few steps of reinforcement learning.

    python scripts/try_formats.py                      five families, as a table for docs/models.md
    python scripts/try_formats.py --families glm4.5    others
    .venv-vllm/bin/python scripts/try_formats.py --engine vllm --families qwen3.5 gpt-oss    sampled by vLLM

The model (2 layers, random weights) has the special tokens and the chat template of `tests/family_formats.py`; its
world is that of `tests/tiny_project.py`: one tool, which says whether a number is odd or even.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from arpo.display.terminal import Console
from arpo.recipe.load import load_recipe
from arpo.training.pipeline import train
from family_formats import ends_of, tokenizer_of
from tiny_project import TinyProject, write_tiny_model, write_tiny_project

FAMILIES = ("qwen3", "qwen3.5", "llama3.1", "mistral-v11", "gpt-oss")
SETTINGS = (
    "chat={format: template, result_tokens: 12}",
    "rollout={leaves: 4, roots: 4, head: 2, max_calls: 2, turn_tokens: 128, branch_tokens: 1000, rule: none}",
    "train={steps: 4, tasks_per_step: 6, token_budget: 8192, trackers: []}",
    "evaluation={limit: 1, greedy_limit: 0}",
    "optim.lr=2.0e-4",
)
ENGINES = {"local": (), "vllm": ("engine={kind: vllm, dtype: float32, slots: 32, memory_gb: 0.25}",)}
COLD_START = ("cold_start.batch=10", "cold_start.steps=120", "cold_start.lr=1.0e-2")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--families", nargs="+", default=FAMILIES)
    parser.add_argument("--engine", choices=ENGINES, default="local")
    options = parser.parse_args(arguments)
    print("| family | called the tool before | after the cold start | after 4 steps | well formed | seconds |")
    print("|---|---:|---:|---:|---:|---:|", flush=True)
    for name in options.families:
        with tempfile.TemporaryDirectory() as folder:
            begun = time.monotonic()
            shares = tried(name, Path(folder), options.engine)
            print(
                f"| {name} | {' | '.join(f'{share:.2f}' for share in shares)} | {time.monotonic() - begun:.0f} |",
                flush=True,
            )
    return 0


def tried(name: str, folder: Path, engine: str = "local") -> list[float]:
    """The share of leaves with a call that was read and answered: before, after the cold start, after the last step;
    and the share of leaves with every turn well formed after the last step."""
    sizes = {"head_dim": 32} if engine == "vllm" else {}  # which its kernels for CPUs want
    project = project_of(name, folder, **sizes)
    before = metrics(project, folder / "before", *ENGINES[engine], "cold_start=null", "train.steps=1")
    after = metrics(project, folder / "after", *ENGINES[engine], *COLD_START)
    used = [line["rates/tool_use"] for line in (before[0], after[0], after[-1])]
    return [*used, float(after[-1]["rates/format"])]


def project_of(name: str, folder: Path, **sizes: int) -> TinyProject:
    """The tiny project with the tokenizer of the family `name`. `sizes`: other values of the model's config."""
    tokenizer = tokenizer_of(name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    project = write_tiny_project(folder / "project", tokenizer)
    sizes = {"max_position_embeddings": 1024, "hidden_size": 64, "intermediate_size": 128} | sizes
    write_tiny_model(project.model, tokenizer, **sizes)
    ends = ends_of(name) or [tokenizer.eos_token_id]
    (project.model / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    return project


def metrics(project: TinyProject, out: Path, *settings: str) -> list[Mapping[str, Any]]:
    sys.path.insert(0, str(project.folder))
    try:
        train(load_recipe(project.recipe, [*SETTINGS, *settings]), out=out, console=Console(quiet=True))
    finally:
        sys.path.remove(str(project.folder))
        sys.modules.pop("tiny_world", None)
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


if __name__ == "__main__":
    raise SystemExit(main())
