"""vLLM inside this process keeps the contract of engines. Runs where vLLM is installed: `make test-vllm`."""

import pytest
from engine_contract import EngineContract

from arpo.engines import Weights
from arpo.engines.config import EngineConfig

pytestmark = pytest.mark.vllm
CONTEXT = 256


@pytest.fixture(scope="module")
def vllm_model(make_model, tokenizer):
    return make_model("llama", vocabulary=len(tokenizer), context=CONTEXT, num_attention_heads=4, head_dim=32, hidden_size=64)


def build(model, tokenizer, **options):
    from arpo.engines.vllm.engine import VllmEngine

    config = EngineConfig(kind="vllm", dtype="float32", slots=64, memory_gb=0.25, vllm={"top_k": 20, **options})
    return VllmEngine.build(config, model, tokenizer)


@pytest.fixture(scope="module")
def shared(vllm_model, tokenizer):
    import asyncio

    engine = build(vllm_model, tokenizer)
    yield engine
    asyncio.run(engine.close())


class TestInProcess(EngineContract):
    @pytest.fixture
    async def engine(self, shared, vllm_model):
        if shared.version:
            await shared.load(Weights(0, vllm_model.state_dict()))
        return shared

    @pytest.fixture
    def prompt(self, tokenizer):
        return tokenizer.encode("Which city is the capital of Japan?")

    @pytest.fixture
    def context(self):
        return CONTEXT

    @pytest.fixture
    def state(self, vllm_model):
        return vllm_model.state_dict()

    @pytest.fixture
    def live(self, engine):
        return lambda: engine.live

    async def test_a_closed_engine_says_so(self, vllm_model, tokenizer, prompt):
        await super().test_a_closed_engine_says_so(build(vllm_model, tokenizer), prompt)
