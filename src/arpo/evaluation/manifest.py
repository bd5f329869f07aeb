"""The folder of an evaluation: what was asked, and that nothing else is mixed into it.

    EVALUATION/asked.json       what was asked: model, settings, benchmarks; starts
               samples.jsonl    every answer with its trajectory (`answers`)
               calls.json       what became of its tool calls: against a budget they count across starts
               tokenizer/       the model's: turns recorded tokens into text without the model
               results.json, report.md, report.html, plots/        made from these two (`findings`, `pages`)
               evaluation/NAME.json    a benchmark's answers as `arpo view` and reports of runs read them
               lock             who writes here

Knows names and what makes two evaluations the same. Refuses to know how questions are asked.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import arpo
from arpo.errors import ConfigError, FormatError
from arpo.evaluation.questions import BenchmarkQuestions
from arpo.evaluation.samples import FILE as SAMPLES
from arpo.files import PARTIAL, read_json, write_json
from arpo.recipe.run import RunConfig, plain
from arpo.yaml_positions import flat

FILE = "asked.json"
SCHEMA = "arpo/asked/1"
_DECIDES = ("model", "chat", "tools", "reward")  # sections of a recipe that decide answers and what they count
_ENGINE = ("kind", "dtype", "deterministic")
_NAMES_OF_A_MODEL = ("model", "model.source")
_LIMITS = ("max_calls", "turn_tokens", "branch_tokens", "at_call_limit", "head", "retries", "tool_deadline_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkManifest:
    name: str
    title: str
    metric: str
    judged: bool
    ids: tuple[str, ...]  # of the questions that were asked
    num_all: int
    digest: str

    @property
    def questions(self) -> int:
        return len(self.ids)

    def __or__(self, other: "BenchmarkManifest") -> "BenchmarkManifest":
        """With the questions of another part of it too."""
        return replace(self, ids=tuple(dict.fromkeys((*self.ids, *other.ids))))

    @classmethod
    def of(cls, asked: BenchmarkQuestions) -> "BenchmarkManifest":
        return cls(
            name=asked.name,
            title=asked.title,
            metric=asked.metric,
            judged=asked.judged,
            ids=tuple(task.id for task in asked.tasks),
            num_all=asked.num_all,
            digest=asked.digest,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalManifest:
    """What was asked of a model."""

    model: str
    recipe: str  # its name
    preset: str
    benchmarks: tuple[BenchmarkManifest, ...]
    samples: int
    settings: Mapping[str, Any]  # temperature, top_p, seed, limits of a rollout
    decides: Mapping[str, Any]  # further keys of the recipe that decide answers, flat
    parts: Mapping[str, Any] = field(default_factory=dict)  # limit, ids, shard
    identity: str = ""  # of the model, by its content (`arpo.models.identity`); "" where it is served elsewhere
    recipe_text: Mapping[str, Any] = field(default_factory=dict)  # the whole resolved recipe
    version: str = arpo.__version__
    starts: tuple[float, ...] = ()

    @property
    def benchmark(self) -> dict[str, BenchmarkManifest]:
        return {each.name: each for each in self.benchmarks}

    def same_as(self, other: "EvalManifest") -> list[str]:
        """How answers of `other` would be other answers than these: a line a difference, none where both can be mixed."""
        by_content = bool(self.identity and other.identity)
        mine, theirs = (each._deciding(by_content) for each in (self, other))
        found = [
            f"{key}: {mine.get(key)!r} there, {theirs.get(key)!r} now"
            for key in dict.fromkeys([*mine, *theirs])
            if mine.get(key) != theirs.get(key)
        ]
        if by_content and self.identity != other.identity:
            found.insert(0, f"another model: {self.model} ({self.identity}) there, {other.model} ({other.identity}) now")
        for name, each in other.benchmark.items():
            if name in self.benchmark and self.benchmark[name].digest != each.digest:
                found.append(f"{name}: other questions than there")
        return found

    def _deciding(self, by_content: bool) -> dict[str, Any]:
        """What decides answers, by its name in a recipe. A model that is known by content may lie anywhere."""
        keys = {"model": self.model, **self.settings, **_deciding(self.decides)}
        return {key: value for key, value in keys.items() if not (by_content and key in _NAMES_OF_A_MODEL)}


def _deciding(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Without what tools may spend and where their results are kept: a stop by a budget is gone on from with a larger one."""
    kept = {key: value for key, value in keys.items() if not key.startswith(("tools.limits.", "tools.cache."))}
    if isinstance(offered := kept.get("tools.offered"), list | tuple):
        kept["tools.offered"] = [
            {name: value for name, value in tool.items() if name not in ("limits", "cache")} if isinstance(tool, Mapping) else tool
            for tool in offered
        ]
    return kept


