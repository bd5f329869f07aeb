"""The cold start of a run, as a stage of it or alone (`arpo sft`).

Knows job, traces and what is left behind. How an update is made, `arpo.train.sft` knows.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from arpo.engines import Weights
from arpo.errors import ConfigError
from arpo.evaluation.ask import ask, askings, print_results
from arpo.evaluation.results import Results
from arpo.run import Run
from arpo.train import sft
from arpo.train.card import model_card, table_of_results
from arpo.train.config import LossConfig
from arpo.train.ending import run_to_end
from arpo.train.export import empty_folder, write_card, write_model, write_recipe
from arpo.train.job import Job, build_job, build_learner, read_tasks
from arpo.train.progress import Progress, duration
from arpo.train.served import refuse_training
from arpo.train.sources import fetch
from arpo.train.starts import Start


@dataclass(frozen=True, slots=True, kw_only=True)
class Imitated:
    """What a cold start came to. Losses are the mean negative log-probability of a token of the traces' turns, in nats."""

    num_traces: int
    num_updates: int
    first_loss: float
    last_loss: float
    seconds: float

    def __str__(self) -> str:
        return f"loss {self.first_loss:.3f} in the first update, {self.last_loss:.3f} in the last, {duration(self.seconds)}"


async def imitate(job: Job, *, console: Console, tell: Callable[[str], None], done: int = 0) -> Imitated:
    """Train the job's model on its recipe's traces and hand the weights to its engine. `done` updates were made before."""
    run, config = job.run, job.run.cold_start
    assert config is not None
    started = time.monotonic()
    traces = sft.read_traces(config, run.data.train)
    trees = await sft.demonstrations(job.agent, traces, run.rollout, config.seed)
    updates = config.num_updates(len(trees)) - done
    tell(f"cold start: {len(trees)} traces, {updates} updates")
    optim = run.optim.model_copy(update={"lr": config.lr, "schedule": config.schedule, "warmup": config.warmup, "final_lr": 0.0})
    learner = build_learner(job, loss=LossConfig(), optim=optim, num_updates=updates, tell=tell)
    losses: list[float] = []
    with Progress(updates, title="cold start", console=console) as progress:

        def watch(_number: int, _all: int, metrics: dict[str, float]) -> None:
            losses.append(metrics["loss"])
            progress.step(metrics)

        await sft.cold_start(learner, trees, config, watch, done=done)
    await job.agent.engine.load(Weights(0, learner.state()))
    seconds = time.monotonic() - started
    return Imitated(num_traces=len(trees), num_updates=updates, first_loss=losses[0], last_loss=losses[-1], seconds=seconds)


def cold_start(run: Run, *, out: Path | None = None, console: Console | None = None) -> Path:
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


async def _alone(run: Run, out: Path, console: Console) -> None:
    def tell(text: str) -> None:
        console.print(text, highlight=False, markup=False)

    tasks, _ = read_tasks(run, run.evaluation.split)
    start = Start(run, bundled=False)
    job = build_job(run, fetch(run.model.source), start.model)
    results: list[Results] = []
    try:
        if start.model is None:
            start.check_writable()
            tell(f"cold start: {await imitate(job, console=console, tell=tell)}")
            start.keep(job.model, job.tokenizer)
        else:
            tell("cold start: made before, taken from the cache")
        write_model(run.model, start.model, out)
        write_recipe(out, run)
        for asking in askings(run.evaluation, run.evaluation.split) if tasks else ():
            results.append(await ask(job, tasks, asking, model=str(out), console=console))
    finally:
        await job.agent.engine.close()
    print_results(console, results)
    write_card(out, model_card(run, step=0, name=out.name, results=table_of_results(results)))
    tell(f"model: {out}")
