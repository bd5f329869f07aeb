"""The one boundary between a run and its rewards: a finite Score in time, or a RewardError naming both task and reward."""

import asyncio
import math
import sysconfig
import traceback
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from arpo.chat import Transcript
from arpo.core.score import Score
from arpo.errors import RewardError
from arpo.rewards import Reward
from arpo.tasks import Task
from arpo.threads import settled

NOT_THE_USER_S = (str(Path(__file__).parents[1]), sysconfig.get_path("stdlib"))  # files in which a reward's error may surface


def as_reward(function: Callable[..., Any]) -> Reward:
    """A reward from a function `(task, transcript) -> float | Score`, asynchronous or not (then it runs in a thread of its own).

    A plain float is also the accuracy, clipped to 0..1.
    """

    async def reward(task: Task, transcript: Transcript) -> Score:
        value = await settled(function, task, transcript)
        if isinstance(value, Score):
            return value
        number = _number(value)
        return Score(reward=number, accuracy=min(max(number, 0.0), 1.0))

    reward.__name__ = reward_name(function)
    return reward


def _number(value: object) -> float:
    """`value` as a float: also NumPy's and torch's numbers, but no text that looks like one. Raises TypeError."""
    if value is None or isinstance(value, str | bytes):
        raise TypeError(f"a reward is a number or a Score, not {value!r:.80}")
    return float(value)  # type: ignore[arg-type]


def reward_name(reward: object) -> str:
    return str(getattr(reward, "__name__", type(reward).__name__))


async def run_reward(reward: Callable[..., Any], task: Task, transcript: Transcript, deadline_s: float = 300.0) -> Score:
    """The score of a finished branch. Raises RewardError, naming task and reward, for an exception, a value that is no finite
    number, or no answer within `deadline_s`."""
    whose = f"the reward {reward_name(reward)!r} on task {task.id!r}"
    running = asyncio.ensure_future(_guarded(as_reward(reward)(task, transcript)))
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
        raise RewardError(f"{whose} raised {type(error).__name__}: {error}{_line(error)}") from error
    return _sound(score, whose)


def _line(error: BaseException) -> str:
    """Where in the user's own files `error` came up: " (shop.py, line 31)"."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(NOT_THE_USER_S) and "site-packages" not in frame.filename]
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""


async def _guarded(scoring: Awaitable[Score]) -> Score:
    """A reward has no say over the process: asyncio would let its SystemExit through to the loop."""
    try:
        return await scoring
    except SystemExit as error:
        raise RuntimeError(f"SystemExit: {error}") from error


def _sound(score: Score, whose: str) -> Score:
    """`score` in plain finite numbers. Raises RewardError."""
    if not isinstance(score.parts, Mapping):
        raise RewardError(f"{whose} gave parts = {score.parts!r:.80}, which are no numbers by name")
    reward, accuracy, *parts = (
        _finite(name, value, whose)
        for name, value in [("reward", score.reward), ("accuracy", score.accuracy), *score.parts.items()]
    )
    if not 0 <= accuracy <= 1:
        raise RewardError(f"{whose} gave accuracy = {score.accuracy!r}, which is not from 0 to 1")
    return Score(reward=reward, accuracy=accuracy, parts=dict(zip(map(str, score.parts), parts, strict=True)))


def _finite(name: object, value: object, whose: str) -> float:
    try:
        number = _number(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise RewardError(f"{whose} gave {name} = {value!r:.80}, which is no finite number")
    return number
