"""What vLLM must do in either form, beyond what every engine must: cheap forks, weights in the middle of a turn,
recovery."""

import asyncio
import copy
from random import Random
from typing import Any, ClassVar

import pytest
from engine_contract import EngineContract, Written, agrees, write

from arpo.core.entropy import bounds_from_top_k
from arpo.engines import SamplingParams, Weights
from arpo.engines.config import EngineConfig
from arpo.engines.vllm.settings import BLOCK
from arpo.errors import EngineError
from arpo.learner.lora import plain_model, published_state

CONTEXT = 1200  # of the networks in conftest.py
LONG = 1000  # tokens of a turn in the middle of which something happens


def build(model, tokenizer, state=None, **said):
    from arpo.engines.vllm.engine import VllmEngine

    config = EngineConfig(kind="vllm", dtype="float32", slots=64, memory_gb=0.25, vllm=said)
    return VllmEngine.build(config, model, tokenizer, state)


def shared_by(**said):
    """A fixture: a list whose last is the engine that the tests of a class share, since starting one takes long."""

    @pytest.fixture(scope="class")
    @classmethod
    def shared(cls, vllm_network, tokenizer):
        def again():
            engine = build(vllm_network, tokenizer, **said)
            engine.again = again
            return engine

        engines = [again()]
        yield engines
        for engine in engines:
            asyncio.run(engine.close())

    return shared


class WeightsContract:
    """New weights, however they come. Gives everything but `shared` (see `shared_by`)."""

    @pytest.fixture
    async def engine(self, shared, network):
        if shared[-1]._closed:
            shared.append(shared[0].again())
        engine = shared[-1]
        if engine.version:
            await engine.update_weights(Weights(0, network.state_dict()))
        return engine

    @pytest.fixture
    def network(self, vllm_network):
        return vllm_network

    @pytest.fixture
    def other(self, other_vllm_network):
        return other_vllm_network

    @pytest.fixture
    def prompt(self, tokenizer):
        return tokenizer.encode("Which city is the capital of Japan?")

    @pytest.fixture
    def context(self):
        return CONTEXT

    @pytest.fixture
    def state(self, network):
        return network.state_dict()

    @pytest.fixture
    def long(self):
        return LONG

    @pytest.fixture
    def live(self, engine):
        return lambda: engine.live

    async def test_new_weights_write_what_follows(self, engine, prompt, network, other):
        for version, model in ((1, other), (2, network), (3, other)):
            await engine.update_weights(Weights(version, model.state_dict(), changing=version == 2))
            turn = await write(engine, prompt, max_tokens=20, seed=version)
            assert {chunk.version for chunk in turn.chunks} == {version}
            agrees(model, prompt, turn)

    async def test_weights_that_change_in_the_middle_write_the_rest_on_a_context_read_anew(
        self, engine, prompt, network, other
    ):
        stream = engine.sample(prompt, SamplingParams(max_tokens=LONG, seed=3, head=5))
        chunks = [await anext(stream)]
        await engine.update_weights(Weights(1, other.state_dict()))
        chunks += [chunk async for chunk in stream]
        assert {chunk.version for chunk in chunks} == {0, 1}
        old = Written([chunk for chunk in chunks if chunk.version == 0])
        new = Written([chunk for chunk in chunks if chunk.version == 1])
        agrees(network, prompt, old)
        agrees(other, [*prompt, *old.tokens], new)


class VllmContract(WeightsContract, EngineContract):
    async def test_a_fork_computes_at_most_a_block_anew(self, engine, network):
        random = Random(1)
        tip = [random.randrange(3, 400) for _ in range(150)]
        prefilled, reused = engine.stats.prefill_tokens, engine.stats.reused_tokens
        probe = engine.sample(tip, SamplingParams(max_tokens=60, seed=1, head=4, tree="one"))
        head = await anext(probe)
        siblings = await asyncio.gather(*(write(engine, tip, max_tokens=20, seed=s, tree="one") for s in (2, 3, 4)))
        rest = Written([head, *[chunk async for chunk in probe]])
        assert engine.stats.prefill_tokens - prefilled <= len(tip) + 3 * BLOCK
        assert engine.stats.reused_tokens - reused >= 3 * (len(tip) - BLOCK)
        for turn in (rest, *siblings):
            agrees(network, tip, turn)
        before = engine.stats.prefill_tokens
        onward = [*tip, *rest.tokens, *tip[:30]]
        await write(engine, onward, max_tokens=4, seed=5, tree="one")
        assert engine.stats.prefill_tokens - before <= 30 + BLOCK

    async def test_bounds_are_those_of_the_core(self, engine, prompt, network):
        turn = await write(engine, prompt, max_tokens=24, seed=9)
        import torch

        with torch.no_grad():
            logits = network(torch.tensor([[*prompt, *turn.tokens]])).logits[0, len(prompt) - 1 : -1]
        top = torch.log_softmax(logits.double(), -1).topk(20).values.tolist()
        for row, low, high in zip(
            top, *([x for c in turn.chunks for x in c.bounds[side]] for side in (0, 1)), strict=True
        ):
            assert (low, high) == pytest.approx(bounds_from_top_k(row, logits.shape[1]), abs=2e-4)

    async def test_a_token_outside_the_vocabulary_is_an_engine_error(self, engine, prompt):
        with pytest.raises(EngineError, match="none of the model's"):
            await write(engine, [*prompt, 10_000_000], max_tokens=3)
        assert len((await write(engine, prompt, max_tokens=3)).tokens) == 3

    def test_it_works_from_any_event_loop(self, shared, network, prompt):
        for _ in range(2):
            turn = asyncio.run(write(shared[-1], prompt, max_tokens=5, seed=1))
            agrees(network, prompt, turn)


