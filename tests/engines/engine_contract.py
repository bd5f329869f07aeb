"""What every engine must do, whatever writes its tokens. A test class inherits it and gives `engine` and `prompt`;
where a network writes them, also `network` (float32) and `other`, a second one of the same shape."""

import asyncio
import math
from array import array
from dataclasses import dataclass

import pytest

from arpo.core.tree import FinishReason
from arpo.engines import Chunk, SamplingParams, Weights
from arpo.errors import EngineError


@dataclass
class Written:
    chunks: list[Chunk]

    @property
    def tokens(self) -> list[int]:
        return [t for c in self.chunks for t in c.tokens]

    @property
    def logprobs(self) -> list[float]:
        return [x for c in self.chunks for x in c.logprobs]

    @property
    def entropies(self) -> list[float]:
        return [x for c in self.chunks for x in c.entropies]

    @property
    def finish(self) -> FinishReason | None:
        return self.chunks[-1].finish


async def write(engine, prompt, **params) -> Written:
    """One whole turn."""
    return Written([chunk async for chunk in engine.sample(prompt, SamplingParams(**params))])


async def until(true, seconds=120.0):
    """Wait until `true()` holds."""
    end = asyncio.get_running_loop().time() + seconds
    while not true():
        assert asyncio.get_running_loop().time() < end, "it never came true"
        await asyncio.sleep(0.001)


def plain(network, prompt, tokens, temperature=1.0):
    """Log-probabilities [n] at `temperature`, entropies [n] at temperature 1 and logits [n, V] of `tokens` after
    `prompt`, by one forward without any cache."""
    import torch

    with torch.no_grad():
        logits = network(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1].float()
    logp = torch.log_softmax(logits / (temperature or 1.0), -1)
    at_one = torch.log_softmax(logits, -1)
    return (
        logp.gather(1, torch.tensor(list(tokens))[:, None])[:, 0].tolist(),
        (-(at_one.exp() * at_one).sum(-1)).tolist(),
        logits,
    )


def agrees(network, prompt, turn, temperature=1.0, tolerance=1e-4):
    """Whether a turn has the numbers of a plain forward: entropies exactly, or inside the interval that the engine
    states."""
    logprobs, entropies, _ = plain(network, prompt, turn.tokens, temperature)
    apart = max(abs(a - b) for a, b in zip(turn.logprobs, logprobs, strict=True))
    assert apart < tolerance
    if temperature not in (0.0, 1.0):
        return  # engines that bound entropies do so at the sampling temperature
    if turn.chunks[0].bounds is None:
        assert max(abs(a - b) for a, b in zip(turn.entropies, entropies, strict=True)) < 2 * tolerance
        return
    low, high = ([x for c in turn.chunks for x in c.bounds[side]] for side in (0, 1))
    for stated, exact, least, most in zip(turn.entropies, entropies, low, high, strict=True):
        assert least - 2 * tolerance <= exact <= most + 2 * tolerance
        assert stated == pytest.approx((least + most) / 2, abs=1e-5)


