"""Evaluations of benchmarks side by side: paired differences on the same questions, and the questions that changed sides.

Knows folders of evaluations. Refuses to know how they are shown. Evaluations that differ in nothing but their seed are one.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from arpo.errors import ConfigError
from arpo.evaluation.benchmark_results import COSTS
from arpo.evaluation.manifest import EvalManifest, read_manifest
from arpo.evaluation.samples import SampleRecord, read_samples
from arpo.evaluation.statistics import Estimate, Paired, bootstrap, over_seeds, paired_difference, rate

RIGHT = 0.5  # the mean accuracy of a question from which on it counts as right


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A question that one side answers and the other does not."""

    benchmark: str
    id: str
    question: str
    gold: Sequence[str]
    before: float  # mean accuracy
    after: float
    answers_before: Sequence[str]
    answers_after: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Side:
    """One evaluation, or several over seeds."""

    name: str
    asked: Sequence[EvalManifest]
    answers: Sequence[Sequence[SampleRecord]]

    @cached_property
    def benchmarks(self) -> dict[str, EvalManifest]:
        return {name: asked for asked in self.asked for name in asked.benchmark}

    def by_question(self, benchmark: str, value: Callable[[SampleRecord], float] = lambda a: a.accuracy) -> dict[str, float]:
        """The mean of `value` over all answers to each question."""
        return {id: math.fsum(map(value, given)) / len(given) for id, given in self.answers_to(benchmark).items()}

    def accuracy(self, benchmark: str) -> Estimate:
        """Over seeds (Student's t) where there are several, else over questions."""
        means = []
        for given in self.answers:
            grouped: dict[str, list[float]] = {}
            for answer in given:
                if answer.benchmark == benchmark:
                    grouped.setdefault(answer.id, []).append(answer.accuracy)
            means += [rate(grouped)] if grouped else []
        return means[0] if len(means) == 1 else over_seeds([each.mean for each in means])

    def costs(self, benchmark: str) -> dict[str, Estimate]:
        return {name: bootstrap(list(self.by_question(benchmark, value).values()), purpose=name) for name, value in COSTS.items()}

    def answers_to(self, benchmark: str) -> dict[str, list[SampleRecord]]:
        """Answers by question."""
        found: dict[str, list[SampleRecord]] = {}
        for given in self.answers:
            for answer in given:
                if answer.benchmark == benchmark:
                    found.setdefault(answer.id, []).append(answer)
        return found


@dataclass(frozen=True, kw_only=True)
class Sides:
    """The first one is what the others are compared with."""

    sides: Sequence[Side]

    @property
    def benchmarks(self) -> list[str]:
        """Those that the first side and another one have."""
        first, *others = self.sides
        return [name for name in first.benchmarks if any(name in other.benchmarks for other in others)]

    def difference(self, other: Side, benchmark: str) -> Paired | None:
        """`other` minus the first on the questions that both answered; None where there are none."""
        a, b = (side.by_question(benchmark) for side in (self.sides[0], other))
        return paired_difference(a, b) if a.keys() & b.keys() else None

    def same_questions(self, other: Side, benchmark: str) -> bool:
        mine, theirs = (side.benchmarks[benchmark].benchmark[benchmark].digest for side in (self.sides[0], other))
        return mine == theirs

    def changes(self, other: Side, benchmark: str) -> list[Change]:
        """Questions that are right (a mean accuracy of 0.5 and more) on one side alone: those lost first, large changes first."""
        first, second = self.sides[0].answers_to(benchmark), other.answers_to(benchmark)
        before, after = self.sides[0].by_question(benchmark), other.by_question(benchmark)
        found = [
            Change(
                benchmark=benchmark,
                id=id,
                question=first[id][0].question,
                gold=first[id][0].gold,
                before=before[id],
                after=after[id],
                answers_before=_said(first[id]),
                answers_after=_said(second[id]),
            )
            for id in sorted(before.keys() & after.keys())
            if (before[id] >= RIGHT) != (after[id] >= RIGHT)
        ]
        return sorted(found, key=lambda change: (change.after > change.before, -abs(change.after - change.before), change.id))


def _said(answers: Sequence[SampleRecord]) -> list[str]:
    return list(dict.fromkeys(a.answer if a.answer is not None else f"({a.ending.replace('_', ' ')})" for a in answers))


def read_sides(folders: Sequence[Path]) -> Sides:
    """Raises ConfigError where there are less than two evaluations, or they share no benchmark."""
    if len(folders) < 2:
        raise ConfigError("name at least two evaluations", where="evaluations", value=[str(folder) for folder in folders])
    asked = [read_manifest(folder) for folder in folders]
    answers = [list(read_samples(folder).values()) for folder in folders]
    grouped: dict[str, list[int]] = {}
    for number, each in enumerate(asked):
        grouped.setdefault(repr(_what(each)), []).append(number)
    names = _names(folders)
    sides = []
    for numbers in grouped.values():
        seeds = {asked[number].settings.get("seed") for number in numbers}
        together = [numbers] if len(seeds) == len(numbers) and len(numbers) < len(folders) else [[number] for number in numbers]
        for group in together:
            name = names[group[0]] + (f" and {len(group) - 1} more seeds" if len(group) > 1 else "")
            sides.append(Side(name=name, asked=[asked[n] for n in group], answers=[answers[n] for n in group]))
    found = Sides(sides=sides)
    if not found.benchmarks:
        raise ConfigError("these evaluations share no benchmark", where="evaluations", value=names)
    return found


def _what(asked: EvalManifest) -> Mapping[str, object]:
    """All that decides answers but the seed."""
    settings = {name: value for name, value in asked.settings.items() if name != "seed"}
    return {"model": asked.model, **settings, **asked.decides}


def _names(folders: Sequence[Path]) -> list[str]:
    """Their last parts, as many as tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]
