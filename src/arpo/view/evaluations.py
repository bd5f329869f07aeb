"""Evaluations of a run: their results, and every answer with its transcript (Evaluation and Sample in api.ts)."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from arpo.errors import ConfigError
from arpo.evaluation.results import Results, read_results
from arpo.evaluation.results import Sample as Asked
from arpo.evaluation.statistics import Estimate
from arpo.files import as_json, read_json
from arpo.runs.lock import is_held
from arpo.view.memo import Memo
from arpo.view.pieces import Pieces
from arpo.view.query import Query
from arpo.view.sample_log import ABORTED, SampleLogReader
from arpo.view.trees import tree_answer

Answer = dict[str, Any]
_ASKED, _RESULTS = "asked.json", "results.json"  # the files of an evaluation of benchmarks
_SORTS: Mapping[str, Callable[[Asked], Any]] = {
    name: lambda s, name=name: getattr(s, name)  # type: ignore[misc]
    for name in ("id", "family", "level", "reward", "accuracy", "calls", "tokens", "ending", "correct")
}


class Evaluations:
    """The evaluations in a folder: finished ones from their files, running ones from the log of their answers. A file
    is read again only after a change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._kept: dict[str, Memo[Results | None]] = {}
        is_run = (folder / "recipe.yaml").is_file()  # the sample log of a run is not an evaluation
        self.asking = None if is_run else SampleLogReader(folder)
        self._going: dict[str, tuple[int, Results]] = {}  # by name: number of answers, and their results
        self._asked = Memo(lambda: _object(folder / _ASKED), folder / _ASKED)
        self._findings = Memo(lambda: _object(folder / _RESULTS), folder / _RESULTS)

    def names(self) -> list[str]:
        """Names of the finished evaluations in the order of their files, then of the running ones. Other JSON files do
        not count."""
        found = sorted((self.folder / "evaluation").glob("*.json"), key=lambda p: (p.stat().st_mtime_ns, p.name))
        written = [path.stem for path in found if not path.name.startswith(".") and self._written(path.stem) is not None]
        logged = {} if self.asking is None else dict.fromkeys(key[0] for key in self.asking.answers())
        return list(dict.fromkeys((*written, *logged)))

    def get(self, name: str) -> Results:
        """The results of an evaluation. Raises ConfigError for a name that is not in `names`, so that no name leads out
        of the folder."""
        if name not in self.names():
            raise ConfigError("there is no such evaluation", where=str(self.folder / "evaluation"), value=name)
        written, going = self._written(name), self._logged(name)
        if written is None or (going is not None and len(going.samples) > len(written.samples)):  # it was resumed
            assert going is not None
            return going
        return written

    def summaries(self) -> list[Answer]:
        return [summary(self.get(name)) for name in self.names()]

    def is_live(self) -> bool:
        return self.asking is not None and is_held(self.folder / "lock")

    def state(self) -> str:
        """The state, in the words of a run's state."""
        whole = self.asking is None or not self.asking.path.exists() or (self.folder / _RESULTS).exists()
        return "still going" if self.is_live() else "finished" if whole else "cut off before its end"

    def finding(self, name: str) -> Mapping[str, Any]:
        """The entry of a benchmark in results.json; empty if there is none, or if it belongs to other answers."""
        found = self._findings.get().get("benchmarks", {})
        one = found.get(name, {}) if isinstance(found, dict) else {}
        return one if isinstance(one, dict) and one.get("answers") == len(self.get(name).samples) else {}

    def missing(self, name: str) -> int:
        """The number of missing answers; 0 if it is unknown."""
        asked = self._asked.get()
        benchmarks, samples = asked.get("benchmarks"), asked.get("samples")
        if not isinstance(benchmarks, list) or not isinstance(samples, int):
            return 0
        wanted = sum(len(one.get("ids", ())) * samples for one in benchmarks if isinstance(one, dict) and one.get("name") == name)
        return max(wanted - len(self.get(name).samples), 0)

    def _written(self, name: str) -> Results | None:
        path = self.folder / "evaluation" / f"{name}.json"
        if name not in self._kept:
            self._kept[name] = Memo(lambda: _read(path), path)
        return self._kept[name].get()

    def _logged(self, name: str) -> Results | None:
        answers = () if self.asking is None else tuple(one.answer for key, one in self.asking.answers().items() if key[0] == name)
        if not answers:
            return None
        if name not in self._going or self._going[name][0] != len(answers):
            asked = self._asked.get()
            settings = asked.get("settings", {})
            self._going[name] = len(answers), Results.of(name, str(asked.get("model", "")), answers, settings=settings)
        return self._going[name][1]


def _read(path: Path) -> Results | None:
    """The results in a file; None if it is gone or holds something else."""
    value = read_json(path) if path.exists() else None
    is_one = isinstance(value, dict) and str(value.get("schema", "")).startswith("arpo/evaluation/")
    return read_results(path) if is_one else None


