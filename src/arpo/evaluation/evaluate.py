"""Evaluate a model on its recipe's held-out tasks or on benchmarks: `arpo eval`.

Knows the order of things: questions, folder, model, samples, figures, reports. How an evaluation is made in its folder,
`run_eval` knows; runs use that for themselves.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from arpo.assembly.components import (
    EvalComponents,
    Setting,
    build_eval_components,
    build_setting,
    model_folder,
    read_tasks,
)
from arpo.assembly.resolve import ResolvedModel, label_of, resolve_folder, resolve_model
from arpo.display.terminal import Console
from arpo.errors import ConfigError
from arpo.evaluation.analysis import OVERLAP, analyse, keep, merge_overlaps, training_overlap
from arpo.evaluation.judge import Judge
from arpo.evaluation.manifest import EvalManifest, open_evaluation
from arpo.evaluation.questions import BenchmarkQuestions, EvalSpec, choose, eval_specs, preset, select
from arpo.evaluation.reports import print_results, write_all
from arpo.evaluation.results import EvalResults, read_results, read_studies
from arpo.evaluation.run_eval import missing, public_reward, run_eval
from arpo.event_loop import run_sync
from arpo.files import expanded
from arpo.models.identity import identity
from arpo.recipe.run import RunConfig
from arpo.rewards.measures import gold_warning
from arpo.runs.folder import is_run


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalRequest:
    """What the command line asks for besides the recipe."""

    benchmarks: Sequence[str] = ()  # none: the recipe's held-out tasks
    data: Path | None = None
    limit: int | None = None
    ids: Sequence[str] = ()
    shard: tuple[int, int] | None = None
    samples: int | None = None
    greedy: bool = False  # greedy answers alone
    preset: str = ""
    model: str | None = None  # anything that `resolve_model` knows
    out: Path | None = None
    resume: bool = False
    again: bool = False  # ask once more where infrastructure failed
    entropy: bool = False  # measure entropies around tool results

    @property
    def parts(self) -> dict[str, object]:
        """Which part of the questions."""
        shard = "/".join(map(str, self.shard)) if self.shard else None
        values = {"limit": self.limit, "ids": list(self.ids) or None, "shard": shard}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class _Planned:
    """One evaluation of the request."""

    spec: EvalSpec
    questions: Sequence[BenchmarkQuestions]
    folder: Path
    manifest: EvalManifest


def evaluate_model(
    recipe: str, run: RunConfig, request: EvalRequest, *, console: Console | None = None
) -> list[EvalResults]:
    """Evaluate, print the figures and write them with their reports: one evaluation for benchmarks; for held-out tasks
    a sampled one and a greedy one, as the recipe has it.

    The model is the request's, else the one that the run in the folder `recipe` ended with, else the source of the
    recipe. Raises ConfigError and FormatError before anything is asked; EngineError, ToolError or RewardError where not
    one sample could be had.
    """
    console = console or Console(soft_wrap=True)
    run = with_options(run, limit=None if request.benchmarks else request.limit, samples=request.samples)
    model = evaluated_model(recipe, run, request.model)
    _check_studies(model.run, request)
    questions = _questions(model.run, request)
    source = model_folder(model.run, model.weights)
    planned = list(_plan(model, source, questions, request))
    _say(console, f"model: {model.label}")
    if request.preset:
        _say(console, f"preset {request.preset}: {preset(request.preset).says}")
    overlap = training_overlap(model.folder, questions) if request.benchmarks else {}
    for warning in overlap.get("warnings", ()):
        _say(console, f"warning: {warning}")
    for part in questions:
        reward = public_reward(model.run.reward) if part.public else model.run.reward
        if warning := gold_warning(part.tasks, reward):
            _say(console, f"warning: {part.title}: {warning}")
    setting = build_setting(model.run)
    for text in setting.notes():
        _say(console, text)
    with ExitStack() as stack:
        opened = [stack.enter_context(_open(each, request)) for each in planned]
        setting.tool_gateway.keep(opened[0].folder)
        try:
            run_sync(_generate_all(model, setting, source, opened, request, console))
        except BaseException:
            for each in opened:
                _report_stopped(each, console)
            raise
        results = [_finish(each, model.run, request, overlap, console) for each in opened]
    for shown in results:
        print_results(console, shown)
    folders = ", ".join(str(each.folder) for each in opened)
    _say(console, f"written: report.md, report.html, results.json and samples.jsonl in {folders}")
    return results


@contextmanager
def _open(planned: _Planned, request: EvalRequest) -> Iterator[_Planned]:
    """With what earlier starts asked in the same folder."""
    with open_evaluation(planned.folder, planned.manifest, resume=request.resume) as manifest:
        yield replace(planned, manifest=manifest)


async def _generate_all(
    model: ResolvedModel,
    setting: Setting,
    source: Path,
    planned: Sequence[_Planned],
    request: EvalRequest,
    console: Console,
) -> None:
    """The model is loaded where anything is left to be asked."""
    components: EvalComponents | None = None
    try:
        for each in planned:
            left = missing(each.folder, each.questions, each.spec.samples, again=request.again)
            titles = ", ".join(f"{part.title} ({len(part.tasks):,})" for part in each.questions)
            num_asked = each.spec.samples * sum(len(part.tasks) for part in each.questions)
            _say(console, f"asking {len(left):,} of {num_asked:,}: {titles}")
            if not left:
                continue
            if components is None:
                components = build_eval_components(model.run, source, model.weights, setting=setting)
                _say_missing_tools(console, components, request.preset)
            components.save_tokenizer(each.folder / "tokenizer")
            await run_eval(
                components, each.questions, each.spec, each.manifest, each.folder, console=console, again=request.again
            )
    finally:
        setting.tool_gateway.write_down()
        if components is not None:
            await components.agent.close()
            if (spent := components.agent.spent) is not None:
                _say(console, f"endpoint: {spent}")


def _say_missing_tools(console: Console, components: EvalComponents, name: str) -> None:
    """Say which tools a preset was published with that this agent has not."""
    expected = preset(name).tools if name else ()
    if absent := [tool for tool in expected if tool not in {each.name for each in components.agent.tools}]:
        _say(
            console, f"warning: preset {name} was published with {', '.join(absent)}, which this recipe does not offer"
        )


def _report_stopped(planned: _Planned, console: Console) -> None:
    if (results := write_all(planned.folder, planned.manifest)) is not None:
        kept = sum(each.answers for each in results.benchmarks)
        _say(console, f"{kept:,} answers are kept in {planned.folder}: the same command with --resume goes on")


def _finish(
    planned: _Planned, run: RunConfig, request: EvalRequest, overlap: Mapping[str, Any], console: Console
) -> EvalResults:
    """Studies and reports of one evaluation; what cannot be measured in its samples is said."""
    folder, manifest = planned.folder, planned.manifest
    if overlap:
        keep(folder, {OVERLAP: merge_overlaps([read_studies(folder).get(OVERLAP, {}), overlap], manifest)})
    try:
        entropies = request.entropy or "entropy" in read_studies(folder)
        analyse([folder], entropies=entropies, judge=run.evaluation.judge, console=console, shown=False)
    except ConfigError as error:
        _say(console, f"warning: {error}")
        write_all(folder, manifest)
    return read_results(folder)


def _say(console: Console, text: str) -> None:
    console.print(text)


def with_options(run: RunConfig, *, limit: int | None, samples: int | None) -> RunConfig:
    """`run` with at most `limit` held-out questions, sampled or greedy, and so many samples, where they are given."""
    config = run.evaluation
    if limit is not None:
        greedy_limit = limit if config.greedy_limit is None else min(limit, config.greedy_limit)
        config = config.model_copy(update={"limit": limit, "greedy_limit": greedy_limit})
    if samples is not None:
        config = config.model_copy(update={"samples": samples})
    return run.model_copy(update={"evaluation": config})


def evaluated_model(recipe: str, run: RunConfig, model: str | None) -> ResolvedModel:
    if model is not None:
        return resolve_model(model, run)
    folder = expanded(recipe)
    return replace(resolve_folder(folder), run=run) if is_run(folder) else ResolvedModel(label=label_of(run), run=run)


def _questions(run: RunConfig, request: EvalRequest) -> list[BenchmarkQuestions]:
    """Raises ConfigError where the recipe has no held-out tasks, or there is no such benchmark."""
    if request.benchmarks:
        return choose(request.benchmarks, data=request.data, ids=request.ids, limit=request.limit, shard=request.shard)
    split = run.evaluation.split
    tasks, _ = read_tasks(run, split)
    if not tasks:
        where = f"data.{split}"
        raise ConfigError(
            "this recipe has no tasks to be asked", where=where, hint=f"Add {where}, or set evaluation.split"
        )
    return [BenchmarkQuestions.from_tasks(split, tasks)]


def _plan(
    model: ResolvedModel, source: Path, questions: Sequence[BenchmarkQuestions], request: EvalRequest
) -> Iterator[_Planned]:
    run, known = model.run, _identity(model, source)
    label = slug(str(model.folder) if model.folder else model.label)

    def planned(spec: EvalSpec, part: Sequence[BenchmarkQuestions], folder: Path, parts: dict[str, object]) -> _Planned:
        manifest = EvalManifest.from_run(
            run, spec, part, model=model.label, identity=known, preset=request.preset, parts=parts
        )
        return _Planned(spec, part, folder, manifest)

    if request.benchmarks:
        what = "-".join(each.name for each in questions) if len(questions) <= 3 else f"{len(questions)}-benchmarks"
        shard = f"-{request.shard[0]}of{request.shard[1]}" if request.shard else ""
        folder = request.out or Path("evaluations") / f"{label}-{slug(what)}{'-greedy' * request.greedy}{shard}"
        sampled, *_ = eval_specs(run.evaluation, folder.name)
        yield planned(sampled.greedy if request.greedy else sampled, questions, folder, request.parts)
        return
    name = run.evaluation.split if model.folder else f"{slug(run.name)}-{slug(model.label)}-{run.evaluation.split}"
    specs = [spec for spec in eval_specs(run.evaluation, name) if spec.temperature == 0 or not request.greedy]
    if not specs:
        raise ConfigError("this recipe asks for no greedy answers", where="evaluation.greedy_limit", hint="Raise it")
    for spec in specs:
        part = select(questions, ids=request.ids, limit=spec.questions, shard=request.shard)
        folder = (request.out or model.folder or Path(".")) / "evaluation" / spec.name
        yield planned(spec, part, folder, {**request.parts, **({"limit": spec.questions} if spec.questions else {})})


def _identity(model: ResolvedModel, source: Path) -> str:
    """Trained weights are a whole model, but for those of LoRA, which belong to the source's."""
    if model.run.engine.kind == "openai":
        return ""
    alone = model.weights is not None and model.run.model.lora is None
    return identity(*(folder for folder in (None if alone else source, model.weights) if folder is not None))


def slug(label: str) -> str:
    """For a file's name: the last two parts of a folder or Hub id (many folders are just called `model`)."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(Path(label).parts[-2:])).strip("-.") or "model"


def _check_studies(run: RunConfig, request: EvalRequest) -> None:
    """Raises ConfigError, before anything is asked, for a judge without its key and entropies that an engine does not
    tell."""
    if run.evaluation.judge is not None:
        Judge(run.evaluation.judge).ready()
    if request.entropy and run.engine.kind == "openai":
        raise ConfigError(
            "an endpoint tells no entropies", where="--entropy", hint="Measure them with engine.kind=local"
        )
