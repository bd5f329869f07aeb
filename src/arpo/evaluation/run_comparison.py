"""Several runs side by side: at equal leaves, tokens and tool calls, and on the same questions.

Knows run folders (recipe.yaml, metrics.jsonl, evaluation/*.json) and how to group runs by method over seeds. Refuses to know how
they are shown. Runs whose recipes differ in nothing but seed and names are one method.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml

from arpo.display.charts import Line, Panel, draw, running_mean
from arpo.errors import ConfigError, FormatError
from arpo.evaluation.results import Results, read_all_results
from arpo.evaluation.statistics import Estimate, Paired, over_seeds, paired_difference
from arpo.runs.folder import VALIDATION, read_history
from arpo.yaml_positions import flat

BUDGETS = {"leaves/all": "leaves", "tokens/generated": "tokens generated", "calls/answered": "tool calls"}
_NOT_METHOD = re.compile(r"(^|\.)(seed|name|run|folder|out|output|trackers)(\.|$)")
_SEED_IN_NAME = re.compile(r"[-_.]?(s|seed)[-_]?\d+$")
_LAST_STEPS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedRun:
    """What is compared of one run."""

    name: str
    method: str
    history: Sequence[Mapping[str, Any]]
    results: Mapping[str, Results]  # final evaluations, without those made during training

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
        """The mean of `metric` over the last steps up to where the run had spent so much of `budget` (linear between steps); NaN
        where it never had. Nothing that came later counts."""
        values = self.values(metric)
        window = min(_LAST_STEPS, max(1, len(values) // 3))
        trailing = [_mean(values[max(0, i + 1 - window) : i + 1]) for i in range(len(values))]
        return _interpolate(self.spent(budget), trailing, spent)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Runs in the order in which they were named. The first method is what the others are compared with."""

    runs: Sequence[ComparedRun]

    @property
    def methods(self) -> dict[str, list[ComparedRun]]:
        found: dict[str, list[ComparedRun]] = {}
        for run in self.runs:
            found.setdefault(run.method, []).append(run)
        return found

    @property
    def evaluations(self) -> list[str]:
        """Names of the evaluations that at least two runs have (all of them for a single run)."""
        names = dict.fromkeys(name for run in self.runs for name in run.results)
        return [name for name in names if sum(name in run.results for run in self.runs) >= min(2, len(self.runs))]

    def accuracy(self, method: str, evaluation: str) -> Estimate | None:
        """Over seeds (Student's t) where a method has several runs, else the run's own interval over questions."""
        found = [run.results[evaluation].accuracy for run in self.methods[method] if evaluation in run.results]
        return None if not found else found[0] if len(found) == 1 else over_seeds([estimate.mean for estimate in found])

    def difference(self, method: str, evaluation: str) -> Paired | None:
        """`method` minus the first method on the questions that all their runs answered; each question's accuracy is its mean over
        seeds. None without shared questions."""
        a, b = (self._by_question(name, evaluation) for name in (next(iter(self.methods)), method))
        return paired_difference(a, b) if a.keys() & b.keys() else None

    def _by_question(self, method: str, evaluation: str) -> dict[str, float]:
        runs = [run.results[evaluation].accuracy_by_question for run in self.methods[method] if evaluation in run.results]
        shared = set.intersection(*(set(r) for r in runs)) if runs else set()
        return {question: math.fsum(r[question] for r in runs) / len(runs) for question in sorted(shared)}

    def at_equal(self, budget: str, metric: str) -> tuple[float, dict[str, Estimate]]:
        """The largest amount of `budget` that every run spent, and by method the level of `metric` at that point (over seeds)."""
        spent = min((run.total(budget) for run in self.runs if run.history), default=0.0)
        levels = {
            name: [level for run in runs if not math.isnan(level := run.at(budget, spent, metric))]
            for name, runs in self.methods.items()
        }
        return spent, {name: over_seeds(found) for name, found in levels.items()}


def read_comparison(paths: Sequence[Path | str], *, methods: Sequence[str] | None = None) -> Comparison:
    """Read run folders. `methods` names the method of each path; without it, it follows from how the recipes differ.

    Raises ConfigError where a path holds no run, FormatError where its recipe is no YAML mapping.
    """
    if not paths:
        raise ConfigError("nothing to compare", where="runs", hint="name at least one run folder")
    if methods is not None and len(methods) != len(paths):
        raise ConfigError(
            "as many methods as runs are needed", where="methods", value=list(methods), hint=f"{len(paths)} runs were named"
        )
    folders = [Path(path) for path in paths]
    recipes = [_recipe(folder) for folder in folders]
    names = _unique([folder.resolve().name for folder in folders])
    labels = list(methods) if methods is not None else _methods(names, recipes)
    return Comparison(
        runs=[
            ComparedRun(
                name=name,
                method=label,
                history=read_history(folder),
                results={n: r for n, r in read_all_results(folder).items() if not n.startswith(VALIDATION)},
            )
            for folder, name, label in zip(folders, names, labels, strict=True)
        ]
    )


def draw_comparison(comparison: Comparison, path: Path | str) -> Path | None:
    """Reward and accuracy on probe lines against steps and what was spent, one line a method (mean and range of its seeds)."""
    axes = {"": "step", **BUDGETS}
    panels = [
        Panel(title=f"{what.capitalize()} against {label}", x_label=label, percent=what == "accuracy",
              lines=[_curve(runs, budget, f"{what}/probe_lines", name) for name, runs in comparison.methods.items()])
        for budget, label in axes.items() if budget != "leaves/all"
        for what in ("accuracy", "reward")
    ]  # fmt: skip
    return draw(path, panels)


# --- recipes and names


def _recipe(folder: Path) -> dict[str, str]:
    path = folder / "recipe.yaml"
    if not path.exists():
        raise ConfigError("this folder holds no run", where=str(folder), hint="a run folder has a recipe.yaml")
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise FormatError(f"{path} is not YAML: {error}") from error
    if not isinstance(recipe, dict):
        raise FormatError(f"{path} holds {type(recipe).__name__}, not a mapping")
    return {key: str(value) for key, value in flat(recipe).items() if value != {} and not _NOT_METHOD.search(key)}


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


def _unique(names: Sequence[str]) -> list[str]:
    return [name if names.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(names)]


# --- curves


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
    found = [(x, row) for x, row in zip(grid, rows, strict=True) if row]
    return Line(
        label=f"{label} ({len(runs)} seeds)", x=[x for x, _ in found], y=[math.fsum(r) / len(r) for _, r in found],
        low=[min(r) for _, r in found], high=[max(r) for _, r in found],
    )  # fmt: skip


def _spread(first: float, last: float, points: int = 40) -> list[float]:
    return [first + (last - first) * i / (points - 1) for i in range(points)] if last > first else [first]
