"""`arpo eval` and `arpo chat` with a model behind an endpoint."""

import io
from pathlib import Path

import pytest

from arpo.assembly.components import build_eval_components
from arpo.assembly.served import refuse_training
from arpo.cli.chatting import talk
from arpo.display.terminal import Console
from arpo.errors import ConfigError
from arpo.evaluation.evaluate import EvalRequest, evaluate_model
from arpo.evaluation.samples import read_samples
from arpo.recipe.load import load_recipe
from arpo.served.agent import ServedAgent
from localhost import Asked, Reply, serving

RECIPE = """
engine: {{kind: openai, endpoint: {{url: "{url}/v1", model: m, prices: {{prompt: 1.0, completion: 2.0}}}}}}
chat: {{format: native}}
data: {{train: {{source: "{train}"}}, validation: {{source: "{tasks}"}}}}
tools: {{offered: [search]}}
rollout: {{max_calls: 2}}
evaluation: {{split: validation, samples: 2, greedy_limit: 0}}
"""


def world(asked: Asked) -> Reply:
    last = asked.json["messages"][-1]
    if last["role"] == "tool":
        told = {"role": "assistant", "content": "\\boxed{Lima}"}
    else:
        call = {"name": "search", "arguments": '{"query": "capital of Peru"}'}
        told = {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": call}]}
    usage = {"prompt_tokens": 100, "completion_tokens": 10}
    return Reply({"choices": [{"message": told, "finish_reason": "stop"}], "usage": usage})


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    path = tmp_path / "tasks.jsonl"
    path.write_text(
        '{"question": "Capital of Peru?", "answer": "Lima"}\n{"question": "Capital of Chile?", "answer": "Santiago"}\n'
    )
    path.with_name("train.jsonl").write_text('{"question": "Capital of Cuba?", "answer": "Havana"}\n')
    return path


@pytest.fixture
def recipe(tmp_path: Path, tasks: Path) -> Path:
    return tmp_path / "recipe.yaml"


def test_a_served_model_is_evaluated(tmp_path: Path, tasks: Path, recipe: Path) -> None:
    with serving(world) as site:
        recipe.write_text(RECIPE.format(url=site.url, tasks=tasks, train=tasks.with_name("train.jsonl")))
        request, console = EvalRequest(out=tmp_path), Console(file=io.StringIO())
        [results] = evaluate_model(str(recipe), load_recipe(recipe), request, console=console)
    [folder] = (tmp_path / "evaluation").iterdir()
    samples = list(read_samples(folder).values())
    assert results.accuracy.mean == 0.5 and {sample.answer for sample in samples} == {"Lima"}
    assert {(sample.calls, sample.tokens) for sample in samples} == {(1, 20)}, "as the endpoint counts"
    assert "boxed{Lima}" in samples[0].transcript


def test_a_served_model_can_be_talked_with(tasks: Path, recipe: Path) -> None:
    lines = iter(["Capital of Peru?"])

    def read(prompt: str) -> str:
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    console = Console(file=io.StringIO(), width=200)
    with serving(world) as site:
        recipe.write_text(RECIPE.format(url=site.url, tasks=tasks, train=tasks.with_name("train.jsonl")))
        talk(str(recipe), console=console, read=read)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "model: m at http" in shown and '<tool_call>search({"query": "capital of Peru"})</tool_call>' in shown
    assert "<tool_response>" in shown and "boxed{Lima}" in shown


def test_it_cannot_be_trained(tasks: Path, recipe: Path) -> None:
    recipe.write_text(RECIPE.format(url="http://127.0.0.1:9", tasks=tasks, train=tasks.with_name("train.jsonl")))
    with pytest.raises(ConfigError, match="evaluated but not trained"):
        refuse_training(load_recipe(recipe))
    assert isinstance(build_eval_components(load_recipe(recipe), Path()).agent, ServedAgent)
