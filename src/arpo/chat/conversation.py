"""A model's chat template as glue: the text between contents, found by rendering placeholders once and splitting at them.

Knows templates (jinja, through the tokenizer). Refuses to know what the contents are: they are encoded elsewhere and put
between the glue's tokens, so content is never rendered by a template and glue is never derived from content.
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
    """The template of one tokenizer. `options` go to the template as they are (for instance `{"enable_thinking": False}`)."""

    def __init__(self, text: TokenText, options: Mapping[str, Any] | None = None) -> None:
        self._text, self.options = text, dict(options or {})
        self._cache: dict[str, tuple[str, ...]] = {}

    @property
    def exists(self) -> bool:
        return bool(getattr(self._text.tokenizer, "chat_template", None))

    def glue(self, messages: Messages, *, tools: Sequence[Mapping[str, Any]] = ()) -> tuple[str, ...]:
        """Text before, between and after the contents of `messages` (one piece more than messages), which ends with the header
        of the assistant's next message. Contents play no part. Raises ConfigError where the template cannot
        write such a conversation."""
        roles = [{key: value for key, value in message.items() if key != "content"} for message in messages]
        key = json.dumps([roles, list(tools)], sort_keys=True)
        if key not in self._cache:
            self._cache[key] = self._render(roles, tools)
        return self._cache[key]

    def _render(self, roles: Messages, tools: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
        if not self.exists:
            raise ConfigError("this model has no chat template", where="chat.format", hint=NO_TEMPLATE_HINT)
        messages = [{**role, "content": _placeholder(number)} for number, role in enumerate(roles)]
        shown = " ".join(role["role"] for role in roles)
        try:
            whole = self._text.tokenizer.apply_chat_template(
                messages, tools=list(tools) or None, tokenize=False, add_generation_prompt=True, **self.options
            )
        except Exception as error:  # a template is code of the model's maker
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise ConfigError(f"the chat template refuses a conversation of {shown}: {reason}", where="model") from error
        pieces = re.split("|".join(_placeholder(n) for n in range(len(roles))), whole)
        found = re.findall("|".join(_placeholder(n) for n in range(len(roles))), whole)
        if found != [_placeholder(number) for number in range(len(roles))]:
            raise ConfigError(f"the chat template does not show each message of {shown} once, in order", where="model")
        return tuple(pieces)

    def _takes(self, roles: Messages, tools: Sequence[Mapping[str, Any]]) -> bool:
        try:
            self.glue(roles, tools=tools)
        except ConfigError:
            return False
        return True

    @cached_property
    def opens_thought(self) -> bool:
        """True where the header of an assistant's message ends inside a thought (as reasoning models' templates have it)."""
        return self.exists and self.glue([USER])[-1].rstrip().endswith("<think>")

    @cached_property
    def lead(self) -> str:
        """Blanks between the header and an assistant's text: the header does not hold them, so the model writes them."""
        if not self.exists:
            return ""
        header, shown = self.glue([USER])[-1], self.glue([USER, ASSISTANT, USER])[1]
        blanks = shown.removeprefix(header)
        return blanks if shown.startswith(header) and not blanks.strip() else ""

    def end_of_turn(self) -> tuple[int, ...]:
        """Tokens that end a turn: the special token that the template writes after an assistant's message, then the
        tokenizer's own end of sequence. Raises ConfigError where there is neither."""
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

    def prompt(self, system: str, messages: Messages, tools: Sequence[Mapping[str, Any]] = ()) -> list[int]:
        """Tokens of a prompt: `system` is written text, contents of `messages` are plain (nothing in them acts). Where the template
        has no place for a system prompt, the first message begins with it."""
        texts = [encodable(str(message["content"])) for message in messages]
        contents: list[list[Piece]] = [[(text, self._text.plain(text))] for text in texts]
        roles: list[Mapping[str, str]] = list(messages)
        if system:
            first = (system, self._text.written(system))
            own = [{"role": "system", "content": ""}, *roles]
            if (roles and roles[0]["role"] == "system") or (self.exists and not self._takes(own, tools)):
                contents[0] = [first, self._piece("\n\n"), *contents[0]]
            else:
                roles, contents = own, [[first], *contents]
        if not self.exists:
            gap = self._piece("\n\n")
            return self._text.opening() + self._text.joined([piece for content in contents for piece in (*content, gap)])
        before, *after = map(self._piece, self.glue(roles, tools=tools))
        return self._text.joined([before, *(p for content, glue in zip(contents, after, strict=True) for p in (*content, glue))])

    def _piece(self, text: str) -> Piece:
        return text, self._text.trusted(text)
