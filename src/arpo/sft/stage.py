"""The cold start of a run, as a stage of it or alone (`arpo sft`).

Knows job, traces and what is left behind. How an update is made, `arpo.sft.training` knows.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from arpo.assembly.components import Components, build_components, build_learner, read_tasks
from arpo.assembly.served import refuse_training
from arpo.display.progress import Progress, duration
from arpo.engines import Weights
from arpo.errors import ConfigError
from arpo.evaluation.questions import eval_specs
from arpo.evaluation.reports import print_results
from arpo.evaluation.results import EvalResults
from arpo.evaluation.run_eval import evaluate_tasks
from arpo.export.card import model_card, table_of_results
from arpo.export.model import empty_folder, write_card, write_model, write_recipe
from arpo.learner.config import LossConfig
from arpo.models.sources import fetch
from arpo.recipe.run import RunConfig
from arpo.runs.shutdown import run_to_end
from arpo.sft import training
from arpo.sft.cache import SFTCache


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdStartResult:
    """What a cold start came to. Losses are the mean negative log-probability of a token of the traces' turns, in nats."""

    num_traces: int
    num_updates: int
    first_loss: float
    last_loss: float
    seconds: float

    def __str__(self) -> str:
        return f"loss {self.first_loss:.3f} in the first update, {self.last_loss:.3f} in the last, {duration(self.seconds)}"


async def run_cold_start(
    components: Components, *, console: Console, tell: Callable[[str], None], done: int = 0
) -> ColdStartResult:
    """Train the job's model on its recipe's traces and hand the weights to its engine. `done` updates were made before."""
    run, config = components.run, components.run.cold_start
    assert config is not None
    started = time.monotonic()
    traces = training.read_traces(config, run.data.train)
    trees = await training.traces_to_trees(components.agent, traces, run.rollout, config.seed)
    updates = config.num_updates(len(trees)) - done
    tell(f"cold start: {len(trees)} traces, {updates} updates")
    optim = run.optim.model_copy(update={"lr": config.lr, "schedule": config.schedule, "warmup": config.warmup, "final_lr": 0.0})
    learner = build_learner(components, loss=LossConfig(), optim=optim, num_updates=updates, tell=tell)
    losses: list[float] = []
    with Progress(updates, title="cold start", console=console) as progress:

        def watch(_number: int, _all: int, metrics: dict[str, float]) -> None:
            losses.append(metrics["loss"])
            progress.step(metrics)

        await training.cold_start(learner, trees, config, watch, done=done)
    await components.agent.engine.load(Weights(0, learner.state()))
    seconds = time.monotonic() - started
    return ColdStartResult(num_traces=len(trees), num_updates=updates, first_loss=losses[0], last_loss=losses[-1], seconds=seconds)


def sft(run: RunConfig, *, out: Path | None = None, console: Console | None = None) -> Path:
    """Only the cold start of `run`: a model folder in `out` (default: the run's folder with `-sft` after its name).

    Then the accuracy on the recipe's held-out tasks is measured, where it has any. The result is kept in the cache too, where a
    run of the same recipe finds it, or taken from there. Raises ConfigError where the recipe has no cold start.
    """
    refuse_training(run)
    if run.cold_start is None:
        raise ConfigError(
            "this recipe has no cold start", where="cold_start", hint="Name traces: cold_start: {traces: traces.jsonl}"
        )
    target = empty_folder(out or run.folder.with_name(f"{run.folder.name}-sft"))
    run_to_end(_alone(run, target, console or Console(soft_wrap=True)))
    return target


async def _alone(run: RunConfig, out: Path, console: Console) -> None:
    def tell(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    tasks, _ = read_tasks(run, run.evaluation.split)
    start = SFTCache(run, bundled=False)
    components = build_components(run, fetch(run.model.source), start.model)
    results: list[EvalResults] = []
    try:
        if start.model is None:
            start.check_writable()
            tell(f"cold start: {await run_cold_start(components, console=console, tell=tell)}")
            start.keep(components.model, components.tokenizer)
        else:
            tell("cold start: made before, taken from the cache")
        write_model(run.model, start.model, out)
        write_recipe(out, run)
        split = run.evaluation.split
        for spec in eval_specs(run.evaluation, split) if tasks else ():
            folder = out / "evaluation" / spec.name
            results.append(await evaluate_tasks(components, tasks, spec, folder, model=str(out), split=split, console=console))
    finally:
        await components.agent.engine.close()
    for each in results:
        print_results(console, each)
    write_card(out, model_card(run, step=0, name=out.name, results=table_of_results(results)))
    tell(f"model: {out}")
