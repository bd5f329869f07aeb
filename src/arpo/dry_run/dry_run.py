"""`arpo train RECIPE --try`: one task from prompt to update before anything long starts, and an estimate of the whole
run.

Knows the order of the parts and how long each may take. Refuses to know what they look like (`arpo.dry_run.display`)
and to write anything: no run folder, no cache entry (besides a model that has to be fetched).
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from arpo.assembly.components import Components, build_components, build_learner, read_tasks
from arpo.assembly.machine_memory import check_memory
from arpo.assembly.served import refuse_training
from arpo.core.branching import StepStats
from arpo.core.credit import CreditedTree, ScoredTree, attribute, credit
from arpo.core.place import Place
from arpo.display.terminal import Console
from arpo.dry_run import display
from arpo.dry_run.estimate import RunEstimate, Timings, estimate, peak_memory, reset_peak_memory
from arpo.event_loop import run_sync
from arpo.models.sources import fetch
from arpo.recipe.run import RunConfig
from arpo.rollout.agent import check_prompts
from arpo.rollout.collect import Rollout, check_scored, collect
from arpo.rollout.tree_rollout import begun
from arpo.sft.cache import SFTCache
from arpo.sft.traces import read_traces, traces_to_trees
from arpo.tasks import Task
from arpo.tasks.traces import Trace
from arpo.training.first_step_checks import check_first_step
from arpo.training.metrics import Metrics, TreeStats, step_metrics
from arpo.training.task_sampler import check_enough, first_step

PATIENCE_S = 30.0
"""For further trees, so that the whole takes about a minute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    """The result. `rollouts` are those of the first step's first tasks; the first of them was displayed."""

    rollouts: tuple[Rollout, ...]
    credited: tuple[CreditedTree, ...]
    metrics: Metrics
    timings: Timings
    estimate: RunEstimate


def dry_run(run: RunConfig, console: Console | None = None, *, override: bool = False) -> DryRun:
    """Show one task of `run` as training would treat it, then time further ones and an update.

    Raises ConfigError and the other ArpoErrors, as the run itself would. `override`: also where it cannot fit into this
    machine's memory.
    """
    refuse_training(run)
    console = console or Console()
    tasks = {split: read_tasks(run, split) for split in ("train", "validation", "test")}
    check_enough(run.train, len(tasks["train"][0]))
    traces = read_traces(run.cold_start, run.data.train) if run.cold_start else []
    display.data(console, [(split, len(rows), report) for split, (rows, report) in tasks.items() if rows])
    if traces:
        display.say(console, f"cold start  {len(traces)} traces")
    cache = SFTCache(run)
    reset_peak_memory()
    source = fetch(run.model.source)
    if unfit := check_memory(run, source, override=override):
        display.say(console, f"warning: {unfit}")
    components = build_components(run, source, cache.model)
    warning = ""
    if run.cold_start and cache.model is None:
        warning = "not cold-started yet (the run, or `arpo sft`, does that first): expect it not to know the protocol"
    display.model(
        console, components, label=run.model.source + (", cold-started" if cache.model else ""), warning=warning
    )
    work = _Work(components, tasks["train"][0], len(tasks["test"][0]), traces if cache.model is None else [])
    return run_sync(_try(work, console))


@dataclass(frozen=True, slots=True)
class _Work:
    components: Components
    tasks: Sequence[Task]
    num_held_out: int
    traces: Sequence[Trace]
    """Of a cold start that is still to be made."""


