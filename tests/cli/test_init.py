"""`arpo init`: the example works as it is written."""

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from arpo.chat import ParsedTurn, Transcript
from arpo.cli.commands import app
from arpo.cli.init import write_example
from arpo.errors import ConfigError
from arpo.recipe.load import load_recipe
from arpo.rewards.config import RewardConfig, build_reward
from arpo.tasks import Task
from arpo.tasks.data import load
from arpo.tasks.traces import load_traces
from arpo.tools import CallContext
from arpo.tools.config import build_tools
from tiny_project import write_tiny_model


@pytest.fixture
def example(tmp_path: Path) -> Iterator[Path]:
    before = list(sys.path)
    write_example(tmp_path / "mine")
    yield tmp_path / "mine"
    sys.path[:] = before
    sys.modules.pop("shop", None)


def transcript(answer: str, *, well_formed: bool = True) -> Transcript:
    turn = ParsedTurn(text=answer, answer=answer, well_formed=well_formed)
    return Transcript(turns=(turn,), outcomes=(), ending="finished", states={})


def test_the_recipe_loads_and_its_parts_can_be_built(example: Path) -> None:
    run = load_recipe(example / "recipe.yaml")
    (tool,) = build_tools(run.tools.offered)
    assert tool.name == "price" and "item" in str(tool.schema)
    assert isinstance(run.reward, RewardConfig) and callable(build_reward(run.reward))
    train, test = load(run.data.train), load(run.data.test or run.data.train)
    assert len(train) == 64 and len(test) == 64
    assert not {task.question for task in train} & {task.question for task in test}


def test_its_traces_call_its_tool_and_end_in_the_right_answer(example: Path) -> None:
    run = load_recipe(example / "recipe.yaml")
    (tool,) = build_tools(run.tools.offered)
    assert run.cold_start is not None
    for trace in load_traces(run.cold_start.traces):
        call = trace.steps[0].calls[0]
        context = CallContext(task=trace.task, deadline_s=5.0, seed=0)
        shown = asyncio.run(tool(call.arguments, context)).text
        kilos = next(int(word) for word in trace.task.question.split() if word.isdigit())
        assert str(kilos * int(shown.split()[1])) == trace.steps[-1].answer == trace.task.answers[0]


def test_its_reward_tells_right_from_wrong_from_malformed(example: Path) -> None:
    run = load_recipe(example / "recipe.yaml")
    assert isinstance(run.reward, RewardConfig)
    reward = build_reward(run.reward)
    task = Task(id="a", messages=({"role": "user", "content": "?"},), answers=("12",))
    assert asyncio.run(reward(task, transcript("12"))).reward == 1
    assert asyncio.run(reward(task, transcript("13"))).reward == 0
    assert asyncio.run(reward(task, transcript("12", well_formed=False))).reward == -1


def test_its_recipe_trains_as_it_is_written(
    example: Path, tmp_path: Path, tokenizer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its README says, from its own folder; only smaller: on a tiny model, whose tokenizer needs more tokens a
    word."""
    model = write_tiny_model(tmp_path / "model", tokenizer)
    monkeypatch.setenv("ARPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(example)
    small = [
        "train.steps=1",
        "train.tasks_per_step=2",
        "train.updates_per_step=1",
        "cold_start.epochs=0.1",
        "rollout.turn_tokens=96",
        "evaluation.limit=2",
    ]
    done = CliRunner().invoke(app, ["train", "recipe.yaml", f"model.source={model}", *small])
    assert done.exit_code == 0, done.output
    summary = json.loads(Path("runs/shop/summary.json").read_text())
    assert (summary["status"], summary["steps"], summary["accuracy_after"]["n"]) == ("finished", 1, 2)
    assert Path("runs/shop/report.md").is_file() and "cold start: 3" in done.output
    assert "leaves in the right format" in {gate["what"] for gate in summary["gates"] if gate["measured"] is not None}


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(ConfigError, match="not empty"):
        write_example(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_file_in_the_way_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_example(tmp_path / "file" / "mine")
