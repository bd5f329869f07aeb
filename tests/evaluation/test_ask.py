"""Measuring a model: which one is meant, what is asked, and what is left behind."""

import io
from pathlib import Path
from typing import Any

import pytest

from arpo.display.terminal import Console
from arpo.errors import ConfigError
from arpo.evaluation.comparison import read_comparison
from arpo.evaluation.evaluate import EvalRequest, evaluate_model, with_options
from arpo.evaluation.manifest import EvalManifest
from arpo.evaluation.questions import eval_specs
from arpo.evaluation.results import EvalResults, read_evaluations, read_results
from arpo.evaluation.samples import Key, read_samples
from arpo.recipe.evaluation import EvalConfig
from arpo.recipe.load import load_recipe
from arpo.recipe.run import RunConfig
from arpo.view.library import Library
from tiny_project import TinyProject

DRAWN = '''"""An engine that answers with its draw."""
from arpo.engines.scripted import Script, ScriptedEngine


def build(config, model, tokenizer):
    return ScriptedEngine(lambda prompt, params: Script(said=f"<answer>{params.seed}</answer>"), tokenizer)
'''


def screen() -> Console:
    return Console(file=io.StringIO(), width=100)


def ask(recipe: Path, run: RunConfig, console: Console | None = None, **request: Any) -> list[EvalResults]:
    return evaluate_model(str(recipe), run, EvalRequest(**request), console=console or screen())


def answers(folder: Path) -> dict[Key, str | None]:
    return {key: sample.answer for key, sample in read_samples(folder).items()}


def test_a_run_is_asked_as_it_ended(tiny_run: Path, tmp_path: Path) -> None:
    console = screen()
    results = ask(tiny_run, load_recipe(tiny_run, ["evaluation.samples=4"]), console, out=tmp_path)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    sampled, greedy = (read_results(tmp_path / "evaluation" / name) for name in ("test", "test-greedy"))
    assert [r.accuracy for r in results] == [sampled.accuracy, greedy.accuracy]
    [figures], [of_greedy] = sampled.benchmarks, greedy.benchmarks
    assert figures.questions == 12 and figures.answers == 48 and set(figures.pass_at) == {1, 2, 4}
    assert of_greedy.questions == of_greedy.answers == 6 and greedy.manifest.settings["temperature"] == 0
    assert 0 < sampled.accuracy.mean < 1, "the tiny agent is right now and then"
    assert sampled.accuracy.low <= sampled.accuracy.mean <= sampled.accuracy.high
    assert figures.pass_at[1].mean <= figures.pass_at[2].mean <= figures.pass_at[4].mean
    assert set(figures.by_family) == {"one digit", "two digits"}
    for word in ("step 2", "pass@4", "two digits", "4 sampled", "greedy", "tool calls"):
        assert word in shown, word


def test_a_recipe_is_asked_with_its_source_and_a_model_with_the_recipe(
    tiny_run: Path, tiny_project: TinyProject, tmp_path: Path
) -> None:
    run = load_recipe(tiny_project.recipe, ["evaluation.limit=4", "evaluation.greedy_limit=0"])
    [untrained] = ask(tiny_project.recipe, run, out=tmp_path)
    assert untrained.accuracy.mean == 0, "noise is never right"
    folder = tiny_run / "checkpoints" / "step-000001" / "model"
    [trained] = ask(tiny_project.recipe, run, model=str(folder), out=tmp_path)
    [of_run] = ask(tiny_project.recipe, run, model=str(tiny_run), out=tmp_path)
    assert trained.benchmarks[0].costs["tool calls"].mean > 0 and "step 2" in of_run.model
    assert len(list((tmp_path / "evaluation").iterdir())) == 3, "each model has a folder of its own"


def test_equal_questions_get_equal_answers(tiny_run: Path, tmp_path: Path) -> None:
    run = load_recipe(tiny_run, ["engine.deterministic=true", "evaluation={limit: 5, greedy_limit: 0}"])
    for name in ("first", "again"):
        ask(tiny_run, run, out=tmp_path / name)
    other = run.model_copy(update={"evaluation": run.evaluation.model_copy(update={"seed": 7})})
    ask(tiny_run, other, out=tmp_path / "other")
    transcripts = [
        {key: sample.transcript for key, sample in read_samples(tmp_path / name / "evaluation" / "test").items()}
        for name in ("first", "again", "other")
    ]
    assert transcripts[0] == transcripts[1] != transcripts[2]


