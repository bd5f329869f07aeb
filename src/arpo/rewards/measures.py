"""Measures of an answer: those that compare two texts, by name, and the measure of a recipe, which scores a task's
answer."""

from collections.abc import Callable, Iterable
from types import MappingProxyType
from typing import Any

from arpo.answer_text import contains, exact, f1
from arpo.rewards.choices import choice
from arpo.rewards.config import Measure, RewardConfig, load_function
from arpo.rewards.maths import gold_problem, maths
from arpo.rewards.numbers import read_number
from arpo.rewards.paper import Accuracy
from arpo.rewards.quantities import numeric
from arpo.rewards.short import gaia, short
from arpo.tasks import Task
from arpo.threads import run_off_loop

_BY_TEXT: dict[str, Callable[[str, str], float]] = {
    "exact": exact,
    "f1": f1,
    "contains": contains,
    "maths": maths,
    "numeric": numeric,
    "choice": choice,
    "short": short,
    "gaia": gaia,
}
BY_TEXT = MappingProxyType(_BY_TEXT)


def measure_name(measure: str, task_measure: str, gold: str) -> str:
    """The measure that compares answers with `gold`: `auto` is the task's own (`task_measure`, "" for none)."""
    name = task_measure if measure == "auto" else measure
    if name not in BY_TEXT:
        name = "maths" if "\\" in gold or read_number(gold) is not None else "f1"
    return "maths" if name == "short" and "\\" in gold else name


def gold_problems(task: Task, measure: Measure = "auto") -> list[str]:
    """Why answers to `task` cannot be scored: golds that the measure cannot read, or that do not equal themselves."""
    if measure == "auto" and task.metadata.get("verify"):
        return []
    problems = []
    for gold in task.answers:
        name = measure_name(measure, str(task.metadata.get("measure", "")), gold)
        problem = gold_problem(gold) if name == "maths" else None
        if problem is None and BY_TEXT[name](gold, gold) != 1.0:
            problem = "is not equal to itself"
        if problem is not None:
            problems.append(f"the gold {gold!r} {problem} by the measure {name}")
    return problems


def gold_warning(tasks: Iterable[Task], reward: RewardConfig | Callable[..., Any]) -> str:
    """Names the golds that no answer can equal, except as the same text; "" where there are none, or where answers are
    scored by a reward of one's own."""
    if not isinstance(reward, RewardConfig) or reward.use:
        return ""
    problems = [f"{task.id}: {problem}" for task in tasks for problem in gold_problems(task, reward.answer)]
    if not problems:
        return ""
    rest = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
    return f"{len(problems)} golds that answers can equal only as the same text: {'; '.join(problems[:5])}{rest}"


def answer_measure(measure: Measure) -> Accuracy:
    """The function `(answer, task) -> accuracy`: the best score over the task's golds."""

    async def compare(name: str, answer: str, gold: str) -> float:
        if name == "maths":  # a long formula takes a second
            return await run_off_loop(maths, answer, gold)
        return BY_TEXT[name](answer, gold)

    async def accuracy(answer: str, task: Task) -> float:
        verify = task.metadata.get("verify")
        if measure == "auto" and verify:
            return float(await run_off_loop(load_function(str(verify)), task, answer))
        own = str(task.metadata.get("measure", ""))
        return max([0.0, *[await compare(measure_name(measure, own, gold), answer, gold) for gold in task.answers]])

    return accuracy
