"""What an evaluation leaves behind: one JSON file with every sample and the figures computed from them.

    evaluation/NAME.json = {schema, name, model, num_questions, settings,
                            accuracy, reward, pass_at, by_family, by_level, samples: [...]}

Knows the file's form. Refuses to know how the samples were made.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from arpo.errors import FormatError
from arpo.evaluation.statistics import Estimate, bootstrap, by_group, pass_at, rate
from arpo.files import read_json, write_json

SCHEMA = "arpo/evaluation/1"
POWERS = (1, 2, 4, 8, 16, 32, 64)  # k of pass@k
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One answer to one question. `sample` numbers the answers to a question from 0."""

    id: str
    sample: int = 0
    family: str = ""
    level: str = ""
    accuracy: float  # 0 to 1, as the reward's Score says
    correct: bool  # what pass@k counts
    reward: float
    answer: str | None = None
    gold: Sequence[str] = ()
    question: str = ""
    calls: int = 0  # tool calls that ran
    tokens: int = 0  # written by the policy
    ending: str = ""
    transcript: str = ""  # the whole trajectory as text; may be empty to save space


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """All samples of one evaluation of one model. Build it with `Results.of`, which computes the figures."""

    name: str
    model: str
    samples: tuple[Sample, ...]
    accuracy: Estimate
    reward: Estimate
    pass_at: Mapping[int, Estimate]
    by_family: Mapping[str, Estimate]
    by_level: Mapping[str, Estimate]
    settings: Mapping[str, Any] = field(default_factory=dict)  # temperature, seed, samples, ...
    calls: Mapping[str, Any] = field(default_factory=dict)  # what became of the tool calls, tool by tool (`arpo.tools.usage`)
    isolation: Mapping[str, str] = field(default_factory=dict)  # what kept code of the model apart, by the tool that ran it

    @classmethod
    def of(
        cls,
        name: str,
        model: str,
        samples: Sequence[Sample],
        *,
        settings: Mapping[str, Any] | None = None,
        ks: Collection[int] | None = None,
        seed: int = 0,
    ) -> "Results":
        """Compute every figure from `samples`. pass@k is given for each of `ks` (1, 2, 4, ... and the number of samples without
        it) as far as every question has k samples."""
        samples = tuple(sorted(samples, key=lambda s: (s.id, s.sample)))
        correct = _by_question(samples, lambda s: s.correct)
        fewest = min((len(c) for c in correct.values()), default=0)
        wanted = sorted({k for k in (ks or (*POWERS, fewest)) if 1 <= k <= fewest})
        rewards = _by_question(samples, lambda s: s.reward)
        return cls(
            name=name,
            model=model,
            samples=samples,
            accuracy=rate(_by_question(samples, lambda s: s.accuracy), seed=seed),
            reward=bootstrap([sum(r) / len(r) for r in rewards.values()], seed=seed, purpose="reward"),
            pass_at={k: pass_at(correct, k, seed=seed) for k in wanted},
            by_family=by_group(((s.family, s.id, s.accuracy) for s in samples if s.family), seed=seed),
            by_level=by_group(((s.level, s.id, s.accuracy) for s in samples if s.level), seed=seed),
            settings=dict(settings or {}),
        )

    @property
    def num_questions(self) -> int:
        return len({s.id for s in self.samples})

    @property
    def accuracy_by_question(self) -> dict[str, float]:
        """Mean accuracy of each question: what paired differences are taken on."""
        return {key: sum(values) / len(values) for key, values in _by_question(self.samples, lambda s: s.accuracy).items()}

    def write(self, folder: Path | str) -> Path:
        """Write `folder/NAME.json` atomically."""
        value = {
            "schema": SCHEMA,
            "name": self.name,
            "model": self.model,
            "num_questions": self.num_questions,
            "settings": self.settings,
            "calls": self.calls,
            "isolation": self.isolation,
            "accuracy": asdict(self.accuracy),
            "reward": asdict(self.reward),
            "pass_at": {str(k): asdict(estimate) for k, estimate in self.pass_at.items()},
            "by_family": {name: asdict(estimate) for name, estimate in self.by_family.items()},
            "by_level": {name: asdict(estimate) for name, estimate in self.by_level.items()},
            "samples": [asdict(s) for s in self.samples],
        }
        return write_json(Path(folder) / f"{self.name}.json", value)


def read_results(path: Path | str) -> Results:
    """Read one evaluation. Raises FormatError, naming the file and the key, where it is something else."""
    value = read_json(path)
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        found = value.get("schema") if isinstance(value, dict) else type(value).__name__
        raise FormatError(f"{path}: schema is {found!r}, expected {SCHEMA!r}")
    names = {f.name for f in fields(Sample)}
    try:
        samples = tuple(Sample(**{k: v for k, v in sample.items() if k in names}) for sample in value["samples"])
        return Results(
            name=value["name"],
            model=value["model"],
            samples=samples,
            accuracy=Estimate.of(value["accuracy"]),
            reward=Estimate.of(value["reward"]),
            pass_at={int(k): Estimate.of(estimate) for k, estimate in value["pass_at"].items()},
            by_family={name: Estimate.of(estimate) for name, estimate in value["by_family"].items()},
            by_level={name: Estimate.of(estimate) for name, estimate in value["by_level"].items()},
            settings=value["settings"],
            calls=value.get("calls", {}),
            isolation=value.get("isolation", {}),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"{path}: a field is missing or of the wrong kind: {error!r}") from error


def read_all_results(run: Path | str) -> dict[str, Results]:
    """The evaluations of a run folder by name, in the order in which they were written; other JSON files there are left alone."""
    found = sorted((Path(run) / "evaluation").glob("*.json"), key=lambda p: (p.stat().st_mtime_ns, p.name))
    read = (_read_if_results(path) for path in found)
    return {results.name: results for results in read if results is not None}


def _read_if_results(path: Path) -> Results | None:
    value = read_json(path)
    return read_results(path) if isinstance(value, dict) and value.get("schema") == SCHEMA else None


def _by_question(samples: Sequence[Sample], value: Callable[[Sample], T]) -> dict[str, list[T]]:
    found: dict[str, list[T]] = {}
    for sample in samples:
        found.setdefault(sample.id, []).append(value(sample))
    return found
