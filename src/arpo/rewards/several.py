"""Several rewards of one leaf, weighted and summed, each visible as a part of the score."""

import asyncio
from collections.abc import Mapping, Sequence
from itertools import chain
from math import fsum

from arpo.chat import Transcript
from arpo.core.score import Score
from arpo.rewards import Reward
from arpo.rewards.service import ServiceReward, services_of
from arpo.tasks import Task


class Several:
    """`sum w_n R_n` over `rewards`, (weight, reward) by name; the accuracy is the first one's. Parts: R_n by its name,
    and R_n's own by `name/part`, but for `format`, which keeps its name."""

    def __init__(self, rewards: Mapping[str, tuple[float, Reward]]) -> None:
        self.rewards = rewards

    @property
    def asks(self) -> Sequence[ServiceReward]:
        return [*chain(*(services_of(reward) for _, reward in self.rewards.values()))]

    async def __call__(self, task: Task, transcript: Transcript) -> Score:
        scores = await asyncio.gather(*(reward(task, transcript) for _, reward in self.rewards.values()))
        weighted = [(w, s) for (w, _), s in zip(self.rewards.values(), scores, strict=True)]
        parts: dict[str, float] = {}
        notes: dict[str, str] = {}
        for name, score in zip(self.rewards, scores, strict=True):
            own = {part if part == "format" else f"{name}/{part}": value for part, value in score.parts.items()}
            parts = {name: score.reward, **own, **parts}
            notes |= score.notes
        num_turns = max(len(score.turns) for score in scores)
        turns = tuple(fsum(w * s.turns[at] for w, s in weighted if s.turns) for at in range(num_turns))
        return Score(
            reward=fsum(w * s.reward for w, s in weighted),
            accuracy=scores[0].accuracy,
            parts=parts,
            turns=turns,
            notes=notes,
        )
