"""What a chat template does with thoughts, tool calls and results, found out by rendering probes.

    written     the template writes an assistant's `tool_calls`, and a syntax reads them back
    shown       it lists the tools and shows how to call them, but leaves the calls to the message's content
    described   it does neither: calls are written as in `hermes`, and results come as messages of the user

Where the template does not list the tools (described ones, DeepSeek), the system prompt does.

Knows templates through `Conversation`. Refuses to know turns and model names.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, Literal

from arpo.chat.conversation import ASSISTANT, USER, Conversation, Messages
from arpo.chat.syntaxes import Syntax
from arpo.chat.syntaxes.known import SYNTAXES
from arpo.chat.syntaxes.tagged_json import HERMES
from arpo.chat.token_text import TokenText
from arpo.core.tree import Call
from arpo.errors import ConfigError
from arpo.tools import JsonSchema, Tool, ToolBase

CALL_ID = "qzid00000"  # nine letters and digits, as Mistral's templates ask for
THOUGHT, SPOKEN = "qzthought", "qzspoken"
SAMPLE = ' qz"<\n\\ü>zq\n'  # a result that shows whether the template strips or quotes it
_MARK = re.compile(r"(<[^<>\s]+>|\[[A-Z_]+\])\w*\s*$")  # right before a thought
_CLOSING_MARK = re.compile(r"<[^<>\s]+>|\[/[A-Z_]+\]")
_HALF_MARK = re.compile(r"(<[^<>]*|\[[A-Z_]*)$")
KEYS = ("reasoning_content", "thinking", "reasoning")  # by which templates know a thought


class Probe(ToolBase):
    """A tool that no recipe has. It is described, never called."""

    name = "qztool"
    description = "Looks up."
    schema: JsonSchema = {  # noqa: RUF012  a constant
        "type": "object",
        "properties": {
            "qztext": {"type": "string", "description": "A text."},
            "qznumber": {"type": "integer", "description": "A number."},
        },
        "required": ["qztext", "qznumber"],
    }


PROBE = Probe()
PROBE_CALL = Call(name=PROBE.name, arguments={"qztext": "1", "qznumber": 2})


def tool_schema(tool: Tool) -> dict[str, Any]:
    """The description of a tool that chat templates expect."""
    return {
        "type": "function",
        "function": {"name": tool.name, "description": tool.description, "parameters": dict(tool.schema)},
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How one model talks with tools."""

    syntax: Syntax
    form: Literal["written", "shown", "described"]
    note: str = ""  # what a user should know of it
    text_arguments: bool = False  # the template takes arguments as JSON text, not as an object
    lists_tools: bool = False  # the template writes the tools into the prompt
    blank: str | None = ""  # the content of a message that only calls

    def message(self, calls: Sequence[Call], content: str = "") -> dict[str, Any]:
        """An assistant's message with `calls`, as the template takes it."""
        return {
            "role": "assistant",
            "content": content or self.blank,
            "tool_calls": [
                {
                    "id": call.id or call_id(number),
                    "type": "function",
                    "function": {
                        "name": call.name,
                        "arguments": json.dumps(dict(call.arguments), ensure_ascii=False)
                        if self.text_arguments
                        else dict(call.arguments),
                    },
                }
                for number, call in enumerate(calls)
            ],
        }


def call_id(number: int) -> str:
    """An id for the call `number` of a turn, where the model wrote none."""
    return f"call{number:05d}"


def dialect_of(conversation: Conversation, text: TokenText, name: str | None) -> Dialect:
    """The dialect of a chat template. `name`: the syntax that the recipe names, or None. Raises ConfigError where the
    template writes calls in a form that no syntax reads, or where it cannot show the named one."""
    own = _written(conversation, text)
    if isinstance(own, Dialect) and name in (None, own.syntax.name):
        return own
    shown = _shown(conversation, text, name)
    if shown is not None and (name is not None or not isinstance(own, str)):
        return shown
    if name == HERMES.name:
        return Dialect(syntax=HERMES, form="described")
    tried = ", ".join(syntax.name for syntax in SYNTAXES)
    if name is not None:
        can = own.syntax.name if isinstance(own, Dialect) else "none that is known"
        hint = f"It writes {can}. `hermes` can be described to any model"
        raise ConfigError(
            "this model's chat template does not show this syntax", where="chat.syntax", value=name, hint=hint
        )
    if isinstance(own, str):
        raise ConfigError(
            f"the model's chat template writes tool calls in a form that is not known: {own!r} (tried: {tried})",
            where="chat.syntax",
            hint="`chat.syntax: hermes` describes another form to the model, which it then has to learn",
        )
    note = "the model's chat template writes no tool calls: the system prompt describes those of Hermes to it"
    return Dialect(syntax=HERMES, form="described", note=note)