class EngineContract:
    @pytest.fixture
    def network(self):
        """The network that writes; None: none does."""
        return None

    @pytest.fixture
    def other(self):
        return None

    @pytest.fixture
    def long(self):
        """Tokens of a turn in the middle of which something happens."""
        return 200

    @pytest.fixture
    def many(self):
        """Turns at a time where each is compared with a plain forward."""
        return 16

    async def test_greedy_tokens_are_those_of_a_plain_forward(self, engine, prompt, network):
        if network is None:
            return
        for start in (0, 1, len(prompt) // 2, len(prompt) - 1):
            asked = prompt[start:]
            turn = await write(engine, asked, max_tokens=40, temperature=0.0)
            _, _, logits = plain(network, asked, turn.tokens)
            for token, row in zip(turn.tokens, logits, strict=True):
                first, second = row.topk(2).values
                assert token == row.argmax() or first - second < 1e-4  # a tie is excused
            agrees(network, asked, turn, 0.0)

    async def test_log_probabilities_and_entropies_are_those_of_a_plain_forward(self, engine, prompt, network, many):
        if network is None:
            return
        for temperature in (1.0, 0.7):
            turns = await asyncio.gather(
                *(write(engine, prompt[i % 4 :], max_tokens=30, temperature=temperature, seed=i) for i in range(many))
            )
            for i, turn in enumerate(turns):
                agrees(network, prompt[i % 4 :], turn, temperature)

    async def test_new_weights_write_what_comes_after_them(self, engine, prompt, network, other):
        if network is None:
            return
        await write(engine, prompt, max_tokens=20, seed=1)  # the old weights' prefix is known
        await engine.update_weights(Weights(1, other.state_dict()))
        turn = await write(engine, prompt, max_tokens=40, seed=1)
        assert {c.version for c in turn.chunks} == {1}
        agrees(other, prompt, turn)
        await engine.update_weights(Weights(2, network.state_dict()))
        agrees(network, prompt, await write(engine, prompt, max_tokens=40, seed=1))

    async def test_a_prompt_that_ends_inside_a_character_is_continued(self, engine, tokenizer, network):
        whole = tokenizer.encode("Là-bas, l'été: 東京 🙂", add_special_tokens=False)
        cuts = range(1, len(whole) + 1)
        asked = (write(engine, whole[:cut], max_tokens=3, temperature=0.0, stop=("🙂 never",)) for cut in cuts)
        for cut, turn in zip(cuts, await asyncio.gather(*asked), strict=True):
            assert len(turn.tokens) == 3
            if network is not None:
                agrees(network, whole[:cut], turn, 0.0)

    async def test_a_turn_comes_in_chunks_and_only_the_last_one_ends_it(self, engine, prompt):
        turn = await write(engine, prompt, max_tokens=40, seed=3, head=5)
        assert [c.finish is None for c in turn.chunks[:-1]] == [True] * (len(turn.chunks) - 1)
        assert turn.finish is FinishReason.LENGTH and len(turn.tokens) == 40
        for chunk in turn.chunks:
            assert isinstance(chunk.tokens, array) and chunk.tokens.typecode == "i"
            assert chunk.logprobs.typecode == chunk.entropies.typecode == "f"
            assert len(chunk.tokens) == len(chunk.logprobs) == len(chunk.entropies) > 0
        assert all(x <= 1e-6 for x in turn.logprobs)
        assert all(0 <= h <= math.log(100_000) for h in turn.entropies)

    async def test_the_head_arrives_before_the_end(self, engine, prompt):
        stream = engine.sample(prompt, SamplingParams(max_tokens=40, seed=3, head=7))
        first = await anext(stream)
        assert len(first.tokens) == 7 and first.finish is None
        rest = [c async for c in stream]
        assert 7 + sum(len(c.tokens) for c in rest) == 40

    async def test_a_head_longer_than_the_turn_comes_with_the_end(self, engine, prompt):
        turn = await write(engine, prompt, max_tokens=4, seed=3, head=20)
        assert len(turn.chunks) == 1 and len(turn.tokens) == 4

    @pytest.mark.parametrize("count", [1, 2, 16, 17, 33])
    async def test_max_tokens_is_exact(self, engine, prompt, count):
        turn = await write(engine, prompt, max_tokens=count, seed=1)
        assert len(turn.tokens) == count and turn.finish is FinishReason.LENGTH

    async def test_a_stop_token_ends_the_turn_and_is_kept_wherever_it_comes(self, engine, prompt):
        free = (await write(engine, prompt, max_tokens=30, temperature=0.0)).tokens
        stops = list(dict.fromkeys(free))
        asked = (write(engine, prompt, max_tokens=30, temperature=0.0, stop_tokens=(token,)) for token in stops)
        for token, turn in zip(stops, await asyncio.gather(*asked), strict=True):
            assert turn.tokens == free[: free.index(token) + 1]
            assert turn.finish is FinishReason.STOP

    async def test_a_stop_string_ends_the_turn_however_tokens_split_it(self, engine, prompt, spell):
        free = (await write(engine, prompt, max_tokens=30, temperature=0.0)).tokens
        ends, text = [], b""
        for token in free:
            text += spell(token)
            ends.append(len(text))
        pieces = (text[start : start + length] for start in range(0, len(text), 3) for length in (1, 2, 5, 11))
        stops = list(dict.fromkeys(piece for piece in pieces if readable(piece)))
        asked = (
            write(engine, prompt, max_tokens=30, temperature=0.0, stop=("never said", stop.decode())) for stop in stops
        )
        for stop, turn in zip(stops, await asyncio.gather(*asked), strict=True):
            found = text.find(stop) + len(stop)
            assert turn.tokens == free[: next(i for i, end in enumerate(ends) if end >= found) + 1]
            assert turn.finish is FinishReason.STOP
        assert len(stops) >= 5

    async def test_a_stop_string_in_the_prompt_does_not_end_the_turn(self, engine, prompt, spell):
        last = spell(prompt[-1])
        turn = await write(engine, prompt, max_tokens=1, temperature=0.0, stop=(last.decode() + "\x00",))
        assert turn.finish is FinishReason.LENGTH

    async def test_closing_the_iterator_cancels_the_request_and_no_other(self, engine, prompt, live, long):
        stream = engine.sample(prompt, SamplingParams(max_tokens=long, seed=1, head=1))
        await anext(stream)
        other = asyncio.create_task(write(engine, prompt, max_tokens=20, seed=2))
        await asyncio.sleep(0)
        await stream.aclose()
        assert len((await other).tokens) == 20
        await until(lambda: live() == 0)

    async def test_a_cancelled_task_frees_its_request(self, engine, prompt, live, long):
        task = asyncio.create_task(write(engine, prompt, max_tokens=long, seed=1))
        await until(lambda: live() == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: live() == 0)

    async def test_64_requests_at_once(self, engine, prompt):
        turns = await asyncio.gather(
            *(write(engine, prompt[: 1 + i % len(prompt)], max_tokens=1 + i % 10, seed=i) for i in range(64))
        )
        assert [len(t.tokens) for t in turns] == [1 + i % 10 for i in range(64)]

    async def test_seeds_tell_requests_apart(self, engine, prompt):
        turns = [await write(engine, prompt, max_tokens=30, seed=seed) for seed in (1, 2, 1)]
        assert turns[0].tokens == turns[2].tokens
        assert (turns[0].tokens, turns[0].entropies) != (turns[1].tokens, turns[1].entropies)

    async def test_what_cannot_be_answered_is_an_engine_error(self, engine, prompt, context):
        with pytest.raises(EngineError, match="empty prompt"):
            await write(engine, [], max_tokens=3)
        with pytest.raises(EngineError, match="max_tokens is 0"):
            await write(engine, prompt, max_tokens=0)
        long = (list(prompt) * context)[: context - 3]
        with pytest.raises(EngineError, match=f"{context - 3} tokens and max_tokens 4 make {context + 1}.*{context}"):
            await write(engine, long, max_tokens=4)
        assert len((await write(engine, prompt, max_tokens=3)).tokens) == 3

    async def test_tokens_carry_the_version_that_wrote_them(self, engine, prompt, state, long):
        stream = engine.sample(prompt, SamplingParams(max_tokens=long, seed=3, head=5))
        first = await anext(stream)
        await engine.update_weights(Weights(7, state))
        rest = [c async for c in stream]
        assert first.version == 0 and rest[-1].version == 7
        assert len(first.tokens) + sum(len(c.tokens) for c in rest) == long
        versions = [c.version for c in rest]
        assert versions == sorted(versions)

    async def test_an_engine_that_rested_goes_on_as_before(self, engine, prompt):
        before = [await write(engine, prompt, max_tokens=20, seed=seed) for seed in (1, 2)]
        stream = engine.sample(prompt, SamplingParams(max_tokens=40, seed=3, head=5))
        await anext(stream)
        await engine.sleep()  # with a request in flight, which must not notice
        rest = [c async for c in stream]
        assert sum(len(c.tokens) for c in rest) == 35
        await engine.sleep()
        after = [await write(engine, prompt, max_tokens=20, seed=seed) for seed in (1, 2)]
        assert [t.tokens for t in after] == [t.tokens for t in before]

    async def test_a_closed_engine_says_so(self, engine, prompt, long):
        stream = engine.sample(prompt, SamplingParams(max_tokens=long, seed=1, head=1))
        await anext(stream)
        await engine.close()
        with pytest.raises(EngineError, match="closed"):
            _ = [c async for c in stream]
        with pytest.raises(EngineError, match="closed"):
            await write(engine, prompt, max_tokens=1)
        await engine.close()


def readable(text: bytes) -> bool:
    try:
        return bool(text.decode())
    except UnicodeDecodeError:
        return False
