"""The paper's tag protocol, inside one assistant message.

    prompt        system, question, header of the assistant's message
    turn          <think>…</think><search>query</search>          stops with the token that completes a closing tag
    observation   \\n<result>…</result>\\n                          then the policy continues the same message
    turn          <think>…</think><answer>…</answer>              the branch is finished

Rules: the tag of a tool is its name. The first closing tag ends the turn, so a turn makes at most one call. Characters
of the last token after the closing tag stay in the context and have no meaning.
"""

from __future__ import annotations  # `array[int]` cannot be subscripted before Python 3.12

import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from arpo.chat import ParsedTurn, TraceStep
from arpo.chat.body import argument_names, check_readable, read_body, write_body
from arpo.chat.config import NO_CALLS_LEFT
from arpo.chat.conversation import ASSISTANT, USER, Conversation
from arpo.chat.syntaxes.known import foreign_opening
from arpo.chat.token_text import Piece, TokenText
from arpo.core.tree import Call, ToolCallResult, Turn
from arpo.errors import ConfigError, FormatError
from arpo.final_answer import boxed, unwrapped
from arpo.tasks import Task
from arpo.tools import Tool

SYSTEM = "{tools} Think in <think>, end with <answer>."
PAPER_SYSTEM = (
    "You solve the question step by step and may call tools on the way.\n{tools}\n"
    "Reason between <think> and </think>. Call a tool by writing its argument between its tags; what it returns "
    "follows between <result> and </result>, and you go on from there, as often as you need. When you know the "
    "answer, write it between <answer> and </answer>, its exact value as \\boxed{{}}. A whole solution looks like "
    "this: <think> what is asked, what to look up </think> {example} <result> what came back </result> <think> what "
    "follows from it </think> <answer> The answer is \\boxed{{exact value}} </answer>"
)
RESERVED = ("think", "answer", "result")


def check_names(tools: Sequence[Tool]) -> None:
    """Raises ConfigError for a name that is a word of the protocol, or cannot be a tag."""
    for tool in tools:
        if tool.name.lower() in RESERVED or not re.fullmatch(r"[A-Za-z_][\w-]*", tool.name):
            what = "a tool cannot have this name with the tag protocol"
            raise ConfigError(what, where="tools", value=tool.name, hint="set its `name`")


def describe(tools: Sequence[Tool], safe: Callable[[str], str] = str) -> str:
    """One line for all tools: every tag with the name of its argument, and the first sentence of the description.
    `safe` makes texts that somebody else wrote harmless."""
    return " ".join(f"{example(tool, safe)} {safe(_first_sentence(tool.description))}".strip() for tool in tools)


def example(tool: Tool, safe: Callable[[str], str] = str) -> str:
    return f"<{tool.name}>{safe(argument_names(tool))}</{tool.name}>"


def _first_sentence(text: str) -> str:
    line = " ".join(text.split())
    sentence = re.split(r"(?<=[.!?]) ", line, maxsplit=1)[0]
    return sentence if not sentence or sentence[-1] in ".!?" else sentence + "."


