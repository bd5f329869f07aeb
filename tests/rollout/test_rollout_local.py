"""The whole rollout on a real model: the deterministic local engine gives the same trees bit for bit, whoever comes
first."""

import asyncio
from array import array
from dataclasses import replace
from random import Random

import pytest

from arpo.chat import ParsedTurn
from arpo.core import Call
from arpo.engines.local import LocalEngine
from arpo.rollout.agent import Agent
from small_world import Search, config, rollouts, task, timeless
from tiny_project import tiny_llama

VOCAB = 64


class EveryOther:
    """A format for a model that has learned nothing: a turn ends with one of eight tokens, four of them mean a call."""

    stop: tuple[str, ...] = ()
    stop_tokens = tuple(range(8))

    def render(self, task, tools):
        return array("i", [30 + int(task.id[-1]), *range(40, 60)])

    def parse(self, tokens):
        text = self.text(tokens)
        calls = (Call(name="search", arguments={"query": text}),) if tokens[-1] in (0, 2, 4, 6) else ()
        return ParsedTurn(text=text, calls=calls, answer=None if calls else text)

    def observe(self, turn, outcomes, calls_left, message=None):
        return array("i", [9, 10 + len(turn.tokens) % 7, *turn.tokens[:5], 11]), tuple(outcomes)

    def text(self, tokens):
        return " ".join(map(str, tokens))


class Jittered:
    """Passes requests on after a while, so that they meet in other batches and find other prefixes."""

    def __init__(self, engine, seed):
        self.engine, self.random = engine, Random(seed)

    async def sample(self, prompt, params):
        await asyncio.sleep(self.random.choice([0.0, 0.0, 0.005, 0.02]))
        async for chunk in self.engine.sample(prompt, params):
            yield chunk


@pytest.fixture(scope="module")
def model():
    pytest.importorskip("torch")
    return tiny_llama(vocab_size=VOCAB, initializer_range=0.3, tie_word_embeddings=False).eval()


async def collected(model, rules, timing, in_flight, slots):
    engine = LocalEngine(model, slots=slots, deterministic=True, memory_gb=0.2)
    random = Random(timing)
    tool = Search(latency=lambda: random.choice([0.0, 0.01]), reply=lambda query: query)
    form = EveryOther()
    who = Agent(engine=Jittered(engine, timing), tools=(tool,), format=lambda tools: form, vocab_size=VOCAB)
    try:
        return await rollouts(who, rules, *(task(n) for n in range(3)), in_flight=in_flight)
    finally:
        await engine.close()


@pytest.mark.parametrize(
    ("rule", "roots"),
    [("paper", 2), *(pytest.param(*other, marks=pytest.mark.slow) for other in [("random", 3), ("aepo", "pilot")])],
)
async def test_same_trees_bit_for_bit_whatever_arrives_first(model, rule, roots):
    rules = config(rule=rule, roots=roots, leaves=6, head=3, turn_tokens=24, branch_tokens=200)
    runs = [await collected(model, rules, *how) for how in [(0, 1, 1), (1, 3, 8), (2, 2, 3)]]
    first, *others = [[timeless(one) for one in trees] for trees in runs]
    assert all(
        other == first for other in others
    )  # arrays compare value by value: tokens, log-probabilities, entropies
    trees = [one.grown.tree for one in runs[0]]
    assert sum(len(tree.observations) for tree in trees) >= 6  # the model does call
    assert any(len(place) > 1 and place[-1] for tree in trees for place in tree.turns)  # and forks
    assert all(one.grown.expansion.done and not one.grown.failures for one in runs[0])


async def test_a_sibling_differs_from_its_probe_and_shares_its_trunk(model):
    rules = config(rule="fixed", roots=2, leaves=4, head=3, turn_tokens=24, branch_tokens=200)
    for one in await collected(model, rules, 0, 3, 8):
        tree = one.grown.tree
        for tip in one.grown.expansion.decisions:
            said = [tuple(tree.turns[child].tokens) for child in tree.children(tip)]
            assert len(set(said)) == len(said)
        record = replace(one.grown.tree.prompt)
        assert all(branch.segments[0] == record for branch in tree.branches())
