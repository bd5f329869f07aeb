"""vLLM behind two servers keeps the contract of engines, and outlives the loss of one. The learner's side needs no
vLLM: it runs beside an environment that has it (`make test-vllm`)."""

import asyncio
import copy
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import httpx
import psutil
import pytest
import torch
from engine_contract import Written, agrees, until, write
from transformers import AutoTokenizer
from vllm_contract import LONG, AdaptersContract, VllmContract, build, shared_by

from arpo.engines import SamplingParams, Weights
from arpo.engines.vllm import answers
from arpo.engines.vllm.chunk_assembler import ChunkAssembler
from arpo.engines.vllm.guard import KEY
from arpo.engines.vllm.replica import Replica
from arpo.engines.vllm.settings import Settings
from arpo.engines.vllm.versions import Environment
from arpo.errors import ConfigError, EngineError
from arpo.learner.driver import weights_of
from arpo.learner.lora import plain_model
from arpo.learner.rank import ModelSource, Rank
from arpo.learner.sharding import Placement, trained
from arpo.models.loading import LoraSettings, ModelConfig, learner_model, load_model
from rank_processes import Peak, on_ranks

BESIDE = Path(__file__).parents[2] / ".venv-vllm/bin/python"
PYTHON = os.environ.get("ARPO_VLLM_PYTHON") or (
    str(BESIDE) if BESIDE.exists() else sys.executable if Environment.here().vllm else None
)

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(PYTHON is None, reason="there is no environment with vLLM: make test-vllm builds .venv-vllm"),
]


DEFAULTS = {
    "top_k": 1,
    "min_p": 0.5,
    "temperature": 0.3,
    "repetition_penalty": 1.5,
    "presence_penalty": 1.0,
    "frequency_penalty": 1.0,
}


def server_of(engine, replica):
    return next(each for each in engine.form.launcher.servers if each.url == replica.url)


