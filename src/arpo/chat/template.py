"""The model's own chat template with JSON tool calls, as Hermes and Qwen write them.

    turn          …<tool_call>\\n{"name": …, "arguments": {…}}\\n</tool_call> (any number) <end of turn>
    observation   the template's text from there to the assistant's next message: the results, and the next header

Rules: a turn ends with the end-of-turn token. If a turn lacks it (because it was cut off), the observation begins with
it. Glue comes from rendered placeholders, so sampled text is never rendered or tokenised again.
"""

from __future__ import annotations  # `array[int]` cannot be subscripted before Python 3.12

import json
import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from arpo.chat import ParsedTurn, TraceStep
from arpo.chat.body import read_object
from arpo.chat.config import NO_CALLS_LEFT
from arpo.chat.conversation import ASSISTANT, NO_TEMPLATE_HINT, USER, Conversation
from arpo.chat.tags import checked_length
from arpo.chat.token_text import Piece, TokenText
from arpo.core.tree import Call, CallStatus, ToolCallResult, Turn
from arpo.errors import ConfigError
from arpo.final_answer import boxed, enclosed, final_answer
from arpo.tasks import Task
from arpo.tools import Tool

OWN_TAGS = ("tool_call", "tool_response", "tools", "think", "answer")
WRITTEN_TOOLS = (
    "You may call these tools:\n<tools>\n{tools}\n</tools>\n"
    'To call one, write <tool_call>\n{{"name": "its name", "arguments": {{…}}}}\n</tool_call> and end your turn; '
    "what it returns comes back as <tool_response>."
)


def tool_schema(tool: Tool) -> dict[str, Any]:
    """The description of a tool that chat templates expect."""
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": dict(tool.schema)},
    }


