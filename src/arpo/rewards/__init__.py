"""Rewards: a reward scores a finished branch."""

from collections.abc import Awaitable, Callable

from arpo.chat import Transcript
from arpo.core.score import Score
from arpo.tasks import Task

Reward = Callable[[Task, Transcript], Awaitable[Score]]