class TagFormat:
    """The tag protocol for one tokenizer and one set of tools.

    `system` may contain `{tools}` (see `describe`) and `{example}` (the first tool's empty tag); double all other
    braces. `result_tokens` caps each result, including the mark of a cut. `prompt_tokens` caps the prompt (None: no
    limit). `ends`: end-of-turn tokens from the model's generation_config.json. Raises ConfigError for tools whose
    names cannot be tags.
    """

    one_call = True
    """A turn makes at most one call: parallel calls of a trace are written one after another."""

    def __init__(
        self,
        tokenizer: Any,
        tools: Sequence[Tool] = (),
        *,
        system: str = SYSTEM,
        result_tokens: int = 512,
        prompt_tokens: int | None = None,
        require_think: bool = True,
        require_boxed: bool = False,
        template_options: Mapping[str, Any] | None = None,
        ends: Sequence[int] = (),
    ) -> None:
        self._text = TokenText(tokenizer)
        self._conversation = Conversation(self._text, template_options)
        self.result_tokens, self.prompt_tokens = result_tokens, prompt_tokens
        self.require_think, self.require_boxed = require_think, require_boxed
        self._system = system
        self.stop_tokens = self._conversation.ends(ends)
        self._set_tools(tools)

    def _set_tools(self, tools: Sequence[Tool]) -> None:
        check_names(tools)
        for tool in tools:
            check_readable(tool)
            if marks := self._text.marks(f"<{tool.name}></{tool.name}>"):
                wrong = f"its tag is {marks[0]}, with which this model marks texts"
                raise ConfigError(wrong, where="tools", value=tool.name, hint="set its `name`")
        self._tools = {tool.name: tool for tool in tools}
        names = "|".join(map(re.escape, [*self._tools, "answer"]))
        self.stop = tuple(f"</{name}>" for name in [*self._tools, "answer"])
        self._close = re.compile(f"</({names})>")
        self._any_tag = re.compile(f"</?({names}|think|result)>")
        self._text.set_tags([*RESERVED, *self._tools])
        self._before = self._text.trusted("\n<result>")
        self._after = self._text.trusted("</result>\n")
        self._after_last = self._text.trusted(f"</result>\n{NO_CALLS_LEFT}\n")
        self._system_pieces = self._described(tools)
        self.system = "".join(text for text, _ in self._system_pieces)
        self._prefilled = self._conversation.exists and self._conversation.header.rstrip().endswith("<think>")

    def render(self, task: Task, tools: Sequence[Tool]) -> array[int]:
        """Prompt tokens. Raises ConfigError for tools that this format does not know, FormatError for a prompt that is
        too long."""
        unknown = [tool.name for tool in tools if tool.name not in self._tools]
        if unknown:
            raise ConfigError("the chat format does not know these tools", value=unknown, hint="build one for them")
        system = self._system_pieces if len(tools) == len(self._tools) else self._described(tools)
        return checked_length(self._conversation.prompt(system, task.messages), task, self.prompt_tokens)

    def _described(self, tools: Sequence[Tool]) -> list[Piece]:
        """The system prompt, in which nothing acts that a tool's description spells."""
        held: list[str] = []

        def safe(text: str) -> str:
            return str(self._text.held_out(text, held))

        first = example(tools[0], safe) if tools else ""
        text = self._system.format(tools=describe(tools, safe), example=first).strip() if self._system else ""
        return self._text.pieces(text, held, self._text.written) if text else []

    def parse(self, tokens: Sequence[int]) -> ParsedTurn:
        """The one call or the answer of a turn. A well-formed turn has an optional (or required) thought, then one tag,
        and nothing else."""
        ended = bool(tokens) and tokens[-1] in self.stop_tokens
        tokens = tokens[:-1] if ended else tokens
        text = self._text.decode(tokens)
        close = self._close.search(text)
        if close is None:
            return ParsedTurn(text=text, well_formed=False, content=text)
        # a model that falls back into its family's calls has not followed the protocol
        native = bool(foreign_opening(text))
        name = close.group(1)
        start = text.rfind(f"<{name}>", 0, close.start())
        if start < 0:
            return ParsedTurn(text=text, well_formed=False, content=text)
        body = text[start + len(name) + 2 : close.start()]
        stopped = not ended and close.group() not in self._text.decode(tokens[:-1])
        well_formed = stopped and not native and self._thought_fits(text[:start]) and not self._any_tag.search(body)
        if name == "answer":
            answer = unwrapped(body) or None
            well_formed = well_formed and answer is not None and (boxed(body) is not None or not self.require_boxed)
            return ParsedTurn(text=text, answer=answer, well_formed=well_formed, content=body.strip())
        call = read_body(self._tools[name], body)
        return ParsedTurn(text=text, calls=(call,), well_formed=well_formed and not call.error)

    def _thought_fits(self, before: str) -> bool:
        before = before.strip()
        if not before:
            return not self.require_think
        opened = before.startswith("<think>")
        if not before.endswith("</think>") or not (opened or self._prefilled):
            return False
        return not self._any_tag.search(before[len("<think>") if opened else 0 : -len("</think>")])

    def observe(
        self, turn: Turn, outcomes: Sequence[ToolCallResult], calls_left: int | None, message: str | None = None
    ) -> tuple[array[int], tuple[ToolCallResult, ...]]:
        """Every result between result tags, capped and disarmed; after the last one a notice if no calls are left. A
        message ends the assistant's and begins a new one after it."""
        tokens, results = array("i"), []
        for number, outcome in enumerate(outcomes):
            result, cut = self._text.tool_text(outcome.text, self.result_tokens)
            last = number == len(outcomes) - 1 and calls_left is not None and calls_left <= 0
            tokens.extend([*self._before, *result, *(self._after_last if last else self._after)])
            results.append(replace(outcome, cut=outcome.cut or cut))
        if message is not None:
            ended = not outcomes and bool(turn.tokens) and turn.tokens[-1] in self.stop_tokens
            tokens.extend(user_message(self._conversation, self._text, message, self.result_tokens, ended=ended))
        return tokens, tuple(results)

    def write(self, step: TraceStep, earlier: int = 0) -> str:
        """The text of a turn: `step.thought`, then its one call or `step.answer`. The first turn continues a thought
        that the template has opened.

        Raises FormatError for a step that the protocol cannot express (several calls, an unknown tool, a tag inside
        text).
        """
        opened = not earlier and self._prefilled
        said = "\n".join(part for part in (step.thought, step.text) if part)
        thought = f"{'' if opened else '<think>'}{said}</think>" if said or self.require_think or opened else ""
        calls: Sequence[Call] = step.calls
        if len(calls) > 1:
            raise FormatError(f"the tag protocol writes one call per turn, not {len(calls)}")
        if calls:
            if calls[0].name not in self._tools:
                raise FormatError(
                    f"there is no tool {calls[0].name!r}; the tools are: {', '.join(self._tools) or 'none'}"
                )
            name, body = calls[0].name, write_body(self._tools[calls[0].name], calls[0].arguments)
        else:
            name, body = "answer", step.answer or ""
            body = f"\\boxed{{{body}}}" if self.require_boxed else body
        if tag := self._any_tag.search(said + body):
            raise FormatError(f"{tag.group()} cannot stand inside a thought, a call or an answer")
        return f"{'' if earlier else self._conversation.lead}{thought}<{name}>{body}</{name}>"

    def without_thought(self, text: str) -> str:
        return without_thought(text, "<think>", "</think>")

    def encode_turn(self, text: str) -> array[int]:
        return array("i", self._text.written(text))

    def text(self, tokens: Sequence[int]) -> str:
        return self._text.decode(tokens)


