"""Recorded trajectories, wherever they were left: an evaluation's samples.jsonl, a run's events, a file of frames.

Knows folders and records. Refuses to know what is made of them (`quality`, `entropy`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from arpo.core.record import TreeRecord
from arpo.errors import ConfigError
from arpo.evaluation.manifest import is_evaluation
from arpo.evaluation.samples import read_lines, record_in
from arpo.evaluation.statistics import FEW, LEVEL, RESAMPLES, Estimate, keyed_generator, wilson
from arpo.runs.folder import RunFolder, read_frames


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """A tree with what its task knows. `question` is what intervals resample."""

    question: str
    record: TreeRecord

    @property
    def task(self) -> Mapping[str, Any]:
        note = self.record.notes.get("task")
        return note if isinstance(note, Mapping) else {}


def read_recorded(path: Path) -> Iterator[Recorded]:
    """The trees in an evaluation's or a run's folder, or in a file of frames, one at a time. Of two answers to one
    sample of an evaluation the later counts. Raises ConfigError where there is none, FormatError for a damaged file."""
    if is_evaluation(path):
        last = {(line["benchmark"], line["id"], line["sample"]): number for number, line in enumerate(read_lines(path))}
        for number, line in enumerate(read_lines(path)):
            key = (line["benchmark"], line["id"], line["sample"])
            if last[key] == number and line.get("record") is not None:
                yield Recorded(question=f"{key[0]}/{key[1]}", record=record_in(line, path))
        return
    run = RunFolder(path) if (path / "recipe.yaml").is_file() else None
    steps = run.event_steps() if run else []
    if not steps and not path.is_file():
        hint = "An evaluation's folder has samples.jsonl (`arpo eval --benchmark`), a run's has events/"
        raise ConfigError("holds no recorded trajectories", value=str(path), hint=hint)
    for trees in (run.trees(step) for step in steps) if run else [read_frames(path)[0]]:
        yield from (Recorded(question=record.tree.task, record=record) for record in trees)


Pairs = Mapping[str, tuple[float, float]]  # by question: a numerator and a denominator


def ratio(pairs: Pairs, *, purpose: str, change: bool = False) -> Estimate:
    """Sum of numerators over sum of denominators (`change`: less 1) with its 95 % bootstrap interval over questions;
    `n` counts the questions. NaN where nothing can be said; no interval over fewer than `FEW` questions."""
    counts = np.array([pair for _, pair in sorted(pairs.items()) if pair[1]], dtype=np.float64).reshape(-1, 2)
    if not len(counts):
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    mean = counts[:, 0].sum() / counts[:, 1].sum() - change
    if len(counts) < FEW:
        return Estimate(float(mean), float("nan"), float("nan"), len(counts))
    chosen = keyed_generator(0, f"{purpose}/{len(counts)}").integers(0, len(counts), (RESAMPLES // 5, len(counts)))
    sums = counts[chosen].sum(axis=1)
    low, high = np.quantile(sums[:, 0] / sums[:, 1] - change, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(float(mean), float(low), float(high), len(counts))


def share(pairs: Pairs, *, purpose: str) -> Estimate:
    """A `ratio` of parts to wholes, from 0 to 1. Where all of it or nothing was found, resampling would know no doubt:
    there the interval is Wilson's over questions."""
    estimate = ratio(pairs, purpose=purpose)
    if estimate.n < 2 or estimate.mean not in (0.0, 1.0):
        return estimate
    return wilson(estimate.n if estimate.mean else 0, estimate.n)


def add(pairs: dict[str, tuple[float, float]], question: str, up: float, down: float) -> None:
    """Add to a question's numerator and denominator."""
    before = pairs.get(question, (0.0, 0.0))
    pairs[question] = (before[0] + up, before[1] + down)
