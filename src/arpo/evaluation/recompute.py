"""Results of evaluations from the samples on disk: scored and computed again, merged, written in other forms: `arpo
results`."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import ValidationError

from arpo.assembly.components import read_tasks
from arpo.chat import Transcript
from arpo.core.record import TreeRecord
from arpo.display.terminal import Console
from arpo.errors import ArpoError, ConfigError
from arpo.evaluation.analysis import analyse, keep
from arpo.evaluation.lm_eval_export import export_lm_eval
from arpo.evaluation.manifest import EvalManifest, read_manifest
from arpo.evaluation.merge_shards import merge, studies_of_parts
from arpo.evaluation.reports import print_results, write_all
from arpo.evaluation.results import EvalResults, read_results, read_studies
from arpo.evaluation.run_eval import public_reward
from arpo.evaluation.samples import SampleLog, SampleRecord, read_lines, read_samples, record_in
from arpo.event_loop import run_sync
from arpo.recipe.load import resolved_run
from arpo.recipe.run import RunConfig
from arpo.rewards import Reward
from arpo.rewards.boundary import run_reward
from arpo.rewards.config import RewardConfig, build_reward
from arpo.rewards.measures import BY_TEXT, answer_measure
from arpo.rewards.service import services_of
from arpo.rollout.collect import recorded_transcript
from arpo.tasks import Task
from arpo.tasks.benchmarks import BENCHMARKS

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rescored:
    """What scoring recorded answers again came to."""

    changed: int
    kept: Mapping[str, int]
    """Answers that keep their scores, by the reason."""


def rescore(folder: Path, manifest: EvalManifest) -> Rescored:
    """Score the recorded answers again, and append a line for each sample whose score changed."""
    return run_sync(_rescore(folder, _Scorer(manifest, folder)))


async def _rescore(folder: Path, scorer: "_Scorer") -> Rescored:
    lines = {(line["benchmark"], line["id"], line["sample"]): line for line in read_lines(folder)}
    changed: list[tuple[SampleRecord, TreeRecord | None]] = []
    kept: Counter[str] = Counter()
    for line in lines.values():
        sample = SampleRecord.from_line(line, str(folder))
        if sample.failed:
            continue
        try:
            record = record_in(line, folder) if line.get("record") is not None else None
            scored = await scorer.score(sample, None if record is None else recorded_transcript(record))
        except ArpoError as error:
            kept[str(error)] += 1
            continue
        if (scored.accuracy, scored.reward) != (sample.accuracy, sample.reward):
            if record is not None:
                scores = {
                    leaf: replace(old, reward=scored.reward, accuracy=scored.accuracy)
                    for leaf, old in record.scores.items()
                }
                record = replace(record, scores=scores)
            changed.append((scored, record))
    if changed:
        with SampleLog(folder) as log:
            for scored, record in changed:
                log.append(scored, record)
    return Rescored(len(changed), kept)


@dataclass
class _Scorer:
    """Scores recorded answers as the recipe of their evaluation says."""

    manifest: EvalManifest
    folder: Path
    _built: dict[str, Any] = field(default_factory=dict)
    """What is read or built once, or the error that it raised."""

    async def score(self, sample: SampleRecord, transcript: Transcript | None) -> SampleRecord:
        """`sample` with its score of today. Raises ConfigError, FormatError and RewardError with the reason where the
        recipe, the tasks and the record do not say it."""
        public = sample.benchmark in BENCHMARKS
        config = self._once("reward", self._read_config)
        config = public_reward(config) if public else config
        if config.use and transcript is None:
            message = "the final states of tools, or how the turns were read, are not recorded"
            raise ConfigError(message, where="reward.use", value=config.use)
        task = self._task(sample, config)
        if transcript is not None:
            reward_of = self._once(f"reward/{public}", lambda: self._build(config))
            if services_of(reward_of):
                raise ConfigError("asks a service, whose verdicts stay as they are", where="reward.use")
            score = await run_reward(reward_of, task, transcript)
            accuracy, reward = score.accuracy, score.reward
        else:
            accuracy = 0.0 if sample.answer is None else await answer_measure(config.answer)(sample.answer, task)
            reward = sample.reward if sample.reward < 0 else sample.reward - sample.accuracy + accuracy
        return replace(sample, accuracy=accuracy, correct=accuracy >= 0.5, reward=reward)

    def _once(self, key: str, make: Callable[[], T]) -> T:
        if key not in self._built:
            try:
                self._built[key] = make()
            except ArpoError as error:
                self._built[key] = error
        if isinstance(self._built[key], ArpoError):
            raise self._built[key]
        return cast(T, self._built[key])

    def _read_config(self) -> RewardConfig:
        try:
            return RewardConfig.model_validate(self.manifest.recipe_text.get("reward") or {})
        except ValidationError as error:
            raise ConfigError("is not a reward of this version", where="reward") from error

    def _build(self, config: RewardConfig) -> Reward:
        if config.use:
            self._once("run", self._read_run)  # puts the folder of its code on Python's path
        return build_reward(config)

    def _task(self, sample: SampleRecord, config: RewardConfig) -> Task:
        """The sample's task: from the sample where that holds all that the measure reads, else from the recipe's
        data."""
        measured = sample.metric in BY_TEXT if config.answer == "auto" else True
        if measured and not config.use:
            messages = ({"role": "user", "content": sample.question},)
            metadata = {"measure": sample.metric}
            return Task(id=sample.id, messages=messages, answers=tuple(sample.gold), metadata=metadata)
        tasks = self._once(f"tasks/{sample.benchmark}", lambda: self._read_tasks(sample.benchmark))
        task = tasks.get(sample.id)
        if task is None or tuple(task.answers) != tuple(sample.gold):
            where = f"data.{sample.benchmark}"
            raise ConfigError("no longer has these questions with these answers", where=where)
        return task

    def _read_tasks(self, benchmark: str) -> dict[str, Task]:
        """The tasks of a split of the recipe, by id."""
        if benchmark not in ("train", "validation", "test"):
            raise ConfigError("the recipe does not say where these tasks are from", where=benchmark)
        return {task.id: task for task in read_tasks(self._once("run", self._read_run), benchmark)[0]}

    def _read_run(self) -> RunConfig:
        return resolved_run(self.manifest.recipe_text, str(self.folder))


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
    rescored = rescore(folder, manifest)
    if rescored.changed:
        console.print(f"{rescored.changed} answers have another score by the measures of this version", highlight=False)
    for reason, number in rescored.kept.items():
        console.print(f"{number} answers keep their scores, since they cannot be scored again: {reason}", markup=False)
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
