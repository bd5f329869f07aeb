"""The order of training tasks: every epoch whole, no task twice in a step, and the same wherever a run is taken up."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arpo.dry_run.dry_run import dry_run
from arpo.errors import ConfigError
from arpo.recipe.load import load_recipe
from arpo.recipe.run import RunConfig
from arpo.recipe.train import TrainConfig
from arpo.tasks import Task
from arpo.training.pipeline import train
from arpo.training.task_sampler import check_enough, in_order, max_tried
from tiny_project import TinyProject


def named(count: int) -> list[Task]:
    return [Task(id=str(i), messages=(), answers=()) for i in range(count)]


def ids(count: int, seed: int, position: int, taken: int, apart: int = 1) -> list[str]:
    return [task.id for task in in_order(named(count), seed, position, taken, apart=apart)]


def test_every_epoch_shows_every_task_once_in_an_order_of_its_own() -> None:
    seen = ids(7, 3, 0, 21)
    epochs = [seen[start : start + 7] for start in (0, 7, 14)]
    assert all(sorted(epoch) == sorted(str(i) for i in range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert ids(7, 4, 0, 7) != epochs[0]


@given(st.integers(1, 12), st.integers(0, 5), st.data())
def test_no_task_comes_twice_within_a_step_wherever_it_begins(count: int, seed: int, data: st.DataObject) -> None:
    apart = data.draw(st.integers(1, count))
    seen = ids(count, seed, 0, 5 * count, apart)
    for begin in range(len(seen) - apart):
        assert len({*seen[begin : begin + apart]}) == apart
    for epoch in range(5):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == sorted(str(i) for i in range(count))
    position = data.draw(st.integers(0, 4 * count))
    assert ids(count, seed, position, count, apart) == seen[position : position + count]


def test_keeping_apart_leaves_the_first_epoch_as_it_is_and_later_ones_mixed() -> None:
    first, second = ids(40, 0, 0, 40, apart=8), ids(40, 0, 40, 40, apart=8)
    assert first == ids(40, 0, 0, 40)
    assert sum(before != after for before, after in zip(first, second, strict=True)) > 30


def test_a_step_tries_no_more_tasks_than_there_are() -> None:
    dynamic = TrainConfig.model_validate({"tasks_per_step": 8, "dynamic_sampling": 3})
    assert [max_tried(dynamic, tasks) for tasks in (8, 20, 24, 100)] == [8, 20, 24, 24]
    assert max_tried(TrainConfig(tasks_per_step=8), 100) == 8


def test_too_few_tasks_for_a_step_are_a_mistake_that_names_both_numbers() -> None:
    check_enough(TrainConfig(tasks_per_step=8), 8)
    with pytest.raises(
        ConfigError, match=r"train\.tasks_per_step: a step takes 8 different tasks, and data\.train has only 5"
    ):
        check_enough(TrainConfig(tasks_per_step=8), 5)


@pytest.mark.parametrize(
    "begin", [lambda run, out: train(run, out=out), lambda run, out: dry_run(run)], ids=["train", "try"]
)
def test_too_few_tasks_are_said_before_anything_is_computed(
    begin: object, tiny_project: TinyProject, tmp_path: Path
) -> None:
    run = load_recipe(tiny_project.recipe, ["train.tasks_per_step=29", "model.source=./nowhere"])
    assert isinstance(run, RunConfig) and callable(begin)
    with pytest.raises(ConfigError, match=r"takes 29 different tasks, and data\.train has only 28"):
        begin(run, tmp_path / "run")
