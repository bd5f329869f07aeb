"""A model's chat template as glue, the text between contents. It renders placeholders once and splits the text at them.

Knows templates (jinja, through the tokenizer). Refuses to know the contents: other code encodes them and puts them
between the tokens of the glue, so a template never renders content, and glue never depends on content.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import takewhile
from typing import Any

from arpo.chat.token_text import Piece, TokenText, encodable
from arpo.errors import ConfigError, first_line

Messages = Sequence[Mapping[str, Any]]
USER, ASSISTANT = {"role": "user", "content": ""}, {"role": "assistant", "content": ""}
NO_TEMPLATE_HINT = "use `chat.format: tags`, or an instruction-tuned model, or set tokenizer.chat_template"


PLACEHOLDER = re.compile(r"qz\d+zq")
MOST_GLUES = 256  # kept: a server sees conversations of any form


def _placeholder(number: int) -> str:
    return f"qz{number}zq"


class Conversation:
    """The template of one tokenizer. The template gets `options` unchanged (for instance
    `{"enable_thinking": False}`)."""

    def __init__(self, text: TokenText, options: Mapping[str, Any] | None = None) -> None:
        self._text, self.options = text, dict(options or {})
        self._cache: dict[str, tuple[str, ...]] = {}

    @property
    def exists(self) -> bool:
        return bool(getattr(self._text.tokenizer, "chat_template", None))

    def glue(self, messages: Messages, *, tools: Sequence[Mapping[str, Any]] = ()) -> tuple[str, ...]:
        """The text before, between and after the contents of `messages` (one piece more than there are messages). It
        ends with the header of the assistant's next message and does not depend on the contents. A message with
        `tool_calls` has no content: it is part of the glue. Raises ConfigError if the template cannot render such a
        conversation."""
        roles = [
            {key: value for key, value in message.items() if key != "content" or "tool_calls" in message}
            for message in messages
        ]
        key = json.dumps([roles, list(tools)], sort_keys=True)
        if key not in self._cache:
            if len(self._cache) >= MOST_GLUES:
                self._cache.clear()
            self._cache[key] = self._render(roles, tools)
        return self._cache[key]

    def _render(self, roles: Messages, tools: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
        placeholders = {number: _placeholder(number) for number, role in enumerate(roles) if "tool_calls" not in role}
        messages = [
            {**role, "content": placeholders[number]} if number in placeholders else role
            for number, role in enumerate(roles)
        ]
        rendered = self.rendered(messages, tools)
        if PLACEHOLDER.findall(rendered) != [*placeholders.values()]:
            names = " ".join(str(role["role"]) for role in roles)
            raise ConfigError(f"the chat template does not show each message of {names} once, in order", where="model")
        return tuple(PLACEHOLDER.split(rendered))

    def rendered(self, messages: Messages, tools: Sequence[Mapping[str, Any]] = (), *, go_on: bool = True) -> str:
        """The template's text of `messages`. `go_on`: with the header of the assistant's next message. Raises
        ConfigError where the template refuses them."""
        if not self.exists:
            raise ConfigError("this model has no chat template", where="chat.format", hint=NO_TEMPLATE_HINT)
        try:
            rendered = self._text.tokenizer.apply_chat_template(
                list(messages),
                tools=list(tools) or self._no_tools,
                tokenize=False,
                add_generation_prompt=go_on,
                **({"xml_tools": list(tools)} if tools else {}),  # what SmolLM3's template calls them
                **self.options,
            )
        except Exception as error:  # a template is foreign code
            names = " ".join(str(message["role"]) for message in messages)
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise ConfigError(
                f"the chat template refuses a conversation of {names}: {reason}", where="model"
            ) from error
        return str(rendered)

    @cached_property
    def _no_tools(self) -> list[Any] | None:
        """What stands for no tools: None, or an empty list where a template is written for tools alone."""
        for value in (None, list[Any]()):
            try:
                self._text.tokenizer.apply_chat_template(
                    [USER | {"content": "a"}], tools=value, tokenize=False, **self.options
                )
                return value
            except Exception:  # noqa: BLE001  a template is foreign code
                continue
        return None

    def _accepts(self, roles: Messages, tools: Sequence[Mapping[str, Any]]) -> bool:
        try:
            self.glue(roles, tools=tools)
        except ConfigError:
            return False
        return True

    @property
    def header(self) -> str:
        """The header of an assistant's message."""
        return self.glue([USER])[-1]

    @cached_property
    def lead(self) -> str:
        """Whitespace between the header and the assistant's text that is not part of the header: the model writes
        it."""
        if not self.exists:
            return ""
        header, before_text = self.header, self.glue([USER, ASSISTANT, USER])[1]
        blanks = before_text.removeprefix(header)
        return blanks if before_text.startswith(header) and not blanks.strip() else ""

    def ends(self, declared: Sequence[int]) -> tuple[int, ...]:
        """Tokens that end a turn: first the one that the template writes after an assistant's last message, then those
        that the model's files name: `declared` (generation_config.json; of these only added tokens count) and the
        tokenizer's end of sequence. Raises ConfigError if there is none.

        Where the template closes a part of the message before the turn (Cohere), a declared token that follows is the
        end. What it writes only between messages (harmony's `<|end|>`) is none, if it ends the last message with
        another token.
        """
        eos = getattr(self._text.tokenizer, "eos_token_id", None)
        named = [*filter(self._text.acts, declared), *([] if eos is None else [int(eos)])]
        ends = list(dict.fromkeys([*self._written_end(named), *named]))
        if not ends:
            raise ConfigError("the tokenizer names no end-of-turn token", where="model", hint="set tokenizer.eos_token")
        return tuple(ends)

    def _written_end(self, named: Sequence[int]) -> list[int]:
        if not self.exists:
            return []
        between = self._acting_run(self.glue([USER, ASSISTANT, USER])[2])
        last = [USER | {"content": "a"}, ASSISTANT | {"content": _placeholder(0)}]
        try:
            final = self._acting_run(self.rendered(last, go_on=False).rpartition(_placeholder(0))[2])
        except ConfigError:
            final = []
        alike = takewhile(lambda pair: pair[0] == pair[1], zip(final, between, strict=False))
        run = [token for token, _ in alike] or final or between[:1]
        return next(([token] for token in run if token in named), run[:1])

    def _acting_run(self, text: str) -> list[int]:
        """The added tokens with which `text` begins, after and between blanks."""
        run = []
        for token in self._text.trusted(text.lstrip()):
            if not self._text.acts(token):
                break
            run.append(token)
        return run

    def prompt(self, system: Sequence[Piece], messages: Messages, tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """Tokens of a prompt. Nothing acts in the contents of `messages` and in the texts of `tools`: they are
        untrusted. If the template has no place for a system prompt, the first message begins with it."""
        held: list[str] = []
        tools = self._text.held_out(tools, held)
        texts = [encodable(str(message["content"])) for message in messages]
        contents: list[list[Piece]] = [[(text, self._text.untrusted(text))] for text in texts]
        roles: list[Mapping[str, Any]] = list(messages)
        if system:
            with_system = [{"role": "system", "content": ""}, *roles]
            if (roles and roles[0]["role"] == "system") or (self.exists and not self._accepts(with_system, tools)):
                contents[0] = [*system, self._piece("\n\n"), *contents[0]]
            else:
                roles, contents = with_system, [list(system), *contents]
        if not self.exists:
            gap = self._piece("\n\n")
            return self._text.opening() + self._text.joined(
                [piece for content in contents for piece in (*content, gap)]
            )
        before, *after = (self._text.pieces(glue, held) for glue in self.glue(roles, tools=tools))
        return self._text.joined(
            [*before, *(p for content, glue in zip(contents, after, strict=True) for p in (*content, *glue))]
        )

    def _piece(self, text: str) -> Piece:
        return text, self._text.trusted(text)