async def _try(work: _Work, console: Console) -> DryRun:
    components, run = work.components, work.components.run
    try:
        if work.traces:  # fails here where the chat format cannot write it, not after the engine has started
            await traces_to_trees(components.agent, work.traces[:1], run.rollout, 0)
        check_prompts(components.agent, work.tasks, run.rollout)
        order = first_step(run, work.tasks)
        async with begun(components.agent, order[0], run.rollout, step="try", seed=run.seed) as states:
            display.prompt(console, components, states.task)
        await states.close()
        with console.status("starting the engine"):  # an engine that takes long to start: that is no tree's time
            await components.agent.engine.start()
        rollouts, alone_s = await _grow(components, order[:1], console)
        [credited] = credit([rollouts[0].scored], run.advantage)
        display.tree(console, rollouts[0], credited)
        display.rewards(console, rollouts[0], credited)
        display.loss_mask(console, rollouts[0], credited)
        num_more = min(len(order) - 1, math.floor(PATIENCE_S / max(alone_s, 0.01)))
        more, together_s = await _grow(components, order[1 : 1 + num_more], console)
    finally:
        await components.agent.engine.close()
    rollouts += more
    check_scored(rollouts, "the first step")
    trees = credit([rollout.scored for rollout in rollouts], run.advantage)
    metrics = step_metrics([*map(TreeStats.from_rollout, rollouts, trees)], head_tokens=run.rollout.head)
    gates, cold_started = check_first_step(metrics, run.train.gates), not work.traces
    display.first_step(
        console, metrics, gates, len(rollouts), enforced=run.train.gates is not None, cold_started=cold_started
    )
    timings = _update(
        components, trees, console, tree_s=together_s / len(more) if more else alone_s, trees_at_once=len(more) or 1
    )
    counts = {"num_tasks": len(work.tasks), "num_held_out": work.num_held_out, "num_traces": len(work.traces)}
    expected = estimate(run, timings, **counts)
    display.cost(console, timings, expected)
    return DryRun(rollouts=tuple(rollouts), credited=tuple(trees), metrics=metrics, timings=timings, estimate=expected)


async def _grow(components: Components, tasks: Sequence[Task], console: Console) -> tuple[list[Rollout], float]:
    """Grow and score the trees of `tasks` all at once. Returns them and the seconds that they took."""
    began = time.monotonic()
    finished: list[Rollout] = []
    rollouts = collect(
        components.agent,
        tasks,
        components.reward,
        components.run.rollout,
        stats=StepStats(step=1),
        seed=components.run.seed,
        in_flight=max(1, len(tasks)),
    )
    with console.status(
        "growing a tree" if len(tasks) == 1 else f"growing {len(tasks)} more trees, to see how long a step takes"
    ):
        async for rollout in rollouts:
            finished.append(rollout)
    return finished, time.monotonic() - began


def _update(
    components: Components, trees: Sequence[CreditedTree], console: Console, *, tree_s: float, trees_at_once: int
) -> Timings:
    """Time a forward pass, a backward pass and an optimizer step on the trees. It changes weights that nobody uses
    again."""
    teaching = [tree for tree in trees if any(tree.credit.values())]
    used = teaching or [_with_made_up_advantages(tree.scored) for tree in trees]
    learner = build_learner(
        components, optim=components.run.optim, num_updates=2, tell=lambda text: display.say(console, text)
    )
    with console.status("training on the trees, to see what that takes"):
        learner.update(used)  # the first one allocates the optimizer's moments; a step takes as long as a later one
        began = time.monotonic()
        metrics = learner.update(used).metrics
        seconds = time.monotonic() - began
    return Timings(
        tree_s=tree_s,
        trees_at_once=trees_at_once,
        update_s=seconds,
        trees_updated=len(used),
        leaves_updated=sum(len(tree.advantages) for tree in used),
        tokens_trained=int(metrics["tokens_trained"]),
        tokens_flat=int(metrics["tokens_flat"]),
        memory=peak_memory(),
        made_up=not teaching,
    )


def _with_made_up_advantages(scored: ScoredTree) -> CreditedTree:
    """The tree as if every other leaf had been right: the cost of an update does not depend on which were."""
    leaves: list[Place] = [leaf for leaf in scored.tree.leaves() if leaf in scored.tree.turns]
    advantages = {leaf: (1.0 if number % 2 else -1.0) for number, leaf in enumerate(leaves)}
    return CreditedTree(scored, advantages, attribute(advantages, 0.0))
