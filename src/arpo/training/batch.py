"""A step's rollouts: which tasks it takes, which of them are trained on, where the next step begins, and its best and
worst branch.

Knows the order of tasks, dynamic sampling and the rule's window. Refuses to know when a step is collected and with
which weights (`arpo.training.schedule`).
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import chain

from arpo.assembly.components import Components
from arpo.core.adaptive import Spread
from arpo.core.branching import Outcome, StepStats, WindowedRule
from arpo.core.credit import teaches
from arpo.core.place import Place, show
from arpo.core.roots import PassRate
from arpo.core.window import next_stats, outcomes_of, pass_rates
from arpo.recipe.run import RunConfig
from arpo.rollout.collect import Rollout, check_scored, collect
from arpo.tasks import Task
from arpo.training.task_sampler import in_order, max_tried

MAX_CHARS = 1_200
"""Of a branch that is shown as text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplerState:
    """Where a step begins: all that decides its rollouts besides weights, as a function of the steps before it."""

    step: int
    """Its number, from 1."""
    position: int
    """Tasks that earlier steps took."""
    window: tuple[float, ...]
    """Of the branching rule."""
    outcomes: tuple[Outcome, ...] = ()
    """Of past branches, for the rule `spread`."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """Running accuracy by task, for the root plan `pass_rate`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A collected step."""

    rollouts: Sequence[Rollout]
    """In data order."""
    used: int
    """How many of them are trained on."""
    after: SamplerState
    """Where the next step begins."""
    seconds: float
    """How long it took to collect."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """New running accuracies, by task of the step, for the root plan `pass_rate`."""


def is_used(run: RunConfig, rollout: Rollout) -> bool:
    """Whether a rollout is trained on: all are, but under dynamic sampling those that the estimator learns nothing
    from."""
    return run.train.dynamic_sampling is None or teaches(rollout.scored, run.advantage)


def foreseen(run: RunConfig, start: SamplerState) -> SamplerState | None:
    """Where the step after the one at `start` begins, if that is known before its trees are: not under dynamic
    sampling, which tries as many tasks as it takes, nor with a rule or a root plan that looks back at them."""
    looks_back = _window(run) or isinstance(run.rollout.rule, Spread) or isinstance(run.rollout.roots, PassRate)
    if run.train.dynamic_sampling is not None or looks_back:
        return None
    return SamplerState(step=start.step + 1, position=start.position + run.train.tasks_per_step, window=())


async def collect_step(
    components: Components,
    tasks: Sequence[Task],
    start: SamplerState,
    arrived: Callable[[int, Rollout], None],
    room: asyncio.Semaphore | None = None,
) -> Batch:
    """The step that begins at `start`. Under dynamic sampling as many rollouts as it takes until a step's worth of
    them can teach something, within its bound. `arrived` hears the step and each rollout, in data order, as soon as
    those before it are there. `room`: shared by steps that are collected at the same time.

    Raises EngineError or ToolError where every leaf was lost to failures of the infrastructure.
    """
    run, began = components.run, time.monotonic()
    enough, most = run.train.tasks_per_step, max_tried(run.train, len(tasks))
    stats = StepStats(step=start.step, window=start.window, outcomes=start.outcomes)
    rollouts = collect(
        components.agent,
        in_order(tasks, run.seed, start.position, most, apart=most),
        components.reward,
        run.rollout,
        stats=stats,
        seed=run.seed,
        in_flight=enough,
        room=room,
        rates=start.rates,
    )
    batch: list[Rollout] = []
    used = 0
    async with aclosing(rollouts):
        async for rollout in rollouts:
            batch.append(rollout)
            arrived(start.step, rollout)
            used += is_used(run, rollout)
            if used == enough:
                break
    check_scored(batch, f"step {start.step}")
    window = next_stats(
        stats,
        [rollout.grown.tree for rollout in batch],
        step=start.step + 1,
        head=run.rollout.head,
        window=_window(run),
    ).window
    scored, rule, plan = [rollout.scored for rollout in batch], run.rollout.rule, run.rollout.roots
    outcomes, rates = start.outcomes, {}
    if isinstance(rule, Spread):
        fresh = chain.from_iterable(outcomes_of(tree, run.rollout.head) for tree in scored)
        outcomes = (*outcomes, *fresh)[-rule.memory :]
    if isinstance(plan, PassRate):
        rates = pass_rates(start.rates, scored, plan.memory)
    after = SamplerState(
        step=start.step + 1,
        position=start.position + len(batch),
        window=window,
        outcomes=outcomes,
        rates={**start.rates, **rates},
    )
    return Batch(rollouts=batch, used=used, after=after, seconds=time.monotonic() - began, rates=rates)


def _window(run: RunConfig) -> int:
    """Heads that the rule looks back at."""
    rule = run.rollout.branch_rule
    return rule.window if isinstance(rule, WindowedRule) else 0


def best_and_worst(batch: Sequence[Rollout]) -> list[str]:
    """The branches of the highest and the lowest reward as text (`train.show_every`); of equal rewards the first in the
    step counts. One text where all rewards are equal, none where no branch has a reward."""
    branches = [
        (score.reward, rollout, leaf) for rollout in batch for leaf, score in sorted(rollout.scored.scores.items())
    ]
    if not branches:
        return []
    best, worst = max(branches, key=lambda branch: branch[0]), min(branches, key=lambda branch: branch[0])
    if best[0] == worst[0]:
        return [_text("a branch (all have the same reward)", *best)]
    return [_text("the best branch", *best), _text("the worst branch", *worst)]


def _text(name: str, reward: float, rollout: Rollout, leaf: Place) -> str:
    grown = rollout.grown
    written = grown.text(leaf).strip()
    if len(written) > MAX_CHARS:
        written = f"{written[: MAX_CHARS // 2]} … {written[-MAX_CHARS // 2 :]}"
    ending = grown.tree.endings[leaf].value.replace("_", " ")
    lines = [
        f"{name}: reward {reward:g}, {ending}, {rollout.task.id}, leaf {show(leaf)}",
        rollout.task.question,
        written,
    ]
    return "\n  ".join(line for text in lines for line in text.splitlines() if line.strip())
