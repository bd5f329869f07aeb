"""The atlas: a small world of real facts to search, with questions whose golds and gold passages are exact.

It covers countries, cities, borders and chemical elements (see `atlas_data/SOURCES.md`). Knows passages, splits, the
mix of families and the oracle's traces. Refuses to know models and tools: any search index can take `documents()`.

The splits share no entities: a country, city or element that is the subject, an intermediate step or the answer of a
validation or test question is none of these in a training question or trace. (A training search may return passages
about it.)

>>> task = tasks("test")[0]
>>> task.metadata["family"] in FAMILIES and len(task.answers) == 1
True
"""

from collections.abc import Mapping, Sequence
from functools import cache
from random import Random

from arpo.errors import ConfigError, nearest
from arpo.tasks import Task
from arpo.tasks import atlas_questions as questions
from arpo.tasks.atlas_oracle import solve
from arpo.tasks.atlas_questions import AtlasQuestion
from arpo.tasks.atlas_world import world
from arpo.tasks.traces import Trace

FAMILIES = tuple(questions.FAMILIES)
COUNTS = {"train": 1200, "validation": 60, "test": 150}  # questions of each family
SPLITS = tuple(COUNTS)


def documents() -> list[dict[str, str]]:
    """All passages: `{"title", "text"}`. Titles are unique; every text is one self-contained sentence."""
    return [{"title": fact.title, "text": fact.text} for fact in world().facts.values()]


def tasks(split: str, families: Sequence[str] | Mapping[str, float] | None = None) -> list[Task]:
    """Tasks of a split ("train", "validation", "test") in a fixed order, mixed so that any prefix holds every family.

    `families` selects some of `FAMILIES`, with equal weights or a weight for each. The list ends when one of them runs
    out, so that the mix stays constant. Ids do not depend on the selection. Raises ConfigError for an unknown split,
    family or weight.
    """
    return [task for task, _ in _mixed(split, families)]


def traces(
    split: str = "train",
    limit: int | None = None,
    seed: int = 0,
    families: Sequence[str] | Mapping[str, float] | None = None,
) -> list[Trace]:
    """The oracle's traces for the first `limit` tasks. `seed` varies their wording, not the tasks."""
    return [solve(task, question, seed) for task, question in _mixed(split, families)[:limit]]


def _mixed(split: str, families: Sequence[str] | Mapping[str, float] | None) -> list[tuple[Task, AtlasQuestion]]:
    if split not in SPLITS:
        raise ConfigError("unknown split of atlas", where="split", value=split, hint=nearest(str(split), SPLITS))
    questions = _questions(split)
    if families is None:
        return list(questions)
    weights = _weights(families)
    queues = {family: [pair for pair in questions if pair[1].family == family] for family in weights}
    taken = dict.fromkeys(weights, 0)
    mixed: list[tuple[Task, AtlasQuestion]] = []
    while True:
        family = min(weights, key=lambda name: ((taken[name] + 0.5) / weights[name], name))
        if taken[family] == len(queues[family]):
            return mixed
        mixed.append(queues[family][taken[family]])
        taken[family] += 1


def _weights(families: Sequence[str] | Mapping[str, float]) -> dict[str, float]:
    """The families with a weight above 0."""
    if isinstance(families, str) or not isinstance(families, Mapping | Sequence):
        raise ConfigError("should be a list of families, or weights", where="options.families", value=families)
    weights = dict(families) if isinstance(families, Mapping) else {str(name): 1.0 for name in families}
    for name, weight in weights.items():
        if name not in FAMILIES:
            raise ConfigError(
                "unknown family of atlas", where="options.families", value=name, hint=nearest(str(name), FAMILIES)
            )
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
            raise ConfigError(
                "a family's weight is a number of 0 or more", where=f"options.families.{name}", value=weight
            )
    positive = {name: float(weight) for name, weight in weights.items() if weight > 0}
    if not positive:
        raise ConfigError(
            "no family has a weight above 0",
            where="options.families",
            value=families,
            hint=f"pick some of: {', '.join(FAMILIES)}",
        )
    return positive


@cache
def _questions(split: str) -> tuple[tuple[Task, AtlasQuestion], ...]:
    """Every question of a split, shuffled once. The position in this order is the task's id."""
    drawn: list[AtlasQuestion] = []
    for family in FAMILIES:
        drawn += questions.draw(world(), split, family, COUNTS[split], Random(f"atlas/{split}/{family}"))
    Random(f"atlas/{split}/order").shuffle(drawn)
    return tuple((_task(f"atlas/{split}/{number:04d}", question), question) for number, question in enumerate(drawn))


def _task(name: str, question: AtlasQuestion) -> Task:
    metadata = {
        "family": question.family,
        "hops": question.hops,
        "gold_passages": tuple(fact.title for lookup in question.lookups for fact in lookup.facts),
        "places": tuple(
            dict.fromkeys(name for name in (*question.on_the_way, question.answer) if name in world().splits)
        ),
    }
    message = {"role": "user", "content": question.text}
    return Task(id=name, messages=(message,), answers=(question.answer,), source="atlas", metadata=metadata)
