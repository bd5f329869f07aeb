"""Folders of evaluations made of given samples, for tests that read them."""

import itertools
from collections.abc import Sequence
from pathlib import Path

from arpo.evaluation.manifest import BenchmarkManifest, EvalManifest, write_manifest
from arpo.evaluation.results import EvalResults, summarise
from arpo.evaluation.samples import SampleLog, SampleRecord

_STARTS = itertools.count(1)


def write_evaluation(
    folder: Path,
    samples: Sequence[SampleRecord],
    *,
    model: str = "SmolLM2-135M",
    finished: bool = True,
    **settings: object,
) -> EvalResults | None:
    """The folder of an evaluation; `finished`: with its results.json."""
    ids: dict[str, dict[str, None]] = {}
    for sample in samples:
        ids.setdefault(sample.benchmark, {})[sample.id] = None
    benchmarks = tuple(
        BenchmarkManifest(
            name=name, title=name, metric="", judged=False, ids=tuple(found), num_all=len(found), digest="d"
        )
        for name, found in ids.items()
    )
    limits = {"temperature": 1.0, "top_p": 1.0, "seed": 0, "max_calls": 3, "branch_tokens": 100}
    manifest = EvalManifest(
        name=folder.name,
        model=model,
        recipe="r",
        preset="",
        benchmarks=benchmarks,
        samples=max((sample.sample + 1 for sample in samples), default=1),
        settings={**limits, **settings},
        decides={},
        starts=(float(next(_STARTS)),),
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(folder, manifest)
    with SampleLog(folder) as log:
        for sample in samples:
            log.append(sample, None)
    return summarise(folder, manifest) if finished else None