def _written(conversation: Conversation, text: TokenText) -> Dialect | str | None:
    """The dialect of a template that writes calls; what it writes, where no syntax reads that; None if it writes
    none."""
    unread = None
    listed = PROBE.name in _prompt(conversation)
    for text_arguments in (False, True):
        call = Call(name=PROBE.name, arguments=PROBE_CALL.arguments, id=CALL_ID)
        for blank in ("", None):
            dialect = Dialect(syntax=HERMES, form="written", text_arguments=text_arguments, blank=blank)
            try:
                turn = after_header(conversation, [dialect.message([call])], [PROBE])
            except ConfigError:
                continue
            if "qznumber" not in turn:
                continue
            for syntax in SYNTAXES:
                read = syntax.read(turn, {PROBE.name: PROBE})
                left = text.without_acting(read.rest or "").replace("<think>", "").replace("</think>", "")
                made = [(c.name, c.arguments, c.error, c.mended) for c in read.calls]
                if made == [(PROBE.name, PROBE_CALL.arguments, "", "")] and not left.strip():
                    return replace(dialect, syntax=syntax, lists_tools=listed)
            unread = unread or turn.strip()
    return unread


def _shown(conversation: Conversation, text: TokenText, name: str | None) -> Dialect | None:
    """The dialect of a template that lists the tools and leaves calls to the content: it shows the syntax, or the
    vocabulary has its mark."""
    prompt = _prompt(conversation)
    if PROBE.name not in prompt:
        return None
    try:
        conversation.glue([USER, ASSISTANT, {"role": "tool"}], tools=[tool_schema(PROBE)])
    except ConfigError:
        return None
    for syntax in SYNTAXES:
        if name in (None, syntax.name) and all(hint in prompt or text.acts_as(hint) for hint in syntax.hints):
            return Dialect(syntax=syntax, form="shown", lists_tools=True)
    return None


def _prompt(conversation: Conversation) -> str:
    try:
        return conversation.rendered([USER | {"content": "a"}], [tool_schema(PROBE)])
    except ConfigError:
        return ""


def after_header(
    conversation: Conversation,
    turn: Messages,
    tools: Sequence[Tool],
    *,
    exactly: bool = False,
    past: Messages = (),
) -> str:
    """What the template writes for the last messages `turn` of a conversation, behind the header that it gives the
    model, or behind the part of it that it writes here as well. `past`: messages between the user's and `turn`. Raises
    ConfigError where it refuses them; with `exactly`, also where it writes another header."""
    schemas = [tool_schema(tool) for tool in tools]
    before = [USER | {"content": "a"}, *past]
    header = conversation.rendered(before, schemas)
    whole = conversation.rendered([*before, *turn], schemas, go_on=False)
    if whole.startswith(header):
        return whole[len(header) :]
    if exactly:
        raise ConfigError("the chat template writes another header before this message", where="model")
    alike = takewhile(lambda pair: pair[0] == pair[1], zip(header, whole, strict=False))
    shared = "".join(character for character, _ in alike)
    return whole[len(_HALF_MARK.sub("", shared)) :]


@dataclass(frozen=True, slots=True)
class ThoughtMarks:
    """What stands before and after a thought."""

    opening: str = "<think>\n"
    closing: str = "\n</think>\n\n"

    @property
    def marks(self) -> tuple[str, str]:
        """The mark that opens a thought, and the one that closes it."""
        first = _CLOSING_MARK.search(self.closing)
        return self.opening.strip(), first.group() if first else self.closing.strip()

    def closed(self, before_calls: bool) -> str:
        """What closes a thought; before calls without the marks that open an answer."""
        first = _CLOSING_MARK.search(self.closing)
        if not before_calls or first is None:
            return self.closing
        rest = self.closing[first.end() :]
        return self.closing[: first.end()] + rest[: len(rest) - len(rest.lstrip())]


def thought_marks(conversation: Conversation, text: TokenText, dialect: Dialect) -> ThoughtMarks:
    """The marks that the template writes around an assistant's thought, before an answer or before a call. Where it
    shows none: Mistral's, if the vocabulary has them, else those of `<think>`."""
    answer = {"role": "assistant", "content": SPOKEN, **dict.fromkeys(KEYS, THOUGHT)}
    call = {**dialect.message([PROBE_CALL]), **dict.fromkeys(KEYS, THOUGHT)}
    for message, then in ((answer, SPOKEN), (call, dialect.syntax.hints[0])):
        try:
            whole = conversation.rendered([USER | {"content": "a"}, message], [tool_schema(PROBE)], go_on=False)
        except ConfigError:
            continue
        before, _, after = whole.partition(THOUGHT)
        opening, (closing, follows, _) = _MARK.search(before), after.partition(then)
        if opening is not None and closing.strip() and follows:
            return ThoughtMarks(opening.group(), closing)
    return ThoughtMarks("[THINK]", "[/THINK]") if text.acts_as("[THINK]") else ThoughtMarks()


Shown = Callable[[str], str]


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _quoted_stripped(text: str) -> str:
    return _quoted(text.strip())


def _same(text: str) -> str:
    return text


WAYS: tuple[Shown, ...] = (_same, str.strip, _quoted, _quoted_stripped)


def result_way(conversation: Conversation, messages: Messages, schemas: Sequence[Mapping[str, Any]]) -> Shown:
    """What the template does with the text of a result: nothing, or it strips or quotes it. `messages` end with one."""
    pieces = conversation.glue(messages, tools=schemas)
    *before, last = messages
    try:
        whole = conversation.rendered(
            [
                *({**message, "content": message.get("content") or ""} for message in before),
                {**last, "content": SAMPLE},
            ],
            schemas,
        )
    except ConfigError:
        return _same
    return next((way for way in WAYS if whole.endswith(pieces[-2][-8:] + way(SAMPLE) + pieces[-1])), _same)
