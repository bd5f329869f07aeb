"""Results of evaluations from the samples on disk: scored and computed again, merged, written in other forms: `arpo
results`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from arpo.core.record import TreeRecord
from arpo.display.terminal import Console
from arpo.errors import ConfigError
from arpo.evaluation.analysis import analyse, keep
from arpo.evaluation.lm_eval_export import export_lm_eval
from arpo.evaluation.manifest import EvalManifest, read_manifest
from arpo.evaluation.merge_shards import merge, studies_of_parts
from arpo.evaluation.reports import print_results, write_all
from arpo.evaluation.results import EvalResults, read_results, read_studies
from arpo.evaluation.samples import SampleLog, SampleRecord, read_lines, read_samples, record_in
from arpo.rewards.measures import BY_TEXT, measure_name
from arpo.tasks.benchmarks import BENCHMARKS


def rescore(folder: Path, manifest: EvalManifest) -> int:
    """Score the recorded answers again, and append a line for each sample whose score changed; the number of these.

    Answers scored by a reward of one's own, by a task's verifier or by `auto` without a measure of the task stay as
    they are.
    """
    reward = manifest.recipe_text.get("reward") or {}
    lines = {(line["benchmark"], line["id"], line["sample"]): line for line in read_lines(folder)}
    changed: list[tuple[SampleRecord, TreeRecord | None]] = []
    for line in lines.values():
        sample = SampleRecord.from_line(line, str(folder))
        public = sample.benchmark in BENCHMARKS
        measure = "auto" if public else reward.get("answer", "auto")
        known = sample.metric in BY_TEXT if measure == "auto" else measure in BY_TEXT
        if sample.failed or sample.answer is None or not known or (reward.get("use") and not public):
            continue
        accuracy = max(
            [0.0, *(BY_TEXT[measure_name(measure, sample.metric, gold)](sample.answer, gold) for gold in sample.gold)]
        )
        if accuracy != sample.accuracy:
            earned = sample.reward if sample.reward < 0 else sample.reward - sample.accuracy + accuracy
            scored = replace(sample, accuracy=accuracy, correct=accuracy >= 0.5, reward=earned)
            changed.append((scored, record_in(line) if line.get("record") is not None else None))
    if changed:
        with SampleLog(folder) as log:
            for scored, record in changed:
                log.append(scored, record)
    return len(changed)


def show_results(
    folders: Sequence[Path], *, out: Path | None = None, lm_eval: Path | None = None, console: Console | None = None
) -> EvalResults:
    """Compute the figures of a folder again, or of several put together in `out`, and print them; `lm_eval` gets them
    in that form.

    Raises ConfigError where a folder holds no answers, or several do not belong together."""
    console = console or Console(soft_wrap=True)
    if out is None and len(folders) > 1:
        raise ConfigError("several folders are put together in a new one", where="--out", hint="Name it")
    manifest = read_manifest(folders[0]) if out is None else merge(folders, out)
    folder = out or folders[0]
    if rescored := rescore(folder, manifest):
        console.print(f"{rescored} answers have another score by the measures of this version", highlight=False)
    results = write_all(folder, manifest)
    if results is None:
        raise ConfigError("holds no answers yet", where=str(folder))
    if out is not None:
        keep(out, studies_of_parts(folders, out))
        analyse([out], entropies=any("entropy" in read_studies(part) for part in folders), console=console, shown=False)
        results = read_results(folder)
    print_results(console, results)
    written = [f"{folder}/report.md, report.html, results.json"]
    if lm_eval is not None:
        written.append(str(export_lm_eval(results, read_samples(folder).values(), lm_eval)))
    console.print(f"written: {', '.join(written)}")
    return results
