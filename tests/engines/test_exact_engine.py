"""The deterministic engine: the same bits whatever came before, beside and in which order."""

import asyncio
from random import Random

import pytest
import torch
from engine_contract import write

from arpo.engines.local import LocalEngine
from arpo.errors import EngineError


def words(length, seed):
    return torch.randint(3, 700, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


async def tree(engine, task, random=None):
    """Two roots of `task`, after each a tip with a probe and two siblings, which go on once more. `random`: in any
    timing."""
    prompt, found = words(30 + 41 * task, task), {}

    async def pause():
        if random is not None:
            await asyncio.sleep(random.random() * 0.02)

    async def grow(place, context, depth):
        await pause()
        turn = await write(engine, context, max_tokens=5 + 9 * depth, seed=hash((task, *place)), head=3)
        found[place] = (turn.tokens, turn.logprobs, turn.entropies)
        if depth < 2:
            onward = context + turn.tokens + words(9 + 30 * depth, len(place))
            count = 3 if depth == 0 else 1
            jobs = [grow((*place, i), onward, depth + 1) for i in range(count)]
            if random is None:
                for components in jobs:
                    await components
            else:
                random.shuffle(jobs)
                await asyncio.gather(*jobs)

    for root in (0, 1):
        await grow((root,), prompt, 0)
    return found


@pytest.mark.slow
async def test_same_bits_in_any_order_and_cache_state(make_model):
    model = make_model("qwen2")
    expected = [await tree(LocalEngine(model, deterministic=True), task) for task in range(3)]
    for seed, (slots, prefill) in enumerate([(64, 64), (2, 1)]):
        random = Random(seed)
        engine = LocalEngine(model, deterministic=True, slots=slots, prefill=prefill)
        if seed:
            await asyncio.gather(*(write(engine, words(60 + i, i), max_tokens=9, seed=i) for i in range(5)))
        together = await asyncio.gather(*(tree(engine, task, random) for task in range(3)))
        assert together == expected
        again = await asyncio.gather(*(tree(engine, task, random) for task in range(3)))
        assert again == expected, "with everything known already"


async def test_a_full_memory_is_an_error_and_forgetting_helps(make_model):
    per_token = 3 * 2 * 2 * 16 * 4
    engine = LocalEngine(make_model(), deterministic=True, memory_gb=per_token * 64 * 2.5 / 2**30)
    first = await write(engine, words(20, 1), max_tokens=5, seed=1)
    await write(engine, words(20, 2), max_tokens=5, seed=1)
    with pytest.raises(EngineError, match="evicts no prefix"):
        await write(engine, words(20, 3), max_tokens=5, seed=1)
    await engine.forget()
    await write(engine, words(20, 3), max_tokens=5, seed=1)
    assert (await write(engine, words(20, 1), max_tokens=5, seed=1)).tokens == first.tokens
