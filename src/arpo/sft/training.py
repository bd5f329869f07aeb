"""The cold start: supervised fine-tuning on traces, so that the policy knows the protocol before it explores.

Knows traces and updates. Refuses to know where the result is kept (arpo.sft.cache).
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from random import Random

from arpo.core.credit import CreditedTree
from arpo.errors import ArpoError, FormatError
from arpo.files import expanded
from arpo.learner.local import BAD_UPDATES, Learner
from arpo.recipe.train import ColdStartConfig
from arpo.rollout.agent import Agent
from arpo.rollout.config import RolloutConfig
from arpo.runs.shutdown import is_stopping
from arpo.sft.traces import as_credit, trace_to_tree
from arpo.tasks.data import DataConfig
from arpo.tasks.traces import Trace, load_traces

Watch = Callable[[int, int, dict[str, float]], None]  # update, updates in all, metrics


def read_traces(config: ColdStartConfig, data: DataConfig) -> list[Trace]:
    """The traces that a recipe names, in a seeded order. Raises ConfigError, FormatError."""
    if config.traces == "atlas":
        from arpo.tasks import atlas

        return atlas.traces("train", limit=config.num_traces, seed=config.seed, families=data.families)
    traces = load_traces(expanded(config.traces))
    Random(f"{config.seed}/traces").shuffle(traces)
    return traces[: config.num_traces]


async def traces_to_trees(agent: Agent, traces: Sequence[Trace], rollout: RolloutConfig, seed: int) -> list[CreditedTree]:
    """The traces as trees to be trained on, their calls run by the real tools. Raises FormatError where there is none."""
    if not traces:
        raise FormatError("there is no trace to learn from")
    return [as_credit(await trace_to_tree(agent, trace, rollout, seed)) for trace in traces]


async def cold_start(
    learner: Learner, trees: Sequence[CreditedTree], config: ColdStartConfig, watch: Watch | None = None, *, done: int = 0
) -> None:
    """Train on `trees` in batches, reshuffled each epoch; it can be cancelled at any layer. `done` updates were made before. Raises
    ArpoError where the loss is not finite three times in a row, or in the end, or the weights are not."""
    updates, size = config.num_updates(len(trees)) - done, min(config.batch, len(trees))
    order = islice(_endless(trees, config.seed), done * size, None)
    failed = 0
    for number in range(1, updates + 1):
        await asyncio.sleep(0)  # where Ctrl-C is heard
        metrics = learner.imitate(list(islice(order, size)), is_stopping)
        if not metrics:
            raise asyncio.CancelledError
        failed = failed + 1 if metrics["skipped_updates"] else 0
        if failed == BAD_UPDATES:
            raise ArpoError(
                f"cold start: the loss was not finite in {failed} updates in a row (update {number}): lower cold_start.lr"
            )
        if watch:
            watch(number, updates, metrics)
    if failed or learner.broken():  # what is kept in the cache would be met again and again
        raise ArpoError("cold start: its last update has no finite loss or weights: lower cold_start.lr")


def _endless(trees: Sequence[CreditedTree], seed: int) -> Iterator[CreditedTree]:
    for epoch in count():
        order = list(trees)
        Random(f"{seed}/cold start/{epoch}").shuffle(order)
        yield from order