class AdaptersContract:
    """A policy with LoRA, whose adapters alone are sent. Gives everything but `said`, where vLLM runs."""

    said: ClassVar[dict[str, Any]] = {}

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls, vllm_network, tokenizer, tmp_path_factory):
        """What the adapters add to, in a folder."""
        model = copy.deepcopy(vllm_network)
        folder = tmp_path_factory.mktemp("base")
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        model.config._name_or_path = model.name_or_path = str(folder)
        return model

    @pytest.fixture(scope="class")
    @classmethod
    def policy(cls, model):
        return moved(copy.deepcopy(model), rank=4, seed=1)

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, policy, tokenizer):
        engine = build(policy, tokenizer, published_state(policy), lora="adapters", **cls.said)
        yield engine
        asyncio.run(engine.close())

    @pytest.fixture
    def prompt(self, tokenizer):
        return tokenizer.encode("Which city is the capital of Japan?")

    async def test_adapters_alone_write_as_the_merged_model(self, engine, prompt, policy):
        for version in (1, 2, 3):
            change(policy, seed=version)
            await engine.update_weights(Weights(version, published_state(policy), changing=version == 2))
            turn = await write(engine, prompt, max_tokens=20, seed=version)
            assert {chunk.version for chunk in turn.chunks} == {version}
            agrees(plain_model(policy), prompt, turn)
        sent = sum(path.stat().st_size for path in engine.publisher._kept[-1].folder.glob("*.safetensors"))
        base = sum(path.stat().st_size for path in engine.base.glob("*.safetensors"))
        print(f"sent: {sent} bytes, of {base} in all")
        assert sent < 0.2 * base  # of these 3 layers of hidden size 64

    async def test_a_turn_ends_with_the_adapters_that_it_began_with(self, engine, prompt, policy):
        before = copy.deepcopy(plain_model(policy))
        stream = engine.sample(prompt, SamplingParams(max_tokens=LONG, seed=3, head=5))
        chunks = [await anext(stream)]
        change(policy, seed=9)
        await engine.update_weights(Weights(4, published_state(policy)))
        other = await write(engine, prompt, max_tokens=20, seed=1)
        chunks += [chunk async for chunk in stream]
        assert len({chunk.version for chunk in chunks}) == 1 and {chunk.version for chunk in other.chunks} == {4}
        agrees(before, prompt, Written(chunks))
        agrees(plain_model(policy), prompt, other)

    async def test_adapters_that_vllm_refuses_are_merged_and_that_is_said_once(self, engine, model, prompt, capfd):
        """The last test of the class: the engine sends whole weights from here on."""
        wide = moved(copy.deepcopy(model), rank=12, seed=5)
        for version in (5, 6):
            change(wide, seed=version)
            await engine.update_weights(Weights(version, published_state(wide)))
            turn = await write(engine, prompt, max_tokens=20, seed=version)
            assert {chunk.version for chunk in turn.chunks} == {version}
            agrees(plain_model(wide), prompt, turn)
        told = capfd.readouterr().err
        assert told.count("vLLM gets all weights, adapters merged") == 1 and "rank 12 is greater than" in told


def moved(model, *, rank, seed):
    """`model` with adapters on all linear layers that are not 0."""
    from peft import LoraConfig, get_peft_model

    policy = get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")).eval()
    change(policy, seed=seed)
    return policy


def change(policy, *, seed):
    import torch

    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=draws))
