"""The boundary between a run and its rewards: a reward returns a finite Score in time, or it raises a RewardError that
names task and reward."""

import asyncio
import math
import sysconfig
import traceback
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from arpo.chat import Transcript
from arpo.core.score import Score
from arpo.errors import ProviderError, RewardError, ToolsStoppedError
from arpo.rewards import Reward
from arpo.rewards.service import services_of
from arpo.tasks import Task
from arpo.threads import settled

LIBRARY_FOLDERS = (str(Path(__file__).parents[1]), sysconfig.get_path("stdlib"))  # frames here are not the user's


def as_reward(function: Callable[..., Any]) -> Reward:
    """A reward from a function `(task, transcript) -> float | Score`. A synchronous function runs in its own thread.

    A float is also the accuracy, clipped to 0..1.
    """

    async def reward(task: Task, transcript: Transcript) -> Score:
        value = await settled(function, task, transcript)
        if isinstance(value, Score):
            return value
        number = _number(value)
        return Score(reward=number, accuracy=min(max(number, 0.0), 1.0))

    reward.__name__ = reward_name(function)
    reward.asks = services_of(function)  # type: ignore[attr-defined]
    return reward


def _number(value: object) -> float:
    """`value` as a float: also a number of NumPy or torch, but not text that looks like a number. Raises TypeError."""
    if value is None or isinstance(value, str | bytes):
        raise TypeError(f"a reward must be a number or a Score, not {value!r:.80}")
    return float(value)  # type: ignore[arg-type]


def reward_name(reward: object) -> str:
    return str(getattr(reward, "__name__", type(reward).__name__))


async def run_reward(
    reward: Callable[..., Any], task: Task, transcript: Transcript, deadline_s: float = 300.0
) -> Score:
    """The score of a finished branch. Raises RewardError, which names task and reward, if the reward raises, returns a
    value that is not a finite number, or does not answer within `deadline_s`.

    A reward that asks services has no deadline of its own: it waits while one is down. For it ProviderError means that
    this branch cannot be scored, ToolsStoppedError that none can."""
    subject = f"the reward {reward_name(reward)!r} on task {task.id!r}"
    running, asks = asyncio.ensure_future(_guarded(as_reward(reward)(task, transcript))), bool(services_of(reward))
    try:
        done, _ = await asyncio.wait({running}, timeout=None if asks else deadline_s)
    except asyncio.CancelledError:
        running.cancel()
        raise
    if not done:
        running.add_done_callback(lambda late: late.cancelled() or late.exception())
        running.cancel()
        raise RewardError(f"{subject} took longer than {deadline_s:g} s")
    try:
        score = running.result()
    except (Exception, asyncio.CancelledError) as error:
        if asks and isinstance(error, ProviderError | ToolsStoppedError):
            raise
        raise RewardError(f"{subject} raised {type(error).__name__}: {error}{_line(error)}") from error
    return _checked(score, subject)


def _line(error: BaseException) -> str:
    """The line of the user's code that raised `error`: " (shop.py, line 31)"."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(LIBRARY_FOLDERS) and "site-packages" not in frame.filename
    ]
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


async def _guarded(scoring: Awaitable[Score]) -> Score:
    """Turn a SystemExit into an error: asyncio would pass it on to the loop, and a reward may not end the process."""
    try:
        return await scoring
    except SystemExit as error:
        raise RuntimeError(f"SystemExit: {error}") from error


def _checked(score: Score, subject: str) -> Score:
    """`score` with Python's finite numbers. Raises RewardError."""
    if not isinstance(score.parts, Mapping):
        raise RewardError(f"{subject} gave parts = {score.parts!r:.80}, which is not a mapping from names to numbers")
    reward, accuracy, *parts = (
        _finite(name, value, subject)
        for name, value in [("reward", score.reward), ("accuracy", score.accuracy), *score.parts.items()]
    )
    if not 0 <= accuracy <= 1:
        raise RewardError(f"{subject} gave accuracy = {score.accuracy!r}, which is not from 0 to 1")
    turns = tuple(_finite(f"turns[{number}]", value, subject) for number, value in enumerate(score.turns))
    return Score(
        reward=reward,
        accuracy=accuracy,
        parts=dict(zip(map(str, score.parts), parts, strict=True)),
        turns=turns,
        notes={str(name): str(text) for name, text in score.notes.items()},
    )


def _finite(name: object, value: object, subject: str) -> float:
    try:
        number = _number(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise RewardError(f"{subject} gave {name} = {value!r:.80}, which is not a finite number")
    return number
