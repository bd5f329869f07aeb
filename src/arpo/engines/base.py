"""What engines share: defaults for what an engine may leave out, a wrapper around one, and the check of a request.

Knows the protocol `arpo.engines:Engine`. Refuses to know any model.
"""

from collections.abc import AsyncIterator, Sequence

from arpo.engines import Chunk, Engine, SamplingParams, Weights
from arpo.engines.stats import EngineStats
from arpo.errors import EngineError


class EngineBase:
    """An engine with defaults for everything optional. The shipped engines derive from it; yours need not: whatever has
    the four methods of `Engine` gets these defaults for what it lacks (`with_defaults`)."""

    context: int | None = None  # most tokens of a prompt and its turn; None: no limit is known
    stats: EngineStats | None = None  # running totals; None: the engine counts nothing

    def sample(self, prompt: Sequence[int], params: SamplingParams) -> AsyncIterator[Chunk]:
        raise NotImplementedError

    async def start(self) -> None:
        """Do now what else the first request would wait for."""

    async def update_weights(self, weights: Weights) -> None:
        raise NotImplementedError

    async def sleep(self) -> None:
        """Nothing to give back."""

    async def close(self) -> None:
        """Nothing to end."""


class EngineWrapper(EngineBase):
    """Passes everything on to `engine`. A subclass that observes or changes what is sampled overrides `sample`
    alone."""

    def __init__(self, engine: EngineBase) -> None:
        self.engine = engine

    @property
    def context(self) -> int | None:  # type: ignore[override]
        return self.engine.context

    @property
    def stats(self) -> EngineStats | None:  # type: ignore[override]
        return self.engine.stats

    def sample(self, prompt: Sequence[int], params: SamplingParams) -> AsyncIterator[Chunk]:
        return self.engine.sample(prompt, params)

    async def start(self) -> None:
        await self.engine.start()

    async def update_weights(self, weights: Weights) -> None:
        await self.engine.update_weights(weights)

    async def sleep(self) -> None:
        await self.engine.sleep()

    async def close(self) -> None:
        await self.engine.close()


class _WithDefaults(EngineBase):
    """An engine that does not derive from EngineBase, with its methods and attributes as they are when it is built."""

    def __init__(self, engine: Engine) -> None:
        for name in vars(EngineBase):
            if not name.startswith("_") and hasattr(engine, name):
                setattr(self, name, getattr(engine, name))


def with_defaults(engine: Engine) -> EngineBase:
    """`engine` where it derives from EngineBase, else one with its methods and EngineBase's defaults for the rest."""
    return engine if isinstance(engine, EngineBase) else _WithDefaults(engine)


def check_request(prompt: Sequence[int], params: SamplingParams, context: int | None) -> None:
    """Raise EngineError for an empty prompt, parameters out of their range, or a turn that could outgrow `context`
    tokens (None: no limit): before anything is computed, with the numbers."""
    if not len(prompt):
        raise EngineError("an empty prompt: there is nothing to continue")
    if params.max_tokens < 1:
        raise EngineError(f"max_tokens is {params.max_tokens}, must be at least 1")
    if params.temperature < 0 or not 0 < params.top_p <= 1:
        raise EngineError(f"temperature {params.temperature} must be at least 0, top_p {params.top_p} in (0, 1]")
    total = len(prompt) + params.max_tokens
    if context is not None and total > context:
        raise EngineError(
            f"a prompt of {len(prompt)} tokens and max_tokens {params.max_tokens} make {total}, more than the "
            f"context of {context}"
        )