def _object(path: Path) -> dict[str, Any]:
    value = read_json(path) if path.exists() else {}
    return value if isinstance(value, dict) else {}


def summary(results: Results) -> Answer:
    """EvaluationSummary."""
    return {
        "name": results.name,
        "model": results.model,
        "questions": results.num_questions,
        "answers": len(results.samples),
        "failed": sum(s.ending in ABORTED for s in results.samples),
        "accuracy": _estimate(results.accuracy),
        "reward": _estimate(results.reward),
        "settings": as_json(results.settings),
    }


def evaluation_answer(evaluations: Evaluations, name: str, query: Query) -> Answer:
    """Evaluation: figures, and the rows that match `query` (SamplesQuery). Raises ConfigError for an unknown name."""
    results = evaluations.get(name)
    family, level, ending, correct, failed, words = (query.text(n) for n in ("family", "level", "ending", "correct", "failed", "q"))
    sort, offset, limit = query.text("sort") or "id", query.whole("offset", 0), query.whole("limit", 100, most=query.most_rows)
    query.finish()
    rows = [
        s
        for s in results.samples
        if (family is None or s.family == family)
        and (level is None or s.level == level)
        and (ending is None or s.ending == ending)
        and (correct is None or s.correct == (correct == "1"))
        and (failed is None or (s.ending in ABORTED) == (failed == "1"))
        and (words is None or words.lower() in f"{s.id}\n{s.question}\n{s.answer or ''}".lower())
    ]
    key = sort.removeprefix("-")
    if key not in _SORTS:
        raise ConfigError("no such column to sort by", where="sort", value=sort, hint=f"one of {', '.join(_SORTS)}")
    rows.sort(key=_SORTS[key], reverse=sort.startswith("-"))
    groups: dict[str, Mapping[Any, Estimate]] = {"by_family": results.by_family, "by_level": results.by_level}
    groups["pass_at"] = results.pass_at
    return {
        **summary(results),
        **{name: {str(key): _estimate(value) for key, value in group.items()} for name, group in groups.items()},
        **_found(evaluations, results),
        "facets": {
            "families": sorted({s.family for s in results.samples if s.family}),
            "levels": sorted({s.level for s in results.samples if s.level}),
            "endings": sorted({s.ending for s in results.samples if s.ending}),
        },
        "total": len(rows),
        "rows": [_row(s) for s in rows[offset : offset + limit]],
    }


def _found(evaluations: Evaluations, results: Results) -> Answer:
    """The figures of a benchmark besides its accuracy, and the reasons why answers failed."""
    found, asking = evaluations.finding(results.name), evaluations.asking
    logged = [] if asking is None else [one.answer for key, one in asking.answers().items() if key[0] == results.name]
    failures = Counter(answer.failure.partition("\n")[0][:200] or answer.ending for answer in logged if answer.failed)
    return {
        "metric": str(found.get("metric", "")),
        "missing": evaluations.missing(results.name),
        **{group: _measured(found.get(group)) for group in ("measures", "costs", "by_budget")},
        "failures": dict(failures.most_common(20)),
        "damage": [] if asking is None else asking.damage[:20],
    }


def _measured(group: object) -> Answer:
    """The estimates in results.json that have a value, by name."""
    known = group.items() if isinstance(group, dict) else ()
    return {name: as_json(one) for name, one in known if isinstance(one, dict) and isinstance(one.get("mean"), int | float)}


def sample_answer(evaluations: Evaluations, name: str, id: str, number: int, pieces: Pieces | None) -> Answer:
    """Sample, with its tree if the evaluation was recorded in full. Raises ConfigError for an unknown question."""
    for sample in evaluations.get(name).samples:
        if (sample.id, sample.sample) == (id, number):
            key, asking = (name, id, number), evaluations.asking
            record = None if asking is None else asking.record(key)
            tree = None if record is None else {**tree_answer(record, pieces), "step": 0, "tokenizer": False}  # of no step
            logged = None if asking is None else asking.answers().get(key)
            answer = None if logged is None else logged.answer
            return {
                **_row(sample),
                "transcript": sample.transcript,
                "tree": tree,
                "failure": "" if answer is None else answer.failure,
                "measures": {} if answer is None else as_json(answer.measures),
                "seconds": None if answer is None else answer.seconds,
                "cost": None if answer is None else answer.cost,
            }
    raise ConfigError("there is no such answer", where=f"evaluation {name}", value=f"{id}, sample {number}")


def _row(sample: Asked) -> Answer:
    row = {field.name: as_json(getattr(sample, field.name)) for field in fields(Asked) if field.name != "transcript"}
    return {**row, "failed": sample.ending in ABORTED}


def _estimate(value: Estimate) -> Answer | None:
    return None if math.isnan(value.mean) else as_json(asdict(value))
