"""A run with `plan: auto`, planned: the machine is measured, and what was cut short is looked at before it is trained on.

Knows a run's parts. What follows from speeds, `arpo.training.plan` knows.
"""

from collections.abc import Sequence

from arpo.assembly.components import Components, build_learner
from arpo.core.branching import StepStats
from arpo.core.credit import credit
from arpo.learner.config import LossConfig
from arpo.recipe.run import RunConfig
from arpo.recipe.train import ColdStartConfig, GateThresholds
from arpo.rollout.collect import collect
from arpo.sft import training
from arpo.tasks import Task
from arpo.training.first_step_checks import FORMAT_AND_TOOLS, Gate, check_first_step
from arpo.training.metrics import TreeStats, step_metrics
from arpo.training.plan import Counts, Lengths, Planned, plan
from arpo.training.speed import measure_speed
from arpo.training.task_sampler import first_step

_TRACES = 32  # whose tokens say how long trajectories are


async def plan_run(
    components: Components, tasks: Sequence[Task], held_out: Sequence[Task], *, cold_start: bool, spent_s: float
) -> Planned:
    """What `job`'s run does within its minutes. `cold_start`: whether one is still to be made."""
    run = components.run
    traces = training.read_traces(run.cold_start, run.data.train) if run.cold_start else []
    trees = await training.traces_to_trees(components.agent, traces[:_TRACES], run.rollout, run.seed) if traces else []
    lengths = Lengths.from_trees(trees) if trees else Lengths.from_limits(run)
    # The plain loss: the recipe's may ask for a frozen copy of the model.
    learner = build_learner(components, loss=LossConfig(), optim=run.optim, num_updates=1, tell=lambda _: None)
    speed = await measure_speed(learner, components.agent.engine, components.agent.vocab_size)
    counts = Counts(tasks=len(tasks), held_out=len(held_out), traces=len(traces) if cold_start else 0)
    return plan(run, speed, lengths, counts, spent_s=spent_s)


async def unfit(components: Components, tasks: Sequence[Task]) -> list[Gate]:
    """The gates of format and tool use that trees of the first step's tasks fail after a cold start that was cut short."""
    run = components.run
    first = first_step(run, tasks)
    grown = collect(
        components.agent, first, components.reward, run.rollout, stats=StepStats(step=1), seed=run.seed, in_flight=len(first)
    )
    rollouts = [rollout async for rollout in grown]
    trees = credit([rollout.scored for rollout in rollouts], run.advantage)
    found = check_first_step(
        step_metrics([*map(TreeStats.of, rollouts, trees)], head_tokens=run.rollout.head), run.train.gates or GateThresholds()
    )
    return [gate for gate in found if gate.what in FORMAT_AND_TOOLS and not gate.holds]


def more_cold_start(run: RunConfig, asked: ColdStartConfig, num_traces: int) -> tuple[RunConfig, int] | None:
    """The run with a quarter of the updates that were `asked` for more in its cold start, and how many are done by then. None where
    twice of them are: portions with a schedule each teach less than as many updates at once."""
    assert run.cold_start is not None
    full = asked.num_updates(num_traces)
    done = run.cold_start.num_updates(num_traces)
    if done >= 2 * full:
        return None
    longer = asked.model_copy(update={"steps": done + max(1, full // 4), "epochs": None})
    return run.model_copy(update={"cold_start": longer}), done
