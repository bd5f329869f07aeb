"""A trial shows what training would see, measures what it would take, and leaves nothing behind."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arpo.core.tree import Turn
from arpo.display.terminal import Console
from arpo.dry_run.display import trained_tokens
from arpo.dry_run.dry_run import DryRun, dry_run
from arpo.dry_run.estimate import Timings, estimate
from arpo.errors import FormatError
from arpo.recipe.load import load_recipe
from arpo.recipe.run import RunConfig
from arpo.training.task_sampler import first_step
from tiny_project import TinyProject


def shown_trial(run: RunConfig) -> tuple[DryRun, str]:
    console = Console(file=io.StringIO(), width=100)
    return dry_run(run, console), console.file.getvalue()  # type: ignore[attr-defined]


def everything_below(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if "__pycache__" not in path.parts}


def test_it_shows_prompt_tree_rewards_mask_gates_and_costs_and_writes_nothing(
    tiny_run: Path, tiny_project: TinyProject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    before = everything_below(tiny_project.folder)
    trial, shown = shown_trial(load_recipe(tiny_project.recipe))
    assert everything_below(tiny_project.folder) == before and not list(tmp_path.iterdir())
    rollout = trial.rollouts[0]
    prompt = rollout.grown.chat.text(rollout.grown.tree.prompt.tokens)
    for line in prompt.strip().splitlines():
        assert line in shown
    for word in (
        "cold-started",
        "28 tasks",
        "its tree: 6 leaves",
        "rise",
        "wanted",
        "advantage",
        "trained",
        "gates",
        "GiB",
        "a step",
    ):
        assert word in shown, word
    assert "not cold-started" not in shown
    assert len(trial.rollouts) == 3 and trial.timings.trees_at_once == 2
    assert trial.timings.update_s > 0 and trial.timings.memory > 2**20
    assert trial.estimate.step_s > 0 and trial.estimate.num_steps == 2 and trial.estimate.cold_start_s == 0


def test_its_trees_are_those_of_the_first_step(tiny_run: Path, tiny_project: TinyProject) -> None:
    from arpo.runs.folder import RunFolder

    trial, _ = shown_trial(load_recipe(tiny_project.recipe))
    recorded = [record.tree.task for record in RunFolder(tiny_run).trees(1)]
    assert [rollout.task.id for rollout in trial.rollouts] == recorded


def test_the_mask_is_the_turns_and_nothing_else(tiny_run: Path, tiny_project: TinyProject) -> None:
    trial, _ = shown_trial(load_recipe(tiny_project.recipe))
    checked = 0
    for credited in trial.credited:
        for leaf in credited.advantages:
            expected, at = set(), 0
            for segment in credited.tree.path(leaf):
                if isinstance(segment, Turn):
                    expected |= set(range(at, at + len(segment.tokens)))
                at += len(segment.tokens)
            assert trained_tokens(credited, leaf) == expected
            checked += 1
    assert checked >= 10


def test_without_a_cold_start_it_says_so_and_still_measures(
    tiny_project: TinyProject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ARPO_CACHE", str(tmp_path / "empty"))
    trial, shown = shown_trial(load_recipe(tiny_project.recipe))
    assert "not cold-started yet" in shown and "gates are checked in the first step, after the cold start" in shown
    assert "FAILS" not in shown and "holds" not in shown, "a model is not held against what its cold start teaches"
    assert (
        trial.timings.made_up and trial.timings.update_s > 0
    )  # a model of noise is never right, so no group has mixed rewards
    assert trial.estimate.cold_start_s > 0
    assert not (tmp_path / "empty" / "cold-starts").exists()


def test_a_trace_that_cannot_be_said_is_found_before_anything_long(
    tiny_project: TinyProject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ARPO_CACHE", str(tmp_path))
    traces = tmp_path / "traces.jsonl"
    traces.write_text('{"question": "Parity of 3", "answers": ["odd"], "steps": [{"answer": "a </parity> tag"}]}\n')
    with pytest.raises(FormatError, match="cannot stand inside"):
        shown_trial(load_recipe(tiny_project.recipe, [f"cold_start.traces={traces}"]))


def test_the_first_step_is_the_loops(tiny_project: TinyProject) -> None:
    from arpo.assembly.components import read_tasks

    run = load_recipe(tiny_project.recipe, ["train.tasks_per_step=5"])
    tasks, _ = read_tasks(run, "train")
    chosen = first_step(run, tasks)
    assert len({task.id for task in chosen}) == 5
    assert [t.id for t in first_step(run.model_copy(update={"seed": 99}), tasks)] != [t.id for t in chosen]


TOOK = Timings(
    tree_s=2.0,
    trees_at_once=3,
    update_s=4.0,
    trees_updated=2,
    leaves_updated=12,
    tokens_trained=100,
    tokens_flat=300,
    memory=1,
    made_up=False,
)


@given(steps=st.integers(1, 200), tasks=st.integers(1, 32), minutes=st.floats(0.1, 1000), traces=st.integers(0, 500))
def test_forecasts_add_up(steps: int, tasks: int, minutes: float, traces: int) -> None:
    run = RunConfig(
        data={"train": {"source": "a.jsonl"}},
        rollout={"leaves": 4, "roots": 2},
        train={"steps": steps, "tasks_per_step": tasks, "minutes": minutes},
        cold_start={"batch": 8},
        evaluation={"limit": 10, "greedy_limit": 0},
    )  # type: ignore[arg-type]
    expected = estimate(run, TOOK, num_tasks=1000, num_held_out=50, num_traces=traces)
    assert expected.step_s == pytest.approx(tasks * (2.0 + 4.0 / 2))
    assert expected.training_s == pytest.approx(steps * expected.step_s)
    assert expected.evaluations_s == pytest.approx(2 * 10 * 2.0 / 4)  # before and after, an answer costs about a leaf
    assert (expected.cold_start_s > 0) == (traces > 0)
    fits = expected.steps_that_fit
    assert 0 <= fits <= steps
    spent = fits * expected.step_s + expected.evaluations_s + expected.cold_start_s
    assert fits == 0 or spent <= 60 * minutes + 1e-6
    assert fits == steps or spent + expected.step_s > 60 * minutes - 1e-6
    assert replace(expected, minutes=None).steps_that_fit == steps
