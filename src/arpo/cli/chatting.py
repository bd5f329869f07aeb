"""`arpo chat` reads questions from the keyboard and prints answers while the model writes them.

Knows a terminal and a conversation. `arpo.rollout.ask` knows how to get an answer.
"""

import asyncio
import contextlib
from collections.abc import Callable
from random import Random

from arpo.assembly.components import EvalComponents, build_eval_components, build_setting, model_folder
from arpo.assembly.resolve import ResolvedModel, resolve_for_chat
from arpo.display.terminal import Console
from arpo.errors import ArpoError
from arpo.recipe.run import RunConfig
from arpo.rollout.ask import ask
from arpo.tasks import Task

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
    resolved = resolve_for_chat(source, recipe)
    setting = build_setting(resolved.run)
    for text in setting.notes():
        console.print(text)
    components = build_eval_components(
        _unhurried(resolved), model_folder(resolved.run, resolved.weights), resolved.weights, setting=setting
    )
    tools = ", ".join(tool.name for tool in components.agent.tools) or "none"
    console.print(f"model: {resolved.label}\ntools: {tools}\n{KEYS}")
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  line editing and history for `input`
    with asyncio.Runner() as runner:
        try:
            _Talk(components, runner, console, read).go_on()
        finally:
            runner.run(components.agent.close())


def _unhurried(resolved: ResolvedModel) -> RunConfig:
    """The run without its limit on prompts: a conversation grows, and drops its oldest part instead."""
    return resolved.run.model_copy(update={"chat": resolved.run.chat.model_copy(update={"prompt_tokens": None})})


class _Talk:
    def __init__(
        self, components: EvalComponents, runner: asyncio.Runner, console: Console, read: Callable[[str], str]
    ) -> None:
        self.components, self.runner, self.console, self.read = components, runner, console, read
        self.messages: list[dict[str, str]] = []
        self.asked = 0

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
                self.messages = []
                self.say("(a new conversation)")
            elif line.startswith("/"):
                self.say(f"{line.split()[0]} is no command. {KEYS}")
            elif line:
                self.answer(line)

    def answer(self, question: str) -> None:
        """Print the agent's answer. A stopped or failed answer leaves the conversation unchanged."""
        self.asked += 1
        messages = self.fitting([*self.messages, {"role": "user", "content": question}])
        seed = Random(f"{self.components.run.seed}/chat/{self.asked}").getrandbits(63)
        try:
            answer = self.runner.run(
                ask(self.components.agent, messages, self.components.run.rollout, self.console, seed=seed)
            )
        except KeyboardInterrupt:
            self.say("\n(stopped)")
        except ArpoError as error:
            self.say(f"error: {error}")
        else:
            self.messages = [*messages, {"role": "assistant", "content": answer}]

    def fitting(self, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        """The newest of `messages` that leave room for a call, its result and an answer (rollout.branch_tokens holds
        all)."""
        run = self.components.run
        room = run.rollout.branch_tokens - 2 * run.rollout.turn_tokens - run.chat.result_tokens
        kept = messages
        while len(kept) > 2 and self.num_tokens(kept) > room:
            kept = kept[2:]
        if len(kept) < len(messages):
            self.say("(the conversation no longer fits rollout.branch_tokens: its beginning is forgotten)")
        return kept

    def num_tokens(self, messages: list[dict[str, str]]) -> int:
        return self.components.agent.num_prompt_tokens(Task(id="chat", messages=tuple(messages), answers=()))

    def say(self, text: str) -> None:
        self.console.print(text, style="dim")
