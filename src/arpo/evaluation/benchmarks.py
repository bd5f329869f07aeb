"""Ask a model the questions of benchmarks, or finish asking: `arpo eval RECIPE --benchmark NAME`.

Knows the order of things: questions, folder, model, answers, figures. Every answer is on disk before the next one counts.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from arpo.assembly.components import EvalComponents, Setting, build_eval_components, build_setting, model_folder
from arpo.assembly.resolve import ResolvedModel
from arpo.chat import Transcript
from arpo.core.score import Score
from arpo.display.eval_progress import EvalProgress
from arpo.errors import ConfigError, EngineError
from arpo.evaluation.analysis import analyse, keep
from arpo.evaluation.benchmark_results import EvalResults, read_studies
from arpo.evaluation.generate import EvalQuestion, generate
from arpo.evaluation.judge import Judge
from arpo.evaluation.manifest import EvalManifest, manifest_of, opened
from arpo.evaluation.overlap import STUDY, together, training_overlap
from arpo.evaluation.presets import preset
from arpo.evaluation.questions import BenchmarkQuestions, choose
from arpo.evaluation.reports import print_results_tables, write_all
from arpo.evaluation.run_eval import evaluated_model, slug
from arpo.evaluation.samples import Key, SampleLog, SampleRecord, read_samples
from arpo.event_loop import run_sync
from arpo.models.identity import identity
from arpo.recipe.run import RunConfig
from arpo.rewards import Reward
from arpo.rewards.config import RewardConfig, build_reward
from arpo.tasks import Task
from arpo.tools.usage import as_study

GIVE_UP = 64  # answers of which not one could be had: what stands behind the engine or a tool is down


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What the command line asks for besides the recipe."""

    names: Sequence[str]
    data: Path | None = None
    limit: int | None = None
    ids: Sequence[str] = ()
    shard: tuple[int, int] | None = None
    samples: int | None = None
    greedy: bool = False
    preset: str = ""
    model: str | None = None
    out: Path | None = None
    resume: bool = False
    again: bool = False  # ask once more what the world ended
    entropy: bool = False  # measure entropies around tool results

    @property
    def parts(self) -> dict[str, object]:
        """Which part of the benchmarks."""
        found = {
            "limit": self.limit,
            "ids": list(self.ids) or None,
            "shard": "/".join(map(str, self.shard)) if self.shard else None,
        }
        return {name: value for name, value in found.items() if value is not None}


def run_benchmarks(recipe: str, run: RunConfig, wanted: Wanted, *, console: Console | None = None) -> EvalResults:
    """Ask, write down, and say what it came to. Raises ConfigError and FormatError before anything is asked; EngineError where not
    one answer could be had (those outcomes are kept)."""
    console = console or Console(soft_wrap=True)
    run = run.model_copy(
        update={"evaluation": run.evaluation.model_copy(update={"samples": wanted.samples or run.evaluation.samples})}
    )
    chosen = choose(wanted.names, data=wanted.data, ids=wanted.ids, limit=wanted.limit, shard=wanted.shard)
    found = evaluated_model(recipe, run, wanted.model)
    _check_studies(found.run, wanted)
    source = model_folder(found.run, found.weights)
    asked = _what_is_asked(found, source, chosen, wanted)
    folder = wanted.out or _folder(found, chosen, wanted)
    _say(console, f"model: {found.label}")
    if wanted.preset:
        _say(console, f"preset {wanted.preset}: {preset(wanted.preset).says}")
    shared = training_overlap(found.folder, chosen)
    for warning in shared.get("warnings", ()):
        _say(console, f"warning: {warning}")
    setting = build_setting(found.run)
    for text in setting.notes():
        _say(console, text)
    with opened(folder, asked, resume=wanted.resume) as whole:
        setting.tool_gateway.keep(folder)
        before = read_samples(folder)
        done = {key for key, answer in before.items() if not (wanted.again and answer.failed)}
        left = [q for q in _questions(chosen, asked.samples) if _key(q) not in done]
        num_asked = asked.samples * sum(len(each.tasks) for each in chosen)
        _say(console, f"asking {len(left):,} of {num_asked:,}: {_names(chosen)}")
        try:
            if left:
                run_sync(_ask(found, setting, source, chosen, left, asked, folder, console, num_asked))
        except BaseException:
            if (stopped := write_all(folder, whole)) is not None:
                kept = sum(each.answers for each in stopped.benchmarks)
                _say(console, f"{kept:,} answers are kept in {folder}: the same command with --resume goes on")
            raise
        findings = write_all(folder, whole)
        if findings is None:
            raise EngineError("nothing was answered")
        if shared:
            keep(folder, {STUDY: together([read_studies(folder).get(STUDY, {}), shared], whole)})
        if spent := setting.tool_gateway.spent():
            keep(folder, {"tools": as_study(spent, setting.isolation)})
        _study(folder, found.run, console, entropies=wanted.entropy or "entropy" in findings.studies)
        findings = write_all(folder, whole) or findings
        print_results_tables(console, findings)
        _say(console, f"written: {folder}/report.md, report.html, results.json, samples.jsonl")
    return findings


