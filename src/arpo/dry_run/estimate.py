"""Estimates how long a run takes from the seconds of one step's work.

Knows a recipe's counts. Refuses to know how seconds were measured; memory it reads from torch or the kernel.
"""

import sys
from dataclasses import dataclass

from arpo.recipe.run import RunConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """The measurements of a dry run."""

    tree_s: float
    """Seconds a tree, `trees_at_once` of them growing together."""
    trees_at_once: int
    update_s: float
    """Of one update on `trees_updated` trees."""
    trees_updated: int
    leaves_updated: int
    tokens_trained: int
    """Unique tokens that the update computed."""
    tokens_flat: int
    """Tokens that training each trajectory alone would compute."""
    memory: int
    """Bytes at the peak."""
    made_up: bool
    """Whether the update was on made-up advantages, since no group had mixed rewards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEstimate:
    """Seconds to expect. Trees that grow together take a fraction of the time of trees that grow alone, so `step_s` is
    the more accurate the more trees of a step grew at once."""

    step_s: float
    num_steps: int
    evaluations_s: float
    """Of all evaluations: before, after and in between."""
    cold_start_s: float
    """0 where the cache holds it or there is none."""
    minutes: float | None
    """The recipe's limit."""

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


def estimate(run: RunConfig, timings: Timings, *, num_tasks: int, num_held_out: int, num_traces: int) -> RunEstimate:
    """From the measured seconds to those of the whole `run`. `num_traces`: of a cold start that is still to be made,
    else 0."""
    train, config = run.train, run.evaluation
    num_steps = train.num_steps(num_tasks)
    step_s = train.tasks_per_step * (timings.tree_s + timings.update_s / max(1, timings.trees_updated))
    answer_s = timings.tree_s / run.rollout.leaves  # an answer costs about a leaf
    sampled = min(num_held_out, config.limit or num_held_out) * config.samples
    greedy = min(num_held_out, num_held_out if config.greedy_limit is None else config.greedy_limit)
    while_training = (num_steps // train.eval_every) * (train.eval_limit or 0) if train.eval_every else 0
    cold = run.cold_start
    updates = cold.num_updates(num_traces) if cold and num_traces else 0
    trace_s = (
        timings.update_s * timings.tokens_flat / max(1, timings.tokens_trained * timings.leaves_updated)
    )  # as long as a branch
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
