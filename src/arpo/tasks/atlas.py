"""The atlas: a small real world to search, with questions whose golds and gold passages are exact.

Countries, cities, borders and chemical elements (see `atlas_data/SOURCES.md`). Knows passages, splits, the mix of families and
the oracle's traces. Refuses to know models and tools: `documents()` go into any search index.

Splits are disjoint in places: a country, city or element that a validation or test question has as its subject, on the way or
as its answer, is never subject, way or answer of a training question or trace. (A training search may return passages on it.)

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
    """All passages: `{"title", "text"}`, titles unique, each text one sentence that can stand alone."""
    return [{"title": fact.title, "text": fact.text} for fact in world().facts.values()]


def tasks(split: str, families: Sequence[str] | Mapping[str, float] | None = None) -> list[Task]:
    """Tasks of a split ("train", "validation", "test") in a fixed order, mixed so that any prefix holds every family.

    `families` picks some of `FAMILIES`, alike or with a weight each; the list then ends where one of them runs out, so that the
    mix holds to the end. Ids stay the same whatever is picked. Raises ConfigError for an unknown split, family or weight.
    """
    return [task for task, _ in _mixed(split, families)]


def traces(
    split: str = "train",
    limit: int | None = None,
    seed: int = 0,
    families: Sequence[str] | Mapping[str, float] | None = None,
) -> list[Trace]:
    """The oracle's traces for the first `limit` tasks; `seed` varies the words, not the tasks."""
    return [solve(task, question, seed) for task, question in _mixed(split, families)[:limit]]


def _mixed(split: str, families: Sequence[str] | Mapping[str, float] | None) -> list[tuple[Task, AtlasQuestion]]:
    if split not in SPLITS:
        raise ConfigError("unknown split of atlas", where="split", value=split, hint=nearest(str(split), SPLITS))
    everything = _questions(split)
    if families is None:
        return list(everything)
    weights = _weights(families)
    queues = {family: [pair for pair in everything if pair[1].family == family] for family in weights}
    taken = dict.fromkeys(weights, 0)
    mixed: list[tuple[Task, AtlasQuestion]] = []
    while True:
        family = min(weights, key=lambda name: ((taken[name] + 0.5) / weights[name], name))
        if taken[family] == len(queues[family]):
            return mixed
        mixed.append(queues[family][taken[family]])
        taken[family] += 1


def _weights(families: Sequence[str] | Mapping[str, float]) -> dict[str, float]:
    """Families with a weight above 0."""
    given = dict(families) if isinstance(families, Mapping) else dict.fromkeys(families, 1.0)
    for name, weight in given.items():
        if name not in FAMILIES:
            raise ConfigError("unknown family of atlas", where="families", value=name, hint=nearest(str(name), FAMILIES))
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
            raise ConfigError("a family's weight is a number of 0 or more", where=f"families.{name}", value=weight)
    chosen = {name: float(weight) for name, weight in given.items() if weight > 0}
    if not chosen:
        raise ConfigError("no family is left", where="families", value=families, hint=f"pick some of: {', '.join(FAMILIES)}")
    return chosen


@cache
def _questions(split: str) -> tuple[tuple[Task, AtlasQuestion], ...]:
    """Every question of a split, shuffled once; the place in this order is the task's id."""
    found: list[AtlasQuestion] = []
    for family in FAMILIES:
        found += questions.draw(world(), split, family, COUNTS[split], Random(f"atlas/{split}/{family}"))
    Random(f"atlas/{split}/order").shuffle(found)
    return tuple((_task(f"atlas/{split}/{place:04d}", question), question) for place, question in enumerate(found))


def _task(name: str, question: AtlasQuestion) -> Task:
    metadata = {
        "family": question.family,
        "hops": question.hops,
        "gold_passages": tuple(fact.title for lookup in question.lookups for fact in lookup.facts),
        "places": tuple(dict.fromkeys(name for name in (*question.on_the_way, question.answer) if name in world().splits)),
    }
    message = {"role": "user", "content": question.text}
    return Task(id=name, messages=(message,), answers=(question.answer,), source="atlas", metadata=metadata)