class TemplateFormat:
    """The model's own format for one tokenizer and one set of tools. Raises ConfigError for a model without a chat
    template.

    If the template writes tools and calls in the style of Hermes, it lists the tools and shows results as messages of
    the role `tool`. Otherwise the format describes the tools after `system` and writes results as user messages.
    """

    stop: tuple[str, ...] = ()

    def __init__(
        self,
        tokenizer: Any,
        tools: Sequence[Tool] = (),
        *,
        system: str = "",
        result_tokens: int = 512,
        prompt_tokens: int | None = None,
        require_think: bool = False,
        require_boxed: bool = False,
        no_calls_left: str = NO_CALLS_LEFT,
        template_options: Mapping[str, Any] | None = None,
    ) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ConfigError(
                "this model has no chat template", where="chat.format", value="template", hint=NO_TEMPLATE_HINT
            )
        self._text = TokenText(tokenizer, OWN_TAGS)
        self._conversation = Conversation(self._text, template_options)
        self.system, self.result_tokens, self.prompt_tokens = system, result_tokens, prompt_tokens
        self.require_think, self.require_boxed = require_think, require_boxed
        self._no_calls_left = no_calls_left
        for tool in tools:
            if tool.name in OWN_TAGS or self._text.spells_token(tool.name):
                wrong = "a tool's name can be no word of the protocol, and no token that the vocabulary adds"
                raise ConfigError(wrong, where="tools", value=tool.name, hint="set its `name`")
        self._tools = {tool.name: tool for tool in tools}
        self.stop_tokens = self._conversation.end_of_turn()
        self._schemas = self._text.held_out([tool_schema(tool) for tool in tools], [])
        self._native = self._template_writes_tools()
        self._glue: dict[tuple[str, ...], list[Piece]] = {}
        # refuse a template that cannot show results
        self._between([ToolCallResult(tool="", status=CallStatus.OK, text="")])

    def _template_writes_tools(self) -> bool:
        probe = {
            "type": "function",
            "function": {"name": "qztool", "description": "", "parameters": {"type": "object", "properties": {}}},
        }
        try:
            pieces = self._conversation.glue([USER], tools=[probe])
            self._conversation.glue([USER, ASSISTANT, {"role": "tool", "content": ""}], tools=[probe])
        except ConfigError:
            return False
        text = "".join(pieces)
        # some templates use another notation between these tags (Qwen3-Coder, GLM): only JSON has a key for the
        # arguments
        return "qztool" in text and "<tool_call>" in text and re.search(r"""["']arguments["']""", text) is not None

    def render(self, task: Task, tools: Sequence[Tool]) -> array[int]:
        """Prompt tokens. Raises FormatError for a prompt that is too long."""
        schemas = [tool_schema(tool) for tool in tools]
        system = [(self.system, self._text.written(self.system))] if self.system else []
        if schemas and not self._native:
            held: list[str] = []
            listed = "\n".join(json.dumps(self._text.held_out(each, held), ensure_ascii=False) for each in schemas)
            text = WRITTEN_TOOLS.format(tools=listed)
            system += self._text.pieces(f"\n\n{text}" if system else text, held, self._text.written)
        tokens = self._conversation.prompt(system, task.messages, schemas if self._native else ())
        return checked_length(tokens, task, self.prompt_tokens)

    def parse(self, tokens: Sequence[int]) -> ParsedTurn:
        """All calls of a turn, or its answer: the content of answer tags or a box, else the whole text after the
        thought."""
        ended = bool(tokens) and tokens[-1] in self.stop_tokens
        text = self._text.decode(tokens[:-1] if ended else tokens)
        _, closing, rest = text.rpartition("</think>")
        thinks = self._conversation.opens_thought or "<think>" in text
        thought_fits = bool(closing) or not (thinks or self.require_think)
        content = rest if closing else text
        bodies, after = enclosed(content, "tool_call")
        calls = tuple(map(_read_call, bodies))
        if "<tool_call>" in after:
            calls += (Call(name="", error="a <tool_call> is not closed"),)
        well_formed = ended and thought_fits and not any(call.error for call in calls) and "tool_call>" not in after
        if calls:
            return ParsedTurn(text=text, calls=calls, well_formed=well_formed)
        if not ended or (thinks and not closing):
            return ParsedTurn(text=text, answer=_tagged_answer(content), well_formed=False)
        answer = final_answer(content)
        well_formed = well_formed and answer is not None and (boxed(content) is not None or not self.require_boxed)
        return ParsedTurn(text=text, answer=answer, well_formed=well_formed)

    def observe(
        self, turn: Turn, outcomes: Sequence[ToolCallResult], calls_left: int | None
    ) -> tuple[array[int], tuple[ToolCallResult, ...]]:
        """The end of the turn (if the policy did not write it), the results in the template's form, and the next
        header."""
        glue = self._between(outcomes)
        ended = bool(turn.tokens) and turn.tokens[-1] in self.stop_tokens
        pieces, results = [glue[0]], []
        for number, outcome in enumerate(outcomes):
            result, cut = self._text.tool_text(outcome.text, self.result_tokens)
            last = number == len(outcomes) - 1 and calls_left is not None and calls_left <= 0
            notice = f"\n{self._no_calls_left}" if last and self._no_calls_left else ""
            pieces += [(self._text.decode(result), result), (notice, self._text.trusted(notice)), glue[number + 1]]
            results.append(replace(outcome, cut=outcome.cut or cut))
        return array("i", self._text.joined(pieces)[int(ended) :]), tuple(results)

    def _between(self, outcomes: Sequence[ToolCallResult]) -> list[Piece]:
        """The glue around the results. The first piece begins with the end-of-turn token."""
        names = tuple(outcome.tool if outcome.tool in self._tools else "" for outcome in outcomes)
        if names not in self._glue:
            if self._native:
                results = [{"role": "tool", "content": "", **({"name": name} if name else {})} for name in names]
                pieces = list(self._conversation.glue([USER, ASSISTANT, *results], tools=self._schemas)[2:])
            else:
                first, last = self._conversation.glue([USER, ASSISTANT, USER])[2:]
                inside = ["\n</tool_response>\n<tool_response>\n"] * (len(names) - 1)
                pieces = [first + "<tool_response>\n", *inside, "\n</tool_response>" + last]
            pieces[0] = pieces[0][len(pieces[0]) - len(pieces[0].lstrip()) :]
            self._glue[names] = [(piece, self._text.trusted(piece)) for piece in pieces]
            if self._glue[names][0][1][:1] not in ([token] for token in self.stop_tokens):
                raise ConfigError(
                    "the chat template writes no end-of-turn token after an assistant's message", where="model"
                )
        return self._glue[names]

    def write(self, step: TraceStep, first: bool = False) -> str:
        """The text of a turn: the thought in think tags (which the template may have opened), then all calls or the
        answer."""
        opened = self._conversation.opens_thought
        thinks = bool(step.thought) or self.require_think or opened
        thought = ("" if opened else "<think>\n") + f"{step.thought}\n</think>\n\n" if thinks else ""
        answer = f"\\boxed{{{step.answer or ''}}}" if self.require_boxed else step.answer or ""
        body = "\n".join(_write_call(call) for call in step.calls) if step.calls else answer
        return self._conversation.lead + thought + body

    def encode_turn(self, text: str) -> array[int]:
        """Tokens of the text and the end-of-turn token."""
        return array("i", [*self._text.written(text), self.stop_tokens[0]])

    def text(self, tokens: Sequence[int]) -> str:
        return self._text.decode(tokens)


def _tagged_answer(text: str) -> str | None:
    return final_answer(text) if enclosed(text, "answer")[0] or boxed(text) is not None else None


def _write_call(call: Call) -> str:
    return (
        f"<tool_call>\n{json.dumps({'name': call.name, 'arguments': dict(call.arguments)}, ensure_ascii=False)}\n"
        "</tool_call>"
    )


def _read_call(body: str) -> Call:
    value = read_object(body)
    if value is None and "<tool_call>" in body:
        return Call(name="", error="a <tool_call> stands inside of another: close each before the next")
    if value is None or not isinstance(value.get("name"), str):
        return Call(name="", error='a tool call is a JSON object with "name" and "arguments"')
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = read_object(arguments)
    if not isinstance(arguments, dict):
        return Call(name=value["name"], error='"arguments" is not a JSON object')
    return Call(name=value["name"], arguments=arguments)
