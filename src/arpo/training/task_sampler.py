"""The order in which training takes its tasks, and how many of them a step takes.

Knows seeds and positions: the order is a pure function of them, so a resumed run goes on in it. A step never takes a
task twice: its draws are keyed by seed, step and task, so the second tree would be a copy of the first that counts as
evidence.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
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
    batches = config.dynamic_sampling.max_batches if config.dynamic_sampling else 1
    return min(config.tasks_per_step * batches, num_tasks)


def first_step(run: RunConfig, tasks: Sequence[Task]) -> list[Task]:
    """The tasks of the run's first step, in the order in which it takes them."""
    return list(in_order(tasks, run.seed, 0, run.train.tasks_per_step))


def in_order(tasks: Sequence[Task], seed: int, position: int, count: int, *, apart: int = 1) -> Iterator[Task]:
    """`count` tasks of the endless, seeded order, from `position` on (tasks taken before).

    Every epoch shows every task once, in an order of its own as far as `apart` allows: among any `apart` tasks in a row
    none comes twice, also where one epoch meets the next. Raises ValueError where there are fewer tasks than that.
    """
    if not 1 <= apart <= len(tasks):
        raise ValueError(f"of {len(tasks)} tasks, {apart} in a row cannot all differ")
    epoch, at = divmod(position, len(tasks))
    yield from (tasks[number] for number in islice(_numbers(len(tasks), seed, epoch, apart), at, at + count))


def _numbers(num_tasks: int, seed: int, epoch: int, apart: int) -> Iterator[int]:
    """The order from `epoch` on. Walks through the earlier ones, since the beginning of each depends on the end of the
    one before."""
    order: list[int] = []
    current = 0
    while True:
        shuffled = list(range(num_tasks))
        Random(f"{seed}/order/{current}").shuffle(shuffled)
        order = _kept_apart(shuffled, order, apart)
        if current >= epoch:
            yield from order
        current += 1


def _kept_apart(shuffled: list[int], before: Sequence[int], apart: int) -> list[int]:
    """`shuffled`, with those that stand at the end of `before` put off until they are `apart` places behind it.

    There is always one to take: of n, i are taken at place i and apart - 1 - i still barred, and apart is at most n.
    """
    last = before[len(before) - (apart - 1) :] if before else ()
    free_at = {number: place for place, number in enumerate(last, 1)}
    order: list[int] = []
    for place in range(len(last)):
        chosen = next(number for number in shuffled if free_at.get(number, 0) <= place)
        shuffled.remove(chosen)
        order.append(chosen)
    return order + shuffled
