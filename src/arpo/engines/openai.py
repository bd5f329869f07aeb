"""An engine for evaluation alone: turns of a model behind an OpenAI-compatible endpoint.

    chat.format native            /v1/chat/completions with native tool calls; the conversation is read from the context
    chat.format tags, template    /v1/completions with the context as text (or as tokens, where the server has the same tokenizer)

Text goes in and comes out. The log-probabilities of its turns are unknown (NaN) and the entropies lie anywhere between 0 and ln V
(that is their interval), so nothing can branch or be trained on them. Knows requests; what they mean, the chat format knows.
"""

from __future__ import annotations  # `array[int]` cannot be subscripted before Python 3.12

import math
import re
from array import array
from collections.abc import AsyncIterator, Sequence
from typing import Any

from arpo.chat import packed
from arpo.chat.native import conversation, turn_from_message
from arpo.chat.token_text import TokenText
from arpo.core.tree import FinishReason
from arpo.endpoint.client import LENGTH, Endpoint, Reply, Spent
from arpo.engines import Chunk, SamplingParams, Weights
from arpo.engines.base import EngineBase, check_request
from arpo.engines.config import EndpointEngineConfig
from arpo.errors import ConfigError, EngineError, ProviderError, ToolError
from arpo.http.limits import Tell

TAG = re.compile(r"</([\w-]+)>")
ONLY_EVALUATION = "the engine openai gets text alone from its endpoint, so it can be evaluated but not trained on"


class OpenAIEngine(EngineBase):
    """Asks one endpoint. `tokenizer`: the served model's, for the formats `tags` and `template`; None: the format `native`.

    Raises EngineError where one request cannot be answered, ToolsStoppedError where none can (key, budget, outage).
    """

    def __init__(
        self, config: EndpointEngineConfig, tokenizer: Any = None, *, vocab_size: int = packed.SIZE, tell: Tell | None = None
    ):
        self.endpoint = Endpoint(config, "model's endpoint", **({"tell": tell} if tell else {}))
        self.config, self.vocab_size = config, vocab_size
        self._text = None if tokenizer is None else TokenText(tokenizer)
        self._closed = False

    async def sample(self, prompt: Sequence[int], params: SamplingParams) -> AsyncIterator[Chunk]:
        """One turn, in one chunk. Closing the iterator cancels the request."""
        if self._closed:
            raise EngineError("the engine is closed")
        check_request(prompt, params, None)
        try:
            tokens, finish = await (
                self._chat(prompt, params) if self._text is None else self._complete(self._text, prompt, params)
            )
        except ProviderError as error:
            raise EngineError(str(error)) from error
        except ToolError as error:
            raise EngineError(str(error)) from error
        yield self._chunk(tokens, finish)

    async def update_weights(self, weights: Weights) -> None:
        """Raises ConfigError: nobody can change the weights of a served model."""
        raise ConfigError(ONLY_EVALUATION, where="engine.kind", value="openai")

    @property
    def spent(self) -> Spent:  # type: ignore[override]
        """What the endpoint counted."""
        return self.endpoint.spent

    def cost(self, read: int, written: int) -> float:
        """Money for so many tokens as this side counts them: an estimate, of which `spent` is the truth."""
        return (read * self.config.price_in + written * self.config.price_out) / 1e6

    async def close(self) -> None:
        self._closed = True
        await self.endpoint.close()

    def _sampling(self, params: SamplingParams) -> dict[str, Any]:
        """A field that asks for nothing is left out: some models refuse even the defaults."""
        greedy = params.temperature == 0
        return {
            "max_tokens": params.max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p if params.top_p < 1 else None,
            "seed": None if greedy else params.seed % (1 << 31),
        }

    async def _chat(self, prompt: Sequence[int], params: SamplingParams) -> tuple[array[int], FinishReason]:
        messages, tools = conversation(prompt)
        reply = await self.endpoint.chat(messages, tools=tools or None, **self._sampling(params))
        return turn_from_message(reply.message, reply.finish), FinishReason.LENGTH if reply.finish == LENGTH else FinishReason.STOP

    async def _complete(self, spelled: TokenText, prompt: Sequence[int], params: SamplingParams) -> tuple[array[int], FinishReason]:
        given: list[int] | str = list(prompt)
        if self.config.prompt == "text":
            opening = spelled.opening()  # what a server puts before any text would else stand there twice
            given = spelled.decode(prompt[len(opening) :] if list(prompt[: len(opening)]) == opening else prompt)
        reply = await self.endpoint.complete(given, stop=list(params.stop) or None, **self._sampling(params))
        text, closed = with_stop(reply, params.stop)
        tokens = array("i", spelled.trusted(text))
        if reply.finish == LENGTH and not closed:
            return tokens, FinishReason.LENGTH
        ended = closed or (tokens and tokens[-1] in params.stop_tokens)
        return (tokens if ended else array("i", [*tokens, *params.stop_tokens[:1]])), FinishReason.STOP

    def _chunk(self, tokens: array[int], finish: FinishReason) -> Chunk:
        most = math.log(self.vocab_size)
        return Chunk(
            tokens=tokens,
            logprobs=array("f", [math.nan]) * len(tokens),
            entropies=array("f", [most / 2]) * len(tokens),
            bounds=(array("f", [0.0]) * len(tokens), array("f", [most]) * len(tokens)),
            finish=finish,
        )


def with_stop(reply: Reply, stop: Sequence[str]) -> tuple[str, bool]:
    """The text of `reply` with the stop string that ended it, which endpoints leave out, and whether one did.

    Some say which it was (vLLM, SGLang). From others a closing tag is taken for the one whose opening tag is open at the end:
    a model that ends its message inside a tag cannot be told from one that closes it there.
    """
    text, found = reply.text, [text_stop for text_stop in stop if reply.text.endswith(text_stop)]
    if found:
        return text, True
    if reply.finish == LENGTH:
        return text, False
    if reply.matched is not None:
        return (text + reply.matched, True) if reply.matched in stop else (text, False)
    opened = {text.rfind(f"<{tag[1]}>"): each for each in stop if (tag := TAG.fullmatch(each))}
    last = max(opened, default=-1)
    return (text + opened[last], True) if last >= 0 else (text, False)