class TestServers(VllmContract):
    shared = shared_by(python=PYTHON, replicas=2)

    @pytest.fixture
    def keyed(self, engine, monkeypatch):
        """The key of the engine's servers is where somebody else's is read from."""
        monkeypatch.setenv(KEY, engine.form.launcher.key)

    @pytest.fixture(scope="class", autouse=True)
    def defaults(self):
        """Servers as somebody else may have started them: with defaults that change the distribution, as a model's
        generation_config.json does."""
        arguments = Settings.arguments
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                Settings, "arguments", lambda self: arguments(self) | {"override_generation_config": DEFAULTS}
            )
            yield

    async def test_defaults_of_a_server_do_not_change_the_distribution(self, engine, prompt, network):
        """That every turn of these servers agrees with a plain forward is the contract; here, that they have them."""
        await write(engine, prompt, max_tokens=2)
        headers = {"Authorization": f"Bearer {engine.form.launcher.key}"}
        url = engine.form.launcher.servers[0].url
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=60) as client:
            model = (await client.get("/v1/models")).json()["data"][0]["id"]
            texts = {
                (
                    await client.post(
                        "/v1/completions", json={"model": model, "prompt": prompt, "max_tokens": 8, "seed": seed}
                    )
                ).json()["choices"][0]["text"]
                for seed in range(6)
            }
        assert len(texts) == 1  # top_k of 1: always the same
        turns = [await write(engine, prompt, max_tokens=8, seed=seed) for seed in range(6)]
        assert len({tuple(turn.tokens) for turn in turns}) > 1
        for turn in turns:
            agrees(network, prompt, turn)

    @pytest.mark.parametrize(
        "said",
        [
            {"head": 10},
            {"head": 2},
            {"head": 1, "temperature": 0.7},
            {"stop_tokens": tuple(range(3, 40)), "head": 5},
            {"stop": ("e",)},
        ],
    )
    async def test_compact_answers_are_those_of_vllms_own_route(self, engine, prompt, network, said):
        """Fewer tokens than a block: both compute the whole prompt."""
        await write(engine, prompt, max_tokens=2)
        assert all(replica.compact for replica in engine.form.replicas)
        replica, vocab_size = engine.form.replicas[0], network.config.vocab_size
        for seed in range(4):
            asked = {"max_tokens": 60, "seed": seed, **said}
            compact, plain = [
                await straight_from(replica, prompt[:20], compact=compact, vocab_size=vocab_size, **asked)
                for compact in (True, False)
            ]
            assert compact.tokens == plain.tokens and compact.logprobs == pytest.approx(plain.logprobs, abs=1e-6)
            assert compact.chunks[-1].finish is plain.chunks[-1].finish
            assert {chunk.version for chunk in compact.chunks} == {chunk.version for chunk in plain.chunks}
            if len(compact.tokens) > (head := said.get("head", 0)) > 0:
                assert len(compact.chunks[0].tokens) == head
            for side in (0, 1):
                bounds = [
                    [x for chunk in turn.chunks if chunk.bounds for x in chunk.bounds[side]]
                    for turn in (compact, plain)
                ]
                assert bounds[0] == pytest.approx(bounds[1], abs=1e-6)

    async def test_a_server_without_arpos_route_still_works_and_is_named_once(
        self, engine, network, prompt, tokenizer, keyed, capfd, monkeypatch
    ):
        await write(engine, prompt, max_tokens=2)
        monkeypatch.setattr(answers, "FORM", answers.FORM + 1)  # of another arpo's server
        second = build(network, tokenizer, urls=tuple(server.url for server in engine.form.launcher.servers))
        turns = [await write(second, prompt, max_tokens=20, seed=seed, head=4) for seed in range(4)]
        await second.close()
        for turn in turns:
            agrees(network, prompt, turn)
            assert len(turn.chunks[0].tokens) == 4
        assert capfd.readouterr().err.count("answers in JSON") == 1

    async def test_a_request_that_the_server_refuses_is_an_engine_error(self, engine, prompt):
        await write(engine, prompt, max_tokens=2)
        with pytest.raises(EngineError, match=r"refuses the request \(400\).*top_p"):
            await straight_from(engine.form.replicas[0], prompt, top_p=7.0)

    async def test_nobody_else_may_ask_its_servers_anything(self, engine, prompt):
        await write(engine, prompt, max_tokens=2)
        (server, *_) = engine.form.launcher.servers
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            assert (await client.get("/health")).status_code == 200
            for headers in ({}, {"Authorization": "Bearer guessed"}, {"Origin": "http://evil.example"}):
                for path in (
                    "/collective_rpc",
                    "/pause",
                    "/reset_prefix_cache",
                    "/inference/v1/generate",
                    answers.ROUTE,
                    "/v1/completions",
                ):
                    assert (
                        await client.post(path, json={"method": "reload_weights"}, headers=headers)
                    ).status_code == 401
                for path in ("/v1/models", "/openapi.json", "/metrics", "/server_info"):
                    assert (await client.get(path, headers=headers)).status_code == 401
        assert engine.form.launcher.key not in " ".join(psutil.Process(server.process.pid).cmdline())

    async def test_a_tree_stays_at_one_replica_and_trees_spread(self, engine, prompt):
        async def spread(*trees):
            """Live requests of each replica while every tree has four."""
            turns = [
                asyncio.create_task(write(engine, prompt, max_tokens=100, seed=i, tree=tree))
                for tree in trees
                for i in range(4)
            ]
            await until(lambda: sum(replica.live for replica in engine.form.replicas) == len(turns))
            live = sorted(replica.live for replica in engine.form.replicas)
            for turn in turns:
                turn.cancel()
            await asyncio.gather(*turns, return_exceptions=True)
            await until(lambda: not any(replica.live for replica in engine.form.replicas))
            return live

        assert await spread("one") == await spread("two") == [0, 4]
        assert await spread("three", "four") == [4, 4]

    async def test_a_lost_replicas_requests_go_on_elsewhere_and_it_comes_back(self, engine, prompt, network, other):
        await engine.update_weights(Weights(3, other.state_dict()))
        form = engine.form
        stream = engine.sample(prompt, SamplingParams(max_tokens=LONG, seed=1, head=2, tree="lost"))
        chunks = [await anext(stream)]
        home = next(replica for replica in form.replicas if replica.live)
        os.killpg(server_of(engine, home).process.pid, signal.SIGKILL)
        chunks += [chunk async for chunk in stream]
        turn = Written(chunks)
        assert len(turn.tokens) == LONG
        agrees(other, prompt, turn)
        assert not home.up
        turns = await asyncio.gather(*(write(engine, prompt, max_tokens=5, seed=i) for i in range(8)))
        assert all(len(turn.tokens) == 5 for turn in turns)
        await engine.update_weights(Weights(4, network.state_dict()))  # while it is away
        await until(lambda: home.up, seconds=400)
        assert home.version == 4
        agrees(network, prompt, await straight_from(home, prompt))

    async def test_a_replica_that_hangs_is_taken_out_and_comes_back(self, engine, prompt):
        form = engine.form
        stream = engine.sample(prompt, SamplingParams(max_tokens=LONG, seed=1, head=2, tree="hangs"))
        chunks = [await anext(stream)]
        home = next(replica for replica in form.replicas if replica.live)
        leader = psutil.Process(server_of(engine, home).process.pid)
        leader.suspend()
        try:
            chunks += [chunk async for chunk in stream]
            assert sum(len(chunk.tokens) for chunk in chunks) == LONG
        finally:
            leader.resume()
        await until(lambda: home.up, seconds=400)

    async def test_endpoints_are_servers_that_somebody_else_started(
        self, engine, network, other, prompt, tokenizer, keyed
    ):
        urls = tuple(server.url for server in engine.form.launcher.servers)
        second = build(other, tokenizer, urls=urls)
        turn = await write(second, prompt, max_tokens=20, seed=1)
        agrees(other, prompt, turn)  # it handed its own weights over first
        await second.close()
        await engine.update_weights(Weights(9, network.state_dict()))
        agrees(network, prompt, await write(engine, prompt, max_tokens=20, seed=1))

    async def test_servers_that_take_no_weights_without_files_are_a_config_error(
        self, engine, prompt, network, tokenizer, keyed, monkeypatch
    ):
        await write(engine, prompt, max_tokens=2)
        urls = (engine.form.launcher.servers[0].url,)
        monkeypatch.setattr(Settings, "_check_can_send", lambda self: None)
        second = build(network, tokenizer, urls=urls, weights="nccl")
        with pytest.raises(
            ConfigError, match=r"does not take weights by nccl.*--weight-transfer-config '{\"backend\": \"nccl\"}'"
        ):
            await write(second, prompt, max_tokens=3)

    async def test_a_server_that_cannot_read_as_much_is_a_config_error(self, engine, make_model, tokenizer, keyed):
        urls = (engine.form.launcher.servers[0].url,)
        longer = make_model(vocabulary=len(tokenizer), context=4096)
        with pytest.raises(ConfigError, match=r"--max-model-len 1200.*--max-model-len 4096"):
            await write(build(longer, tokenizer, urls=urls), [5, 6], max_tokens=3)


