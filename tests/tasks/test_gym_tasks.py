"""reasoning-gym as a source: tasks carry what their verifier needs."""

import importlib.util
import json

import pytest

from arpo.errors import ConfigError, RewardError
from arpo.tasks import Task
from arpo.tasks.data import DataConfig, load, load_with_report

if (
    importlib.util.find_spec("reasoning_gym") is None
):  # imported by whoever draws tasks: every worker collects this file
    pytest.skip("needs reasoning-gym", allow_module_level=True)

from arpo.tasks import gym


def test_a_right_answer_scores_one_and_a_wrong_one_less() -> None:
    for name in ("leg_counting", "chain_sum", "spell_backward"):
        for task in load(DataConfig(source=f"gym:{name}", options={"size": 4, "seed": 5})):
            assert gym.gym_score(task, task.answers[0]) == 1.0
            assert gym.gym_score(task, "certainly not this") < 1.0
            assert gym.gym_score(task, None) < 1.0


def test_a_task_that_went_through_a_file_can_still_be_scored() -> None:
    task = load(DataConfig(source="gym:countdown", options={"size": 2}))[1]
    written = json.loads(json.dumps(task.metadata))
    again = Task(id="copy", messages=task.messages, answers=task.answers, metadata=written)
    assert gym.gym_score(again, task.answers[0]) == 1.0
    assert task.metadata["verify"] == "arpo.tasks.gym:gym_score"


def test_splits_are_different_draws_and_the_same_each_time() -> None:
    drawn = {
        split: load(DataConfig(source="gym:chain_sum", split=split, options={"size": 30})) for split in gym.SPLIT_SEEDS
    }
    assert drawn["train"] == load(DataConfig(source="gym:chain_sum", options={"size": 30}))
    asked = {split: {task.question for task in tasks} for split, tasks in drawn.items()}
    assert not asked["train"] & asked["test"] and not asked["train"] & asked["validation"]


def test_tasks_without_an_oracle_are_reported_and_scored_by_their_verifier() -> None:
    tasks, report = load_with_report(DataConfig(source="gym:rubiks_cube", options={"size": 2}))
    assert all(task.answers == () for task in tasks)
    assert report.notes == (
        "2 without a reference answer (a verifier or an environment scores them)",
    ) and report.notes[0] in str(report)
    assert 0 <= gym.gym_score(tasks[0], "R U") <= 1


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"source": "gym:leg_countin"}, ["did you mean 'leg_counting'"]),
        ({"source": "gym:leg_counting", "split": "dev"}, ["split", "dev"]),
        ({"source": "gym:leg_counting", "options": {"size": 0}}, ["options.size", "0"]),
        ({"source": "gym:leg_counting", "options": {"seed": "a"}}, ["options.seed", "'a'"]),
        ({"source": "gym:leg_counting", "options": {"legs": 3}}, ["gym:leg_counting", "legs"]),
        ({"source": "gym:leg_counting", "options": {"min_animals": -3}}, ["gym:leg_counting", "-3"]),
    ],
)
def test_wrong_requests_are_named(config: dict, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(DataConfig(**config))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_scoring_a_task_from_elsewhere_is_an_error() -> None:
    with pytest.raises(RewardError, match="a/1"):
        gym.gym_score(Task(id="a/1", messages=({"role": "user", "content": "?"},), answers=("x",)), "x")


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[gym\]'"):
        load(DataConfig(source="gym:leg_counting"))
