"""Evaluations in a folder: what was measured, and every answer with its transcript (Evaluation and Sample in api.ts).

A run has evaluations of its own below `evaluation/`; a folder of `arpo eval` is one, and each of its benchmarks is
shown as one.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from arpo.errors import ArpoError, ConfigError
from arpo.evaluation.manifest import FILE as MANIFEST
from arpo.evaluation.manifest import EvalManifest, is_evaluation, read_manifest
from arpo.evaluation.results import FILE as RESULTS
from arpo.evaluation.results import BenchmarkResult, EvalResults, benchmark_result, read_results
from arpo.evaluation.samples import SampleRecord
from arpo.evaluation.statistics import Estimate
from arpo.files import as_json
from arpo.runs.lock import is_held
from arpo.view.memo import Memo
from arpo.view.pieces import Pieces
from arpo.view.query import Query
from arpo.view.sample_log import SampleLogReader
from arpo.view.trees import tree_answer

Answer = dict[str, Any]
_ROW = ("id", "sample", "family", "level", "accuracy", "correct", "reward", "answer", "gold", "question", "calls",
        "tokens", "ending")  # fmt: skip
_SORTS: Mapping[str, Callable[[SampleRecord], Any]] = {
    name: lambda s, name=name: getattr(s, name)  # type: ignore[misc]
    for name in ("id", "family", "level", "reward", "accuracy", "calls", "tokens", "ending", "correct")
}


class _Folder:
    """One evaluation. Its files are read again only when they have changed."""

    def __init__(self, path: Path) -> None:
        self.path, self.log = path, SampleLogReader(path)
        self._manifest = Memo(self._read_manifest, path / MANIFEST)
        self._results = Memo(self._read_results, path / RESULTS, path / MANIFEST)
        self._computed: dict[str, BenchmarkResult] = {}  # by benchmark, from the log, where results.json says less

    @property
    def manifest(self) -> EvalManifest:
        return self._manifest.get()

    def samples(self, benchmark: str) -> list[SampleRecord]:
        """In the order of their ids."""
        found = [logged.sample for key, logged in self.log.samples().items() if key[0] == benchmark]
        return sorted(found, key=lambda sample: sample.key)

    def benchmarks(self) -> list[str]:
        """Those with samples."""
        return list(dict.fromkeys(key[0] for key in self.log.samples()))

    def result(self, benchmark: str, samples: list[SampleRecord]) -> BenchmarkResult:
        """As results.json has it, or computed where that does not know of as many samples. `samples`: those of
        `benchmark`."""
        results = self._results.get()
        written = None if results is None else results.benchmark.get(benchmark)
        found = written if written and written.answers == len(samples) else self._computed.get(benchmark)
        if found is None or found.answers != len(samples):
            found = self._computed[benchmark] = benchmark_result(self.manifest, benchmark, samples)
        return found

    def _read_manifest(self) -> EvalManifest:
        return read_manifest(self.path)

    def _read_results(self) -> EvalResults | None:
        """None where the file is missing, or something else: the figures are computed then."""
        try:
            return read_results(self.path) if (self.path / RESULTS).is_file() else None
        except ArpoError:
            return None


class Evaluations:
    """The evaluations of a run, or the benchmarks of an evaluation, by name; finished or going on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.is_run = (folder / "recipe.yaml").is_file()
        self._folders: dict[Path, _Folder] = {}

    def names(self) -> list[str]:
        """In the order in which they were begun."""
        return list(self._places())

    def _places(self) -> dict[str, tuple[_Folder, str]]:
        """By name: the folder and the benchmark."""
        paths = [self.folder] if not self.is_run and is_evaluation(self.folder) else []
        paths += [path for path in (self.folder / "evaluation").glob("*") if is_evaluation(path)]
        folders = [self._folders.setdefault(path, _Folder(path)) for path in paths]
        places: dict[str, tuple[_Folder, str]] = {}
        for folder in sorted(folders, key=lambda each: (each.manifest.starts[:1], each.path.name)):
            benchmarks = folder.benchmarks()
            for benchmark in (
                benchmarks if folder.path == self.folder or folder.manifest.name == folder.path.name else ()
            ):
                inside = folder.path.name if len(benchmarks) == 1 else f"{folder.path.name}/{benchmark}"
                places[benchmark if folder.path == self.folder else inside] = (folder, benchmark)
        return places

    def get(self, name: str) -> "ShownEvaluation":
        """Raises ConfigError where there is none of that name: names are those of `names`, so none leads out of the
        folder."""
        places = self._places()
        if name not in places:
            raise ConfigError("there is no such evaluation", where=str(self.folder), value=name)
        return ShownEvaluation(name, *places[name])

    def summaries(self) -> list[Answer]:
        return [summary(self.get(name)) for name in self.names()]

    def is_live(self) -> bool:
        return not self.is_run and is_held(self.folder / "lock")

    def state(self) -> str:
        """In the words of a run's state."""
        if self.is_live():
            return "still going"
        whole = (self.folder / RESULTS).exists() or not is_evaluation(self.folder)
        return "finished" if whole else "cut off before its end"


