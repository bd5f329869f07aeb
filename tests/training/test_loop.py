"""The loop: which tasks a step takes, what it trains on, and what it leaves behind."""

import asyncio
import math
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from loop_world import PLAIN, go, mixed_on_odd, texts, training, weights, wrong

from arpo.core.place import read_place
from arpo.core.record import replay
from arpo.core.tree import Role
from arpo.engines import SamplingParams
from arpo.engines.scripted import ScriptedEngine
from arpo.runs import checkpoint
from arpo.runs.folder import RunFolder
from arpo.training.task_sampler import in_order
from tiny_project import TinyProject, question, trace

# --- data order


def test_steps_consume_tasks_in_order_and_count_them(tiny_project: TinyProject, tmp_path: Path) -> None:
    trainer, folder = go(tiny_project, tmp_path / "run", mixed_on_odd, *PLAIN, "train.steps=3")
    expected = [task.id for task in in_order(trainer.tasks, trainer.run.seed, 0, 9, apart=3)]
    assert [record.tree.task for step in (1, 2, 3) for record in folder.trees(step)] == expected
    assert [line["tasks/position"] for line in folder.metrics()] == [3, 6, 9]
    assert trainer.state.position == 9 and trainer.state.step == 3


@pytest.mark.parametrize("dynamic", ["null", "3"])
def test_no_step_takes_a_task_twice_where_epochs_meet(tiny_project: TinyProject, tmp_path: Path, dynamic: str) -> None:
    """Two trees of one task in a step would have the same draws."""
    plan = ("data.train.limit=5", "train.steps=4", f"train.dynamic_sampling={dynamic}")
    trainer, folder = go(tiny_project, tmp_path / "run", mixed_on_odd, *PLAIN, *plan)
    steps = [[record.tree.task for record in folder.trees(step)] for step in (1, 2, 3, 4)]
    assert all(len({*step}) == len(step) for step in steps)
    seen = [task for step in steps for task in step]
    assert trainer.state.position == len(seen) >= 12 and {*seen[:5]} == {*seen[5:10]}


# --- budgets


@pytest.mark.parametrize(
    ("name", "metric"),
    [("leaves", "leaves/all"), ("tokens_generated", "tokens/generated"),
     ("tokens_trained", "train/tokens_trained")],
)  # fmt: skip
def test_training_ends_with_the_step_that_reaches_its_budget(
    tiny_project: TinyProject, tmp_path: Path, name: str, metric: str
) -> None:
    whole = go(tiny_project, tmp_path / "whole", mixed_on_odd, *PLAIN, "train.steps=4")[1].metrics()
    spent = [sum(line[metric] for line in whole[:step]) for step in (1, 2, 3)]
    assert spent[0] < spent[1] < spent[2]
    trainer, folder = go(
        tiny_project, tmp_path / "run", mixed_on_odd, *PLAIN, "train.steps=4", f"train.budget={{{name}: {spent[1]}}}"
    )
    assert len(folder.metrics()) == 2 and trainer.ended_early == f"{spent[1]:,.0f} {name} are spent (train.budget)"
    assert any(trainer.ended_early in text for text in texts(folder))


# --- dynamic sampling, and nothing to learn


def test_dynamic_sampling_tries_on_until_a_step_is_full(tiny_project: TinyProject, tmp_path: Path) -> None:
    plan = ("train.steps=3", "train.dynamic_sampling=5", "rollout.leaves=8", "rollout.roots=8")
    trainer, folder = go(tiny_project, tmp_path / "run", mixed_on_odd, *PLAIN, *plan)
    position = 0
    for step, line in enumerate(folder.metrics(), 1):
        records = list(folder.trees(step))
        mixed = [len({score.reward for score in record.scores.values()}) > 1 for record in records]
        assert sum(mixed) == 3 and mixed[-1], "it stops with the third group that can teach something"
        assert [record.tree.task for record in records] == [
            task.id for task in in_order(trainer.tasks, trainer.run.seed, position, len(records), apart=15)
        ]
        position += len(records)
        assert line["tasks/position"] == position and line["tasks/tried"] == len(records) == line["groups/all"]
        assert line["calls/executed"] == 0 and line["tokens/generated"] == sum(
            len(turn.tokens) for record in records for turn in record.tree.turns.values()
        ), "what was thrown away was sampled, too"
        assert all(bool(record.credit) == teaches for record, teaches in zip(records, mixed, strict=True))
    assert any(line["tasks/tried"] > 3 for line in folder.metrics())


def test_dynamic_sampling_is_bounded(tiny_project: TinyProject, tmp_path: Path) -> None:
    plan = ("train.steps=2", "train.dynamic_sampling=2")
    trainer, folder = go(tiny_project, tmp_path / "run", wrong, *PLAIN, *plan)
    assert [line["tasks/tried"] for line in folder.metrics()] == [6, 6] and trainer.state.position == 12
    assert any("only 0 of 6 groups have mixed rewards" in text for text in texts(folder))


