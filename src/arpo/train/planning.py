"""A run with `plan: auto`, planned: the machine is measured, and what was cut short is looked at before it is trained on.

Knows a run's parts. What follows from speeds, `arpo.train.plan` knows.
"""

from collections.abc import Sequence

from arpo.core.branching import StepStats
from arpo.core.credit import credit
from arpo.rollout.collect import collect
from arpo.run import Run
from arpo.tasks import Task
from arpo.train import sft
from arpo.train.config import LossConfig
from arpo.train.gates import FORMAT_AND_TOOLS, Gate, Thresholds, gates
from arpo.train.job import Job, build_learner
from arpo.train.meter import Measured, measure
from arpo.train.plan import Counts, Lengths, Planned, plan
from arpo.train.settings import ColdStartConfig
from arpo.train.speed import measure_speed
from arpo.train.trial import first_step

_TRACES = 32  # whose tokens say how long trajectories are


async def plan_run(job: Job, tasks: Sequence[Task], held_out: Sequence[Task], *, cold_start: bool, spent_s: float) -> Planned:
    """What `job`'s run does within its minutes. `cold_start`: whether one is still to be made."""
    run = job.run
    traces = sft.read_traces(run.cold_start, run.data.train) if run.cold_start else []
    trees = await sft.demonstrations(job.agent, traces[:_TRACES], run.rollout, run.seed) if traces else []
    lengths = Lengths.from_trees(trees) if trees else Lengths.from_limits(run)
    # The plain loss: the recipe's may ask for a frozen copy of the model.
    learner = build_learner(job, loss=LossConfig(), optim=run.optim, num_updates=1, tell=lambda _: None)
    speed = await measure_speed(learner, job.agent.engine, job.agent.vocab_size)
    counts = Counts(tasks=len(tasks), held_out=len(held_out), traces=len(traces) if cold_start else 0)
    return plan(run, speed, lengths, counts, spent_s=spent_s)


async def unfit(job: Job, tasks: Sequence[Task]) -> list[Gate]:
    """The gates of format and tool use that trees of the first step's tasks fail after a cold start that was cut short."""
    run = job.run
    first = first_step(run, tasks)
    grown = collect(job.agent, first, job.reward, run.rollout, stats=StepStats(step=1), seed=run.seed, in_flight=len(first))
    rollouts = [rollout async for rollout in grown]
    trees = credit([rollout.scored for rollout in rollouts], run.advantage)
    found = gates(measure([*map(Measured.of, rollouts, trees)], head_tokens=run.rollout.head), run.train.gates or Thresholds())
    return [gate for gate in found if gate.what in FORMAT_AND_TOOLS and not gate.holds]


def more_cold_start(run: Run, asked: ColdStartConfig, num_traces: int) -> tuple[Run, int] | None:
    """The run with a quarter of the updates that were `asked` for more in its cold start, and how many are done by then. None where
    twice of them are: portions with a schedule each teach less than as many updates at once."""
    assert run.cold_start is not None
    full = asked.num_updates(num_traces)
    done = run.cold_start.num_updates(num_traces)
    if done >= 2 * full:
        return None
    longer = asked.model_copy(update={"steps": done + max(1, full // 4), "epochs": None})
    return run.model_copy(update={"cold_start": longer}), done