class ShownEvaluation:
    """One benchmark's samples at one moment, with their figures."""

    def __init__(self, name: str, folder: _Folder, benchmark: str) -> None:
        self.name, self.benchmark, self.log = name, benchmark, folder.log
        self.manifest = folder.manifest
        self.samples = folder.samples(benchmark)
        self.result = folder.result(benchmark, self.samples)


def summary(shown: ShownEvaluation) -> Answer:
    """EvaluationSummary."""
    result, manifest = shown.result, shown.manifest
    return {
        "name": shown.name,
        "model": manifest.model,
        "questions": result.questions,
        "answers": result.answers,
        "failed": sum(s.failed for s in shown.samples),
        "accuracy": _estimate(result.accuracy),
        "reward": _estimate(result.reward),
        "settings": as_json({**manifest.settings, "samples": manifest.samples}),
    }


def evaluation_answer(evaluations: Evaluations, name: str, query: Query) -> Answer:
    """Evaluation: figures, and the rows that fit `query` (SamplesQuery). Raises ConfigError where there is none of that
    name."""
    shown = evaluations.get(name)
    family, level, ending, correct, failed, words = (
        query.text(n) for n in ("family", "level", "ending", "correct", "failed", "q")
    )
    sort, offset, limit = (
        query.text("sort") or "id",
        query.whole("offset", 0),
        query.whole("limit", 100, most=query.most_rows),
    )
    query.finish()
    rows = [
        s
        for s in shown.samples
        if (family is None or s.family == family)
        and (level is None or s.level == level)
        and (ending is None or s.ending == ending)
        and (correct is None or s.correct == (correct == "1"))
        and (failed is None or s.failed == (failed == "1"))
        and (words is None or words.lower() in f"{s.id}\n{s.question}\n{s.answer or ''}".lower())
    ]
    key = sort.removeprefix("-")
    if key not in _SORTS:
        raise ConfigError("no such column to sort by", where="sort", value=sort, hint=f"one of {', '.join(_SORTS)}")
    rows.sort(key=_SORTS[key], reverse=sort.startswith("-"))
    result = shown.result
    groups = {name: getattr(result, name) for name in ("by_family", "by_level", "pass_at")}
    failures = Counter(s.failure.partition("\n")[0][:200] or s.ending for s in shown.samples if s.failed)
    return {
        **summary(shown),
        **{name: {str(key): _estimate(value) for key, value in group.items()} for name, group in groups.items()},
        "metric": result.metric,
        "missing": result.missing,
        **{name: _measured(getattr(result, name)) for name in ("measures", "costs", "by_budget")},
        "failures": dict(failures.most_common(20)),
        "damage": shown.log.damage[:20],
        "facets": {
            "families": sorted({s.family for s in shown.samples if s.family}),
            "levels": sorted({s.level for s in shown.samples if s.level}),
            "endings": sorted({s.ending for s in shown.samples if s.ending}),
        },
        "total": len(rows),
        "rows": [_row(s) for s in rows[offset : offset + limit]],
    }


def _measured(group: Mapping[Any, Estimate]) -> Answer:
    """Those that have a value."""
    return {str(name): as_json(asdict(one)) for name, one in group.items() if not math.isnan(one.mean)}


def sample_answer(evaluations: Evaluations, name: str, id: str, number: int, pieces: Pieces | None) -> Answer:
    """Sample, with its tree where there is one. Raises ConfigError where nobody asked that."""
    shown = evaluations.get(name)
    for sample in shown.samples:
        if (sample.id, sample.sample) == (id, number):
            record = shown.log.record(sample.key)
            tree = (
                None if record is None else {**tree_answer(record, pieces), "step": 0, "tokenizer": False}
            )  # of no step
            more = ("transcript", "failure", "measures", "seconds", "cost")
            return {**_row(sample), **{name: as_json(getattr(sample, name)) for name in more}, "tree": tree}
    raise ConfigError("there is no such answer", where=f"evaluation {name}", value=f"{id}, sample {number}")


def _row(sample: SampleRecord) -> Answer:
    return {**{name: as_json(getattr(sample, name)) for name in _ROW}, "failed": sample.failed}


def _estimate(value: Estimate) -> Answer | None:
    return None if math.isnan(value.mean) else as_json(asdict(value))
