"""A model's chat template as glue, the text between contents. It renders placeholders once and splits the text at them.

Knows templates (jinja, through the tokenizer). Refuses to know the contents: other code encodes them and puts them
between the tokens of the glue, so a template never renders content, and glue never depends on content.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from arpo.chat.token_text import Piece, TokenText, encodable
from arpo.errors import ConfigError, first_line

Messages = Sequence[Mapping[str, str]]
USER, ASSISTANT = {"role": "user", "content": ""}, {"role": "assistant", "content": ""}
NO_TEMPLATE_HINT = "use `chat.format: tags`, or an instruction-tuned model, or set tokenizer.chat_template"


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
        ends with the header of the assistant's next message and does not depend on the contents. Raises ConfigError if
        the template cannot render such a conversation."""
        roles = [{key: value for key, value in message.items() if key != "content"} for message in messages]
        key = json.dumps([roles, list(tools)], sort_keys=True)
        if key not in self._cache:
            self._cache[key] = self._render(roles, tools)
        return self._cache[key]

    def _render(self, roles: Messages, tools: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
        if not self.exists:
            raise ConfigError("this model has no chat template", where="chat.format", hint=NO_TEMPLATE_HINT)
        messages = [{**role, "content": _placeholder(number)} for number, role in enumerate(roles)]
        names = " ".join(role["role"] for role in roles)
        try:
            rendered = self._text.tokenizer.apply_chat_template(
                messages, tools=list(tools) or None, tokenize=False, add_generation_prompt=True, **self.options
            )
        except Exception as error:  # a template is foreign code
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise ConfigError(
                f"the chat template refuses a conversation of {names}: {reason}", where="model"
            ) from error
        placeholders = [_placeholder(number) for number in range(len(roles))]
        if re.findall("|".join(placeholders), rendered) != placeholders:
            raise ConfigError(f"the chat template does not show each message of {names} once, in order", where="model")
        return tuple(re.split("|".join(placeholders), rendered))

    def _accepts(self, roles: Messages, tools: Sequence[Mapping[str, Any]]) -> bool:
        try:
            self.glue(roles, tools=tools)
        except ConfigError:
            return False
        return True

    @cached_property
    def opens_thought(self) -> bool:
        """True if the header of an assistant's message ends inside a thought, as in the templates of reasoning
        models."""
        return self.exists and self.glue([USER])[-1].rstrip().endswith("<think>")

    @cached_property
    def lead(self) -> str:
        """Whitespace between the header and the assistant's text that is not part of the header: the model writes
        it."""
        if not self.exists:
            return ""
        header, before_text = self.glue([USER])[-1], self.glue([USER, ASSISTANT, USER])[1]
        blanks = before_text.removeprefix(header)
        return blanks if before_text.startswith(header) and not blanks.strip() else ""

    def end_of_turn(self) -> tuple[int, ...]:
        """Tokens that end a turn: the special token that the template writes after an assistant's message, and the
        tokenizer's end of sequence. Raises ConfigError if there is neither."""
        ends: list[int] = []
        if self.exists:
            after = self._text.trusted(self.glue([USER, ASSISTANT, USER])[2].lstrip())
            if after and self._text.acts(after[0]):
                ends.append(after[0])
        eos = getattr(self._text.tokenizer, "eos_token_id", None)
        if eos is not None and eos not in ends:
            ends.append(int(eos))
        if not ends:
            raise ConfigError("the tokenizer names no end-of-turn token", where="model", hint="set tokenizer.eos_token")
        return tuple(ends)

    def prompt(self, system: Sequence[Piece], messages: Messages, tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """Tokens of a prompt. Nothing acts in the contents of `messages` and in the texts of `tools`: they are
        untrusted. If the template has no place for a system prompt, the first message begins with it."""
        held: list[str] = []
        tools = self._text.held_out(tools, held)
        texts = [encodable(str(message["content"])) for message in messages]
        contents: list[list[Piece]] = [[(text, self._text.untrusted(text))] for text in texts]
        roles: list[Mapping[str, str]] = list(messages)
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