def _what_is_asked(found: ResolvedModel, source: Path, chosen: Sequence[BenchmarkQuestions], wanted: Wanted) -> EvalManifest:
    config = found.run.evaluation
    return manifest_of(
        found.run,
        found.label,
        chosen,
        temperature=0.0 if wanted.greedy else config.temperature,
        samples=1 if wanted.greedy else config.samples,
        preset=wanted.preset,
        parts=wanted.parts,
        identity=_identity(found, source),
    )


def _identity(found: ResolvedModel, source: Path) -> str:
    """Trained weights are a whole model, but for those of LoRA, which belong to the source's."""
    if found.run.engine.kind == "openai":
        return ""
    alone = found.weights is not None and found.run.model.lora is None
    return identity(*(folder for folder in (None if alone else source, found.weights) if folder is not None))


def _check_studies(run: RunConfig, wanted: Wanted) -> None:
    """Raises ConfigError, before anything is asked, for a judge without its key and entropies that an engine does not tell."""
    if run.evaluation.judge is not None:
        Judge(run.evaluation.judge).ready()
    if wanted.entropy and run.engine.kind == "openai":
        raise ConfigError("an endpoint tells no entropies", where="--entropy", hint="Measure them with engine.kind=local")


def _study(folder: Path, run: RunConfig, console: Console, *, entropies: bool) -> None:
    """Further looks at the answers that are there; what cannot be measured in them is said."""
    try:
        analyse([folder], entropies=entropies, judge=run.evaluation.judge, console=console, shown=False)
    except ConfigError as error:
        _say(console, f"warning: {error}")


def _names(chosen: Sequence[BenchmarkQuestions]) -> str:
    return ", ".join(f"{each.title} ({len(each.tasks):,})" for each in chosen)


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False)


def _folder(found: ResolvedModel, chosen: Sequence[BenchmarkQuestions], wanted: Wanted) -> Path:
    """`evaluations/MODEL-BENCHMARKS`, a shard with its number."""
    what = "-".join(each.name for each in chosen) if len(chosen) <= 3 else f"{len(chosen)}-benchmarks"
    part = f"-{wanted.shard[0]}of{wanted.shard[1]}" if wanted.shard else ""
    how = "-greedy" if wanted.greedy else ""
    return Path("evaluations") / f"{slug(str(found.folder) if found.folder else found.label)}-{slug(what)}{how}{part}"


def _say_missing(console: Console, components: EvalComponents, name: str) -> None:
    """Say which tools a preset was published with that this agent has not."""
    if missing := [tool for tool in preset(name).tools if tool not in {each.name for each in components.agent.tools}]:
        _say(console, f"warning: preset {name} was published with {', '.join(missing)}, which this recipe does not offer")


def _questions(chosen: Sequence[BenchmarkQuestions], samples: int) -> Iterator[EvalQuestion]:
    """The first sample of every question before the second of any: what is there early says most."""
    for number in range(samples):
        for each in chosen:
            yield from (EvalQuestion(each.name, task, number) for task in each.tasks)


def _key(question: EvalQuestion) -> Key:
    return question.benchmark, question.task.id, question.number


async def _ask(
    found: ResolvedModel,
    setting: Setting,
    source: Path,
    chosen: Sequence[BenchmarkQuestions],
    left: Sequence[EvalQuestion],
    asked: EvalManifest,
    folder: Path,
    console: Console,
    num_asked: int,
) -> None:
    components = build_eval_components(found.run, source, found.weights, setting=setting)
    if asked.preset:
        _say_missing(console, components, asked.preset)
    components.save_tokenizer(folder / "tokenizer")
    config = found.run.evaluation
    rollout = found.run.rollout.flat(leaves=1, temperature=asked.settings["temperature"], top_p=asked.settings["top_p"])
    reward = _reward(components, {each.name: each for each in chosen})
    in_flight = found.run.engine.slots
    failed: list[SampleRecord] | None = []  # None: something was answered
    try:
        with SampleLog(folder) as log, EvalProgress(console, num_asked, before=num_asked - len(left)) as shown:
            async with aclosing(generate(components.agent, left, reward, rollout, seed=config.seed, in_flight=in_flight)) as coming:
                async for answer, record in coming:
                    log.append(answer, record)
                    shown.add(answer.accuracy, failed=answer.failed)
                    failed = None if failed is None or not answer.failed else [*failed, answer]
                    if failed is not None and len(failed) >= GIVE_UP:
                        break
    finally:
        await components.agent.close()
        setting.tool_gateway.write_down()
        if (spent := components.agent.spent) is not None:
            _say(console, f"endpoint: {spent}")
    if failed:
        raise EngineError(
            f"not one of the first {len(failed)} questions could be answered. First cause: {failed[0].failure}. "
            "What was asked is kept: go on with --resume --again once the cause is gone"
        )


def _reward(components: EvalComponents, chosen: Mapping[str, BenchmarkQuestions]) -> Reward:
    """A public benchmark is scored by its own measure, whatever the recipe trains on; other questions by the recipe's reward."""
    own = components.run.reward
    settings = {"answer": "auto", "bonus": 0.0, "bonus_tools": ()}
    public = build_reward(own.model_copy(update=settings) if isinstance(own, RewardConfig) and not own.use else RewardConfig())

    async def reward(task: Task, transcript: Transcript) -> Score:
        is_public = (each := chosen.get(task.source)) is not None and each.public
        return await (public if is_public else components.reward)(task, transcript)

    return reward
