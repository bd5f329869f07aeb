"""Measures of an answer: those that compare two texts, by name, and the measure of a recipe, which scores a task's
answer."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import get_args

from arpo.answer_text import contains, exact, f1
from arpo.rewards.choices import choice
from arpo.rewards.config import Measure, load_function
from arpo.rewards.maths import MathsVerifier, compare_quickly
from arpo.rewards.numbers import read_number
from arpo.rewards.paper import Accuracy
from arpo.rewards.quantities import numeric
from arpo.rewards.short import gaia, short
from arpo.tasks import Task
from arpo.threads import run_off_loop

# `maths` is missing: it may need its own process
BY_TEXT: Mapping[str, Callable[[str, str], float]] = MappingProxyType(
    {"exact": exact, "f1": f1, "contains": contains, "numeric": numeric, "choice": choice, "short": short, "gaia": gaia}
)


def answer_measure(measure: Measure, maths_s: float = 2.0) -> Accuracy:
    """The function `(answer, task) -> accuracy`: the best score over the task's golds."""
    verifier = MathsVerifier(maths_s)

    async def maths(answer: str, gold: str) -> float:
        equal = compare_quickly(answer, gold)
        return float(await run_off_loop(verifier.equal_by_worker, answer, gold) if equal is None else equal)

    async def compare(name: str, answer: str, gold: str) -> float:
        if name == "auto":
            name = "maths" if "\\" in gold or read_number(gold) is not None else "f1"
        if name == "maths" or (name == "short" and "\\" in gold):
            return await maths(answer, gold)
        return BY_TEXT[name](answer, gold)

    async def accuracy(answer: str, task: Task) -> float:
        verify, task_measure = task.metadata.get("verify"), task.metadata.get("measure")
        if measure == "auto" and verify:
            return float(await run_off_loop(load_function(str(verify)), task, answer))
        name = str(task_measure) if measure == "auto" and task_measure in get_args(Measure) else measure
        return max([0.0, *[await compare(name, answer, gold) for gold in task.answers]])

    return accuracy
