"""vLLM inside this process keeps the contract of engines. Runs where vLLM is installed: `make test-vllm`."""

import importlib.util
import signal

import psutil
import pytest
from engine_contract import agrees, write
from vllm_contract import LONG, VllmContract, shared_by

from arpo.engines import SamplingParams, Weights
from arpo.errors import EngineError

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM has an environment of its own: make test-vllm"),
]


class TestInProcess(VllmContract):
    shared = shared_by()

    async def test_an_engine_that_dies_fails_its_requests_and_comes_back_with_the_newest_weights(self, engine, prompt, other):
        await engine.load(Weights(4, other.state_dict()))
        stream = engine.sample(prompt, SamplingParams(max_tokens=LONG, seed=1, head=2))
        await anext(stream)
        for process in psutil.Process().children():
            if process.status() != psutil.STATUS_ZOMBIE and "resource_tracker" not in " ".join(process.cmdline()):
                process.send_signal(signal.SIGKILL)
        with pytest.raises(EngineError, match="died"):
            _ = [chunk async for chunk in stream]
        turn = await write(engine, prompt, max_tokens=20, seed=1)
        assert {chunk.version for chunk in turn.chunks} == {4}
        agrees(other, prompt, turn)
