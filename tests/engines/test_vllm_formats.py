"""A tiny model, trained in this process to call a tool in its family's syntax, is sampled by a real vLLM: its calls are
read, and its turns end where the family's do. Runs where vLLM is installed: `make test-vllm`."""

import importlib.util
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

from try_formats import COLD_START, ENGINES, metrics, project_of

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason="vLLM has an environment of its own: make test-vllm"
    ),
]


@pytest.mark.parametrize("family", ["llama3.1", "gpt-oss"])
def test_calls_of_a_family_are_sampled_and_read(family, tmp_path, monkeypatch):
    project = project_of(family, tmp_path, head_dim=32)
    monkeypatch.setenv("ARPO_CACHE", str(project.cache))
    (step,) = metrics(project, tmp_path / "run", *ENGINES["vllm"], *COLD_START, "train.steps=1")
    assert step["rates/tool_use"] > 0.5 and step["rates/format"] > 0.5
