"""The folder of an evaluation: what was asked, and that nothing else is mixed into it.

    EVALUATION/evaluation.json  the manifest: model, settings, benchmarks with the ids of their questions; every start
               samples.jsonl    every sample with its trajectory (`samples`)
               results.json     the figures computed from them, and studies (`results`)
               calls.json       tool calls: against a budget they count across starts
               tokenizer/       the model's: turns recorded tokens into text without the model
               report.md, report.html, plots/        made from these by the command line (`reports`)
               lock             held while a process writes here

A run keeps its evaluations of held-out tasks in the same form, each in RUN/evaluation/NAME. Knows names and what makes
two evaluations the same. Refuses to know how questions are asked.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

import arpo
from arpo.errors import ConfigError, FormatError
from arpo.evaluation.questions import BenchmarkQuestions, EvalSpec
from arpo.evaluation.samples import FILE as SAMPLES
from arpo.files import PARTIAL, read_json, write_json
from arpo.foreign import checked
from arpo.recipe.run import RunConfig, plain
from arpo.rollout.config import KEEP
from arpo.yaml_positions import flat

FILE = "evaluation.json"
SCHEMA = "arpo/eval-manifest/1"
OLD_FILE, OLD_SCHEMA = "asked.json", "arpo/evaluation/1"  # forms of development versions, which are refused by name
_DECIDES = ("model", "chat", "tools", "reward")  # sections of a recipe that decide answers and what they count
_ENGINE = ("kind", "dtype", "deterministic")
_NAMES_OF_A_MODEL = ("model", "model.source")
_LIMITS = ("max_calls", "turn_tokens", "branch_tokens", "at_call_limit", "head", "retries", "deadline_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkManifest:
    """What was asked of one benchmark."""

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
    def from_questions(cls, benchmark: BenchmarkQuestions) -> "BenchmarkManifest":
        return cls(
            name=benchmark.name,
            title=benchmark.title,
            metric=benchmark.metric,
            judged=benchmark.judged,
            ids=tuple(task.id for task in benchmark.tasks),
            num_all=benchmark.num_all,
            digest=benchmark.digest,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalManifest:
    """What was asked of a model."""

    name: str  # of the evaluation
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

    @classmethod
    def from_run(
        cls,
        run: RunConfig,
        spec: EvalSpec,
        benchmarks: Sequence[BenchmarkQuestions],
        *,
        model: str,
        identity: str = "",
        preset: str = "",
        parts: Mapping[str, Any] | None = None,
    ) -> "EvalManifest":
        """What `run` asks of `model` by `spec`."""
        recipe = plain(run)
        settings = {"temperature": spec.temperature, "top_p": spec.top_p, "seed": spec.seed}
        asked = {name: recipe[name] for name in _DECIDES} | {"engine": _engine(run)}
        if run.environment is not None:
            asked["environment"] = recipe["environment"]
        decides = {key: value for key, value in flat(asked).items() if value != {}}
        limits = {name: getattr(run.rollout, name) for name in _LIMITS}
        if run.rollout.context.use != KEEP:
            limits["context"] = recipe["rollout"]["context"]
        return cls(
            name=spec.name,
            model=model,
            recipe=run.name,
            preset=preset,
            benchmarks=tuple(map(BenchmarkManifest.from_questions, benchmarks)),
            samples=spec.samples,
            settings={**settings, **limits},
            decides=decides,
            parts=dict(parts or {}),
            identity=identity,
            recipe_text=recipe,
        )

    @property
    def benchmark(self) -> dict[str, BenchmarkManifest]:
        return {each.name: each for each in self.benchmarks}

    def differences(self, other: "EvalManifest") -> list[str]:
        """What makes answers of `other` other answers than these, a line each; empty where they can be mixed."""
        by_content = bool(self.identity and other.identity)
        mine, theirs = (each._deciding(by_content) for each in (self, other))
        texts = [
            f"{key}: {mine.get(key)!r} there, {theirs.get(key)!r} now"
            for key in dict.fromkeys([*mine, *theirs])
            if mine.get(key) != theirs.get(key)
        ]
        if by_content and self.identity != other.identity:
            texts.insert(
                0, f"another model: {self.model} ({self.identity}) there, {other.model} ({other.identity}) now"
            )
        for name, each in other.benchmark.items():
            if name in self.benchmark and self.benchmark[name].digest != each.digest:
                texts.append(f"{name}: other questions than there")
        return texts

    def _deciding(self, by_content: bool) -> dict[str, Any]:
        """What decides answers, by its name in a recipe. A model that is known by content may lie anywhere."""
        keys = {"model": self.model, **self.settings, **_deciding(self.decides)}
        return {key: value for key, value in keys.items() if not (by_content and key in _NAMES_OF_A_MODEL)}


def _engine(run: RunConfig) -> dict[str, Any]:
    """What decides answers in the engine: options of an endpoint or of vLLM may change what is sampled (top_k, min_p,
    penalties)."""
    engine = run.engine
    passed_on = {"endpoint": engine.endpoint, "vllm": engine.vllm}
    options = {name: {"options": plain(each.options)} for name, each in passed_on.items() if each and each.options}
    return {**{name: getattr(engine, name) for name in _ENGINE}, **options}


def _deciding(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Without what tools may spend and where their results are kept: a stop by a budget is gone on from with a larger
    one."""
    kept = {key: value for key, value in keys.items() if not key.startswith(("tools.limits.", "tools.cache."))}
    if isinstance(offered := kept.get("tools.offered"), list | tuple):
        kept["tools.offered"] = [
            {name: value for name, value in tool.items() if name not in ("limits", "cache")}
            if isinstance(tool, Mapping)
            else tool
            for tool in offered
        ]
    return kept


