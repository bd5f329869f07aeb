"""How fast this machine trains and samples a model, measured in seconds on random tokens.

Knows a learner and an engine. Refuses to know what follows from it (arpo.training.plan).
"""

import asyncio
import time
from array import array
from random import Random

from arpo.core.credit import CreditedTree, ScoredTree
from arpo.core.score import Score
from arpo.core.tree import Prompt, Role, RolloutTree, StopReason, Turn
from arpo.engines import Engine, SamplingParams
from arpo.learner.local import Learner
from arpo.recipe.train import PlanConfig

_TRAINED = (4, 160)  # trajectories of a pass, and tokens of each, of which a quarter are the policy's
_SAMPLED = (16, 96, 16)  # requests at once, tokens of a prompt, tokens of a turn


async def measure_speed(learner: Learner, engine: Engine, vocabulary: int) -> PlanConfig:
    """Tokens a second through `learner` and `engine`, which are left as they were. `vocabulary`: tokens that the model knows."""
    random = Random("speed")

    def tokens(count: int) -> list[int]:
        return [random.randrange(3, vocabulary) for _ in range(count)]

    paths, length = _TRAINED
    trees = [path_of_tokens(tokens(length)) for _ in range(paths)]
    first_s, then_s = (learner.time_pass(trees) for _ in range(2))  # the first takes memory
    trained_s = min(first_s, then_s)
    requests, prompt, turn = _SAMPLED
    await asyncio.gather(*(_turn(engine, tokens(8), 2, str(number)) for number in range(requests)))  # warms up
    began = time.perf_counter()
    await asyncio.gather(*(_turn(engine, tokens(prompt), turn, str(number)) for number in range(requests)))
    sampled_s = time.perf_counter() - began
    await engine.rest()
    return PlanConfig(
        trained_tokens_per_s=float(f"{paths * length / trained_s:.3g}"),
        sampled_tokens_per_s=float(f"{requests * (prompt + turn) / sampled_s:.3g}"),
    )


async def _turn(engine: Engine, prompt: list[int], num_tokens: int, tree: str) -> None:
    async for _ in engine.sample(prompt, SamplingParams(max_tokens=num_tokens, seed=1, tree=f"speed {tree}")):
        pass


def path_of_tokens(tokens: list[int]) -> CreditedTree:
    """A trajectory without calls that has these tokens."""
    cut = 3 * len(tokens) // 4
    own = array("i", tokens[cut:])
    zeros = array("f", bytes(4 * len(own)))
    tree = RolloutTree("speed", 0, Prompt(tokens=array("i", tokens[:cut])))
    tree.grow(Turn(place=(0,), role=Role.ROOT, tokens=own, logprobs=zeros, entropies=zeros))
    tree.end((0,), StopReason.FINISHED)
    return CreditedTree(ScoredTree(tree, {(0,): Score(reward=1.0, accuracy=1.0)}), {(0,): 1.0}, {((0,), (0,)): 1.0})
