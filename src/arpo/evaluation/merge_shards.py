"""Merge parts of one evaluation that several processes or machines have made.

Knows folders of evaluations: samples, tool calls and verdicts of judges go along. Refuses to mix answers to different
questions, or of different models, and to know what answers come to.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from arpo.errors import ConfigError
from arpo.evaluation import verdicts
from arpo.evaluation.analysis import OVERLAP, merge_overlaps
from arpo.evaluation.manifest import EvalManifest, merge_benchmarks, open_evaluation, read_manifest, write_manifest
from arpo.evaluation.results import read_studies
from arpo.evaluation.samples import FILE as SAMPLES
from arpo.evaluation.samples import Key, SampleRecord, read_lines, read_samples
from arpo.files import json_line, read_json_lines, write_json
from arpo.tools import usage


def merge(folders: Sequence[Path], out: Path) -> EvalManifest:
    """Write the answers of `folders` into the new folder `out`; a sample that several have counts as in the last where
    it did not fail. Raises ConfigError where they were not asked the same way."""
    parts = [read_manifest(folder) for folder in folders]
    whole = parts[0]
    for folder, part in zip(folders[1:], parts[1:], strict=True):
        if differences := whole.differences(part):
            raise ConfigError(
                f"was asked otherwise than {folders[0]} ({'; '.join(differences[:3])})", where=str(folder)
            )
        whole = replace(whole, benchmarks=merge_benchmarks(whole, part), samples=max(whole.samples, part.samples))
    kept = {
        name: value
        for name, value in whole.parts.items()
        if name != "shard" and all(p.parts.get(name) == value for p in parts)
    }
    whole = replace(
        whole, name=out.name, parts=kept, starts=tuple(sorted(start for part in parts for start in part.starts))
    )
    with open_evaluation(out, whole, resume=False):
        write_manifest(out, whole)
        _write_answers(folders, out)
        _write_verdicts(folders, out)
        if spent := usage.together(map(usage.read_usage, folders)):
            write_json(out / usage.FILE, spent)
        tokenizer = next((folder / "tokenizer" for folder in folders if (folder / "tokenizer").is_dir()), None)
        if tokenizer is not None:
            shutil.copytree(tokenizer, out / "tokenizer", dirs_exist_ok=True)
    return whole


def studies_of_parts(folders: Sequence[Path], out: Path) -> dict[str, Any]:
    """What the studies of `folders` come to together that follow from more than the answers: tool calls, leakage, a
    judge."""
    studies = [read_studies(folder) for folder in folders]
    isolation: dict[str, str] = {}
    for each in studies:
        isolation |= each.get("tools", {}).get("isolation", {})
    calls = usage.together(each.get("tools", {}).get("accounts", {}) for each in studies)
    overlap = merge_overlaps([each.get(OVERLAP, {}) for each in studies], read_manifest(out))
    tools = {"tools": usage.as_study(calls, isolation)} if calls else {}
    return {**tools, **({OVERLAP: overlap} if overlap else {}), **_judged(studies, out)}


def _judged(studies: Sequence[Mapping[str, Any]], out: Path) -> dict[str, Any]:
    """What one judge said of every part."""
    judged = [each["judge"] for each in studies if "judge" in each]
    if len(judged) < len(studies) or len({each["judge"] for each in judged}) > 1:
        return {}
    answers, name = read_samples(out), judged[0]["judge"]
    by_judge = [
        v
        for v in verdicts.read_verdicts(out)
        if v.judge == name and _is_of(v, answers.get((v.benchmark, v.id, v.sample)))
    ]
    spent = {key: sum(each["spent"].get(key, 0) for each in judged) for key in judged[0]["spent"]}
    return {"judge": {**verdicts.as_study(verdicts.judged(by_judge), name), "spent": spent}}


def _is_of(verdict: verdicts.Verdict, answer: SampleRecord | None) -> bool:
    return answer is not None and answer.answer == verdict.answer


def _write_verdicts(folders: Sequence[Path], out: Path) -> None:
    judged = [folder for folder in folders if (folder / verdicts.FILE).is_file()]
    if judged:
        with (out / verdicts.FILE).open("wb") as file:
            for folder in judged:
                file.writelines(json_line(line) for line in read_json_lines(folder / verdicts.FILE))


def _write_answers(folders: Sequence[Path], out: Path) -> None:
    """Line by line: trajectories are never all in memory."""
    chosen: dict[Key, tuple[int, int, bool]] = {}  # where the line that counts stands, and whether it failed
    for number, folder in enumerate(folders):
        for line, value in enumerate(read_lines(folder)):
            answer = SampleRecord.from_line(value, f"{folder / SAMPLES}, line {line + 1}")
            if answer.key not in chosen or not answer.failed or chosen[answer.key][2]:
                chosen[answer.key] = (number, line, answer.failed)
    places = {(number, line) for number, line, _ in chosen.values()}
    with (out / SAMPLES).open("wb") as file:
        for number, folder in enumerate(folders):
            for line, value in enumerate(read_lines(folder)):
                if (number, line) in places:
                    file.write(json_line(value))