def is_evaluation(path: Path) -> bool:
    return (path / FILE).is_file()


def check_form(folder: Path) -> None:
    """Raises ConfigError where `folder` holds evaluations in the form of a development version."""
    hint = "It cannot be read any more: move it away and evaluate again (arpo eval)"
    if (folder / OLD_FILE).is_file() and not is_evaluation(folder):
        raise ConfigError(f"this evaluation is in an old form ({OLD_FILE})", where=str(folder), hint=hint)
    for path in sorted((folder / "evaluation").glob("*.json")):
        value = read_json(path) if path.name != FILE else None
        if isinstance(value, dict) and value.get("schema") == OLD_SCHEMA:
            raise ConfigError(f"this evaluation is in an old form ({OLD_SCHEMA})", where=str(path), hint=hint)


def read_manifest(folder: Path) -> EvalManifest:
    """Raises ConfigError where `folder` holds no evaluation, FormatError where its manifest is something else."""
    check_form(folder)
    path = folder / FILE
    if not path.is_file():
        raise ConfigError(
            "this folder holds no evaluation", where=str(folder), hint=f"`arpo eval --out DIR` writes {FILE} there"
        )
    value = read_json(path)
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise FormatError(
            f"{path}: schema is {value.get('schema') if isinstance(value, dict) else None!r}, expected {SCHEMA!r}"
        )
    try:
        known = {name: value[name] for name in EvalManifest.__dataclass_fields__ if name in value}
        benchmarks = tuple(BenchmarkManifest(**{**each, "ids": tuple(each["ids"])}) for each in known["benchmarks"])
        known |= {"starts": tuple(known["starts"])} if "starts" in known else {}
        return checked(EvalManifest(**{**known, "benchmarks": benchmarks}))
    except (KeyError, TypeError, FormatError) as error:
        raise FormatError(f"{path}: a field is missing or of the wrong kind: {error!r:.300}") from error


def write_manifest(folder: Path, manifest: EvalManifest) -> None:
    write_json(folder / FILE, {"schema": SCHEMA, **asdict(manifest)})


@contextmanager
def open_evaluation(
    folder: Path, manifest: EvalManifest, *, resume: bool, replace_other: bool = False
) -> Iterator[EvalManifest]:
    """Lock `folder` for writing samples of `manifest`, new or with `resume` an earlier start's; write and yield the
    manifest of both.

    A resumed evaluation may ask for more: further benchmarks, questions or samples. Raises ConfigError where the folder
    is taken, or holds samples of something else; with `replace_other` such a folder is renamed to NAME.1, NAME.2, ...
    instead.
    """
    from arpo.runs.lock import Lock

    if not resume and folder.exists() and (not folder.is_dir() or any(not _passing(path) for path in folder.iterdir())):
        check_form(folder)
        hint = (
            "Go on with it (--resume), or choose another (--out)" if is_evaluation(folder) else "Choose another (--out)"
        )
        raise ConfigError("this folder is not empty", where="--out", value=str(folder), hint=hint)
    if replace_other and is_evaluation(folder) and read_manifest(folder).differences(manifest):
        folder.rename(_free_name(folder))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = Lock.take(folder / "lock")
    except OSError as error:
        raise ConfigError(f"cannot be written ({error.strerror or error})", where="--out", value=str(folder)) from error
    try:
        merged = _merged(read_manifest(folder), manifest, folder) if is_evaluation(folder) else manifest
        merged = replace(merged, starts=(*merged.starts, round(time.time(), 3)))
        write_manifest(folder, merged)
        yield merged
    finally:
        lock.release()


def _passing(path: Path) -> bool:
    return path.name == "lock" or path.name.startswith(PARTIAL)


def _free_name(folder: Path) -> Path:
    return next(path for number in count(1) if not (path := folder.with_name(f"{folder.name}.{number}")).exists())


def _merged(before: EvalManifest, now: EvalManifest, folder: Path) -> EvalManifest:
    if differences := before.differences(now):
        shown = "; ".join(differences[:3]) + ("; ..." if len(differences) > 3 else "")
        hint = "Ask as before, or choose another folder (--out)"
        raise ConfigError(
            f"its answers are answers to something else ({shown})", where=str(folder / SAMPLES), hint=hint
        )
    return replace(
        now, benchmarks=merge_benchmarks(before, now), samples=max(before.samples, now.samples), starts=before.starts
    )


def merge_benchmarks(a: EvalManifest, b: EvalManifest) -> tuple[BenchmarkManifest, ...]:
    """The benchmarks of two parts of one evaluation."""
    names = dict.fromkeys([*a.benchmark, *b.benchmark])
    pairs = [(a.benchmark.get(name), b.benchmark.get(name)) for name in names]
    return tuple(x | y if x and y else x or y for x, y in pairs)  # type: ignore[misc]
