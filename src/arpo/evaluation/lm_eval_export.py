"""The results of an evaluation in the form of lm-evaluation-harness 0.4, for tools and leaderboards that read it.

    OUT/MODEL/results_TIME.json             results, configs, versions, n-samples, ...
              samples_BENCHMARK_TIME.jsonl  a line a question: doc, target, resps, filtered_resps and the metrics

Source: https://github.com/EleutherAI/lm-evaluation-harness, lm_eval/loggers/evaluation_tracker.py. Knows that form
alone.
"""

import hashlib
import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import arpo
from arpo.evaluation.results import BenchmarkResult, EvalResults
from arpo.evaluation.samples import SampleRecord
from arpo.evaluation.statistics import Estimate
from arpo.files import json_line, write_atomic, write_json
from arpo.tasks.benchmarks import BENCHMARKS

FILTER = "none"
_HALF_WIDTHS = 2 * 1.959964  # of a 95 % interval in standard errors


def export_lm_eval(
    results: EvalResults, answers: Iterable[SampleRecord], out: Path, *, at: float | None = None
) -> Path:
    """Write the files of `results` below `out` and return the results file. `at`: seconds since 1970, now without
    it."""
    manifest = results.manifest
    started = manifest.starts[0] if manifest.starts else time.time()
    stamp = time.strftime("%Y-%m-%dT%H-%M-%S", time.gmtime(time.time() if at is None else at)) + ".000000"
    model = re.sub(r"[\"<>:/\|\\?\*\[\]]+", "__", manifest.model)
    by_benchmark: dict[str, list[SampleRecord]] = {each.name: [] for each in results.benchmarks}
    for answer in answers:
        by_benchmark[answer.benchmark].append(answer)
    for each in results.benchmarks:
        lines = b"".join(map(json_line, _samples(by_benchmark[each.name], manifest.settings)))
        write_atomic(out / model / f"samples_{each.name}_{stamp}.jsonl", lines)
    names = {each.name: each for each in results.benchmarks}
    value = {
        "results": {name: _result(each) for name, each in names.items()},
        "group_subtasks": {name: [] for name in names},
        "configs": {name: _config(each, manifest.settings, manifest.samples) for name, each in names.items()},
        "versions": dict.fromkeys(names, arpo.__version__),
        "n-shot": dict.fromkeys(names, 0),
        "higher_is_better": {name: dict.fromkeys(_metrics(each), True) for name, each in names.items()},
        "n-samples": {
            name: {"original": _size(results, each), "effective": each.questions} for name, each in names.items()
        },
        "config": {
            "model": "arpo",
            "model_args": {"pretrained": manifest.model},
            "limit": manifest.parts.get("limit"),
            "gen_kwargs": dict(manifest.settings),
            "random_seed": manifest.settings.get("seed"),
        },
        "date": started,
        "model_source": "arpo",
        "model_name": manifest.model,
        "model_name_sanitized": model,
    }
    return write_json(out / model / f"results_{stamp}.json", value)


def _size(results: EvalResults, each: BenchmarkResult) -> int:
    benchmark = results.manifest.benchmark.get(each.name)
    return benchmark.num_all if benchmark else each.questions


def _metrics(each: BenchmarkResult) -> dict[str, Estimate]:
    passes = {f"pass@{k}": estimate for k, estimate in each.pass_at.items() if k > 1}
    return {"acc": each.accuracy, **each.measures, **passes}


def _result(each: BenchmarkResult) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": each.name, "alias": each.name, "sample_len": each.questions}
    for name, estimate in _metrics(each).items():
        entry[f"{name},{FILTER}"] = estimate.mean
        entry[f"{name}_stderr,{FILTER}"] = (estimate.high - estimate.low) / _HALF_WIDTHS
    return entry


def _config(each: BenchmarkResult, settings: Mapping[str, Any], samples: int) -> dict[str, Any]:
    entry = BENCHMARKS.get(each.name) if each.metric else None  # questions of one's own may have a benchmark's name
    return {
        "task": each.name,
        "dataset_path": entry.hub if entry else each.title,
        "test_split": entry.split if entry else None,
        "output_type": "generate_until",
        "num_fewshot": 0,
        "repeats": samples,
        "generation_kwargs": {**settings, "do_sample": bool(settings.get("temperature"))},
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": arpo.__version__, "measure": each.metric},
    }


def _samples(answers: Sequence[SampleRecord], settings: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    by_question: dict[str, list[SampleRecord]] = {}
    for answer in sorted(answers, key=lambda a: a.key):
        by_question.setdefault(answer.id, []).append(answer)
    for number, (id, samples) in enumerate(by_question.items()):
        first = samples[0]
        doc = {
            "id": id,
            "question": first.question,
            "answers": list(first.gold),
            "level": first.level,
            "category": first.category,
        }
        target = first.gold[0] if first.gold else ""
        yield {
            "doc_id": number,
            "doc": doc,
            "target": target,
            "arguments": {"gen_args_0": {"arg_0": first.question, "arg_1": dict(settings)}},
            "resps": [[answer.transcript for answer in samples]],
            "filtered_resps": [answer.answer or "" for answer in samples],
            "filter": FILTER,
            "metrics": ["acc"],
            "doc_hash": _hash(json.dumps(doc, ensure_ascii=False)),
            "prompt_hash": _hash(first.question),
            "target_hash": _hash(target),
            "acc": sum(answer.accuracy for answer in samples) / len(samples),
        }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
