"""New weights without files: in this process and behind two servers, whatever is lost in the middle.

The first half runs where vLLM is installed, the second beside an environment that has it: `make test-vllm`.
"""

import importlib.util
import os
import signal

import psutil
import pytest
from engine_contract import Written, agrees, until, write
from test_vllm_servers import PYTHON, server_of, straight_from
from vllm_contract import LONG, WeightsContract, build, shared_by

from arpo.engines import SamplingParams, Weights

pytestmark = pytest.mark.vllm


def folders(engine):
    home = engine.publisher._home
    return list(home.iterdir()) if home is not None else []


@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM has an environment of its own: make test-vllm")
class TestInProcess(WeightsContract):
    shared = shared_by(weights="broadcast")

    async def test_no_file_is_written(self, engine, prompt, other):
        await write(engine, prompt, max_tokens=2)
        await engine.update_weights(Weights(1, other.state_dict()))
        assert folders(engine) == []

    async def test_workers_elsewhere_get_them_by_gloo(self, engine, prompt, other, monkeypatch):
        await write(engine, prompt, max_tokens=2)
        await engine.update_weights(Weights(1, other.state_dict()))
        link = engine.form._link
        assert link.backend == "shared"
        monkeypatch.setattr("arpo.engines.vllm.broadcast.backend_for", lambda device, places: "gloo")
        link.close()
        await engine.update_weights(Weights(2, other.state_dict()))
        assert link.backend == "gloo"
        agrees(other, prompt, await write(engine, prompt, max_tokens=20, seed=1))
        link.close()

    async def test_where_the_collective_fails_they_come_by_a_file(self, engine, prompt, network, other, capfd, monkeypatch):
        await write(engine, prompt, max_tokens=2)
        await engine.update_weights(Weights(1, network.state_dict()))
        await engine._on_thread(engine.form._call("arpo_leave"))
        await engine.update_weights(Weights(1, other.state_dict()))
        assert folders(engine) == [], "the workers were met again"
        await engine._on_thread(engine.form._call("arpo_leave"))
        monkeypatch.setattr(engine.form._link, "host", "192.0.2.1")  # of no machine
        await engine.update_weights(Weights(2, other.state_dict()))
        monkeypatch.undo()
        assert "by a file this time" in capfd.readouterr().err and len(folders(engine)) == 1
        agrees(other, prompt, await write(engine, prompt, max_tokens=20, seed=1))
        await engine.update_weights(Weights(3, network.state_dict()))
        assert folders(engine) == []
        agrees(network, prompt, await write(engine, prompt, max_tokens=20, seed=1))

    async def test_an_engine_that_died_has_the_newest_weights_again(self, engine, prompt, network, other):
        await write(engine, prompt, max_tokens=2)
        await engine.update_weights(Weights(4, other.state_dict()))
        for process in psutil.Process().children():
            if process.status() != psutil.STATUS_ZOMBIE and "resource_tracker" not in " ".join(process.cmdline()):
                process.send_signal(signal.SIGKILL)
        await until(lambda: engine.form.llm.errored)
        turn = await write(engine, prompt, max_tokens=20, seed=1)
        assert {chunk.version for chunk in turn.chunks} == {4}
        agrees(other, prompt, turn)
        await engine.update_weights(Weights(5, network.state_dict()))
        agrees(network, prompt, await write(engine, prompt, max_tokens=20, seed=1))


@pytest.mark.skipif(PYTHON is None, reason="there is no environment with vLLM: make test-vllm builds .venv-vllm")
class TestServers(WeightsContract):
    shared = shared_by(weights="broadcast", mode="serve", python=PYTHON, replicas=2, patience_s=60, transfer_s=30)

    async def test_no_file_is_written(self, engine, prompt, other):
        await write(engine, prompt, max_tokens=2)
        await engine.update_weights(Weights(1, other.state_dict()))
        assert folders(engine) == [] and all(replica.version == 1 for replica in engine.form.replicas)
        assert all(replica.link.backend == "shared" for replica in engine.form.replicas)
        for replica in engine.form.replicas:
            agrees(other, prompt, await straight_from(replica, prompt))

    @pytest.mark.parametrize("sign", [signal.SIGSTOP, signal.SIGKILL])
    async def test_a_replica_that_is_lost_in_the_middle_holds_up_nobody(self, engine, prompt, network, other, sign, monkeypatch):
        stream = engine.sample(prompt, SamplingParams(max_tokens=LONG, seed=1, head=2, tree="lost"))
        chunks = [await anext(stream)]
        home = next(replica for replica in engine.form.replicas if replica.live)
        process = server_of(engine, home).process
        call = home.link.call

        async def losing(method, **arguments):
            if method == "arpo_receive":
                os.killpg(process.pid, sign)
            return await call(method, **arguments)

        monkeypatch.setattr(home.link, "call", losing)
        await engine.update_weights(Weights(7, other.state_dict()))
        monkeypatch.undo()
        assert not home.up
        chunks += [chunk async for chunk in stream]
        new = Written([chunk for chunk in chunks if chunk.version == 7])
        old = [token for chunk in chunks if chunk.version != 7 for token in chunk.tokens]
        assert len(old) + len(new.tokens) == LONG
        agrees(other, [*prompt, *old], new)
        if sign == signal.SIGSTOP:
            os.killpg(process.pid, signal.SIGCONT)
        await until(lambda: home.up, seconds=400)
        assert home.version == 7
        agrees(other, prompt, await straight_from(home, prompt))
        await engine.update_weights(Weights(8, network.state_dict()))
        agrees(network, prompt, await straight_from(home, prompt))

    async def test_endpoints_take_them_too(self, engine, prompt, network, other, tokenizer, monkeypatch):
        await write(engine, prompt, max_tokens=2)
        urls = tuple(server.url for server in engine.form.launcher.servers)
        monkeypatch.setenv("ARPO_TEST_KEY", engine.form.launcher.key)
        second = build(other, tokenizer, mode="endpoints", urls=urls, weights="broadcast", key_env="ARPO_TEST_KEY")
        agrees(other, prompt, await write(second, prompt, max_tokens=20, seed=1))
        assert folders(second) == []
        await second.close()
        await engine.update_weights(Weights(9, network.state_dict()))
        agrees(network, prompt, await write(engine, prompt, max_tokens=20, seed=1))
