"""The order in which training takes its tasks, and how many of them a step takes.

Knows seeds and positions: the order is a pure function of them, so a resumed run goes on in it. A step never takes a
task twice: its draws are keyed by seed, step and task, so the second tree would be a copy of the first that counts as
evidence.
"""

import itertools
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from random import Random

from arpo.errors import ConfigError
from arpo.recipe.run import RunConfig
from arpo.recipe.train import TrainConfig
from arpo.tasks import Task


def check_enough(config: TrainConfig, num_tasks: int) -> None:
    """Raises ConfigError where a step would have to take a task twice."""
    if num_tasks < config.tasks_per_step:
        raise ConfigError(
            f"a step takes {config.tasks_per_step} different tasks, and data.train has only {num_tasks}",
            where="train.tasks_per_step",
            value=config.tasks_per_step,
            hint="Lower it, or add training tasks",
        )


def max_tried(config: TrainConfig, num_tasks: int) -> int:
    """Tasks that one step tries at most: under dynamic sampling several times `tasks_per_step`, but no more than there
    are."""
    return min(config.tasks_per_step * (config.dynamic_sampling or 1), num_tasks)


def first_step(run: RunConfig, tasks: Sequence[Task]) -> list[Task]:
    """The tasks of the run's first step, in the order in which it takes them."""
    return list(in_order(tasks, run.seed, 0, run.train.tasks_per_step))


def in_order(tasks: Sequence[Task], seed: int, position: int, count: int, *, apart: int = 1) -> Iterator[Task]:
    """`count` tasks of the endless, seeded order, from `position` on (tasks taken before).

    Every epoch shows every task once, and among any `apart` tasks in a row none comes twice, also where one epoch meets
    the next. Raises ValueError where there are fewer tasks than that.
    """
    if not 1 <= apart <= len(tasks):
        raise ValueError(f"of {len(tasks)} tasks, {apart} in a row cannot all differ")
    epoch, at = divmod(position, len(tasks))
    numbers = chain.from_iterable(_epoch(len(tasks), seed, number, apart) for number in itertools.count(epoch))
    yield from (tasks[number] for number in islice(numbers, at, at + count))


def _epoch(num_tasks: int, seed: int, epoch: int, apart: int) -> list[int]:
    """The order of an epoch: the first one's, shuffled anew inside blocks of `num_tasks - apart + 1`.

    A task moves forward by less than a block, so it comes again after at least `apart` places, whatever the epochs
    before were.
    """
    order = list(range(num_tasks))
    Random(f"{seed}/order/0").shuffle(order)
    if epoch == 0:
        return order
    random, size = Random(f"{seed}/order/{epoch}"), num_tasks - apart + 1
    blocks = [order[start : start + size] for start in range(0, num_tasks, size)]
    for block in blocks:
        random.shuffle(block)
    return [number for block in blocks for number in block]
