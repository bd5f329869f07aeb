"""What a run will take, from what one step's worth of work took.

Knows a recipe's counts. Refuses to know how anything was measured but memory, which it reads from torch or the kernel.
"""

import sys
from dataclasses import dataclass

from arpo.recipe.run import RunConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """What was measured."""

    tree_s: float  # seconds a tree, `trees_at_once` of them growing together
    trees_at_once: int
    update_s: float  # one update on `trees_updated` trees
    trees_updated: int
    leaves_updated: int
    tokens_trained: int  # of that update: unique tokens computed
    tokens_flat: int  # what training each trajectory alone would compute
    memory: int  # bytes at the peak
    made_up: bool  # True where no group had mixed rewards, so the update was on pretended ones


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEstimate:
    """Seconds to expect. Between trees that grow alone and together lies a factor of several: `step_s` is nearer the
    truth the more trees of a step grew at once."""

    step_s: float
    num_steps: int
    evaluations_s: float  # all of them, before, after and in between
    cold_start_s: float  # 0 where it is in the cache or there is none
    minutes: float | None  # the recipe's own limit

    @property
    def training_s(self) -> float:
        return self.step_s * self.num_steps

    @property
    def steps_that_fit(self) -> int:
        """Steps that the recipe's minutes leave room for; all of them without a limit."""
        if self.minutes is None:
            return self.num_steps
        left = 60 * self.minutes - self.evaluations_s - self.cold_start_s
        return max(0, min(self.num_steps, int(left / self.step_s))) if self.step_s > 0 else self.num_steps


def estimate(run: RunConfig, took: Timings, *, num_tasks: int, num_held_out: int, num_traces: int) -> RunEstimate:
    """From what `took` so long to the whole of `run`. `num_traces`: of a cold start that is still to be made, else
    0."""
    train, config = run.train, run.evaluation
    num_steps = train.num_steps(num_tasks)
    step_s = train.tasks_per_step * (took.tree_s + took.update_s / max(1, took.trees_updated))
    answer_s = took.tree_s / run.rollout.leaves  # an answer costs about a leaf
    sampled = min(num_held_out, config.limit or num_held_out) * config.samples
    greedy = min(num_held_out, num_held_out if config.greedy_limit is None else config.greedy_limit)
    while_training = (num_steps // train.eval_every) * (train.eval_limit or 0) if train.eval_every else 0
    cold = run.cold_start
    updates = cold.num_updates(num_traces) if cold and num_traces else 0
    trace_s = took.update_s * took.tokens_flat / max(1, took.tokens_trained * took.leaves_updated)  # as long as a branch
    return RunEstimate(
        step_s=step_s,
        num_steps=num_steps,
        evaluations_s=answer_s * (2 * (sampled + greedy) + while_training),
        cold_start_s=updates * min(cold.batch, num_traces) * trace_s if cold else 0.0,
        minutes=train.minutes,
    )


def reset_peak_memory() -> None:
    """Forget the GPU's earlier peak. (The process's own cannot be reset.)"""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> int:
    """Bytes: the GPU's peak where one was used, else the process's."""
    import torch

    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return int(torch.cuda.max_memory_allocated())
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
