"""The figures of an evaluation: by benchmark and over all of them, as results.json holds them.

    results.json = {schema, version, name, model, manifest (without ids and recipe), seconds, mean,
                    benchmarks: {NAME: figures}, studies}

Knows samples, statistics and the file's form. Refuses to know models and how figures are shown. A failed sample counts
as wrong.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import arpo
from arpo.errors import FormatError
from arpo.evaluation.manifest import EvalManifest, check_form, is_evaluation, read_manifest
from arpo.evaluation.samples import SampleRecord, read_samples
from arpo.evaluation.statistics import Estimate, bootstrap, by_group, mean_of_estimates, pass_at, rate, ratio
from arpo.files import read_json, write_json
from arpo.foreign import checked

FILE = "results.json"
SCHEMA = "arpo/results/2"
POWERS = (1, 2, 4, 8, 16, 32, 64)  # k of pass@k
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
    missing: int  # samples that were asked for and are not there: the evaluation was stopped
    accuracy: Estimate
    reward: Estimate
    by_question: Mapping[str, float]  # mean accuracy of each question
    measures: Mapping[str, Estimate]  # further measures: exact, f1, contains, or what a judge said
    pass_at: Mapping[int, Estimate]
    by_level: Mapping[str, Estimate]
    by_category: Mapping[str, Estimate]
    by_family: Mapping[str, Estimate]
    costs: Mapping[str, Estimate]  # an answer
    endings: Mapping[str, int]
    failures: Mapping[str, int]  # samples by the reason why infrastructure failed
    productivity: Estimate  # right answers a tool call
    by_budget: Mapping[int, Estimate]  # accuracy where only answers with at most so many tool calls count


@dataclass(frozen=True, kw_only=True)
class EvalResults:
    """Everything in results.json. `studies`: what further looks at the same samples came to (tool calls, a judge,
    entropies), JSON values by name; of these `tables` ([{title, head, rows, note}]) and `warnings` are shown in
    reports."""

    manifest: EvalManifest
    benchmarks: tuple[BenchmarkResult, ...]
    mean: Estimate  # over benchmarks, each counting the same
    seconds: float = 0.0  # spent on generating samples, over all starts
    studies: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_samples(
        cls,
        manifest: EvalManifest,
        samples: Iterable[SampleRecord],
        studies: Mapping[str, Any] | None = None,
        *,
        seconds: float = 0.0,
    ) -> "EvalResults":
        """Compute every figure."""
        by_benchmark: dict[str, list[SampleRecord]] = {each.name: [] for each in manifest.benchmarks}
        for sample in samples:
            by_benchmark.setdefault(sample.benchmark, []).append(sample)
        benchmarks = tuple(
            benchmark_result(manifest, name, answers) for name, answers in by_benchmark.items() if answers
        )
        return cls(
            manifest=manifest,
            benchmarks=benchmarks,
            mean=mean_of_estimates([each.accuracy for each in benchmarks]),
            seconds=seconds,
            studies=dict(studies or {}),
        )

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def model(self) -> str:
        return self.manifest.model

    @cached_property
    def benchmark(self) -> dict[str, BenchmarkResult]:
        return {each.name: each for each in self.benchmarks}

    @property
    def accuracy(self) -> Estimate:
        """Of the only benchmark, or the mean over benchmarks."""
        return self.benchmarks[0].accuracy if len(self.benchmarks) == 1 else self.mean

    @property
    def by_question(self) -> dict[str, float]:
        """The mean accuracy of each question of the only benchmark, of several by BENCHMARK/ID: what paired differences
        take."""
        if len(self.benchmarks) == 1:
            return dict(self.benchmarks[0].by_question)
        return {f"{each.name}/{id}": mean for each in self.benchmarks for id, mean in each.by_question.items()}

    @property
    def tokens_written(self) -> float:
        """By the policy, in all answers."""
        return sum(each.answers * each.costs["tokens written"].mean for each in self.benchmarks)

    @property
    def tool_calls(self) -> Mapping[str, Any]:
        """What became of the tool calls, tool by tool (`arpo.tools.usage`)."""
        return dict(self.studies.get("tools", {}).get("accounts", {}))

    @property
    def warnings(self) -> list[str]:
        """What keeps the figures from being the whole truth: missing and failed answers, and what studies found."""
        found: list[str] = []
        for each in self.benchmarks:
            if each.missing:
                found.append(f"{each.title}: {each.missing:,} answers are still missing: go on with --resume")
            if each.failures:
                lost = f"{sum(each.failures.values()):,} of {each.answers:,} answers failed and count as wrong"
                why = "; ".join(f"{reason} ({count:,})" for reason, count in list(each.failures.items())[:3])
                found.append(f"{each.title}: {lost}: {why}{'; ...' * (len(each.failures) > 3)}")
        for name, study in self.studies.items():
            found += [f"{name}: {text}" for text in (study.get("warnings", ()) if isinstance(study, Mapping) else ())]
        return found

    @property
    def sampling(self) -> str:
        """`greedy`, or `4 sampled`."""
        if not self.manifest.settings.get("temperature"):
            return "greedy"
        return "sampled" if self.manifest.samples == 1 else f"{self.manifest.samples} sampled"


def benchmark_result(manifest: EvalManifest, name: str, samples: Sequence[SampleRecord]) -> BenchmarkResult:
    """The figures of the benchmark `name`, of which `samples` has at least one."""
    samples, benchmark, seed = (
        sorted(samples, key=lambda s: s.key),
        manifest.benchmark.get(name),
        int(manifest.settings.get("seed", 0)),
    )
    correct = _grouped(samples, lambda s: s.correct)
    fewest = min(map(len, correct.values()))
    accuracies = _means(samples, _accuracy)
    return BenchmarkResult(
        name=name,
        title=benchmark.title if benchmark else name,
        metric=benchmark.metric if benchmark else "",
        judged=bool(benchmark and benchmark.judged),
        questions=len(correct),
        answers=len(samples),
        missing=max(0, benchmark.questions * manifest.samples - len(samples)) if benchmark else 0,
        accuracy=rate(_grouped(samples, _accuracy), seed=seed),
        reward=bootstrap(list(_means(samples, lambda s: s.reward).values()), seed=seed, purpose="reward"),
        by_question=accuracies,
        measures={each: _measure(samples, each, seed) for each in sorted({m for s in samples for m in s.measures})},
        pass_at={k: pass_at(correct, k, seed=seed) for k in sorted({*POWERS, fewest}) if k <= fewest},
        by_level=by_group(((s.level, s.id, s.accuracy) for s in samples if s.level), seed=seed),
        by_category=by_group(((s.category, s.id, s.accuracy) for s in samples if s.category), seed=seed),
        by_family=by_group(((s.family, s.id, s.accuracy) for s in samples if s.family not in ("", name)), seed=seed),
        costs={
            label: bootstrap(list(_means(samples, value).values()), seed=seed, purpose=label)
            for label, value in COSTS.items()
        },
        endings=dict(Counter(s.ending for s in samples).most_common()),
        failures=dict(Counter(_short(s.failure) for s in samples if s.failed).most_common()),
        productivity=_productivity(samples, seed),
        by_budget={budget: _within(samples, budget, seed) for budget in _budgets(samples)},
    )


def _measure(answers: Sequence[SampleRecord], name: str, seed: int) -> Estimate:
    """Answers that have no such measure (nobody could be asked) count as 0."""
    return rate(_grouped(answers, lambda a: float(a.measures.get(name, 0.0))), seed=seed, purpose=name)


def _productivity(answers: Sequence[SampleRecord], seed: int) -> Estimate:
    """Right answers a tool call: the sum of accuracy over the sum of calls (Wang et al., arXiv 2504.14870, section
    3)."""
    right, calls = _means(answers, _accuracy), _means(answers, lambda a: a.calls)
    return ratio(list(right.values()), [calls[key] for key in right], seed=seed, purpose="productivity")


def _within(answers: Sequence[SampleRecord], budget: int, seed: int) -> Estimate:
    """Accuracy if every answer had to come within `budget` calls: those that took more are wrong."""
    return rate(
        _grouped(answers, lambda a: a.accuracy if a.calls <= budget else 0.0), seed=seed, purpose=f"budget/{budget}"
    )


def _budgets(answers: Sequence[SampleRecord]) -> list[int]:
    most = max(a.calls for a in answers)
    step = -(-(most + 1) // _MOST_BUDGETS)
    return sorted({*range(0, most + 1, step), most})


def _accuracy(answer: SampleRecord) -> float:
    return answer.accuracy


def _grouped(answers: Sequence[SampleRecord], value: Callable[[SampleRecord], Any]) -> dict[str, list[Any]]:
    groups: dict[str, list[Any]] = {}
    for answer in answers:
        groups.setdefault(answer.id, []).append(value(answer))
    return groups


def _means(answers: Sequence[SampleRecord], value: Callable[[SampleRecord], float]) -> dict[str, float]:
    """By question."""
    return {key: sum(values) / len(values) for key, values in _grouped(answers, value).items()}


def _short(reason: str) -> str:
    return (reason.splitlines() or [""])[0][:200]


# --- results.json


def write_results(folder: Path, results: EvalResults) -> Path:
    """Write FOLDER/results.json."""
    manifest = {key: value for key, value in asdict(results.manifest).items() if key not in ("recipe_text", "decides")}
    manifest["benchmarks"] = [
        {key: value for key, value in each.items() if key != "ids"} for each in manifest["benchmarks"]
    ]
    return write_json(
        folder / FILE,
        {
            "schema": SCHEMA,
            "version": arpo.__version__,
            "name": results.name,
            "model": results.model,
            "manifest": manifest,
            "seconds": round(results.seconds, 1),
            "mean": asdict(results.mean),
            "benchmarks": {each.name: asdict(each) for each in results.benchmarks},
            "studies": results.studies,
        },
    )


def summarise(
    folder: Path, manifest: EvalManifest, *, studies: Mapping[str, Any] | None = None, seconds: float = 0.0
) -> EvalResults | None:
    """Compute FOLDER/results.json from the samples in `folder`; `studies` and `seconds` are added to what stands there.
    None where there is no sample yet."""
    samples = read_samples(folder).values()
    if not samples:
        return None
    before: Mapping[str, Any] = _read_file(folder) if (folder / FILE).is_file() else {}
    spent, kept = seconds + float(before.get("seconds") or 0.0), before.get("studies", {})
    results = EvalResults.from_samples(manifest, samples, {**kept, **(studies or {})}, seconds=spent)
    write_results(folder, results)
    return results


def read_results(folder: Path | str) -> EvalResults:
    """The results of the evaluation in `folder`. Raises ConfigError where it holds none, FormatError, naming the file,
    where that is something else."""
    folder = Path(folder)
    manifest, value = read_manifest(folder), _read_file(folder)
    try:
        results = EvalResults(
            manifest=manifest,
            benchmarks=tuple(read_benchmark_result(each) for each in value["benchmarks"].values()),
            mean=Estimate.from_json(value["mean"]),
            seconds=float(value["seconds"]),
            studies=value["studies"],
        )
        return checked(results)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, FormatError) as error:
        raise FormatError(f"{folder / FILE}: a field is missing or of the wrong kind: {error!r:.300}") from error


def read_benchmark_result(value: Mapping[str, Any]) -> BenchmarkResult:
    """From its part of results.json. Raises KeyError, TypeError, ValueError or AttributeError for something else."""
    known: dict[str, Any] = {each.name: value[each.name] for each in dataclasses.fields(BenchmarkResult)}
    for name in ("accuracy", "reward", "productivity"):
        known[name] = Estimate.from_json(value[name])
    for name in ("measures", "by_level", "by_category", "by_family", "costs"):
        known[name] = {key: Estimate.from_json(estimate) for key, estimate in value[name].items()}
    for name in ("pass_at", "by_budget"):
        known[name] = {int(key): Estimate.from_json(estimate) for key, estimate in value[name].items()}
    return BenchmarkResult(**known)


def read_evaluations(run: Path | str) -> dict[str, EvalResults]:
    """The evaluations in RUN/evaluation by name, in the order in which they were begun. One without a sample, and one
    that was set aside (renamed), is left out."""
    check_form(Path(run))
    folders = [path for path in (Path(run) / "evaluation").glob("*") if is_evaluation(path) and (path / FILE).is_file()]
    read = [results for path in folders if (results := read_results(path)).name == path.name]
    return {results.name: results for results in sorted(read, key=lambda each: (each.manifest.starts[:1], each.name))}


def by_name(evaluations: Mapping[str, EvalResults]) -> dict[str, BenchmarkResult]:
    """The figures of each benchmark, by the name of its evaluation where that has no other one."""
    return {
        name if len(results.benchmarks) == 1 else f"{name}/{each.name}": each
        for name, results in evaluations.items()
        for each in results.benchmarks
    }


def read_studies(folder: Path) -> dict[str, Any]:
    """The studies in FOLDER/results.json; nothing where there is none."""
    return dict(_read_file(folder)["studies"]) if (folder / FILE).is_file() else {}


def _read_file(folder: Path) -> dict[str, Any]:
    """Raises FormatError where FOLDER/results.json is something else."""
    value = read_json(folder / FILE)
    if not isinstance(value, dict) or value.get("schema") != SCHEMA or not isinstance(value.get("studies"), dict):
        hint = "; compute it anew from the samples: remove it, then `arpo results`"
        raise FormatError(f"{folder / FILE}: schema is not {SCHEMA!r}, or parts are missing{hint}")
    return value