async def straight_from(replica, prompt, *, compact=True, vocab_size=0, **said):
    """One turn of this replica. compact: by arpo's route, else by vLLM's own."""
    params = SamplingParams(**{"max_tokens": 20, "seed": 1} | said)
    cutter = ChunkAssembler(params, lambda token: b"")
    async with httpx.AsyncClient(
        base_url=replica.url, headers=replica.client.headers, timeout=60
    ) as client:  # its own is another loop's
        asked = Replica(replica.url, top_k=20, vocab_size=vocab_size)
        asked.client, asked.version, asked.compact = client, replica.version, compact
        asked.adapter = replica.adapter
        return Written([chunk async for piece in asked.ask(prompt, params) for chunk in cutter.feed(piece)])


def from_shards(ranks, config, prompt, **said):
    """One turn of each of two servers, which got the weights of the learner's `ranks`, and what that took of memory on
    the first."""
    folder = Path(config.source)
    made = partial(learner_model, folder, config, empty=True)
    ranks.call("hold", ModelSource(made, folder), 5, Placement())
    tokenizer = AutoTokenizer.from_pretrained(folder)

    async def turns():
        engine = build(made(), tokenizer, weights_of(ranks), python=PYTHON, replicas=2, **said)
        try:
            await engine.update_weights(Weights(1, weights_of(ranks)))
            ranks.call("halve")
            with Peak() as peak:
                await engine.update_weights(Weights(2, weights_of(ranks)))
            alone = engine.base is not None  # adapters
            return [await straight_from(replica, prompt) for replica in engine.form.replicas], peak.bytes, alone
        finally:
            await engine.close()

    return asyncio.run(turns())


