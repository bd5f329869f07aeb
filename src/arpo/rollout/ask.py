"""Talk with an agent: one question at a time, its turns and tool results shown as they happen."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

from rich.console import Console
from rich.text import Text

from arpo.chat import ChatFormat
from arpo.core.branching import StepStats
from arpo.core.tree import StopReason
from arpo.engines import Chunk, SamplingParams
from arpo.engines.base import EngineBase, EngineWrapper
from arpo.rollout.agent import Agent
from arpo.rollout.config import RolloutConfig
from arpo.rollout.tree_rollout import rollout_tree
from arpo.tasks import Task

RESULT_STYLE, AGENT_STYLE = "dim", "bold"


class ShownEngine(EngineWrapper):
    """An engine that shows what passes through it: what is new in each context (tool results), and every chunk it
    writes."""

    def __init__(self, engine: EngineBase, chat: ChatFormat, console: Console) -> None:
        super().__init__(engine)
        self.chat, self.console = chat, console
        self.known = 0  # tokens shown so far

    async def sample(self, prompt: Sequence[int], params: SamplingParams) -> AsyncIterator[Chunk]:
        if self.known:
            self._show(prompt[self.known :], RESULT_STYLE)
        self.known = len(prompt)
        tokens: list[int] = []
        shown = ""
        async for chunk in self.engine.sample(prompt, replace(params, head=1)):
            tokens.extend(chunk.tokens)
            text = self.chat.text(tokens)  # of the whole turn: a piece of it may begin inside a character
            if chunk.finish is None:
                text = text.rstrip("\ufffd")
            text = self._up_to_its_end(text)
            self.console.print(Text(text[len(shown) :], style=AGENT_STYLE), end="")
            shown = text
            self.known += len(chunk.tokens)
            yield chunk

    def _up_to_its_end(self, text: str) -> str:
        """`text` without what the last token of a stop string brought along (`</answer><` where one token is `><`)."""
        ends = [at + len(stop) for stop in self.chat.stop if (at := text.find(stop)) >= 0]
        return text[: min(ends)] if ends else text

    def _show(self, tokens: Sequence[int], style: str) -> None:
        self.console.print(Text(self.chat.text(tokens), style=style), end="")


async def ask(agent: Agent, messages: Sequence[dict[str, str]], rollout: RolloutConfig, console: Console, *, seed: int) -> str:
    """One answer of the agent to a conversation (user and assistant messages, the user's last). Returns the answer's
    text."""
    task = Task(id="chat", messages=tuple(messages), answers=())
    chat, _ = agent.chat(task)
    shown = replace(agent, engine=ShownEngine(agent.engine, chat, console))
    grown = await rollout_tree(
        shown, task, rollout.flat(leaves=1, temperature=rollout.temperature), stats=StepStats(step="chat"), seed=seed
    )
    await grown.states.close()
    branch = grown.tree.branches()[0]
    console.print()
    if branch.ending is not StopReason.FINISHED:
        why = "".join(f": {reason}" for _, reason in grown.failures[-1:] if branch.ending.aborted)
        console.print(Text(f"[ended: {branch.ending.replace('_', ' ')}{why}]", style=RESULT_STYLE))
    said = [grown.parsed[turn.place] for turn in branch.turns]
    return (said[-1].answer or said[-1].text) if said else ""
