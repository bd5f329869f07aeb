"""The cold start: supervised fine-tuning on traces, so that the policy knows the protocol before it explores.

It is a stage of a run, or a run of its own (`arpo sft`). Knows components, trees of traces and the learner. Refuses to
know how a trace becomes a tree (`arpo.sft.traces`) and where the result is cached (`arpo.sft.cache`).
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from random import Random

from arpo.assembly.components import Components, build_components, build_learner, read_tasks
from arpo.assembly.served import refuse_training
from arpo.cluster.ranks import learner_ranks
from arpo.core.credit import CreditedTree
from arpo.display.progress import Progress, duration
from arpo.display.terminal import Console
from arpo.engines import Weights
from arpo.errors import ArpoError, ConfigError
from arpo.evaluation.questions import eval_specs
from arpo.evaluation.reports import print_results
from arpo.evaluation.results import EvalResults
from arpo.evaluation.run_eval import evaluate_tasks
from arpo.export.card import model_card, table_of_results
from arpo.export.model import empty_folder, write_card, write_model, write_recipe
from arpo.learner import MAX_SKIPPED, Learner
from arpo.learner.config import LossConfig
from arpo.learner.rank import torch_rank
from arpo.learner.ranks import Ranks, follow
from arpo.models.sources import fetch
from arpo.recipe.run import RunConfig
from arpo.recipe.train import COLD_START_SEED, ColdStartConfig
from arpo.runs.shutdown import is_stopping, run_to_end
from arpo.sft.cache import SFTCache
from arpo.sft.traces import read_traces, traces_to_trees


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdStartResult:
    """What a cold start did. Losses are the mean negative log-probability of a token of the traces' turns, in nats."""

    num_traces: int
    num_updates: int
    first_loss: float
    last_loss: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"loss {self.first_loss:.3f} in the first update, {self.last_loss:.3f} in the last, "
            f"{duration(self.seconds)}"
        )


async def run_cold_start(
    components: Components, *, console: Console, tell: Callable[[str], None], done: int = 0
) -> ColdStartResult:
    """Train the model on the recipe's traces and hand the weights to the engine. `done`: updates that were made
    before."""
    run, config = components.run, components.run.cold_start
    assert config is not None
    started = time.monotonic()
    traces = read_traces(config, run.data.train)
    trees = await traces_to_trees(components.agent, traces, run.rollout, COLD_START_SEED, tell)
    updates = config.num_updates(len(trees)) - done
    tell(f"cold start: {len(trees)} traces, {updates} updates")
    optim = run.optim.model_copy(update={"lr": config.lr, "schedule": "cosine", "warmup": 0.1, "final_lr": 0.0})
    learner = build_learner(components, loss=LossConfig(), optim=optim, num_updates=updates, tell=tell)
    losses: list[float] = []
    with Progress(updates, title="cold start", console=console) as progress:

        def watch(metrics: dict[str, float]) -> None:
            losses.append(metrics["loss"])
            progress.step(metrics)

        await train_on_traces(learner, trees, config, watch, done=done)
    await components.agent.engine.update_weights(Weights(0, learner.weights()))
    seconds = time.monotonic() - started
    return ColdStartResult(
        num_traces=len(trees), num_updates=updates, first_loss=losses[0], last_loss=losses[-1], seconds=seconds
    )


async def train_on_traces(
    learner: Learner,
    trees: Sequence[CreditedTree],
    config: ColdStartConfig,
    watch: Callable[[dict[str, float]], None] = lambda _: None,
    *,
    done: int = 0,
) -> None:
    """Train on `trees` in batches, in a new order each epoch; `watch` is called with each update's metrics. `done`:
    updates that were made before. Can be cancelled at any layer.

    Raises ArpoError where the loss is not finite in `MAX_SKIPPED` updates in a row or in the last one, or the weights
    are not finite.
    """
    updates, size = config.num_updates(len(trees)) - done, min(config.batch, len(trees))
    order = islice(_endless(trees, COLD_START_SEED), done * size, None)
    failed = 0
    for number in range(1, updates + 1):
        await asyncio.sleep(0)  # lets Ctrl-C cancel
        metrics = learner.sft_step(list(islice(order, size)), is_stopping)
        if not metrics:
            raise asyncio.CancelledError
        failed = failed + 1 if metrics["skipped_updates"] else 0
        if failed == MAX_SKIPPED:
            raise ArpoError(
                f"cold start: the loss was not finite in {failed} updates in a row (update {number}): lower "
                "cold_start.lr"
            )
        watch(metrics)
    if failed or learner.healthy():  # the cache would hand such weights to run after run
        raise ArpoError("cold start: its last update has no finite loss or weights: lower cold_start.lr")


def _endless(trees: Sequence[CreditedTree], seed: int) -> Iterator[CreditedTree]:
    for epoch in count():
        order = list(trees)
        Random(f"{seed}/cold start/{epoch}").shuffle(order)
        yield from order


def sft(run: RunConfig, *, out: Path | None = None, console: Console | None = None) -> Path:
    """Only the cold start of `run`: a model folder in `out` (default: the run's folder with `-sft` after its name).

    Then the accuracy on the recipe's held-out tasks is measured, where it has any. The result is kept in the cache too,
    where a run of the same recipe finds it, or taken from there. Raises ConfigError where the recipe has no cold start.
    Under torchrun as `arpo.train`.
    """
    if follow(torch_rank):
        raise SystemExit
    refuse_training(run)
    if run.cold_start is None:
        raise ConfigError(
            "this recipe has no cold start", where="cold_start", hint="Name traces: cold_start: {traces: traces.jsonl}"
        )
    target = empty_folder(out or run.folder.with_name(f"{run.folder.name}-sft"))
    console = console or Console(soft_wrap=True)
    with learner_ranks(run.cluster, run.model, folder=target, tell=console.print) as ranks:
        run_to_end(_sft(run, target, console, ranks))
    return target


async def _sft(run: RunConfig, out: Path, console: Console, ranks: Ranks | None) -> None:
    def tell(text: str) -> None:
        console.print(text)

    tasks, _ = read_tasks(run, run.evaluation.split)
    cache = SFTCache(run, bundled=False)
    components = build_components(run, fetch(run.model.source), cache.model, ranks=ranks)
    results: list[EvalResults] = []
    try:
        if cache.model is None:
            cache.check_writable()
            tell(f"cold start: {await run_cold_start(components, console=console, tell=tell)}")
            cache.keep(components.save_model, components.tokenizer)
        else:
            tell("cold start: made before, taken from the cache")
        write_model(run.model, cache.model, out)
        write_recipe(out, run)
        split = run.evaluation.split
        for spec in eval_specs(run.evaluation, split) if tasks else ():
            folder = out / "evaluation" / spec.name
            results.append(
                await evaluate_tasks(components, tasks, spec, folder, model=str(out), split=split, console=console)
            )
    finally:
        await components.agent.engine.close()
    for each in results:
        print_results(console, each)
    write_card(out, model_card(run, step=0, name=out.name, results=table_of_results(results)))
    tell(f"model: {out}")
