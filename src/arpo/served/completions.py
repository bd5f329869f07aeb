"""Text completions (/v1/completions): a model that was trained here and is now served, in the chat format of its
training.

The context goes as text, or as tokens where the endpoint has the same tokenizer. Knows a chat format and how endpoints
end a text.
"""

import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from arpo.chat import ChatFormat
from arpo.chat.token_text import TokenText
from arpo.core.tree import FinishReason, Role, ToolCallResult, Turn
from arpo.endpoint.client import LENGTH, Endpoint, Reply, Usage
from arpo.served import Sampling, ServedTurn
from arpo.tasks import Task
from arpo.tools import Tool

TAG = re.compile(r"</([\w-]+)>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A context as its tokens; `turn` is where the last turn begins."""

    tokens: tuple[int, ...]
    turn: int = 0

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)


class CompletionDialogue:
    """In the chat format `chat`, whose tokenizer's text is `spelling`. prompt: how contexts are sent."""

    def __init__(self, chat: ChatFormat, spelling: TokenText, *, prompt: Literal["text", "tokens"] = "text") -> None:
        self.chat, self.spelling, self.prompt = chat, spelling, prompt

    def begin(self, task: Task, tools: Sequence[Tool]) -> Written:
        return Written(tokens=tuple(self.chat.render(task, tools)))

    async def ask(self, endpoint: Endpoint, context: Written, sampling: Sampling) -> ServedTurn[Written]:
        reply = await endpoint.complete(self._sent(context), stop=list(self.chat.stop) or None, **sampling.fields())
        text, closed = with_stop(reply, self.chat.stop)
        tokens = self.spelling.trusted(text)
        cut = reply.finish == LENGTH and not closed
        if not cut and not closed and (not tokens or tokens[-1] not in self.chat.stop_tokens):
            end = self.chat.encode_turn(text)[-1:]  # that of a call may be another than that of an answer
            tokens = [*tokens, *(end if end and end[0] in self.chat.stop_tokens else self.chat.stop_tokens[:1])]
        usage = reply.usage
        if not usage.prompt_tokens:
            usage = Usage(prompt_tokens=context.num_tokens, completion_tokens=len(tokens))
        return ServedTurn(
            parsed=self.chat.parse(tokens),
            finish=FinishReason.LENGTH if cut else FinishReason.STOP,
            usage=usage,
            context=Written(tokens=(*context.tokens, *tokens), turn=context.num_tokens),
        )

    def observe(
        self,
        turn: ServedTurn[Written],
        results: Sequence[ToolCallResult],
        calls_left: int | None,
        message: str | None = None,
    ) -> tuple[Written, str, tuple[ToolCallResult, ...]]:
        context, nothing = turn.context, array("f")
        tokens = array("i", context.tokens[context.turn :])
        written = Turn(
            place=(0,), role=Role.ROOT, tokens=tokens, logprobs=nothing, entropies=nothing, calls=turn.parsed.calls
        )
        observed, seen = self.chat.observe(written, results, calls_left, message)
        return Written(tokens=(*context.tokens, *observed)), self.chat.text(observed), seen

    def text(self, context: Written) -> str:
        return self.chat.text(context.tokens)

    def _sent(self, context: Written) -> list[int] | str:
        if self.prompt == "tokens":
            return list(context.tokens)
        opening = self.spelling.opening()  # an endpoint puts it before any text, where it would else stand twice
        begins = list(context.tokens[: len(opening)]) == opening
        return self.spelling.decode(context.tokens[len(opening) if begins else 0 :])


def with_stop(reply: Reply, stop: Sequence[str]) -> tuple[str, bool]:
    """The text of `reply` with the stop string that ended it, which endpoints leave out, and whether one did.

    Some say which it was (vLLM, SGLang). From others a closing tag is taken for the one whose opening tag is open at
    the end: a model that ends its message inside a tag cannot be told from one that closes it there.
    """
    text = reply.text
    if any(text.endswith(each) for each in stop):
        return text, True
    if reply.finish == LENGTH:
        return text, False
    if reply.matched is not None:
        return (text + reply.matched, True) if reply.matched in stop else (text, False)
    opened = {text.rfind(f"<{tag[1]}>"): each for each in stop if (tag := TAG.fullmatch(each))}
    last = max(opened, default=-1)
    return (text + opened[last], True) if last >= 0 else (text, False)
