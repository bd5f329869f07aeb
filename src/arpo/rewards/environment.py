"""The reward of an environment: what its steps gave, summed."""

from math import fsum

from arpo.chat import Transcript
from arpo.core.score import Score
from arpo.tasks import Task


async def environment_reward(task: Task, transcript: Transcript) -> Score:
    """The sum of the rewards of a branch's turns. Estimators that compare turns read them in `Score.turns`, which count
    beside `reward`: so the last one takes back what `reward` holds of the others."""
    total = fsum(transcript.rewards)
    earlier = transcript.rewards[:-1]
    turns = (*earlier, -fsum(earlier)) if any(earlier) else ()
    return Score(reward=total, accuracy=min(max(total, 0.0), 1.0), turns=turns)