def manifest_of(
    run: RunConfig,
    model: str,
    chosen: Sequence[BenchmarkQuestions],
    *,
    temperature: float,
    samples: int,
    preset: str,
    parts: Mapping[str, Any],
    identity: str = "",
) -> EvalManifest:
    """What `run` asks of `model`."""
    whole = plain(run)
    top_p = run.evaluation.top_p if temperature else 1.0
    settings = {"temperature": temperature, "top_p": top_p, "seed": run.evaluation.seed}
    decides = {key: value for key, value in flat({name: whole[name] for name in _DECIDES}).items() if value != {}}
    return EvalManifest(
        model=model,
        recipe=run.name,
        preset=preset,
        benchmarks=tuple(BenchmarkManifest.of(each) for each in chosen),
        samples=samples,
        settings={**settings, **{name: getattr(run.rollout, name) for name in _LIMITS}},
        decides={**decides, **{f"engine.{name}": getattr(run.engine, name) for name in _ENGINE}},
        parts=dict(parts),
        identity=identity,
        recipe_text=whole,
    )


def is_evaluation(path: Path) -> bool:
    return (path / FILE).is_file()


def read_manifest(folder: Path) -> EvalManifest:
    """Raises ConfigError where `folder` holds no evaluation, FormatError where its asked.json is another's."""
    path = folder / FILE
    if not path.is_file():
        raise ConfigError("this folder holds no evaluation", where=str(folder), hint=f"`arpo eval --out DIR` leaves {FILE} there")
    value = read_json(path)
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise FormatError(f"{path}: schema is {value.get('schema') if isinstance(value, dict) else None!r}, expected {SCHEMA!r}")
    try:
        known = {name: value[name] for name in EvalManifest.__dataclass_fields__ if name in value}
        benchmarks = tuple(BenchmarkManifest(**{**each, "ids": tuple(each["ids"])}) for each in known["benchmarks"])
        return EvalManifest(**{**known, "benchmarks": benchmarks, "starts": tuple(known["starts"])})
    except (KeyError, TypeError) as error:
        raise FormatError(f"{path}: a field is missing or of the wrong kind: {error!r}") from error


def write_manifest(folder: Path, asked: EvalManifest) -> None:
    write_json(folder / FILE, {"schema": SCHEMA, **asdict(asked)})


@contextmanager
def opened(folder: Path, asked: EvalManifest, *, resume: bool) -> Iterator[EvalManifest]:
    """Lock `folder` for writing answers to `asked`, new or with `resume` gone on with; gives what stands in asked.json.

    A resumed evaluation may ask more: further benchmarks, questions or samples. Raises ConfigError where the folder is taken, or
    its answers are answers to something else.
    """
    from arpo.runs.lock import Lock

    if not resume and folder.exists() and (not folder.is_dir() or any(not _passing(path) for path in folder.iterdir())):
        hint = "Go on with it (--resume), or choose another (--out)" if is_evaluation(folder) else "Choose another (--out)"
        raise ConfigError("this folder is not empty", where="--out", value=str(folder), hint=hint)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = Lock.take(folder / "lock")
    except OSError as error:
        raise ConfigError(f"cannot be written ({error.strerror or error})", where="--out", value=str(folder)) from error
    try:
        merged = _going_on(read_manifest(folder), asked, folder) if is_evaluation(folder) else asked
        merged = replace(merged, starts=(*merged.starts, round(time.time(), 3)))
        write_manifest(folder, merged)
        yield merged
    finally:
        lock.release()


def _passing(path: Path) -> bool:
    return path.name == "lock" or path.name.startswith(PARTIAL)


def _going_on(before: EvalManifest, now: EvalManifest, folder: Path) -> EvalManifest:
    if differences := before.same_as(now):
        shown = "; ".join(differences[:3]) + ("; ..." if len(differences) > 3 else "")
        hint = "Ask as before, or choose another folder (--out)"
        raise ConfigError(f"its answers are answers to something else ({shown})", where=str(folder / SAMPLES), hint=hint)
    return replace(now, benchmarks=both(before, now), samples=max(before.samples, now.samples), starts=before.starts)


def both(a: EvalManifest, b: EvalManifest) -> tuple[BenchmarkManifest, ...]:
    """The benchmarks of two parts of one evaluation."""
    names = dict.fromkeys([*a.benchmark, *b.benchmark])
    found = [(a.benchmark.get(name), b.benchmark.get(name)) for name in names]
    return tuple(x | y if x and y else x or y for x, y in found)  # type: ignore[misc]
