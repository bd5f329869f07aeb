"""vLLM's servers as actors of Ray: a run samples with the newest weights, also after one was lost."""

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from arpo.display.terminal import Console
from arpo.engines.vllm.versions import Environment
from arpo.recipe.load import load_recipe
from arpo.runs.folder import RunFolder
from arpo.training.callbacks import Callback
from arpo.training.pipeline import train
from tiny_project import TinyProject, write_tiny_model

BESIDE = Path(__file__).parents[2] / ".venv-vllm/bin/python"
PYTHON = os.environ.get("ARPO_VLLM_PYTHON") or (
    str(BESIDE) if BESIDE.exists() else sys.executable if Environment.here().vllm else None
)
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(PYTHON is None, reason="there is no environment with vLLM: make test-vllm builds .venv-vllm"),
]
SIZES = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}  # vLLM wants heads of 32 on a CPU
CHANGES = (
    "cold_start=null",
    "loss.entropy_coefficient=0.01",
    "evaluation.limit=1",
    "evaluation.greedy_limit=0",
    "cluster.ranks=1",
    "engine.kind=vllm",
    f"engine.vllm={{replicas: 1, python: {PYTHON}}}",
    "engine.memory_gb=0.25",
)


def actors() -> set[int]:
    """Process ids of the servers' actors on this machine."""
    return {
        int(process.name)
        for process in Path("/proc").glob("[0-9]*")
        if (process / "cmdline").exists() and (process / "cmdline").read_bytes().startswith(b"ray::ServerProcess")
    }


class Killing(Callback):
    def __init__(self) -> None:
        self.killed: int | None = None

    def on_step(self, step: int, metrics: Mapping[str, Any]) -> None:
        if step == 1:
            (self.killed,) = actors()
            os.kill(self.killed, signal.SIGKILL)


def test_a_server_that_is_lost_with_its_actor_comes_back_with_the_newest_weights(
    ray_nodes: Any, own_project: TinyProject, tokenizer: Any, tmp_path: Path
) -> None:
    write_tiny_model(own_project.model, tokenizer, **SIZES)
    console, out, killing = Console(record=True, width=200), tmp_path / "run", Killing()
    train(load_recipe(own_project.recipe, CHANGES), out=out, console=console, callbacks=[killing])
    text = console.export_text()
    assert text.index("server 0 on") < text.index("step 1") and "rank 0 on" in text
    assert {path.name for path in (out / "logs").iterdir()} == {"rank-0.log", "server-0.log"}
    assert killing.killed is not None and not actors()
    trees = {step: [record.credited.tree for record in RunFolder(out).trees(step)] for step in (1, 2)}
    for step, own in trees.items():
        versions = {version for tree in own for turn in tree.turns.values() for version, _ in turn.versions}
        assert versions == {step - 1}, "a step is sampled with the weights of the one before"
