"""The local engine keeps the contract of engines, and computes what a plain forward of the model computes."""

import asyncio
import threading

import pytest
import torch
from engine_contract import EngineContract, until, write

from arpo.engines import SamplingParams, Weights
from arpo.engines.local import LocalEngine
from arpo.engines.network import has_half_weights
from arpo.errors import ConfigError, EngineError

FAMILIES = ["llama", "qwen2", "qwen3", "mistral", "gemma"]


def plain(model, prompt, tokens, temperature=1.0):
    """Log-probabilities and entropies of `tokens` after `prompt` by one forward without any cache: [n], [n]; logits [n,
    V]."""
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1].float()
    logp = torch.log_softmax(logits / (temperature or 1.0), -1)
    at_one = torch.log_softmax(logits, -1)
    return logp.gather(1, torch.tensor(tokens)[:, None])[:, 0], -(at_one.exp() * at_one).sum(-1), logits


def agrees(model, prompt, turn, temperature=1.0, tolerance=2e-4):
    logp, entropy, logits = plain(model, prompt, turn.tokens, temperature)
    torch.testing.assert_close(torch.tensor(turn.logprobs), logp, atol=tolerance, rtol=0)
    torch.testing.assert_close(torch.tensor(turn.entropies), entropy, atol=tolerance, rtol=0)
    if temperature == 0.0:
        top = logits.topk(2).values
        for token, row, (first, second) in zip(turn.tokens, logits, top, strict=True):
            assert token == row.argmax() or first - second < 1e-4


