"""Measure a job's model on its recipe's tasks, sampled and greedy: `arpo eval`, and the evaluations of a run.

Knows what a recipe asks for and how results are shown. How a question is asked and scored, `evaluate` knows.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from arpo.assembly.components import EvalComponents, build_eval_components, build_setting, model_folder, read_tasks
from arpo.assembly.resolve import ResolvedModel, label_of, resolve_folder, resolve_model
from arpo.core.tree import StopReason
from arpo.display.bar import Quarters
from arpo.errors import ConfigError
from arpo.evaluation.evaluate import evaluate
from arpo.evaluation.results import Results, Sample
from arpo.event_loop import run_sync
from arpo.files import expanded
from arpo.recipe.evaluation import EvalConfig
from arpo.recipe.run import RunConfig
from arpo.rollout.agent import check_prompts
from arpo.runs.folder import is_run
from arpo.tasks import Task
from arpo.tools.usage import in_words


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSpec:
    """One way to ask: the first `questions` of the tasks (None: all), `samples` answers to each."""

    name: str
    questions: int | None
    samples: int
    temperature: float  # 0: greedy
    top_p: float
    seed: int

    @property
    def key(self) -> dict[str, Any]:
        """All that decides the answers, besides the model and the limits of a rollout."""
        return {name: value for name, value in asdict(self).items() if name != "name"}


def eval_specs(config: EvalConfig, name: str) -> list[EvalSpec]:
    """What a recipe asks for: sampled answers as `name`, greedy ones as `name-greedy` (unless it wants none)."""
    sampled = EvalSpec(
        name=name,
        questions=config.limit,
        samples=config.samples,
        temperature=config.temperature,
        top_p=config.top_p,
        seed=config.seed,
    )
    greedy = EvalSpec(name=f"{name}-greedy", questions=config.greedy_limit, samples=1, temperature=0.0, top_p=1.0, seed=config.seed)
    return [sampled] if config.greedy_limit == 0 else [sampled, greedy]


def asked_differently(run: RunConfig, *, limit: int | None, samples: int | None) -> RunConfig:
    """`run` with at most `limit` questions, sampled or greedy, and so many samples, where they are given."""
    config = run.evaluation
    if limit is not None:
        greedy_limit = limit if config.greedy_limit is None else min(limit, config.greedy_limit)
        config = config.model_copy(update={"limit": limit, "greedy_limit": greedy_limit})
    if samples is not None:
        config = config.model_copy(update={"samples": samples, "k": tuple(k for k in config.k if k <= samples)})
    return run.model_copy(update={"evaluation": config})


async def run_eval(components: EvalComponents, tasks: Sequence[Task], asking: EvalSpec, *, model: str, console: Console) -> Results:
    """The job's model asked the first of `tasks`; how far it is shows in a terminal all the time, elsewhere at each quarter."""
    asked, quarters = tasks[: asking.questions], Quarters()
    check_prompts(components.agent, asked, components.run.rollout)

    def watch(done: int, total: int, right: float) -> None:
        text = f"evaluating: {asking.name} {done}/{total}, accuracy {right:.0%}"
        status.update(text)
        if not console.is_terminal and quarters.passed(done / total):
            console.print(text, highlight=False, markup=False)

    with console.status(f"evaluating: {asking.name} 0/{len(asked)}") as status:
        return await evaluate(
            components.agent,
            asked,
            components.reward,
            components.run.rollout,
            name=asking.name,
            model=model,
            samples=asking.samples,
            temperature=asking.temperature,
            top_p=asking.top_p,
            seed=asking.seed,
            in_flight=components.run.engine.slots,
            ks=components.run.evaluation.k,
            watch=watch,
        )


