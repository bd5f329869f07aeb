"""An engine that plays a function: for tests and examples, with latencies and failures on demand.

What it writes depends on the prompt and the request alone; when it writes it depends on the script's seconds. Knows no
model.
"""

from __future__ import annotations  # `array[int]` cannot be subscripted before Python 3.12

import asyncio
from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from arpo.core.tree import FinishReason
from arpo.engines import Chunk, SamplingParams, Weights
from arpo.engines.base import EngineBase, check_request
from arpo.engines.stops import Pieces, StopFinder, pieces
from arpo.errors import ConfigError, EngineError

_EVERY = 16  # tokens between chunks once the head is delivered


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """One turn to play.

    said: text (needs a tokenizer) or tokens. entropies: nats, one for all tokens or one a token (the last one goes on);
    None: drawn from the request's seed. logprobs: likewise; None: minus the entropies. delay_s: before the first token.
    token_s: seconds a token. fails_after: raise EngineError after so many tokens (None: never).
    """

    said: str | Sequence[int]
    entropies: float | Sequence[float] | None = None
    logprobs: float | Sequence[float] | None = None
    delay_s: float = 0.0
    token_s: float = 0.0
    fails_after: int | None = None


Play = Callable[[Sequence[int], SamplingParams], "Script | str | Sequence[int]"]


class ScriptedEngine(EngineBase):
    """Plays `play(prompt tokens, params)` as one turn: a Script, or its text or tokens alone.

    The turn ends where the request's stops or max_tokens end it, else with the script (finish STOP). delay: seconds
    before the first token and seconds a token, drawn for each request, on top of the script's own. context: prompt and
    max_tokens beyond so many tokens raise EngineError.
    """

    def __init__(
        self,
        play: Play,
        tokenizer: Any = None,
        *,
        delay: Callable[[], tuple[float, float]] | None = None,
        context: int | None = None,
    ) -> None:
        self.play, self.tokenizer, self.delay, self.context = play, tokenizer, delay, context
        self.version = 0
        self.requests = 0
        self.live = 0  # requests being played now
        self.cancelled = 0
        self._spell: Pieces | None = pieces(tokenizer) if tokenizer is not None else None
        self._closed = False

    async def sample(self, prompt: Sequence[int], params: SamplingParams) -> AsyncIterator[Chunk]:
        """Play one turn in chunks: the head first, then every 16 tokens and the end."""
        self._check(prompt, params)
        self.requests += 1
        self.live += 1
        done = False
        try:
            async for chunk in self._chunks(prompt, params):
                done = chunk.finish is not None
                yield chunk
        except EngineError:
            done = True
            raise
        finally:
            self.live -= 1
            self.cancelled += not done

    async def update_weights(self, weights: Weights) -> None:
        """Tokens from now on carry this version."""
        self.version = weights.version

    async def close(self) -> None:
        self._closed = True

    def _check(self, prompt: Sequence[int], params: SamplingParams) -> None:
        if self._closed:
            raise EngineError("the engine is closed")
        check_request(prompt, params, self.context)

    async def _chunks(self, prompt: Sequence[int], params: SamplingParams) -> AsyncIterator[Chunk]:
        played = self.play(prompt, params)
        script = played if isinstance(played, Script) else Script(said=played)
        tokens, finish = self._cut(self._tokens(script.said), params)
        entropies = _numbers(script.entropies, len(tokens)) or _drawn(params.seed, len(tokens))
        logprobs = _numbers(script.logprobs, len(tokens)) or [-h for h in entropies]
        extra_delay, extra_token = self.delay() if self.delay is not None else (0.0, 0.0)
        await asyncio.sleep(script.delay_s + extra_delay)
        start, pause = 0, script.token_s + extra_token
        while start < len(tokens):
            stop = min(len(tokens), start + (params.head if not start and params.head else _EVERY))
            fails = script.fails_after is not None and script.fails_after < stop
            if pause or start:
                await asyncio.sleep(pause * (stop - start))
            if fails:
                raise EngineError(f"the script fails after {script.fails_after} tokens")
            if self._closed:
                raise EngineError("the engine was closed")
            yield Chunk(
                tokens=array("i", tokens[start:stop]),
                logprobs=array("f", logprobs[start:stop]),
                entropies=array("f", entropies[start:stop]),
                version=self.version,
                finish=finish if stop == len(tokens) else None,
            )
            start = stop

    def _tokens(self, said: str | Sequence[int]) -> list[int]:
        if not isinstance(said, str):
            tokens = list(said)
        elif self.tokenizer is None:
            raise ConfigError("a script of text needs a tokenizer", where="ScriptedEngine", hint="pass tokenizer=...")
        else:
            tokens = list(self.tokenizer.encode(said, add_special_tokens=False))
        if not tokens:
            raise ConfigError("a script must say something", where="ScriptedEngine", value=said)
        return tokens

    def _cut(self, tokens: list[int], params: SamplingParams) -> tuple[list[int], FinishReason]:
        """The turn's tokens and why they end there."""
        if params.stop and self._spell is None:
            raise EngineError("stop strings need a tokenizer")
        finder = StopFinder(self._spell or (lambda _: b""), params.stop, params.stop_tokens)
        for count, token in enumerate(tokens[: params.max_tokens], 1):
            if finder.feed(token):
                return tokens[:count], FinishReason.STOP
        if len(tokens) > params.max_tokens:
            return tokens[: params.max_tokens], FinishReason.LENGTH
        return tokens, FinishReason.STOP


def _numbers(numbers: float | Sequence[float] | None, count: int) -> list[float]:
    if numbers is None:
        return []
    values = [float(numbers)] if isinstance(numbers, (int, float)) else [float(x) for x in numbers]
    if not values:
        raise ConfigError("an empty list of numbers", where="Script", hint="give one number, or one a token")
    return (values + values[-1:] * count)[:count]


def _drawn(seed: int, count: int) -> list[float]:
    """Entropies between 0 and 2 nats that depend on the request's seed alone."""
    random = Random(f"{seed}/entropies")
    return [random.uniform(0.0, 2.0) for _ in range(count)]