def without_thought(text: str, opening: str, closing: str) -> str:
    """A turn's text without the thought that it begins with. One that the prompt has opened stays, empty."""
    thought, closed, after = text.partition(closing)
    if not closed:
        return text
    return after.lstrip() if thought.lstrip().startswith(opening) else closed + after


def user_message(conversation: Conversation, text: TokenText, message: str, most: int, *, ended: bool) -> list[int]:
    """Tokens of a user's message, of at most `most` tokens, with what leads to it from the assistant's message (which
    wrote its own end if `ended`) and from it to the assistant's next one."""
    shown = text.tool_text(message, most)[0]
    if not conversation.exists:
        gap = text.trusted("\n\n")
        return [*gap, *shown, *gap]
    before, after = conversation.glue([USER, ASSISTANT, USER])[2:]
    before = before.lstrip()
    pieces = [(before, text.trusted(before)), (text.decode(shown), shown), (after, text.trusted(after))]
    return text.joined(pieces)[int(ended) :]


def checked_length(tokens: Sequence[int], task: Task, most: int | None) -> array[int]:
    """`tokens` as an array. Raises FormatError for a prompt that is longer than the recipe allows."""
    if most is not None and len(tokens) > most:
        raise FormatError(f"task {task.id}: the prompt has {len(tokens)} tokens, more than chat.prompt_tokens = {most}")
    return array("i", tokens)