class HalvingRank(Rank):
    def halve(self):
        halve(self.policy)


def halve(policy):
    """Other weights than those that the servers started with, and smaller: over a large vocabulary the float32
    log-probabilities of large logits are off by the test's tolerance (twice these weights: 4e-4). Adapters, which start
    with 0, are moved."""
    with torch.no_grad():
        for name, parameter in trained(policy):
            parameter.mul_(0.5).add_(0.05 if ".lora_B" in name else 0.0)


def test_two_ranks_give_two_servers_the_weights_of_one_process(vllm_network, tokenizer, tmp_path):
    config = copy.deepcopy(vllm_network.config)
    config.vocab_size = 600_000  # what is freed of such an embedding goes back to the system
    model = type(vllm_network)(config).eval()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    prompt = tokenizer.encode("Which city is the capital of Japan?")
    loaded = ModelConfig(source=str(tmp_path / "model"), device="cpu", dtype="float32")
    turns, peak, _ = on_ranks(2, partial(from_shards, config=loaded, prompt=prompt), tmp_path, rank=HalvingRank)
    halve(model)
    assert len(turns) == 2
    for turn in turns:
        assert {chunk.version for chunk in turn.chunks} == {2}
        agrees(model, prompt, turn)
    assert peak <= 1.1 * max(p.numel() * p.element_size() for p in model.parameters())


def test_two_ranks_give_two_servers_the_adapters_of_one_process(vllm_network, tokenizer, tmp_path):
    vllm_network.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    prompt = tokenizer.encode("Which city is the capital of Japan?")
    config = ModelConfig(source=str(tmp_path / "model"), device="cpu", dtype="float32", lora=LoraSettings(rank=4))
    drive = partial(from_shards, config=config, prompt=prompt, lora="adapters")
    turns, _, alone = on_ranks(2, drive, tmp_path, rank=HalvingRank)
    assert alone, "else vLLM got all weights"
    torch.manual_seed(5)  # of the adapters, as the ranks'
    model, _ = load_model(tmp_path / "model", config)
    halve(model)
    assert len(turns) == 2
    for turn in turns:
        assert {chunk.version for chunk in turn.chunks} == {2}
        agrees(plain_model(model).eval(), prompt, turn)


async def test_servers_that_are_not_there_are_a_config_error(vllm_network, tokenizer):
    engine = build(vllm_network, tokenizer, urls=("http://127.0.0.1:9",))
    with pytest.raises(ConfigError, match=r"no vLLM server answers at http://127\.0\.0\.1:9"):
        await write(engine, [5, 6, 7], max_tokens=3)
    await engine.close()


async def test_a_server_that_does_not_start_says_why(vllm_network, tokenizer):
    engine = build(vllm_network, tokenizer, replicas=1, python=PYTHON, options={"no_such_option": 1})
    with pytest.raises(ConfigError, match=r"ended with 2: .*no-such-option"):
        await write(engine, [5, 6, 7], max_tokens=3)
    await engine.close()


class TestAdaptersOnServers(AdaptersContract):
    said: ClassVar[dict[str, Any]] = {"python": PYTHON, "replicas": 1}
