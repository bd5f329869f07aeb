"""How much of a recipe fits into its minutes on this machine: updates of the cold start, steps and questions.

Knows a recipe's counts and the tokens of its traces. Refuses to know how a speed was measured
(`arpo.training.planning`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from arpo.recipe.train import ColdStartConfig

if TYPE_CHECKING:
    from arpo.core.credit import CreditedTree
    from arpo.recipe.run import RunConfig

MIN_STEPS = 5
"""Training steps that are done however slow the machine is."""
MIN_QUESTIONS = 100
"""Held-out questions that are asked however slow the machine is."""
CLOSING_S = 45.0
"""Seconds for the last checkpoint and the report."""
_STEP_S = 2.0  # of a step for publication, records and tools
_SHARED = (
    0.65  # tokens of a tree's leaves that are computed, over those of as many trajectories alone (without the prompt)
)
_TEACHING = 0.85  # trees that have mixed rewards and are trained on
_TAIL = 1.8  # seconds that a step samples over those of full batches: turns wait for tools and for other turns


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Mean tokens of a trajectory."""

    prompt: float
    written: float
    """By the policy."""
    observed: float
    """Of tool results."""

    @classmethod
    def from_trees(cls, trees: Sequence[CreditedTree]) -> Lengths:
        """The means over `trees`, which are traces: one branch a tree."""
        segments = [tree.tree for tree in trees]
        return cls(
            prompt=sum(len(tree.prompt.tokens) for tree in segments) / len(segments),
            written=sum(len(turn.tokens) for tree in segments for turn in tree.turns.values()) / len(segments),
            observed=sum(len(seen.tokens) for tree in segments for seen in tree.observations.values()) / len(segments),
        )

    @classmethod
    def from_limits(cls, run: RunConfig) -> Lengths:
        """A guess for a recipe without traces: half of the tokens that it allows."""
        tokens = run.rollout.branch_tokens / 2
        return cls(prompt=tokens / 4, written=tokens / 4, observed=tokens / 2)

    @property
    def all(self) -> float:
        return self.prompt + self.written + self.observed


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What a machine computes, in tokens a second."""

    trained_tokens_per_s: float
    """Through forward and backward of the learner."""
    sampled_tokens_per_s: float
    """Through the engine, those of prompts and of turns together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    run: RunConfig
    """With the counts that fit."""
    seconds: float
    """Expected, for all that is still to be done."""
    text: str
    """One line for the terminal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How much work there is."""

    tasks: int
    held_out: int
    """Questions of the split that is evaluated."""
    traces: int
    """Of a cold start that is still to be made, else 0."""


def plan(run: RunConfig, speed: Speed, lengths: Lengths, counts: Counts, *, spent_s: float) -> Planned:
    """Cut `run` down to `train.minutes`, of which `spent_s` seconds are spent.

    Updates of the cold start (where one is to be made), questions and steps shrink by one factor, none below its least:
    a quarter of the updates, `MIN_QUESTIONS`, `MIN_STEPS`. Where even these take longer, the minutes are raised to what
    they take.
    """
    assert run.train.minutes is not None
    room_s = 60 * run.train.minutes - spent_s - CLOSING_S

    def at(share: float) -> tuple[RunConfig, float]:
        smaller = _smaller(run, share, counts)
        return smaller, _seconds(smaller, speed, lengths, counts)

    fitting = _largest(lambda share: at(share)[1] <= room_s)
    chosen, seconds = at(fitting or 0.0)
    minutes = run.train.minutes if fitting is not None else (seconds + spent_s + CLOSING_S) / 60
    train = chosen.train.model_copy(update={"minutes": round(minutes, 1)})
    chosen = chosen.model_copy(update={"train": train, "plan": "made"})
    text = (
        f"this machine: {speed.trained_tokens_per_s:,.0f} tokens/s trained, {speed.sampled_tokens_per_s:,.0f} sampled; "
        f"plan: {_in_words(chosen, counts)}, about {max(1, round(seconds / 60))} min"
    )
    return Planned(run=chosen, seconds=seconds, text=text)


