"""`arpo chat` reads questions from the keyboard and prints answers while the model writes them.

Knows a terminal. `arpo.agent.deployed` knows the agent and the conversation.
"""

import asyncio
import contextlib
from collections.abc import Callable

from rich.text import Text

from arpo.agent.deployed import ChatSession, DeployedAgent
from arpo.agent.pick import AgentAnswer
from arpo.core.tree import StopReason
from arpo.display.terminal import Console
from arpo.errors import ArpoError
from arpo.rollout.watching import ResultsRead, TextWritten

KEYS = "Ctrl-C stops an answer; /new forgets the conversation; /quit or Ctrl-D leaves."


def talk(
    source: str, recipe: str | None = None, *, console: Console | None = None, read: Callable[[str], str] = input
) -> None:
    """Talk with the model that `source` names: the model of a run, an exported model or the model of a recipe, with its
    tools or with those of `recipe`, which any other model needs.

    `read` shows a prompt and returns the next line; EOFError ends the talk. Raises ConfigError and the other
    ArpoErrors.
    """
    console = console or Console(soft_wrap=True)
    agent = DeployedAgent.load(source, recipe=recipe)
    for text in agent.notes:
        console.print(text)
    tools = ", ".join(tool.name for tool in agent.components.agent.tools) or "none"
    console.print(f"model: {agent.label}\ntools: {tools}\n{KEYS}")
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  line editing and history for `input`
    with asyncio.Runner() as runner:
        try:
            _Talk(agent, runner, console, read).go_on()
        finally:
            runner.run(agent.close())


async def print_answer(session: ChatSession, question: str, console: Console) -> None:
    """Print turns and results as they come, and how the answer ended where it did not come to its end."""
    last, last_style = "\n", ""
    async with contextlib.aclosing(session.stream(question)) as events:
        async for event in events:
            if isinstance(event, TextWritten | ResultsRead) and event.text:
                style = "bold" if isinstance(event, TextWritten) else "dim"
                begins = style != last_style and not last.endswith("\n") and not event.text.startswith("\n")
                console.print(Text(("\n" if begins else "") + event.text, style=style), end="")
                last, last_style = event.text, style
            elif isinstance(event, AgentAnswer):
                console.print()
                if event.ending is not StopReason.FINISHED:
                    why = f": {event.why}" if event.why else ""
                    console.print(Text(f"[ended: {event.ending.replace('_', ' ')}{why}]", style="dim"))


class _Talk:
    def __init__(
        self, agent: DeployedAgent, runner: asyncio.Runner, console: Console, read: Callable[[str], str]
    ) -> None:
        self.agent, self.runner, self.console, self.read = agent, runner, console, read
        self.session = agent.session()

    def go_on(self) -> None:
        """Until the person leaves."""
        interrupted = False
        while True:
            try:
                line = self.read("\n> ").strip()
            except EOFError:
                self.console.print()
                return
            except KeyboardInterrupt:
                if interrupted:
                    return
                interrupted = True
                self.say("\nCtrl-C once more leaves.")
                continue
            interrupted = False
            if line in ("/quit", "/exit"):
                return
            if line == "/new":
                self.runner.run(self.session.end())
                self.session = self.agent.session()
                self.say("(a new conversation)")
            elif line.startswith("/"):
                self.say(f"{line.split()[0]} is no command. {KEYS}")
            elif line:
                self.answer(line)

    def answer(self, question: str) -> None:
        """Print the agent's answer. A stopped or failed answer leaves the conversation unchanged."""
        forgotten = self.session.forgotten
        try:
            self.runner.run(print_answer(self.session, question, self.console))
        except KeyboardInterrupt:
            self.say("\n(stopped)")
        except ArpoError as error:
            self.say(f"error: {error}")
        if self.session.forgotten > forgotten:
            self.say("(the conversation no longer fits rollout.branch_tokens: its beginning is forgotten)")

    def say(self, text: str) -> None:
        self.console.print(text, style="dim")
