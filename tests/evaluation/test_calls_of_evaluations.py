"""Tool calls of evaluations are accounted for and held to the budget, and what isolates code is said and written
down."""

import io
import itertools
import json
from pathlib import Path

import pytest
from known_answers import SUMS, golds, write_played

from arpo.display.terminal import Console
from arpo.errors import ToolsStoppedError
from arpo.evaluation.evaluate import EvalRequest, evaluate_model
from arpo.evaluation.results import read_results
from arpo.evaluation.samples import read_samples
from arpo.recipe.load import load_recipe
from arpo.tools.usage import read_usage
from arpo.training.pipeline import train
from tiny_project import TinyProject

NUMBERS = itertools.count(5_000)


def screen() -> Console:
    return Console(file=io.StringIO(), width=140)


def test_a_run_and_its_evaluations_say_what_isolates_code_and_what_was_called(
    tiny_project: TinyProject, tmp_path: Path
) -> None:
    console = screen()
    short = ("train.steps=1", "train.tasks_per_step=1", "evaluation={limit: 2, greedy_limit: 0}")
    recipe = load_recipe(tiny_project.recipe, [*short, "tools=['tiny_world:parity', python]"])
    run = train(recipe, out=tmp_path / "run", console=console)
    [start] = json.loads((run / "environment.json").read_text())
    assert start["isolation"] == {"python": "monty"}
    before, after = (read_results(run / "evaluation" / name) for name in ("before", "after"))
    assert [each.studies["tools"]["isolation"] for each in (before, after)] == [{"python": "monty"}] * 2
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "tool python: the model's code runs in monty" in said and "before: tool calls: " in said
    assert read_usage(run)["parity"]["asked"] >= sum(each.tool_calls["parity"]["asked"] for each in (before, after)) > 0

    console = screen()
    [found] = evaluate_model(str(run), load_recipe(run), EvalRequest(out=tmp_path / "again"), console=console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "tool python: the model's code runs in monty" in said and "Tool calls" in said
    folder = tmp_path / "again" / "evaluation" / "test"
    read = read_results(folder)
    assert read.studies["tools"]["isolation"] == {"python": "monty"} and read.tool_calls == found.tool_calls
    answered = sum(account["executed"] + account["cached"] + account["shared"] for account in found.tool_calls.values())
    assert answered == sum(sample.calls for sample in read_samples(folder).values()) > 0


def test_a_budget_stops_an_evaluation_that_goes_on_with_a_larger_one(tiny_project: TinyProject, tmp_path: Path) -> None:
    played, out = write_played(tiny_project, tmp_path / "project", next(NUMBERS)), tmp_path / "out"
    plays = golds()
    for row in SUMS:
        plays[row["question"]]["turns"] = ["<parity>3</parity>", *plays[row["question"]]["turns"]]
    played.play(plays)

    def ask(*words: str, resume: bool = False) -> Console:
        console = screen()
        request = EvalRequest(benchmarks=["gsm8k"], data=played.data, out=out, resume=resume)
        evaluate_model(str(played.recipe), load_recipe(played.recipe, words), request, console=console)
        return console

    with pytest.raises(ToolsStoppedError, match="budget for calls of tools is used up: 5 calls"):
        ask("tools.limits.calls=5")
    assert read_usage(out)["parity"]["attempts"] == 5
    said = ask("tools.limits.calls=100", resume=True).file.getvalue()  # type: ignore[attr-defined]
    accounts = read_usage(out)
    assert accounts["parity"]["attempts"] >= 12 and "Tool calls" in said
    study = json.loads((out / "results.json").read_text())["studies"]["tools"]
    assert study["accounts"]["parity"]["asked"] == 12 and study["isolation"] == {}, (
        "the calls of the answers that are kept"
    )
    assert "## Tool calls" in (out / "report.md").read_text()
