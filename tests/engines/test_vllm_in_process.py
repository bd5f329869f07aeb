"""vLLM inside this process keeps the contract of engines. Runs where vLLM is installed: `make test-vllm`."""

import asyncio
import importlib.util
import multiprocessing
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import psutil
import pytest
from engine_contract import agrees, write
from vllm_contract import LONG, AdaptersContract, VllmContract, build, shared_by

import arpo
from agent_world import serve_command
from arpo.display.terminal import Console
from arpo.engines import SamplingParams, Weights
from arpo.errors import EngineError
from arpo.recipe.load import load_recipe
from arpo.sft.stage import sft
from tiny_project import write_tiny_model, write_tiny_project

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


def test_it_is_served_to_the_official_client(tmp_path, tokenizer, monkeypatch):
    """`arpo serve` of a tiny model that has learnt to call its tool: single turns, an answer with the tool's result,
    several at once, and an end in the middle of a stream that waits for it."""
    monkeypatch.setenv("ARPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path / "own"))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'own'}:{Path(arpo.__file__).parents[1]}")
    project = write_tiny_project(tmp_path / "own", tokenizer)
    write_tiny_model(project.model, tokenizer, head_dim=32)
    model = sft(
        load_recipe(project.recipe, ["data.test=null", "cold_start.batch=20"]),
        out=tmp_path / "model",
        console=Console(quiet=True),
    )
    limits = "engine={kind: vllm, dtype: float32, slots: 32, memory_gb: 0.25}"
    process, url = serve_command(str(model), limits, "rollout.turn_tokens=100", "--port", "0")
    question = [{"role": "user", "content": "Parity of 7"}]
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=300) as client:
        agent = next(each.id for each in client.models.list() if not each.id.endswith("/model"))

        def turn(seed, **options):
            return client.chat.completions.create(
                model=f"{agent}/model", messages=question, seed=seed, max_tokens=8, **options
            )

        whole = turn(1)
        assert whole.usage.completion_tokens in range(1, 9) and whole.usage.prompt_tokens > 3
        deltas = [choice.delta for chunk in turn(1, stream=True) for choice in chunk.choices]
        assert "".join(delta.content or "" for delta in deltas) == (whole.choices[0].message.content or "")
        with ThreadPoolExecutor(6) as pool:
            several = list(pool.map(turn, [1, 2, 3, 1, 2, 3]))
        assert all(one.usage.completion_tokens in range(1, 9) for one in several)

        def asked(**options):
            return client.chat.completions.create(model=agent, messages=question, stream=True, temperature=0, **options)

        chunks = list(asked())
        events = [chunk.model_extra["event"] for chunk in chunks if "event" in (chunk.model_extra or {})]
        results = [each for event in events if event["type"] == "results" for each in event["results"]]
        assert results and all(each["tool"] == "parity" and each["text"] for each in results)
        assert chunks[-1].model_extra["arpo"]["ending"]
        stream = asked(extra_body={"samples": 8})
        next(stream)
        process.send_signal(signal.SIGTERM)
        assert list(stream)[-1].model_extra["arpo"]["branches"] == 8
    assert process.wait(120) == 0