def _largest(fits: Callable[[float], bool]) -> float | None:
    """The largest share in hundredths for which `fits`, None where there is none."""
    return next((share for share in (number / 100 for number in range(100, -1, -1)) if fits(share)), None)


def with_updates(config: ColdStartConfig, num_updates: int, num_traces: int) -> ColdStartConfig:
    """The cold start with `num_updates` updates: by its `steps` where it sets them, else by how many of the
    `num_traces` traces it uses."""
    if config.steps is not None or (config.epochs or 1.0) != 1.0:
        return config.model_copy(update={"steps": num_updates, "epochs": None})
    return config.model_copy(update={"num_traces": min(num_traces, num_updates * config.batch)})


def _smaller(run: RunConfig, share: float, counts: Counts) -> RunConfig:
    num_held_out, steps = counts.held_out, run.train.num_steps(counts.tasks)
    limit = min(num_held_out, run.evaluation.limit or num_held_out)
    greedy = min(num_held_out, num_held_out if run.evaluation.greedy_limit is None else run.evaluation.greedy_limit)
    train = {"steps": max(min(MIN_STEPS, steps), round(share * steps)), "epochs": None}
    evaluation = {"limit": max(min(MIN_QUESTIONS, limit), _tens(share, limit)), "greedy_limit": _tens(share, greedy)}
    update = {"train": run.train.model_copy(update=train), "evaluation": run.evaluation.model_copy(update=evaluation)}
    if run.cold_start and counts.traces:
        updates = run.cold_start.num_updates(counts.traces)
        fewer = max(1, updates // 4, round(share * updates))
        update["cold_start"] = with_updates(run.cold_start, fewer, counts.traces)
    return run.model_copy(update=update)


def _tens(share: float, number: int) -> int:
    """A share of `number` in tens, so that runs on one machine ask the same questions and find earlier answers in the
    cache."""
    return number if share == 1 else min(number, 10 * round(share * number / 10))


def _seconds(run: RunConfig, speed: Speed, lengths: Lengths, counts: Counts) -> float:
    train, evaluation, cold = run.train, run.evaluation, run.cold_start
    new = lengths.written + lengths.observed
    leaves = run.rollout.leaves * train.tasks_per_step
    sampled = leaves * new * _SHARED + train.tasks_per_step * lengths.prompt
    trained = _TEACHING * sampled
    later = 1 - 1 / train.updates_per_step if run.loss.old_logprobs == "learner" else 0.0
    again = trained * later / 3  # old log-probabilities of later updates: a forward alone
    step_s = _TAIL * sampled / speed.sampled_tokens_per_s + (trained + again) / speed.trained_tokens_per_s + _STEP_S
    answers = min(counts.held_out, evaluation.limit or counts.held_out) * evaluation.samples + (
        evaluation.greedy_limit or 0
    )
    answer_s = lengths.all / speed.sampled_tokens_per_s
    seconds = (train.steps or 0) * step_s + 2 * answers * answer_s
    if train.eval_every and train.eval_limit:
        seconds += (train.steps or 0) // train.eval_every * train.eval_limit * answer_s
    if cold and counts.traces:
        seconds += (
            cold.num_updates(counts.traces) * min(cold.batch, counts.traces) * lengths.all / speed.trained_tokens_per_s
        )
    return seconds


def _in_words(run: RunConfig, counts: Counts) -> str:
    cold, traces = run.cold_start, counts.traces
    first = [f"a cold start of {cold.num_updates(traces)} updates"] if cold and traces else []
    questions = min(counts.held_out, run.evaluation.limit or counts.held_out)
    measured = [f"{questions} questions before and after"] if questions else []
    return ", ".join([*first, f"{run.train.num_steps(counts.tasks)} steps", *measured])
