"""The scripted engine keeps the contract of engines, and plays what it is told."""

import asyncio
from random import Random

import pytest
from engine_contract import EngineContract, write

from arpo.core.tree import FinishReason
from arpo.engines.scripted import Script, ScriptedEngine
from arpo.errors import ConfigError, EngineError

SAID = (
    "<think>Là-bas, l'été: 東京 is the capital 🙂 of Japan.</think><search>capital of Japan and its rivers</search> "
    "and so on " * 8
)


def play(prompt, params):
    return Script(said=SAID, token_s=0.0005 if params.max_tokens >= 200 else 0.0)


class TestScripted(EngineContract):
    @pytest.fixture
    def engine(self, tokenizer):
        return ScriptedEngine(play, tokenizer, context=512)

    @pytest.fixture
    def prompt(self, tokenizer):
        return tokenizer.encode("Which city is the capital of Japan?")

    @pytest.fixture
    def context(self):
        return 512

    @pytest.fixture
    def state(self):
        return {}

    @pytest.fixture
    def live(self, engine):
        return lambda: engine.live


async def test_numbers_are_those_of_the_script():
    script = Script(said=[5, 6, 7, 8], entropies=[0.5, 1.5], logprobs=-0.25)
    turn = await write(ScriptedEngine(lambda p, q: script), [1], max_tokens=10)
    assert turn.tokens == [5, 6, 7, 8] and turn.finish is FinishReason.STOP
    assert turn.entropies == [0.5, 1.5, 1.5, 1.5] and turn.logprobs == [-0.25] * 4


async def test_the_play_sees_prompt_and_params():
    engine = ScriptedEngine(lambda prompt, params: [len(prompt), params.seed])
    assert (await write(engine, [1, 2, 3], max_tokens=5, seed=9)).tokens == [3, 9]


async def test_drawn_entropies_depend_on_the_seed_alone():
    random = Random(0)
    engine = ScriptedEngine(lambda p, q: list(range(20)), delay=lambda: (random.random() * 0.01, 0.0))
    a, b, c = [await write(engine, [1], max_tokens=20, seed=s) for s in (1, 1, 2)]
    assert a.entropies == b.entropies != c.entropies


async def test_a_failing_script_raises_after_what_it_said():
    engine = ScriptedEngine(lambda p, q: Script(said=list(range(40)), fails_after=20))
    seen = []
    with pytest.raises(EngineError, match="fails after 20"):
        from arpo.engines import SamplingParams

        async for chunk in engine.sample([1], SamplingParams(max_tokens=40)):
            seen += chunk.tokens
    assert seen == list(range(16)) and engine.live == 0 and engine.cancelled == 0


async def test_latency_is_real_time():
    engine = ScriptedEngine(lambda p, q: Script(said=list(range(10)), delay_s=0.02, token_s=0.003))
    loop = asyncio.get_running_loop()
    start = loop.time()
    await write(engine, [1], max_tokens=10)
    assert loop.time() - start >= 0.05


async def test_text_needs_a_tokenizer_and_something_said():
    with pytest.raises(ConfigError, match="tokenizer"):
        await write(ScriptedEngine(lambda p, q: "text"), [1], max_tokens=3)
    with pytest.raises(ConfigError, match="say something"):
        await write(ScriptedEngine(lambda p, q: []), [1], max_tokens=3)
