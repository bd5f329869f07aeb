"""Trains again from a run's recorded trees, with another estimator or loss: what would its credit have taught?

Nothing is sampled. The learner starts where the run started, takes the run's trees step by step, and credits them anew.
From the second step on its policy is no longer the one that wrote them; each token's weight
min(exp(logp - logp_recorded), loss.tis_cap) corrects for that, and the metrics say how far apart the two are.
"""

import asyncio
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from math import fsum, sqrt
from pathlib import Path
from typing import Any

from arpo.assembly.components import Components, build_components, build_learner
from arpo.core.credit import CreditedTree, credit
from arpo.display.tables import ShownTable
from arpo.display.terminal import Console
from arpo.engines import Weights
from arpo.errors import ConfigError
from arpo.evaluation.questions import eval_specs
from arpo.evaluation.results import EvalResults, read_evaluations
from arpo.evaluation.run_eval import evaluate_tasks
from arpo.evaluation.statistics import paired_difference
from arpo.files import json_line
from arpo.recipe.load import load_recipe
from arpo.runs.folder import RunFolder, check_is_run
from arpo.sft.cache import SFTCache
from arpo.tasks import Task
from arpo.training.preflight import prepare
from arpo.training.recovery import update_seed

_OF_SAMPLING = ("rollout", "chat", "tools", "reward", "data", "model", "engine", "cold_start")


@dataclass(frozen=True, slots=True, kw_only=True)
class Retrained:
    """What a step did anew. `agreement`: correlation of the new credit with the recorded one over (turn, leaf)."""

    step: int
    trees: int
    agreement: float
    metrics: dict[str, float]


def retrain(path: Path, overrides: Sequence[str], out: Path | None = None, *, console: Console) -> Path:
    """Train from the trees of the run at `path` with `overrides` of its recipe, measure the result on the run's
    held-out tasks, and print how both differ. Writes `out` (default: RUN/retrained/NUMBER): metrics.jsonl, model/ and
    evaluation/. Raises ConfigError for a key that decides how trees are sampled, or where the run keeps no trees.
    """
    check_is_run(path)
    for override in overrides:
        if (section := override.partition("=")[0].strip().partition(".")[0]) in _OF_SAMPLING:
            hint = "Give keys of advantage, loss, optim or train"
            raise ConfigError("recorded trees cannot be sampled otherwise", where=section, value=override, hint=hint)
    folder, run = RunFolder(path), load_recipe(RunFolder(path).recipe, overrides)
    if run.loss.tis_cap is None:
        hint = "For instance loss.tis_cap=2.0"
        raise ConfigError("recorded trees need a correction", where="loss.tis_cap", value=None, hint=hint)
    if not folder.event_steps():
        raise ConfigError("this run keeps no trees", where="RUN", value=str(path))
    out = out or _next(path / "retrained")
    prepared, cache = prepare(run, resume=True), SFTCache(run)
    if run.cold_start and cache.model is None:
        hint = "`arpo sft` with the run's recipe makes it again"
        raise ConfigError("the run's cold start is no longer in the cache", value=str(cache.path), hint=hint)
    components = build_components(run, prepared.source, cache.model, setting=prepared.setting)
    (out / "model").mkdir(parents=True, exist_ok=True)
    asyncio.run(_carry_out(components, folder, prepared.tasks[run.evaluation.split], out, console))
    return out


async def _carry_out(
    components: Components, folder: RunFolder, held_out: Sequence[Task], out: Path, console: Console
) -> None:
    run, steps = components.run, folder.event_steps()
    updates = len(steps) * run.train.updates_per_step
    learner = build_learner(components, optim=run.optim, num_updates=updates, tell=console.print)
    done = []
    try:
        with (out / "metrics.jsonl").open("wb") as file:
            for step in steps:
                records = [record for record in folder.trees(step) if record.credit]
                trees = credit([record.scored for record in records], run.advantage)
                seed = update_seed(run.seed, step)
                update = await asyncio.to_thread(learner.update, trees, run.train.updates_per_step, seed=seed)
                metrics = {f"train/{name}": value for name, value in update.metrics.items()}
                agreement = correlation([record.credited for record in records], trees)
                done.append(Retrained(step=step, trees=len(trees), agreement=agreement, metrics=metrics))
                file.write(json_line({"step": step, "credit/agreement": agreement, **metrics}))
                file.flush()
                console.print(f"step {step}: {len(trees)} trees, credit agrees with the run's to {agreement:+.2f}")
        components.save_model(out / "model")
        await components.agent.engine.update_weights(Weights(len(steps), learner.weights()))
        measured = {
            spec.name: await evaluate_tasks(
                components, held_out, spec, out / "evaluation" / spec.name, model=f"{run.name}, trained again",
                split=run.evaluation.split, console=console,
            )
            for spec in (eval_specs(run.evaluation, "after") if held_out else ())
        }  # fmt: skip
    finally:
        await components.agent.engine.close()
    console.print(difference(folder, done, measured).rich())
    console.print(f"written: {out}")


def difference(folder: RunFolder, done: Sequence[Retrained], measured: dict[str, EvalResults]) -> ShownTable:
    """The run beside what was trained from its trees: accuracy on the same questions, and means of the training
    metrics that differ."""
    rows = []
    earlier = read_evaluations(folder.path)
    for name, now in measured.items():
        was = earlier.get(name)
        gain = str(paired_difference(was.by_question, now.by_question)) if was else "-"
        rows.append((f"accuracy, {name}", was.accuracy.percent if was else "-", now.accuracy.percent, gain))
    history = folder.metrics()
    for name in sorted({key for each in done for key in each.metrics}):
        before = [line[name] for line in history if isinstance(line.get(name), int | float)]
        after = [each.metrics[name] for each in done if name in each.metrics]
        if before and after:
            a, b = fsum(before) / len(before), fsum(after) / len(after)
            if a != b:
                rows.append((name, f"{a:.4g}", f"{b:.4g}", f"{b - a:+.4g}"))
    agreement = fsum(each.agreement for each in done) / len(done)
    note = f"Means over steps. The new credit correlates with the recorded one to {agreement:+.3f}."
    return ShownTable(title="The run, and trained again from its trees", head=("", "run", "again", "difference"),
                      rows=rows, note=note)  # fmt: skip


def correlation(recorded: Sequence[CreditedTree], again: Sequence[CreditedTree]) -> float:
    """Pearson's, over the (turn, leaf) pairs of both; 0 where one of them does not vary."""
    x, y = array("d"), array("d")
    for a, b in zip(recorded, again, strict=True):
        pairs: Any = a.credit.keys() | b.credit.keys()
        x.extend(a.credit.get(pair, 0.0) for pair in pairs)
        y.extend(b.credit.get(pair, 0.0) for pair in pairs)
    if not x:
        return 0.0
    mx, my = fsum(x) / len(x), fsum(y) / len(y)
    xx, yy = fsum((v - mx) ** 2 for v in x), fsum((v - my) ** 2 for v in y)
    if not xx * yy:
        return 0.0
    return fsum((a - mx) * (b - my) for a, b in zip(x, y, strict=True)) / sqrt(xx * yy)


def _next(folder: Path) -> Path:
    number = 1
    while (folder / str(number)).exists():
        number += 1
    return folder / str(number)