def test_held_out_tasks_through_either_entrance_give_the_same_samples(
    tiny_project: TinyProject, tmp_path: Path
) -> None:
    """As a recipe's held-out tasks and as a source that --benchmark names, with an engine whose answers are its
    draws."""
    (tiny_project.folder / "drawn_agent.py").write_text(DRAWN)
    changes = ["engine.kind=drawn_agent:build", "evaluation={limit: 6, greedy_limit: 0, samples: 3}"]
    run = load_recipe(tiny_project.recipe, changes)
    [held_out] = ask(tiny_project.recipe, run, out=tmp_path / "one")
    [benchmark] = ask(tiny_project.recipe, run, benchmarks=[str(run.data.test.source)], limit=6, out=tmp_path / "two")
    [folder] = (tmp_path / "one" / "evaluation").iterdir()
    first, second = answers(folder), answers(tmp_path / "two")
    assert {key[1:]: answer for key, answer in first.items()} == {key[1:]: answer for key, answer in second.items()}
    assert len(first) == 18 and len(set(first.values())) > 12, "each sample has draws of its own"
    assert held_out.by_question == benchmark.by_question and held_out.accuracy == benchmark.accuracy
    layouts = [sorted(path.name for path in each.iterdir()) for each in (folder, tmp_path / "two")]
    assert layouts[0] == layouts[1], "one layout"


def test_held_out_tasks_are_gone_on_with(tiny_run: Path, tmp_path: Path) -> None:
    run = load_recipe(tiny_run, ["evaluation={limit: 4, greedy_limit: 0}"])
    ask(tiny_run, with_options(run, limit=2, samples=None), out=tmp_path)
    with pytest.raises(ConfigError, match="not empty"):
        ask(tiny_run, run, out=tmp_path)
    console = screen()
    [results] = ask(tiny_run, run, console, out=tmp_path, resume=True)
    assert "asking 2 of 4" in console.file.getvalue() and results.benchmarks[0].answers == 4  # type: ignore[attr-defined]


def test_greedy_alone(tiny_run: Path, tmp_path: Path) -> None:
    run = with_options(load_recipe(tiny_run), limit=2, samples=None)
    [greedy] = ask(tiny_run, run, greedy=True, out=tmp_path)
    assert greedy.benchmarks[0].questions == 2
    assert [path.name for path in (tmp_path / "evaluation").iterdir()] == ["test-greedy"]
    none = load_recipe(tiny_run, ["evaluation.greedy_limit=0"])
    with pytest.raises(ConfigError, match="no greedy answers"):
        ask(tiny_run, none, greedy=True, out=tmp_path)


def test_a_recipe_without_held_out_tasks_is_told(tiny_project: TinyProject) -> None:
    run = load_recipe(tiny_project.recipe, ["data.test=null"])
    with pytest.raises(ConfigError, match=r"data\.test"):
        ask(tiny_project.recipe, run)


def test_off_a_terminal_each_quarter_is_a_line(tiny_run: Path, tmp_path: Path) -> None:
    console = screen()
    ask(tiny_run, with_options(load_recipe(tiny_run), limit=6, samples=None), console, out=tmp_path)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    told = [line for line in lines if line.startswith("evaluating test: ")]
    assert [line.split()[2:5] for line in told] == [[str(done), "of", "6,"] for done in (2, 3, 5, 6)]
    assert all("accuracy" in line for line in told)


def test_answers_in_another_environment_are_other_answers(tiny_run: Path) -> None:
    def manifest(*changes: str) -> EvalManifest:
        run = load_recipe(tiny_run, changes)
        return EvalManifest.from_run(run, eval_specs(run.evaluation, "test")[0], [], model="tiny")

    def table(name: str) -> str:
        return f'environment={{use: sql, options: {{script: "create table {name}(item text);"}}}}'

    none, one, other = manifest(), manifest(table("one")), manifest(table("other"))
    assert one.decides == manifest(table("one")).decides != other.decides
    assert not any(key.startswith("environment") for key in none.decides), "earlier evaluations go on"


@pytest.mark.parametrize("form", ["run", "benchmarks"])
def test_an_old_form_is_refused_by_name(tmp_path: Path, form: str) -> None:
    path = tmp_path / "asked.json" if form == "benchmarks" else tmp_path / "evaluation" / "before.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"schema": "arpo/asked/1"}' if form == "benchmarks" else '{"schema": "arpo/evaluation/1"}')
    for read in (read_evaluations, lambda folder: read_comparison([folder]), lambda folder: Library([folder])):
        with pytest.raises(ConfigError, match=r"old form.*evaluate again"):
            read(tmp_path)


def test_what_a_recipe_asks_for() -> None:
    sampled, greedy = eval_specs(EvalConfig(limit=7, samples=3, greedy_limit=None), "x")
    assert (sampled.name, sampled.questions, sampled.samples, sampled.temperature) == ("x", 7, 3, 1.0)
    assert (greedy.name, greedy.questions, greedy.samples, greedy.temperature) == ("x-greedy", None, 1, 0.0)
    assert "name" not in sampled.key and sampled.key != greedy.key
    assert len(eval_specs(EvalConfig(greedy_limit=0), "x")) == 1


def test_options_of_the_command_change_no_more_than_they_say(tiny_project: TinyProject) -> None:
    run = load_recipe(tiny_project.recipe, ["evaluation={limit: 100, greedy_limit: 3, samples: 4}"])
    config = with_options(run, limit=10, samples=2).evaluation
    assert (config.limit, config.greedy_limit, config.samples) == (10, 3, 2)
    assert with_options(run, limit=None, samples=None) == run
