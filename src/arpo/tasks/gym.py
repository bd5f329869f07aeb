"""Tasks of reasoning-gym: generated puzzles that bring their own verifier.

Knows how a generator becomes tasks and how its verifier is found again from a task alone: name, options and index stand in the
metadata, so a task can be written to a file and scored elsewhere. Refuses to know tools and training.
"""

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from arpo.errors import ConfigError, RewardError, install, nearest
from arpo.tasks import Task

VERIFY = "arpo.tasks.gym:gym_score"
SPLIT_SEEDS = {"train": 0, "validation": 1_000_000, "test": 2_000_000}  # far apart: entry i is drawn from seed + i
MAX_SIZE = 1_000_000  # keeps the splits apart


def generators() -> list[str]:
    """Names of all generators, sorted. Raises ConfigError where reasoning-gym is not installed."""
    return sorted(_factory().DATASETS)


def tasks(name: str, split: str = "train", options: Mapping[str, Any] | None = None) -> list[Task]:
    """`size` tasks (500 unless `options` says otherwise) of a generator; `options` also holds `seed` and the generator's own.

    Splits are different draws. `metadata["verify"]` names the verifier; a generator without oracle answers gives empty `answers`.
    """
    if split not in SPLIT_SEEDS:
        raise ConfigError("unknown split of reasoning-gym", where="split", value=split, hint=nearest(split, SPLIT_SEEDS))
    if name not in _factory().DATASETS:
        raise ConfigError("unknown generator", where="source", value=f"gym:{name}", hint=nearest(name, generators()))
    size, seed, own = _numbers(options or {})
    settings = {**own, "seed": seed + SPLIT_SEEDS[split], "size": size}
    written = json.dumps(settings, sort_keys=True, default=str)
    return [_task(name, split, written, settings, index) for index in range(size)]


def gym_score(task: Task, answer: str | None) -> float:
    """The verifier's score of an answer, between 0 and 1. Raises RewardError where it gives no finite number."""
    origin = task.metadata.get("gym")
    if not isinstance(origin, Mapping):
        raise RewardError(f"task {task.id}: not a reasoning-gym task (no metadata 'gym')")
    written = json.dumps(dict(origin["options"]), sort_keys=True, default=str)
    generator, entry = _entry(str(origin["name"]), written, int(origin["index"]))
    score = generator.score_answer(answer, entry)
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise RewardError(f"task {task.id}: the verifier of {origin['name']} gave no finite number (got {score!r})")
    return float(score)


def _numbers(options: Mapping[str, Any]) -> tuple[int, int, dict[str, Any]]:
    """(size, seed, the generator's own options)."""
    own = dict(options)
    size, seed = own.pop("size", 500), own.pop("seed", 0)
    for key, value, least, most in (("size", size, 1, MAX_SIZE), ("seed", seed, 0, 2**31)):
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ConfigError(f"a whole number from {least} to {most}", where=f"options.{key}", value=value)
    return size, seed, own


def _task(name: str, split: str, written: str, settings: Mapping[str, Any], index: int) -> Task:
    _, entry = _entry(name, written, index)
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
def _generator(name: str, written: str) -> Any:
    try:
        return _factory().create_dataset(name, **json.loads(written))
    except (TypeError, ValueError, AssertionError) as error:  # an unknown option, or one out of range
        hint = f"{type(error).__name__}: {error}"
        raise ConfigError("the generator refuses its options", where=f"options (gym:{name})", value=written, hint=hint) from error


@lru_cache(maxsize=4096)
def _entry(name: str, written: str, index: int) -> tuple[Any, Mapping[str, Any]]:
    generator = _generator(name, written)
    return generator, generator[index]


def _factory() -> Any:
    try:
        from reasoning_gym import factory
    except ImportError as error:
        hint = install("gym")
        raise ConfigError("gym: tasks need the package reasoning-gym", where="source", hint=hint) from error
    import reasoning_gym  # noqa: F401  fills the factory's table

    return factory
