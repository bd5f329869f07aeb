"""Tasks from reasoning-gym: generated puzzles with their own verifiers.

Knows how to turn a generator into tasks and how to find the verifier for a task: the metadata hold name, options and
index, so a task can be written to a file and scored elsewhere. Refuses to know tools and training.
"""

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from arpo.errors import ConfigError, RewardError, install, nearest
from arpo.tasks import Task

VERIFY = "arpo.tasks.gym:gym_score"
SPLIT_SEEDS = {"train": 0, "validation": 1_000_000, "test": 2_000_000}  # far apart, since entry i uses seed + i
MAX_SIZE = 1_000_000  # keeps the splits apart


def generators() -> list[str]:
    """Names of all generators, sorted. Raises ConfigError if reasoning-gym is not installed."""
    return sorted(_factory().DATASETS)


def tasks(name: str, split: str = "train", options: Mapping[str, Any] | None = None) -> list[Task]:
    """The tasks of a generator. `options` holds `size` (default 500), `seed` and the generator's options.

    Every split draws other entries. `metadata["verify"]` names the verifier; `answers` is empty for a generator without
    reference answers.
    """
    if split not in SPLIT_SEEDS:
        raise ConfigError(
            "unknown split of reasoning-gym", where="split", value=split, hint=nearest(split, SPLIT_SEEDS)
        )
    if name not in _factory().DATASETS:
        raise ConfigError("unknown generator", where="source", value=f"gym:{name}", hint=nearest(name, generators()))
    size, seed, generator_options = _split_options(options or {})
    settings = {**generator_options, "seed": seed + SPLIT_SEEDS[split], "size": size}
    settings_json = json.dumps(settings, sort_keys=True, default=str)
    return [_task(name, split, settings_json, settings, index) for index in range(size)]


def gym_score(task: Task, answer: str | None) -> float:
    """The verifier's score of an answer, between 0 and 1. Raises RewardError if it is not a finite number."""
    origin = task.metadata.get("gym")
    if not isinstance(origin, Mapping):
        raise RewardError(f"task {task.id}: not a reasoning-gym task (no metadata 'gym')")
    settings_json = json.dumps(dict(origin["options"]), sort_keys=True, default=str)
    generator, entry = _entry(str(origin["name"]), settings_json, int(origin["index"]))
    score = generator.score_answer(answer, entry)
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise RewardError(
            f"task {task.id}: the verifier of {origin['name']} should return a finite number (got {score!r})"
        )
    return float(score)


def _split_options(options: Mapping[str, Any]) -> tuple[int, int, dict[str, Any]]:
    """(size, seed, the generator's options)."""
    rest = dict(options)
    size, seed = rest.pop("size", 500), rest.pop("seed", 0)
    for key, value, low, high in (("size", size, 1, MAX_SIZE), ("seed", seed, 0, 2**31)):
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ConfigError(f"should be a whole number from {low} to {high}", where=f"options.{key}", value=value)
    return size, seed, rest


def _task(name: str, split: str, settings_json: str, settings: Mapping[str, Any], index: int) -> Task:
    _, entry = _entry(name, settings_json, index)
    answer = _answer(entry)
    return Task(
        id=f"gym/{name}/{split}/{index}",
        messages=({"role": "user", "content": str(entry["question"]).strip()},),
        answers=(answer,) if answer else (),
        source=f"gym/{name}",
        metadata={"verify": VERIFY, "gym": {"name": name, "options": dict(settings), "index": index}},
    )


def _answer(entry: Mapping[str, Any]) -> str:
    return "" if entry.get("answer") is None else str(entry["answer"])


@lru_cache(maxsize=64)
def _generator(name: str, settings_json: str) -> Any:
    try:
        return _factory().create_dataset(name, **json.loads(settings_json))
    except (TypeError, ValueError, AssertionError) as error:  # an unknown option, or one out of range
        where, hint = f"options (gym:{name})", f"{type(error).__name__}: {error}"
        raise ConfigError("the generator refuses its options", where=where, value=settings_json, hint=hint) from error


@lru_cache(maxsize=4096)
def _entry(name: str, settings_json: str, index: int) -> tuple[Any, Mapping[str, Any]]:
    generator = _generator(name, settings_json)
    return generator, generator[index]


def _factory() -> Any:
    try:
        from reasoning_gym import factory
    except ImportError as error:
        hint = install("gym")
        raise ConfigError("gym: tasks need the package reasoning-gym", where="source", hint=hint) from error
    import reasoning_gym  # noqa: F401  registers the generators

    return factory