def evaluate_named(
    recipe: str,
    run: RunConfig,
    *,
    model: str | None = None,
    greedy_only: bool = False,
    out: Path | None = None,
    console: Console | None = None,
) -> list[Results]:
    """Measure a model on the tasks of `run`, print the figures and write them to `evaluation/NAME.json`.

    The model is `model` (anything that `named_model` knows), else the one that the run in the folder `recipe` came to, else the
    source of the recipe. Files go below `out`, else into the run's folder, else into the current one. Raises ConfigError.
    """
    console = console or Console(soft_wrap=True)
    tasks, _ = read_tasks(run, run.evaluation.split)
    if not tasks:
        where = f"data.{run.evaluation.split}"
        raise ConfigError("this recipe has no tasks to be asked", where=where, hint=f"Add {where}, or set evaluation.split")
    found = evaluated_model(recipe, run, model)
    split = run.evaluation.split
    name = split if found.folder else f"{run.name}-{slug(found.label)}-{split}"
    asked = [a for a in eval_specs(run.evaluation, name) if a.temperature == 0 or not greedy_only]
    if not asked:
        raise ConfigError("this recipe asks for no greedy answers", where="evaluation.greedy_limit", hint="Raise it")
    console.print(f"model: {found.label}", highlight=False, markup=False)
    results = run_sync(_measure(found, tasks, asked, console))
    paths = [each.write((out or found.folder or Path(".")) / "evaluation") for each in results]
    print_results(console, results)
    for each in results:
        if each.calls:
            console.print(f"{how(each)}: {in_words(each.calls)}", highlight=False, markup=False)
    console.print(f"written: {', '.join(map(str, paths))}", highlight=False, markup=False)
    return results


def evaluated_model(recipe: str, run: RunConfig, model: str | None) -> ResolvedModel:
    if model is not None:
        return resolve_model(model, run)
    folder = expanded(recipe)
    if is_run(folder):
        return replace(resolve_folder(folder), run=run)
    return ResolvedModel(label=label_of(run), run=run)


async def _measure(found: ResolvedModel, tasks: Sequence[Task], asked: Sequence[EvalSpec], console: Console) -> list[Results]:
    setting = build_setting(found.run)
    for text in setting.notes():
        console.print(text, highlight=False, markup=False)
    components = build_eval_components(found.run, model_folder(found.run, found.weights), found.weights, setting=setting)
    try:
        return [await run_eval(components, tasks, each, model=found.label, console=console) for each in asked]
    finally:
        await components.agent.close()


def slug(label: str) -> str:
    """For a file's name: the last two parts of a folder or Hub id (many folders are just called `model`)."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(Path(label).parts[-2:])).strip("-.") or "model"


def print_results(console: Console, results: Sequence[Results]) -> None:
    """Accuracy and pass@k with intervals, what an answer cost, and accuracy by family (with questions); a column an evaluation."""
    if not results:
        return
    table = Table(title="accuracy on held-out questions, 95 % intervals", title_justify="left")
    table.add_column("")
    for each in results:
        table.add_column(how(each), justify="right", no_wrap=True)
    table.add_row("accuracy", *(each.accuracy.percent for each in results))
    for k in sorted({k for each in results for k in each.pass_at if k > 1}):
        table.add_row(f"pass@{k}", *(each.pass_at[k].percent if k in each.pass_at else "-" for each in results))
    table.add_row("questions", *(str(each.num_questions) for each in results), end_section=True)
    for label, form, value in _COSTS:
        table.add_row(label, *(form.format(_mean(map(value, each.samples))) for each in results))
    families = sorted({family for each in results for family in each.by_family})
    for number, family in enumerate(families if len(families) > 1 else ()):
        if number == 0:
            table.add_section()
        table.add_row(Text(family), *(f"{e.percent}  of {e.n}" if (e := each.by_family.get(family)) else "-" for each in results))
    console.print(table)


_COSTS: tuple[tuple[str, str, Callable[[Sample], float]], ...] = (
    ("tool calls an answer", "{:.1f}", lambda sample: sample.calls),
    ("tokens an answer", "{:.0f}", lambda sample: sample.tokens),
    ("finished by itself", "{:.0%}", lambda sample: sample.ending == StopReason.FINISHED.value),
)


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def how(results: Results) -> str:
    """`greedy`, or `4 sampled`."""
    settings = results.settings
    if settings.get("temperature") == 0:
        return "greedy"
    return "sampled" if settings.get("samples", 1) == 1 else f"{settings['samples']} sampled"
