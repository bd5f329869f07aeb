"""vLLM inside this process keeps the contract of engines. Runs where vLLM is installed: `make test-vllm`."""

import asyncio
import importlib.util
import multiprocessing
import signal

import psutil
import pytest
from engine_contract import agrees, write
from vllm_contract import LONG, AdaptersContract, VllmContract, build, shared_by

from arpo.engines import SamplingParams, Weights
from arpo.errors import EngineError

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(
        importlib.util.find_spec("vllm") is None, reason="vLLM has an environment of its own: make test-vllm"
    ),
]


def kill_core():
    for process in psutil.Process().children():
        if process.status() != psutil.STATUS_ZOMBIE and "resource_tracker" not in " ".join(process.cmdline()):
            process.send_signal(signal.SIGKILL)


class TestInProcess(VllmContract):
    async def test_an_engine_that_dies_over_new_weights_comes_back_with_them(self, engine, prompt, other, monkeypatch):
        stream = engine.sample(prompt, SamplingParams(max_tokens=LONG, seed=1, head=2))
        await anext(stream)
        call = engine.form._call

        async def dying(method, **arguments):
            kill_core()
            return await call(method, **arguments)

        monkeypatch.setattr(engine.form, "_call", dying)
        await engine.update_weights(Weights(5, other.state_dict()))
        monkeypatch.undo()
        with pytest.raises(EngineError, match="died"):
            _ = [chunk async for chunk in stream]
        turn = await write(engine, prompt, max_tokens=20, seed=1)
        assert {chunk.version for chunk in turn.chunks} == {5}
        agrees(other, prompt, turn)

    async def test_weights_that_cannot_be_loaded_fail_requests_and_the_next_ones_work(
        self, engine, prompt, other, tmp_path
    ):
        stream = engine.sample(prompt, SamplingParams(max_tokens=LONG, seed=1, head=2))
        await anext(stream)
        with pytest.raises(EngineError, match="cannot load new weights"):
            await engine.update_weights(Weights(6, tmp_path))
        with pytest.raises(EngineError, match="died"):
            _ = [chunk async for chunk in stream]
        await engine.update_weights(Weights(7, other.state_dict()))
        turn = await write(engine, prompt, max_tokens=20, seed=1)
        assert {chunk.version for chunk in turn.chunks} == {7}
        agrees(other, prompt, turn)

    shared = shared_by()

    async def test_an_engine_that_dies_fails_its_requests_and_comes_back_with_the_newest_weights(
        self, engine, prompt, other
    ):
        await engine.update_weights(Weights(4, other.state_dict()))
        stream = engine.sample(prompt, SamplingParams(max_tokens=LONG, seed=1, head=2))
        await anext(stream)
        kill_core()
        with pytest.raises(EngineError, match="died"):
            _ = [chunk async for chunk in stream]
        turn = await write(engine, prompt, max_tokens=20, seed=1)
        assert {chunk.version for chunk in turn.chunks} == {4}
        agrees(other, prompt, turn)


def keep_sampling(model, tokenizer, told):
    engine = build(model, tokenizer)
    asyncio.run(write(engine, [5, 6, 7], max_tokens=2))
    told.send([process.pid for process in psutil.Process().children(recursive=True)])
    signal.pause()


def test_a_run_that_is_killed_leaves_no_process_of_vllm(vllm_network, tokenizer):
    spawning = multiprocessing.get_context("spawn")
    hears, told = spawning.Pipe(duplex=False)
    run = spawning.Process(target=keep_sampling, args=(vllm_network, tokenizer, told))
    run.start()
    told.close()
    left = [psutil.Process(number) for number in hears.recv()]
    assert any("resource_tracker" not in " ".join(process.cmdline()) for process in left)
    run.kill()
    run.join()
    assert not [each for each in psutil.wait_procs(left, timeout=60)[1] if each.status() != psutil.STATUS_ZOMBIE]


class TestAdaptersInProcess(AdaptersContract):
    pass
