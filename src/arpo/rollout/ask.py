"""Talk with an agent: one question at a time, its turns and tool results shown as they happen."""

from collections.abc import Sequence

from rich.text import Text

from arpo.core.branching import StepStats
from arpo.core.tree import StopReason
from arpo.display.terminal import Console
from arpo.rollout.agent import EvalAgent
from arpo.rollout.config import RolloutConfig
from arpo.tasks import Task

RESULT_STYLE, AGENT_STYLE = "dim", "bold"


async def ask(
    agent: EvalAgent, messages: Sequence[dict[str, str]], rollout: RolloutConfig, console: Console, *, seed: int
) -> str:
    """One answer of the agent to a conversation (user and assistant messages, the user's last). Returns the answer's
    text."""
    task = Task(id="chat", messages=tuple(messages), answers=())

    def show(text: str, by_agent: bool) -> None:
        console.print(Text(text, style=AGENT_STYLE if by_agent else RESULT_STYLE), end="")

    limits = rollout.flat(leaves=1, temperature=rollout.temperature)
    grown = await agent.heard_by(show, task).rollout(task, limits, stats=StepStats(step="chat"), seed=seed)
    await grown.states.close()
    branch = grown.tree.branches()[0]
    console.print()
    if branch.ending is not StopReason.FINISHED:
        why = "".join(f": {reason}" for _, reason in grown.failures[-1:] if branch.ending.aborted)
        console.print(Text(f"[ended: {branch.ending.replace('_', ' ')}{why}]", style=RESULT_STYLE))
    said = [grown.parsed[turn.place] for turn in branch.turns]
    return (said[-1].answer or said[-1].text) if said else ""
