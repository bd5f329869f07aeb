"""The paper's reward: the format first, then the answer, then a bonus for tools that ran.

    format wrong                    -1
    format right, answer wrong       0
    format right, answer right       accuracy, plus the bonus if all bonus tools ran without failing

Source: arXiv 2507.19849, the hierarchical reward of section 3.3 (there the bonus is 0.1, for search and Python; the
default here is 0). The format depends on the model's text and the bonus on the results of calls: text that only looks
like a call earns nothing.
"""

from collections.abc import Awaitable, Callable, Sequence

from arpo.chat import Transcript
from arpo.core.score import Score
from arpo.core.tree import CallStatus, StopReason
from arpo.tasks import Task

Accuracy = Callable[[str, Task], Awaitable[float]]  # (answer, task) -> 0 to 1


def format_right(transcript: Transcript) -> bool:
    """True if the policy finished the branch, every turn follows the protocol, and the last turn answers."""
    return (
        transcript.ending == StopReason.FINISHED.value
        and transcript.answer is not None
        and all(turn.well_formed for turn in transcript.turns)
    )


def tools_ran(transcript: Transcript) -> frozenset[str]:
    """Names of the tools that ran without failing at least once."""
    return frozenset(o.tool for outcomes in transcript.outcomes for o in outcomes if o.status is CallStatus.OK)


def combine(*, format_is_right: bool, accuracy: float, bonus: float, wrong_format: float = -1.0) -> float:
    """The reward of a leaf, by the table above."""
    if not format_is_right:
        return wrong_format
    return accuracy + bonus if accuracy > 0 else 0.0


class PaperReward:
    """The paper's rule with an answer measure. It adds `bonus` if every tool in `bonus_tools` ran.

    Parts of the score: format, answer, bonus.
    """

    def __init__(
        self, accuracy: Accuracy, *, bonus: float = 0.0, bonus_tools: Sequence[str] = (), wrong_format: float = -1.0
    ) -> None:
        self.accuracy, self.bonus, self.bonus_tools, self.wrong_format = (
            accuracy,
            bonus,
            frozenset(bonus_tools),
            wrong_format,
        )

    async def __call__(self, task: Task, transcript: Transcript) -> Score:
        answer = transcript.answer
        accuracy = 0.0 if answer is None else await self.accuracy(answer, task)
        right = format_right(transcript)
        earned = right and accuracy > 0 and bool(self.bonus_tools) and self.bonus_tools <= tools_ran(transcript)
        bonus = self.bonus if earned else 0.0
        reward = combine(format_is_right=right, accuracy=accuracy, bonus=bonus, wrong_format=self.wrong_format)
        return Score(
            reward=reward, accuracy=accuracy, parts={"format": float(right), "answer": accuracy, "bonus": bonus}
        )
