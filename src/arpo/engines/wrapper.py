"""An engine around another: whoever listens in, or changes what is sampled, says so in `sample` alone."""

from collections.abc import AsyncIterator, Sequence

from arpo.engines import Chunk, Engine, SamplingParams, Weights


class EngineWrapper:
    """Passes everything on to `engine`."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def sample(self, prompt: Sequence[int], params: SamplingParams) -> AsyncIterator[Chunk]:
        return self.engine.sample(prompt, params)

    async def update_weights(self, weights: Weights) -> None:
        await self.engine.update_weights(weights)

    async def sleep(self) -> None:
        await self.engine.sleep()

    async def close(self) -> None:
        await self.engine.close()