def prompt_of(length, seed=0, vocabulary=400):
    return torch.randint(3, vocabulary, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


class TestLocal(EngineContract):
    @pytest.fixture
    def engine(self, model, tokenizer):
        return LocalEngine(model, tokenizer, dtype="float32", slots=16)

    @pytest.fixture
    def prompt(self, tokenizer):
        return tokenizer.encode("Which city is the capital of Japan?")

    @pytest.fixture
    def context(self):
        return 512

    @pytest.fixture
    def state(self, model):
        return model.state_dict()

    @pytest.fixture
    def network(self, model):
        return model

    @pytest.fixture
    def other(self, other_model):
        return other_model

    @pytest.fixture
    def live(self, engine):
        return lambda: len(engine.lanes[0].decoder.live) + len(engine.lanes[0].decoder.waiting)


class TestLocalDeterministic(TestLocal):
    @pytest.fixture
    def engine(self, model, tokenizer):
        return LocalEngine(model, tokenizer, deterministic=True, slots=16)

    @pytest.fixture
    def many(self):
        """It computes every turn by itself, so that more of them are only more of the same."""
        return 5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("deterministic", [False, True])
async def test_every_family_agrees_with_its_own_forward(make_model, family, deterministic):
    model = make_model(family)
    engine = LocalEngine(model, dtype="float32", deterministic=deterministic)
    prompts = [prompt_of(n, n) for n in (1, 7, 64, 65, 127, 128, 150, 300)]
    for temperature in (0.0, 1.0, 0.7) if family == "llama" else (0.7,):  # what a network computes knows no temperature
        turns = await asyncio.gather(
            *(write(engine, p, max_tokens=12, temperature=temperature, seed=i) for i, p in enumerate(prompts))
        )
        for prompt, turn in zip(prompts, turns, strict=True):
            agrees(model, prompt, turn, temperature)
    await engine.close()


async def test_turns_that_cross_blocks_agree(model):
    engine = LocalEngine(model, dtype="float32", prefill=50)
    prompts = [prompt_of(n, n) for n in (100, 126, 127, 128, 129, 240)]
    turns = await asyncio.gather(*(write(engine, p, max_tokens=150, seed=i) for i, p in enumerate(prompts)))
    for prompt, turn in zip(prompts, turns, strict=True):
        agrees(model, prompt, turn)


async def test_arrivals_in_the_middle_agree(model):
    engine = LocalEngine(model, dtype="float32", slots=5, prefill=20)

    async def late(i):
        await asyncio.sleep(0.004 * i)
        prompt = prompt_of(5 + 13 * i, i)
        return prompt, await write(engine, prompt, max_tokens=3 + 5 * (i % 7), seed=i)

    for prompt, turn in await asyncio.gather(*(late(i) for i in range(24))):
        agrees(model, prompt, turn)


async def test_bfloat16_is_near(make_model):
    model = make_model("llama", initializer_range=0.08)
    engine = LocalEngine(model, dtype="bfloat16")
    prompt = prompt_of(90)
    turn = await write(engine, prompt, max_tokens=40, seed=1)
    agrees(model, prompt, turn, tolerance=0.15)
    assert next(model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("family", ["llama", "qwen2"])  # without and with biases
async def test_float16_weights_are_near(make_model, family):
    model = make_model(family, initializer_range=0.08)
    if not has_half_weights(torch.device("cpu")):
        with pytest.raises(ConfigError, match=r"x86 CPU that FBGEMM supports"):
            LocalEngine(model, dtype="float16")
        return
    engine = LocalEngine(model, dtype="float16")
    assert engine.dtype == torch.float32  # of activations, keys and values
    prompt = prompt_of(90)
    agrees(model, prompt, await write(engine, prompt, max_tokens=40, seed=1), tolerance=0.01)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    await engine.update_weights(Weights(1, model.state_dict()))
    agrees(model, prompt, await write(engine, prompt, max_tokens=40, seed=1), tolerance=0.03)


async def test_identical_prompts_cost_one_prefill(model):
    engine = LocalEngine(model, dtype="float32")
    prompt = prompt_of(90)
    turns = await asyncio.gather(*(write(engine, prompt, max_tokens=20, seed=i) for i in range(12)))
    assert engine.stats.prefill_tokens == 90 and engine.stats.reused_tokens == 11 * 90
    assert len({tuple(t.tokens) for t in turns}) > 6
    for turn in turns:
        agrees(model, prompt, turn)


async def test_a_fork_equals_a_fresh_request(model):
    """A tree as rollout grows it: the probe and its siblings start at a tip, some while the probe runs, some after its
    end."""
    engine = LocalEngine(model, dtype="float32")
    root = prompt_of(70)
    first = await write(engine, root, max_tokens=15, seed=1)
    tip = root + first.tokens + prompt_of(40, 5)
    probe = engine.sample(tip, SamplingParams(max_tokens=60, seed=2, head=4))
    head = await anext(probe)
    before = engine.stats.prefill_tokens
    siblings = await asyncio.gather(*(write(engine, tip, max_tokens=20, seed=s) for s in (3, 4, 5)))
    assert engine.stats.prefill_tokens == before, "a sibling computes nothing that is known"
    rest = [t async for c in probe for t in c.tokens]
    tokens = [*head.tokens, *rest]
    later = await write(engine, tip, max_tokens=20, seed=3)
    assert engine.stats.prefill_tokens <= before + 1
    onward = tip + tokens + prompt_of(30, 6)
    after = await write(engine, onward, max_tokens=10, seed=7)
    assert engine.stats.prefill_tokens <= before + 1 + 31
    for prompt, turn in [(tip, s) for s in (*siblings, later)] + [(onward, after)]:
        agrees(model, prompt, turn)
        fresh = await write(
            LocalEngine(model, dtype="float32"), prompt, max_tokens=len(turn.tokens), seed=0, temperature=0.0
        )
        known = await write(engine, prompt, max_tokens=len(turn.tokens), seed=0, temperature=0.0)
        assert fresh.tokens == known.tokens
    assert later.tokens == siblings[0].tokens


async def test_a_small_memory_evicts_and_stays_right(model):
    per_token = 3 * 2 * 2 * 16 * 4
    engine = LocalEngine(model, dtype="float32", slots=8, memory_gb=per_token * 256 * 3 / 2**30)
    prompts = [prompt_of(30 + 17 * i, i % 5) for i in range(12)]
    turns = await asyncio.gather(*(write(engine, p, max_tokens=20, seed=i) for i, p in enumerate(prompts)))
    for prompt, turn in zip(prompts, turns, strict=True):
        agrees(model, prompt, turn)
    slots = engine.lanes[0].decoder.slots
    assert slots.store.numel() * 4 <= slots.memory
    with pytest.raises(EngineError, match="do not fit"):
        await write(LocalEngine(model, dtype="float32", memory_gb=per_token * 128 / 2**30), prompts[-1], max_tokens=20)


async def test_weights_change_in_the_middle_of_a_turn(make_model):
    old, new = make_model(seed=0), make_model(seed=1)
    engine = LocalEngine(old, dtype="float32")
    prompt = prompt_of(40)
    stream = engine.sample(prompt, SamplingParams(max_tokens=60, temperature=0.0, head=10))
    first = await anext(stream)
    await engine.update_weights(Weights(1, new.state_dict()))
    chunks = [first] + [c async for c in stream]
    by_old = [t for c in chunks if c.version == 0 for t in c.tokens]
    assert len(by_old) < 60 and chunks[-1].version == 1
    _, _, logits = plain(old, prompt, by_old)
    assert by_old == logits.argmax(-1).tolist()
    fresh = await write(engine, prompt, max_tokens=20, temperature=0.0)
    agrees(new, prompt, fresh, temperature=0.0)
    assert engine.stats.reused_tokens == 0, "keys of older weights are not reused"
    await engine.close()


async def test_weights_from_a_folder_and_wrong_weights(make_model, tmp_path):
    old, new = make_model(seed=0), make_model(seed=1)
    new.save_pretrained(tmp_path)
    engine = LocalEngine(old, dtype="float32")
    await engine.update_weights(Weights(3, tmp_path))
    turn = await write(engine, prompt_of(20), max_tokens=10, seed=1)
    agrees(new, prompt_of(20), turn)
    with pytest.raises(EngineError, match=r"lack 'model\.embed_tokens\.weight'"):
        await engine.update_weights(Weights(4, {"base_model.lora_A": torch.zeros(1)}))
    with pytest.raises(EngineError, match="shape"):
        await engine.update_weights(Weights(4, make_model(hidden_size=96, head_dim=32).state_dict()))
    assert engine.version == 3
    agrees(new, prompt_of(20), await write(engine, prompt_of(20), max_tokens=10, seed=1))


async def test_the_learners_settings_do_not_reach_sampling(make_model):
    model = make_model(attention_dropout=0.5)
    calls, plain_forward = [], model.forward
    model.forward = lambda *a, **k: calls.append(1) or plain_forward(*a, **k)
    engine = LocalEngine(model, dtype="float32")
    model.train()
    model.set_attn_implementation("eager")
    model.register_forward_hook(lambda *a: calls.append(1))
    turn = await write(engine, prompt_of(30), max_tokens=10, seed=1)
    assert model.training and model.config._attn_implementation == "eager" and not calls
    agrees(model.eval(), prompt_of(30), turn)
    assert len(calls) == 2, "the wrapper and the hook, by the plain forward of this test alone"
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("deterministic", [False, True])
async def test_a_failing_forward_reaches_every_live_request_and_the_engine_recovers(model, deterministic):
    engine = LocalEngine(model, dtype="float32", deterministic=deterministic)
    network = engine.lanes[0].decoder.network
    good, count = network.forward, 0

    def dies(*arguments):
        nonlocal count
        count += 1
        if count == 5:
            raise RuntimeError("out of memory")
        return good(*arguments)

    network.forward = dies
    results = await asyncio.gather(
        *(write(engine, prompt_of(20, i), max_tokens=30, seed=i) for i in range(4)), return_exceptions=True
    )
    assert all(isinstance(r, EngineError) and "out of memory" in str(r) for r in results)
    assert engine.stats.failures == 1
    agrees(model, prompt_of(20), await write(engine, prompt_of(20), max_tokens=10, seed=1))


async def test_logits_that_are_no_numbers_are_an_engine_error(make_model):
    model = make_model()
    engine = LocalEngine(model, dtype="float32")
    broken = {k: v * float("nan") for k, v in model.state_dict().items()}
    await engine.update_weights(Weights(1, broken))
    with pytest.raises(EngineError, match="not finite"):
        await write(engine, prompt_of(5), max_tokens=5)


async def test_the_event_loop_is_never_blocked(model):
    engine = LocalEngine(model, dtype="float32")
    network, threads = engine.lanes[0].decoder.network, set()
    good = network.forward

    def watched(*arguments):
        threads.add(threading.get_ident())
        return good(*arguments)

    network.forward = watched
    await asyncio.gather(*(write(engine, prompt_of(20, i), max_tokens=5, seed=i) for i in range(4)))
    assert len(threads) == 1 and threading.get_ident() not in threads


def test_one_engine_serves_several_event_loops(model):
    engine = LocalEngine(model, dtype="float32")
    prompt = prompt_of(20)
    first = asyncio.run(write(engine, prompt, max_tokens=10, seed=1))

    async def left_alone():
        await anext(engine.sample(prompt, SamplingParams(max_tokens=300, head=1)))

    asyncio.run(left_alone())
    assert asyncio.run(write(engine, prompt, max_tokens=10, seed=1)).tokens == first.tokens


async def test_requests_beyond_the_slots_wait(model):
    engine = LocalEngine(model, dtype="float32", slots=2)
    most = 0

    async def watch():
        nonlocal most
        while True:
            most = max(most, len(engine.lanes[0].decoder.live))
            await asyncio.sleep(0)

    watcher = asyncio.create_task(watch())
    turns = await asyncio.gather(*(write(engine, prompt_of(10, i), max_tokens=8, seed=i) for i in range(9)))
    watcher.cancel()
    assert most == 2 and all(len(t.tokens) == 8 for t in turns)


def test_models_that_cannot_be_sampled_say_why(make_model):
    with pytest.raises(ConfigError, match=r"window.*max_tokens_per_slot to at most 32"):
        LocalEngine(make_model("mistral", sliding_window=32), dtype="float32")
    LocalEngine(make_model("mistral", sliding_window=32), dtype="float32", max_tokens_per_slot=32)
    with pytest.raises(ConfigError, match="longer than the model's context"):
        LocalEngine(make_model(), max_tokens_per_slot=1024)
    with pytest.raises(ConfigError, match="float32"):
        LocalEngine(make_model(), dtype="bfloat16", deterministic=True)


async def test_stop_strings_need_a_tokenizer(model):
    with pytest.raises(EngineError, match="tokenizer"):
        await write(LocalEngine(model), [5], max_tokens=3, stop=("x",))


async def test_closing_waits_for_the_step_and_ends_what_waits(model):
    engine = LocalEngine(model, dtype="float32", slots=1)
    tasks = [asyncio.create_task(write(engine, prompt_of(5, i), max_tokens=400, seed=i)) for i in range(3)]
    await until(lambda: engine.lanes[0].decoder.busy)
    await engine.close()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(r, EngineError) for r in results)


async def test_rest_gives_the_memory_back(model, tokenizer):
    engine = LocalEngine(model, tokenizer, dtype="float32", slots=16)
    slots = engine.lanes[0].decoder.slots
    for _ in range(2):
        await asyncio.gather(*(write(engine, prompt_of(30, seed), max_tokens=5, seed=seed) for seed in range(8)))
        held = slots.store.shape
        assert slots.store.numel() > 0
        await engine.sleep()
        assert slots.store.numel() == 0 and not slots.rows
    await write(engine, prompt_of(5), max_tokens=1)
    assert slots.store.shape == held  # as much as before, in one piece
    stream = engine.sample(prompt_of(30), SamplingParams(max_tokens=200, seed=1, head=1))
    await anext(stream)
    await stream.aclose()
    await engine.sleep()  # also right after a request was cancelled
    assert slots.store.numel() == 0
    await engine.close()


# --- lanes


async def in_tree(engine, tree, prompt, **params):
    return [c async for c in engine.sample(prompt, SamplingParams(tree=tree, **params))]


async def test_lanes_compute_what_the_model_computes_and_a_tree_stays_in_its_own(model):
    engine = LocalEngine(model, dtype="float32", lanes=3, slots=6)
    prompts = [prompt_of(50 + number, number) for number in range(9)]
    turns = await asyncio.gather(
        *(
            in_tree(engine, f"tree {number}", prompt, max_tokens=12, seed=number)
            for number, prompt in enumerate(prompts)
        )
    )
    for prompt, chunks in zip(prompts, turns, strict=True):
        tokens = [t for c in chunks for t in c.tokens]
        logp, _, _ = plain(model, prompt, tokens)
        torch.testing.assert_close(torch.tensor([x for c in chunks for x in c.logprobs]), logp, atol=2e-4, rtol=0)
    assert [lane.decoder.stats.requests for lane in engine.lanes] == [3, 3, 3], (
        "new trees go to the lane with the fewest requests"
    )
    computed = engine.stats.prefill_tokens
    assert computed == sum(map(len, prompts)) and engine.stats.decode_tokens == 9 * 12
    again = [p + [t for c in chunks for t in c.tokens] for p, chunks in zip(prompts, turns, strict=True)]
    await asyncio.gather(
        *(in_tree(engine, f"tree {number}", p, max_tokens=4, seed=1) for number, p in enumerate(again))
    )
    assert engine.stats.prefill_tokens - computed == 9, "a tree finds its own prefix: its last token alone is computed"
    await engine.close()


async def test_all_lanes_get_new_weights_at_one_moment(make_model):
    old, new = make_model(seed=0), make_model(seed=1)
    engine = LocalEngine(old, dtype="float32", lanes=2, slots=4)
    prompts = [prompt_of(30, number) for number in range(2)]
    streams = [
        engine.sample(prompt, SamplingParams(tree=str(number), max_tokens=60, temperature=0.0, head=10))
        for number, prompt in enumerate(prompts)
    ]
    first = [await anext(stream) for stream in streams]
    await asyncio.gather(
        engine.update_weights(Weights(1, new.state_dict())), engine.update_weights(Weights(2, new.state_dict()))
    )
    assert [lane.decoder.version for lane in engine.lanes] == [2, 2] and engine.version == 2
    for prompt, head, stream in zip(prompts, first, streams, strict=True):
        chunks = [head] + [c async for c in stream]
        by_old = [t for c in chunks if c.version == 0 for t in c.tokens]
        assert by_old == plain(old, prompt, by_old)[2].argmax(-1).tolist() and chunks[-1].version == 2
        fresh = await write(engine, prompt, max_tokens=8, temperature=0.0)
        agrees(new, prompt, fresh, temperature=0.0)
    await engine.close()


async def test_weights_that_do_not_fit_leave_every_lane_working(make_model):
    model = make_model(seed=0)
    engine = LocalEngine(model, dtype="float32", lanes=2, slots=4)
    with pytest.raises(EngineError, match="lack"):
        await engine.update_weights(Weights(1, {}))
    for tree in ("a", "b"):
        assert sum(len(c.tokens) for c in await in_tree(engine, tree, prompt_of(20), max_tokens=5)) == 5
    await engine.close()


async def test_threads_are_shared_out_among_lanes_and_stay_what_they_were_elsewhere(model):
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        engine = LocalEngine(model, dtype="float32", slots=64)
        assert len(engine.lanes) == 4 and torch.get_num_threads() == 4
        assert [(await lane.compute(torch.get_num_threads))[0] for lane in engine.lanes] == [1, 1, 1, 1]
        assert await asyncio.to_thread(torch.get_num_threads) == 4
        assert len(LocalEngine(model, dtype="float32", slots=20).lanes) == 1
        assert len(LocalEngine(model, deterministic=True).lanes) == 1
        await engine.close()
    finally:
        torch.set_num_threads(before)
