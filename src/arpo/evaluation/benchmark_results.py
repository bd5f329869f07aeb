"""What the answers of an evaluation come to: figures by benchmark and over all of them, as results.json keeps them.

Knows answers and statistics. Refuses to know models, files' places and how figures are shown. A failed answer counts as wrong.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import arpo
from arpo.errors import FormatError
from arpo.evaluation.manifest import EvalManifest
from arpo.evaluation.results import POWERS
from arpo.evaluation.samples import SampleRecord
from arpo.evaluation.statistics import Estimate, bootstrap, by_group, mean_of_estimates, pass_at, rate, ratio
from arpo.files import read_json, write_json

FILE = "results.json"
SCHEMA = "arpo/results/1"
_MOST_BUDGETS = 33  # points of a curve

COSTS: Mapping[str, Callable[[SampleRecord], float]] = {
    "tool calls": lambda a: a.calls,
    "turns": lambda a: a.turns,
    "tokens written": lambda a: a.tokens,
    "tokens read": lambda a: a.read_tokens,
    "seconds": lambda a: a.seconds,
    "seconds in tools": lambda a: a.tool_s,
    "money": lambda a: a.cost,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkResult:
    """The figures of one benchmark. Intervals: 95 %, over questions."""

    name: str
    title: str
    metric: str
    judged: bool
    questions: int
    answers: int
    missing: int  # answers that were asked for and are not there: the evaluation was stopped
    accuracy: Estimate
    measures: Mapping[str, Estimate]  # further measures: exact, f1, contains, or what a judge said
    pass_at: Mapping[int, Estimate]
    by_level: Mapping[str, Estimate]
    by_category: Mapping[str, Estimate]
    by_family: Mapping[str, Estimate]
    costs: Mapping[str, Estimate]  # an answer
    endings: Mapping[str, int]
    failures: Mapping[str, int]  # reason -> answers that the world ended so
    productivity: Estimate  # right answers a tool call
    by_budget: Mapping[int, Estimate]  # accuracy where only answers with at most so many tool calls count


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalResults:
    """Everything in results.json. `studies`: what further looks at the same answers came to (a judge, tool-call quality,
    entropies), JSON values by name; of these `tables` ([{title, head, rows, note}]) and `warnings` are shown in reports."""

    asked: EvalManifest
    benchmarks: tuple[BenchmarkResult, ...]
    mean: Estimate  # over benchmarks, each counting the same
    studies: Mapping[str, Any] = field(default_factory=dict)

    @property
    def benchmark(self) -> dict[str, BenchmarkResult]:
        return {each.name: each for each in self.benchmarks}


def results_of(asked: EvalManifest, answers: Iterable[SampleRecord], studies: Mapping[str, Any] | None = None) -> EvalResults:
    """Compute every figure."""
    by_benchmark: dict[str, list[SampleRecord]] = {each.name: [] for each in asked.benchmarks}
    for answer in answers:
        by_benchmark.setdefault(answer.benchmark, []).append(answer)
    seed = int(asked.settings.get("seed", 0))
    found = {name: sorted(given, key=lambda a: a.key) for name, given in by_benchmark.items() if given}
    benchmarks = tuple(_finding(asked, name, given, seed) for name, given in found.items())
    return EvalResults(
        asked=asked,
        benchmarks=benchmarks,
        mean=mean_of_estimates([each.accuracy for each in benchmarks]),
        studies=dict(studies or {}),
    )


def _finding(asked: EvalManifest, name: str, answers: Sequence[SampleRecord], seed: int) -> BenchmarkResult:
    said = asked.benchmark.get(name)
    correct = _grouped(answers, lambda a: a.correct)
    fewest = min(map(len, correct.values()))
    names = sorted({measure for a in answers for measure in a.measures})
    return BenchmarkResult(
        name=name,
        title=said.title if said else name,
        metric=said.metric if said else "",
        judged=bool(said and said.judged),
        questions=len(correct),
        answers=len(answers),
        missing=max(0, said.questions * asked.samples - len(answers)) if said else 0,
        accuracy=rate(_grouped(answers, _accuracy), seed=seed),
        measures={each: _measure(answers, each, seed) for each in names},
        pass_at={k: pass_at(correct, k, seed=seed) for k in sorted({*POWERS, fewest}) if k <= fewest},
        by_level=by_group(((a.level, a.id, a.accuracy) for a in answers if a.level), seed=seed),
        by_category=by_group(((a.category, a.id, a.accuracy) for a in answers if a.category), seed=seed),
        by_family=by_group(((a.family, a.id, a.accuracy) for a in answers if a.family not in ("", name)), seed=seed),
        costs={label: bootstrap(list(_means(answers, value).values()), seed=seed, purpose=label) for label, value in COSTS.items()},
        endings=dict(Counter(a.ending for a in answers).most_common()),
        failures=dict(Counter(_short(a.failure) for a in answers if a.failed).most_common()),
        productivity=_productivity(answers, seed),
        by_budget={budget: _within(answers, budget, seed) for budget in _budgets(answers)},
    )


def _measure(answers: Sequence[SampleRecord], name: str, seed: int) -> Estimate:
    """Answers that have no such measure (nobody could be asked) count as 0."""
    return rate(_grouped(answers, lambda a: float(a.measures.get(name, 0.0))), seed=seed, purpose=name)


def _productivity(answers: Sequence[SampleRecord], seed: int) -> Estimate:
    """Right answers a tool call: the sum of accuracy over the sum of calls (Wang et al., arXiv 2504.14870, section 3)."""
    right, calls = _means(answers, _accuracy), _means(answers, lambda a: a.calls)
    return ratio(list(right.values()), [calls[key] for key in right], seed=seed, purpose="productivity")


def _within(answers: Sequence[SampleRecord], budget: int, seed: int) -> Estimate:
    """Accuracy if every answer had to come within `budget` calls: those that took more are wrong."""
    return rate(_grouped(answers, lambda a: a.accuracy if a.calls <= budget else 0.0), seed=seed, purpose=f"budget/{budget}")


def _budgets(answers: Sequence[SampleRecord]) -> list[int]:
    most = max(a.calls for a in answers)
    step = -(-(most + 1) // _MOST_BUDGETS)
    return sorted({*range(0, most + 1, step), most})


def _accuracy(answer: SampleRecord) -> float:
    return answer.accuracy


def _grouped(answers: Sequence[SampleRecord], value: Callable[[SampleRecord], Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for answer in answers:
        found.setdefault(answer.id, []).append(value(answer))
    return found


def _means(answers: Sequence[SampleRecord], value: Callable[[SampleRecord], float]) -> dict[str, float]:
    """By question."""
    return {key: sum(values) / len(values) for key, values in _grouped(answers, value).items()}


def _short(reason: str) -> str:
    return (reason.splitlines() or [""])[0][:200]


# --- results.json


def write_results(folder: Path, findings: EvalResults) -> Path:
    """Write FOLDER/results.json."""
    asked = {key: value for key, value in asdict(findings.asked).items() if key not in ("recipe_text", "decides")}
    asked["benchmarks"] = [{key: value for key, value in each.items() if key != "ids"} for each in asked["benchmarks"]]
    return write_json(
        folder / FILE,
        {
            "schema": SCHEMA,
            "version": arpo.__version__,
            "model": findings.asked.model,
            "asked": asked,
            "mean": asdict(findings.mean),
            "benchmarks": {each.name: asdict(each) for each in findings.benchmarks},
            "studies": findings.studies,
        },
    )


def read_studies(folder: Path) -> dict[str, Any]:
    """What studies have left in FOLDER/results.json; nothing where there is none."""
    return dict(read_results_file(folder)["studies"]) if (folder / FILE).is_file() else {}


def read_results_file(folder: Path) -> dict[str, Any]:
    """FOLDER/results.json. Raises FormatError where it is something else."""
    value = read_json(folder / FILE)
    if not isinstance(value, dict) or value.get("schema") != SCHEMA or not isinstance(value.get("studies"), dict):
        raise FormatError(f"{folder / FILE}: schema is not {SCHEMA!r}, or parts are missing")
    return value
