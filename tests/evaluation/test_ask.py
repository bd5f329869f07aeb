"""Measuring a model: which one is meant, what is asked, and what is left behind."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from arpo.errors import ConfigError
from arpo.evaluation.results import read_results
from arpo.evaluation.run_eval import asked_differently, eval_specs, evaluate_named
from arpo.recipe.evaluation import EvalConfig
from arpo.recipe.load import load_recipe
from tiny_project import TinyProject


def screen() -> Console:
    return Console(file=io.StringIO(), width=100)


def test_a_run_is_asked_as_it_ended(tiny_run: Path, tmp_path: Path) -> None:
    console = screen()
    results = evaluate_named(str(tiny_run), load_recipe(tiny_run, ["evaluation.samples=4"]), out=tmp_path, console=console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    sampled, greedy = (read_results(tmp_path / "evaluation" / name) for name in ("test.json", "test-greedy.json"))
    assert [r.accuracy for r in results] == [sampled.accuracy, greedy.accuracy]
    assert sampled.num_questions == 12 and len(sampled.samples) == 48 and set(sampled.pass_at) == {1, 2, 4}
    assert greedy.num_questions == len(greedy.samples) == 6 and greedy.settings["temperature"] == 0
    assert 0 < sampled.accuracy.mean < 1, "the tiny agent is right now and then"
    assert sampled.accuracy.low <= sampled.accuracy.mean <= sampled.accuracy.high
    assert sampled.pass_at[1].mean <= sampled.pass_at[2].mean <= sampled.pass_at[4].mean
    assert set(sampled.by_family) == {"one digit", "two digits"}
    for word in ("step 2", "pass@4", "two digits", "4 sampled", "greedy", "tool calls"):
        assert word in shown, word


def test_a_recipe_is_asked_with_its_source_and_a_model_with_the_recipe(
    tiny_run: Path, tiny_project: TinyProject, tmp_path: Path
) -> None:
    run = load_recipe(tiny_project.recipe, ["evaluation.limit=4", "evaluation.greedy_limit=0"])
    [untrained] = evaluate_named(str(tiny_project.recipe), run, out=tmp_path, console=screen())
    assert untrained.accuracy.mean == 0, "noise is never right"
    folder = tiny_run / "checkpoints" / "step-000001" / "model"
    [trained] = evaluate_named(str(tiny_project.recipe), run, model=str(folder), out=tmp_path, console=screen())
    [of_run] = evaluate_named(str(tiny_project.recipe), run, model=str(tiny_run), out=tmp_path, console=screen())
    assert {s.calls > 0 for s in trained.samples} >= {True} and "step 2" in of_run.model
    assert len(list((tmp_path / "evaluation").iterdir())) == 3, "each model has a file of its own"


def test_equal_questions_get_equal_answers(tiny_run: Path, tmp_path: Path) -> None:
    run = load_recipe(tiny_run, ["engine.deterministic=true", "evaluation={limit: 5, greedy_limit: 0}"])
    first, again = (evaluate_named(str(tiny_run), run, out=tmp_path, console=screen())[0] for _ in range(2))
    assert first.samples == again.samples
    other = run.model_copy(update={"evaluation": run.evaluation.model_copy(update={"seed": 7})})
    assert evaluate_named(str(tiny_run), other, out=tmp_path, console=screen())[0].samples != first.samples


def test_greedy_alone(tiny_run: Path, tmp_path: Path) -> None:
    run = asked_differently(load_recipe(tiny_run), limit=2, samples=None)
    [greedy] = evaluate_named(str(tiny_run), run, greedy_only=True, out=tmp_path, console=screen())
    assert greedy.num_questions == 2 and [path.name for path in (tmp_path / "evaluation").iterdir()] == ["test-greedy.json"]
    none = load_recipe(tiny_run, ["evaluation.greedy_limit=0"])
    with pytest.raises(ConfigError, match="no greedy answers"):
        evaluate_named(str(tiny_run), none, greedy_only=True, out=tmp_path, console=screen())


def test_a_recipe_without_held_out_tasks_is_told(tiny_project: TinyProject) -> None:
    run = load_recipe(tiny_project.recipe, ["data.test=null"])
    with pytest.raises(ConfigError, match=r"data\.test"):
        evaluate_named(str(tiny_project.recipe), run, console=screen())


def test_off_a_terminal_each_quarter_is_a_line(tiny_run: Path, tmp_path: Path) -> None:
    console = screen()
    evaluate_named(str(tiny_run), asked_differently(load_recipe(tiny_run), limit=6, samples=None), out=tmp_path, console=console)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    told = [line.split()[1:3] for line in lines if line.startswith("evaluating: test ")]
    assert told == [["test", f"{done}/6,"] for done in (2, 3, 5, 6)]
    assert all("accuracy" in line for line in lines if line.startswith("evaluating:"))


def test_what_a_recipe_asks_for() -> None:
    sampled, greedy = eval_specs(EvalConfig(limit=7, samples=3, greedy_limit=None, k=(3,)), "x")
    assert (sampled.name, sampled.questions, sampled.samples, sampled.temperature) == ("x", 7, 3, 1.0)
    assert (greedy.name, greedy.questions, greedy.samples, greedy.temperature) == ("x-greedy", None, 1, 0.0)
    assert "name" not in sampled.key and sampled.key != greedy.key
    assert len(eval_specs(EvalConfig(greedy_limit=0), "x")) == 1


def test_options_of_the_command_change_no_more_than_they_say(tiny_project: TinyProject) -> None:
    run = load_recipe(tiny_project.recipe, ["evaluation={limit: 100, greedy_limit: 3, samples: 4, k: [1, 4]}"])
    config = asked_differently(run, limit=10, samples=2).evaluation
    assert (config.limit, config.greedy_limit, config.samples, config.k) == (10, 3, 2, (1,))
    assert asked_differently(run, limit=None, samples=None) == run
