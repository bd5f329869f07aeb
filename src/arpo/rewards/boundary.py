"""The one boundary between a run and its rewards: a finite Score in time, or a RewardError naming both task and reward."""

import asyncio
import inspect
import math
from collections.abc import Callable
from typing import Any

from arpo.chat import Transcript
from arpo.core.score import Score
from arpo.errors import RewardError
from arpo.rewards import Reward
from arpo.tasks import Task
from arpo.tools.off_loop import is_asynchronous, run_off_loop


def as_reward(function: Callable[..., Any]) -> Reward:
    """A reward from a function `(task, transcript) -> float | Score`, asynchronous or not (then it runs in a thread of its own).

    A plain float is also the accuracy, clipped to 0..1.
    """
    is_async = is_asynchronous(function)

    async def reward(task: Task, transcript: Transcript) -> Score:
        value = await (function(task, transcript) if is_async else run_off_loop(function, task, transcript))
        if inspect.isawaitable(value):
            value = await value
        if isinstance(value, Score):
            return value
        return Score(reward=float(value), accuracy=min(max(float(value), 0.0), 1.0))

    reward.__name__ = reward_name(function)
    return reward


def reward_name(reward: object) -> str:
    return str(getattr(reward, "__name__", type(reward).__name__))


async def run_reward(reward: Callable[..., Any], task: Task, transcript: Transcript, deadline_s: float = 300.0) -> Score:
    """The score of a finished branch. Raises RewardError, naming task and reward, for an exception, a value that is no finite
    number, or no answer within `deadline_s`."""
    whose = f"the reward {reward_name(reward)!r} on task {task.id!r}"
    running = asyncio.ensure_future(as_reward(reward)(task, transcript))
    try:
        done, _ = await asyncio.wait({running}, timeout=deadline_s)
    except asyncio.CancelledError:
        running.cancel()
        raise
    if not done:
        running.add_done_callback(lambda late: late.cancelled() or late.exception())
        running.cancel()
        raise RewardError(f"{whose} took longer than {deadline_s:g} s")
    try:
        score = running.result()
    except (Exception, asyncio.CancelledError) as error:
        raise RewardError(f"{whose} raised {type(error).__name__}: {error}") from error
    for name, value in {"reward": score.reward, "accuracy": score.accuracy, **score.parts}.items():
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise RewardError(f"{whose} gave {name} = {value!r}, which is no finite number")
    return score
