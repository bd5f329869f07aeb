"""Runs, or evaluations, side by side: costs, levels at equal budgets, and paired differences on the same questions.

Knows the folders of runs and evaluations, and how to group them into methods over seeds. Refuses to know how they are
shown. Runs whose recipes differ in nothing but seed and names are one method; so are evaluations whose manifests differ
in nothing but the seed.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

from arpo.display.charts import Line, Panel, draw, running_mean
from arpo.errors import ConfigError
from arpo.evaluation.manifest import EvalManifest, check_form, is_evaluation, read_manifest
from arpo.evaluation.results import COSTS, BenchmarkResult, EvalResults, by_name, read_evaluations
from arpo.evaluation.samples import SampleRecord, read_samples
from arpo.evaluation.statistics import Estimate, Paired, over_seeds, paired_difference
from arpo.runs.folder import VALIDATION, read_history
from arpo.yaml_positions import flat, read

BUDGETS = {"leaves/all": "leaves", "tokens/generated": "tokens generated", "calls/answered": "tool calls"}
RIGHT = 0.5  # the mean accuracy of a question from which on it counts as right
_NOT_METHOD = re.compile(r"(^|\.)(seed|name|run|folder|out|output|trackers)(\.|$)")
_SEED_IN_NAME = re.compile(r"[-_.]?(s|seed)[-_]?\d+$")
_LAST_STEPS = 5


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """One benchmark, or set of held-out tasks, as one entry was asked it. `folder`: where its samples are; None:
    nowhere."""

    result: BenchmarkResult
    digest: str = ""  # of the questions
    folder: Path | None = None

    @cached_property
    def samples(self) -> dict[str, list[SampleRecord]]:
        """By question."""
        by_question: dict[str, list[SampleRecord]] = {}
        for sample in (read_samples(self.folder) if self.folder else {}).values():
            if sample.benchmark == self.result.name:
                by_question.setdefault(sample.id, []).append(sample)
        return by_question

    @classmethod
    def from_results(cls, results: EvalResults, folder: Path | None) -> dict[str, "Evaluated"]:
        """By the names that `by_name` gives."""
        digests = {name: each.digest for name, each in results.manifest.benchmark.items()}
        named = by_name({results.name: results})
        return {
            name: cls(result=each, digest=digests.get(each.name, ""), folder=folder) for name, each in named.items()
        }


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """A run, or an evaluation (which has no history)."""

    name: str
    method: str
    history: Sequence[Mapping[str, Any]] = ()
    evaluations: Mapping[str, Evaluated] = field(default_factory=dict)  # those made during training are left out

    def total(self, metric: str) -> float:
        return math.fsum(self.spent(metric)[-1:])

    def spent(self, metric: str) -> list[float]:
        """The running sum of a metric over steps."""
        return list(accumulate(float(m.get(metric) or 0) for m in self.history))

    def values(self, metric: str) -> list[float]:
        """A metric by step; NaN where it is missing."""
        return [math.nan if m.get(metric) is None else float(m[metric]) for m in self.history]

    def smooth(self, metric: str) -> list[float]:
        """For the eye: a mean over a few neighbouring steps."""
        return running_mean(self.values(metric), min(_LAST_STEPS, max(1, len(self.history) // 3)))

    def at(self, budget: str, spent: float, metric: str) -> float:
        """The mean of `metric` over the last steps up to where the run had spent so much of `budget` (linear between
        steps); NaN where it never had. Nothing that came later counts."""
        values = self.values(metric)
        window = min(_LAST_STEPS, max(1, len(values) // 3))
        trailing = [_mean(values[max(0, i + 1 - window) : i + 1]) for i in range(len(values))]
        return _interpolate(self.spent(budget), trailing, spent)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A question that one method answers rightly and the other does not."""

    evaluation: str
    id: str
    question: str
    gold: Sequence[str]
    before: float  # mean accuracy
    after: float
    answers_before: Sequence[str]
    answers_after: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Runs in the order in which they were named. The first method is what the others are compared with."""

    runs: Sequence[ComparedRun]

    @property
    def methods(self) -> dict[str, list[ComparedRun]]:
        by_method: dict[str, list[ComparedRun]] = {}
        for run in self.runs:
            by_method.setdefault(run.method, []).append(run)
        return by_method

    @property
    def evaluations(self) -> list[str]:
        """Names of the evaluations that at least two runs have (all of them for a single run)."""
        names = dict.fromkeys(name for run in self.runs for name in run.evaluations)
        return [name for name in names if sum(name in run.evaluations for run in self.runs) >= min(2, len(self.runs))]

    def evaluated(self, method: str, evaluation: str) -> list[Evaluated]:
        return [run.evaluations[evaluation] for run in self.methods[method] if evaluation in run.evaluations]

    def accuracy(self, method: str, evaluation: str) -> Estimate | None:
        """Over seeds (Student's t) where a method has several runs, else the run's own interval over questions."""
        accuracies = [each.result.accuracy for each in self.evaluated(method, evaluation)]
        return _one_or_seeds(accuracies) if accuracies else None

    def difference(self, method: str, evaluation: str) -> Paired | None:
        """`method` minus the first method on the questions that all their runs answered; each question's accuracy is
        its mean over seeds. None without shared questions."""
        a, b = (self.by_question(name, evaluation) for name in (self.first(evaluation), method))
        return paired_difference(a, b) if a.keys() & b.keys() else None

    def first(self, evaluation: str) -> str:
        """The first method that has the evaluation."""
        return next(name for name in self.methods if self.evaluated(name, evaluation))

    def by_question(self, method: str, evaluation: str) -> dict[str, float]:
        runs = [each.result.by_question for each in self.evaluated(method, evaluation)]
        shared = set.intersection(*(set(r) for r in runs)) if runs else set()
        return {question: math.fsum(r[question] for r in runs) / len(runs) for question in sorted(shared)}

    def same_questions(self, method: str, evaluation: str) -> bool:
        return (
            len({each.digest for name in (self.first(evaluation), method) for each in self.evaluated(name, evaluation)})
            == 1
        )

    def costs(self, method: str, evaluation: str) -> dict[str, Estimate]:
        """What an answer costs: the run's own figures, or over seeds."""
        by_run = [each.result.costs for each in self.evaluated(method, evaluation)]
        return {
            name: _one_or_seeds([costs[name] for costs in by_run])
            for name in COSTS
            if all(name in costs for costs in by_run)
        }

    def families(self, method: str, evaluation: str) -> dict[str, Estimate]:
        """Accuracy by family."""
        by_run = [each.result.by_family for each in self.evaluated(method, evaluation)]
        names = sorted({name for families in by_run for name in families})
        return {name: _one_or_seeds([families[name] for families in by_run if name in families]) for name in names}

    def changes(self, method: str, evaluation: str) -> list[Change]:
        """Questions that are right (a mean accuracy of 0.5 and more) for one method alone, lost ones first, then by
        size."""
        sides = [self.evaluated(name, evaluation) for name in (self.first(evaluation), method)]
        before, after = (self.by_question(name, evaluation) for name in (self.first(evaluation), method))
        moved = [id for id in sorted(before.keys() & after.keys()) if (before[id] >= RIGHT) != (after[id] >= RIGHT)]
        changed = []
        for id in moved:
            first, second = ([sample for each in side for sample in each.samples.get(id, ())] for side in sides)
            changed.append(
                Change(
                    evaluation=evaluation,
                    id=id,
                    question=first[0].question if first else "",
                    gold=first[0].gold if first else (),
                    before=before[id],
                    after=after[id],
                    answers_before=_answers(first),
                    answers_after=_answers(second),
                )
            )
        return sorted(
            changed, key=lambda change: (change.after > change.before, -abs(change.after - change.before), change.id)
        )

    def at_equal(self, budget: str, metric: str) -> tuple[float, dict[str, Estimate]]:
        """The largest amount of `budget` that every run spent, and by method the level of `metric` at that point (over
        seeds)."""
        spent = min((run.total(budget) for run in self.runs if run.history), default=0.0)
        levels = {
            name: [level for run in runs if not math.isnan(level := run.at(budget, spent, metric))]
            for name, runs in self.methods.items()
        }
        return spent, {name: over_seeds(values) for name, values in levels.items()}


def _one_or_seeds(estimates: Sequence[Estimate]) -> Estimate:
    return estimates[0] if len(estimates) == 1 else over_seeds([estimate.mean for estimate in estimates])


def _answers(samples: Sequence[SampleRecord]) -> list[str]:
    return list(dict.fromkeys(s.answer if s.answer is not None else f"({s.ending.replace('_', ' ')})" for s in samples))


# --- reading


def read_comparison(paths: Sequence[Path | str], *, methods: Sequence[str] | None = None) -> Comparison:
    """Read folders of runs, or of evaluations. `methods` names the method of each path; without it, it follows from how
    the recipes or manifests differ.

    Raises ConfigError where a path holds neither, runs are mixed with evaluations, or evaluations share no benchmark;
    FormatError where a recipe is no YAML mapping.
    """
    if not paths:
        raise ConfigError("nothing to compare", where="runs", hint="name at least one run folder")
    if methods is not None and len(methods) != len(paths):
        raise ConfigError(
            "as many methods as runs are needed",
            where="methods",
            value=list(methods),
            hint=f"{len(paths)} runs were named",
        )
    folders = [Path(path) for path in paths]
    for folder in folders:
        check_form(folder)
    evaluations = [is_evaluation(folder) for folder in folders]
    if all(evaluations):
        return _of_evaluations(folders, methods)
    if any(evaluations):
        other = str(folders[evaluations.index(False)])
        raise ConfigError("evaluations are compared with evaluations, runs with runs", where="RUN", value=other)
    recipes = [_recipe(folder) for folder in folders]
    names = _shortest_names(folders)
    labels = list(methods) if methods is not None else _methods(names, recipes)
    runs = zip(folders, names, labels, strict=True)
    return Comparison(runs=[_run(folder, name, label) for folder, name, label in runs])


def _run(folder: Path, name: str, method: str) -> ComparedRun:
    evaluations: dict[str, Evaluated] = {}
    for evaluation, results in read_evaluations(folder).items():
        if not evaluation.startswith(VALIDATION):
            evaluations |= Evaluated.from_results(results, folder / "evaluation" / evaluation)
    return ComparedRun(name=name, method=method, history=read_history(folder), evaluations=evaluations)


def _of_evaluations(folders: Sequence[Path], methods: Sequence[str] | None) -> Comparison:
    if len(folders) < 2:
        raise ConfigError(
            "name at least two evaluations", where="evaluations", value=[str(folder) for folder in folders]
        )
    manifests = [read_manifest(folder) for folder in folders]
    names = _shortest_names(folders)
    labels = list(methods) if methods is not None else _methods_of_evaluations(names, manifests)
    runs = []
    for folder, manifest, name, label in zip(folders, manifests, names, labels, strict=True):
        results = EvalResults.from_samples(manifest, read_samples(folder).values())
        digests = {each.name: each.digest for each in manifest.benchmarks}
        evaluated = {
            each.name: Evaluated(result=each, digest=digests.get(each.name, ""), folder=folder)
            for each in results.benchmarks
        }
        runs.append(ComparedRun(name=name, method=label, evaluations=evaluated))
    comparison = Comparison(runs=runs)
    if not comparison.evaluations:
        raise ConfigError("these evaluations share no benchmark", where="evaluations", value=names)
    return comparison


def _methods_of_evaluations(names: Sequence[str], manifests: Sequence[EvalManifest]) -> list[str]:
    """Evaluations that differ in their seed alone are one method, unless there is no other."""
    kinds = [repr((m.model, {**m.settings, "seed": None}, dict(m.decides))) for m in manifests]
    labels = list(names)
    for kind in set(kinds):
        group = [number for number, each in enumerate(kinds) if each == kind]
        seeds = {manifests[number].settings.get("seed") for number in group}
        if 1 < len(group) == len(seeds) < len(names):
            for number in group:
                labels[number] = f"{names[group[0]]} and {len(group) - 1} more seeds"
    return labels


def _shortest_names(folders: Sequence[Path]) -> list[str]:
    """Their last parts, as many as tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _recipe(folder: Path) -> dict[str, str]:
    path = folder / "recipe.yaml"
    if not path.exists():
        raise ConfigError("this folder holds no run", where=str(folder), hint="a run folder has a recipe.yaml")
    recipe = flat(read(path).value)
    return {key: str(value) for key, value in recipe.items() if value != {} and not _NOT_METHOD.search(key)}


def _methods(names: Sequence[str], recipes: Sequence[Mapping[str, str]]) -> list[str]:
    """A label for each run: what its recipe says where the recipes differ, or its name without a seed."""
    differing = sorted({key for recipe in recipes for key in recipe if len({r.get(key) for r in recipes}) > 1})
    if not differing:
        return [_SEED_IN_NAME.sub("", names[0]) or names[0]] * len(names)
    kinds = [tuple(recipe.get(key) for key in differing) for recipe in recipes]
    by_name = [_SEED_IN_NAME.sub("", name) or name for name in names]
    if len(set(zip(kinds, by_name, strict=True))) == len(set(kinds)) == len(set(by_name)):
        return by_name  # the folders are named after what differs
    telling = [k for k in differing if all(recipe.get(k) is not None for recipe in recipes)]
    enough = next((k for k in telling if len({r[k] for r in recipes}) == len(set(kinds))), None)
    if enough:
        return [recipe[enough] for recipe in recipes]
    return [
        ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in zip(differing, kind, strict=True) if value)
        for kind in kinds
    ]


# --- curves


def draw_comparison(comparison: Comparison, path: Path | str) -> Path | None:
    """Reward and accuracy on probe lines against steps and what was spent, one line a method (mean and range of its
    seeds)."""
    axes = {"": "step", **BUDGETS}
    panels = [
        Panel(title=f"{what.capitalize()} against {label}", x_label=label, percent=what == "accuracy",
              lines=[_curve(runs, budget, f"{what}/probe_lines", name) for name, runs in comparison.methods.items()])
        for budget, label in axes.items() if budget != "leaves/all"
        for what in ("accuracy", "reward")
    ]  # fmt: skip
    return draw(path, panels)


def _mean(values: Sequence[float]) -> float:
    finite = [v for v in values if not math.isnan(v)]
    return math.fsum(finite) / len(finite) if finite else math.nan


def _interpolate(x: Sequence[float], y: Sequence[float], at: float) -> float:
    """`y` at `at`, linear between the points of a rising `x`; NaN outside."""
    points = [(a, b) for a, b in zip(x, y, strict=True) if not math.isnan(b)]
    if not points or at > points[-1][0] * (1 + 1e-9) or at < points[0][0] * (1 - 1e-9):
        return math.nan
    after = next((i for i, (a, _) in enumerate(points) if a >= at), len(points) - 1)
    if after == 0:
        return points[0][1]
    (x0, y0), (x1, y1) = points[after - 1], points[after]
    return y1 if x1 == x0 else y0 + (y1 - y0) * min((at - x0) / (x1 - x0), 1.0)


def _curve(runs: Sequence[ComparedRun], budget: str, metric: str, label: str) -> Line:
    spent = [run.spent(budget) if budget else [float(m["step"]) for m in run.history] for run in runs]
    levels = [run.smooth(metric) for run in runs]
    if len(runs) == 1:
        return Line(label=label, x=spent[0], y=levels[0])
    reached = [s for s in spent if s]
    first, last = max((s[0] for s in reached), default=0.0), min((s[-1] for s in reached), default=0.0)
    grid = sorted({x for s in reached for x in s if first <= x <= last}) if budget == "" else _spread(first, last)
    rows = [[v for s, y in zip(spent, levels, strict=True) if not math.isnan(v := _interpolate(s, y, x))] for x in grid]
    points = [(x, row) for x, row in zip(grid, rows, strict=True) if row]
    return Line(
        label=f"{label} ({len(runs)} seeds)", x=[x for x, _ in points], y=[math.fsum(r) / len(r) for _, r in points],
        low=[min(r) for _, r in points], high=[max(r) for _, r in points],
    )  # fmt: skip


def _spread(first: float, last: float, points: int = 40) -> list[float]:
    return [first + (last - first) * i / (points - 1) for i in range(points)] if last > first else [first]
