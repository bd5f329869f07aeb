"""A task may bring its own verifier: `auto` scores by it, every other measure by the golds."""

import asyncio

import pytest

from arpo.rewards.measures import answer_measure
from arpo.tasks import Task

VERIFIER = "def even(task, answer):\n    return float(answer.isdigit() and int(answer) % 2 == 0) / 2\n"


@pytest.mark.parametrize(
    ("measure", "accuracy"), [("auto", 0.5), ("exact", 0.0), ("f1", 0.0), ("contains", 0.0), ("maths", 0.0)]
)
def test_a_verifier_that_a_task_brings_is_what_auto_asks(measure, accuracy, tmp_path, monkeypatch):
    (tmp_path / "brought_verifier.py").write_text(VERIFIER)
    monkeypatch.syspath_prepend(tmp_path)
    task = Task(id="t", messages=(), answers=("8",), metadata={"verify": "brought_verifier:even"})
    assert asyncio.run(answer_measure(measure)("6", task)) == accuracy


def test_a_task_of_reasoning_gym_is_scored_by_its_generator():
    pytest.importorskip("reasoning_gym")
    from arpo.tasks.gym import tasks

    (task,) = tasks("chain_sum", options={"size": 1})
    right, wrong = (asyncio.run(answer_measure("auto")(answer, task)) for answer in (task.answers[0], "no number"))
    assert right == 1.0 > wrong