def test_a_step_that_can_teach_nothing_is_counted_and_said(tiny_project: TinyProject, tmp_path: Path) -> None:
    with training(tiny_project, tmp_path / "run", wrong, *PLAIN, "train.steps=2") as trainer:
        before = weights(trainer)
        asyncio.run(trainer.train())
        assert all(a.equal(b) for a, b in zip(before, weights(trainer), strict=True))
    folder = RunFolder(tmp_path / "run")
    assert [line["train/updates"] for line in folder.metrics()] == [0, 0]
    assert [line["train/tokens_trained"] for line in folder.metrics()] == [0, 0]
    assert sum("nothing to train on" in text for text in texts(folder)) == 2
    assert trainer.state.step == 2 and trainer.learner.optimizer.state_dict()["state"] == {}


# --- what a step leaves

KEYS = {
    "reward": "leaves probe_lines fork_weighted std",
    "accuracy": "leaves probe_lines fork_weighted",
    "rates": "format tool_use mixed_groups",
    "calls": "asked answered executed inherited cached shared",
    "tokens": "generated shared trained_unique trained_flat",
    "decisions": "tips wanted granted refused waited_s",
    "entropy": "first after_tool rise rise_positive",
    "leaves": "all scored lost fills siblings",
    "tasks": "position tried",
    "train": "loss grad_norm lr updates skipped_updates tokens_trained tokens_flat mismatch_abs_mean "
    "ratio_max clipped_high",
    "seconds": "sampling records update step",
}


def test_every_step_leaves_its_metrics_and_records_that_replay(tiny_run: Path) -> None:
    folder = RunFolder(tiny_run)
    for line in folder.metrics():
        assert [
            f"{group}/{name}"
            for group, names in KEYS.items()
            for name in names.split()
            if f"{group}/{name}" not in line
        ] == []
        assert all(isinstance(value, int | float) and math.isfinite(value) for value in line.values())
        parts = sum(seconds for key, seconds in line.items() if key.startswith("seconds/") and key != "seconds/step")
        assert 0 < parts <= line["seconds/step"] + 1e-6, "no second counts twice"
        records = list(folder.trees(line["step"]))
        assert len(records) == line["groups/all"] == 3
        for record in records:
            assert replay(record) == record.tree
            assert record.advantages, "of a task written twice, the frame with credit counts"
            thought = record.notes["learner_logprobs"]
            for place, logprobs in thought.items():
                turn = record.tree.turns[read_place(place)]
                assert list(logprobs) == pytest.approx(list(turn.logprobs), abs=2e-3), (
                    "the engine's are the learner's, in float32"
                )
        assert any(record.notes["learner_logprobs"] for record in records) == bool(line["train/updates"])
        for record in records:
            assert all(turn.versions[0][0] == line["step"] - 1 for turn in record.tree.turns.values()), (
                "sampled by the last weights"
            )
        roles = [turn.role for record in records for turn in record.tree.turns.values()]
        assert line["leaves/siblings"] == roles.count(Role.SIBLING)


def test_engine_and_learner_agree_in_a_run(tiny_run: Path) -> None:
    assert all(line["train/mismatch_abs_max"] < 1e-4 for line in RunFolder(tiny_run).metrics())


# --- Ctrl-C


def test_cancelled_it_saves_what_is_finished(tiny_project: TinyProject, tmp_path: Path) -> None:
    running: list[asyncio.Task[Any]] = []

    def stopped(engine: ScriptedEngine, asked: int, text: str, params: SamplingParams) -> str:
        if engine.version == 2:
            running[0].cancel()
        return mixed_on_odd(engine, asked, text, params)

    async def main() -> None:
        running.append(asyncio.ensure_future(trainer.train()))
        await running[0]

    plan = ("train.steps=99", "train.save_every=50")
    with (
        training(tiny_project, tmp_path / "run", stopped, *PLAIN, *plan) as trainer,
        pytest.raises(asyncio.CancelledError),
    ):
        asyncio.run(main())
    saved, _ = checkpoint.newest(tmp_path / "run" / "checkpoints")
    assert saved is not None and saved.state == trainer.state and saved.state.step == 2


# --- the world of these tests


def test_a_trace_asks_what_the_tests_read() -> None:
    """The scripts find the number in the prompt."""
    assert trace(7)["question"] == question(7)["question"] == "Parity of 7"


def test_the_engine_rests_before_the_update_and_has_the_new_weights_before_it_is_asked_again(
    tiny_project: TinyProject, tmp_path: Path
) -> None:
    """Its memory is the learner's meanwhile."""
    done: list[str] = []

    def named(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def noted(*arguments: Any, **more: Any) -> Any:
            done.append(what)
            return function(*arguments, **more)

        return noted

    with training(tiny_project, tmp_path / "run", mixed_on_odd, *PLAIN, "train.steps=3") as trainer:
        engine: Any = trainer.components.agent.engine
        for method in ("sample", "sleep", "update_weights"):
            setattr(engine, method, named(method, getattr(engine, method)))
        trainer.learner.update = named("update", trainer.learner.update)  # type: ignore[method-assign]
        asyncio.run(trainer.train())
    order = [what for what, _ in groupby(done)]
    assert order == ["sample", "sleep", "update", "update_weights"] * 3
