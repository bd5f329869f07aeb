"""What an evaluation asks, and how: benchmarks, other sources of tasks or a recipe's held-out tasks; settings and
presets.

Knows names, selections and settings of sampling. Refuses to know how a benchmark is read (`arpo.tasks.benchmarks`) and
how answers are generated.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any

from arpo.errors import ConfigError, FormatError, nearest
from arpo.import_path import is_import_path
from arpo.recipe.evaluation import EvalConfig
from arpo.tasks import Task
from arpo.tasks.benchmarks import BENCHMARKS, benchmark
from arpo.tasks.data import SUFFIXES, DataConfig, load_with_report

ALL = "all"  # every benchmark that has a file in --data


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSpec:
    """How an evaluation is sampled: `samples` answers to each of the first `questions` questions (None: all)."""

    name: str  # of the evaluation: its folder is called so
    questions: int | None
    samples: int
    temperature: float  # 0: greedy
    top_p: float
    seed: int

    @property
    def greedy(self) -> "EvalSpec":
        """The same with one greedy answer to each question."""
        return replace(self, samples=1, temperature=0.0, top_p=1.0)

    @property
    def key(self) -> dict[str, Any]:
        """All that decides the answers, besides the model, the questions and the limits of a rollout."""
        return {name: value for name, value in asdict(self).items() if name != "name"}


def eval_specs(config: EvalConfig, name: str) -> list[EvalSpec]:
    """What a recipe asks for: sampled answers as `name`, and greedy ones as `name-greedy` unless `greedy_limit` is
    0."""
    sampled = EvalSpec(
        name=name,
        questions=config.limit,
        samples=config.samples,
        temperature=config.temperature,
        top_p=config.top_p,
        seed=config.seed,
    )
    greedy = replace(sampled.greedy, name=f"{name}-greedy", questions=config.greedy_limit)
    return [sampled] if config.greedy_limit == 0 else [sampled, greedy]


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkQuestions:
    """A benchmark, or a recipe's held-out tasks, and the tasks of it that are asked."""

    name: str
    title: str
    metric: str = ""  # "" where each task, or the recipe, names its measure
    judged: bool = False  # its authors let a model judge: the rule here is another measure
    public: bool = False  # one of `arpo.tasks.benchmarks`: scored by its own measure, not by the recipe's reward
    tasks: tuple[Task, ...]
    num_all: int  # tasks before a part was chosen
    digest: (
        str  # of ids, questions and answers of all of them: folders with one digest hold answers to the same questions
    )

    @classmethod
    def from_tasks(
        cls,
        name: str,
        tasks: Sequence[Task],
        *,
        title: str = "",
        metric: str = "",
        judged: bool = False,
        public: bool = False,
    ) -> "BenchmarkQuestions":
        """Raises FormatError where an id stands for several tasks."""
        counts = Counter(task.id for task in tasks)
        if twice := [id for id, count in counts.items() if count > 1]:
            raise FormatError(f"{title or name}: {len(twice)} ids stand for several questions (first: {twice[0]!r})")
        content = json.dumps([[task.id, task.question, list(task.answers)] for task in tasks], ensure_ascii=False)
        digest = hashlib.sha256(content.encode()).hexdigest()[:16]
        return cls(
            name=name,
            title=title or name,
            metric=metric,
            judged=judged,
            public=public,
            tasks=tuple(tasks),
            num_all=len(tasks),
            digest=digest,
        )

    def part(
        self, *, ids: Sequence[str] = (), limit: int | None = None, shard: tuple[int, int] | None = None
    ) -> "BenchmarkQuestions":
        """The tasks that match one of `ids` (whole, or with `*`); of these the first `limit`; of these every n-th from
        the i-th on."""
        tasks = [t for t in self.tasks if not ids or any(t.id == each or fnmatchcase(t.id, each) for each in ids)][
            :limit
        ]
        return replace(self, tasks=tuple(tasks if shard is None else tasks[shard[0] - 1 :: shard[1]]))


def read_shard(text: str) -> tuple[int, int]:
    """`2/8` as (2, 8). Raises ConfigError."""
    match = re.fullmatch(r"\s*(\d{1,6})\s*/\s*(\d{1,6})\s*", text)
    shard = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= shard[0] <= shard[1]:
        raise ConfigError(
            "should be i/n with 1 <= i <= n", where="--shard", value=text, hint="e.g. 1/4, 2/4, 3/4 and 4/4"
        )
    return shard


def choose(
    names: Sequence[str],
    *,
    data: Path | None = None,
    ids: Sequence[str] = (),
    limit: int | None = None,
    shard: tuple[int, int] | None = None,
) -> list[BenchmarkQuestions]:
    """The benchmarks called `names` (or sources: atlas, a file, hf:org/name, gym:generator, pkg.mod:function), from
    files in `data` where it is given. Raises ConfigError for an unknown name or an empty choice, FormatError for what
    is wrong in a file."""
    chosen = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    if chosen == [ALL]:
        chosen = _there(data)
    if not chosen:
        raise ConfigError(
            "names no benchmark", where="--benchmark", hint=f"One of {', '.join(BENCHMARKS)}, atlas, or a file"
        )
    whole = [_read(name, data) for name in chosen]
    if twice := [name for name, count in Counter(each.name for each in whole).items() if count > 1]:
        raise ConfigError("two sources have one name", where="--benchmark", value=twice[0])
    return select(whole, ids=ids, limit=limit, shard=shard)


def select(
    whole: Sequence[BenchmarkQuestions],
    *,
    ids: Sequence[str] = (),
    limit: int | None = None,
    shard: tuple[int, int] | None = None,
) -> list[BenchmarkQuestions]:
    """The part of each of `whole`, without those of which nothing is left. Raises ConfigError where nothing is left of
    all."""
    chosen = [each.part(ids=ids, limit=limit, shard=shard) for each in whole]
    for pattern in ids:
        known = [task.id for each in whole for task in each.tasks]
        if not any(name == pattern or fnmatchcase(name, pattern) for name in known):
            raise ConfigError("no question has this id", where="--ids", value=pattern, hint=nearest(pattern, known))
    if not any(each.tasks for each in chosen):
        raise ConfigError("no question is left to ask", where="--shard", value="/".join(map(str, shard or ())))
    return [each for each in chosen if each.tasks]


def _there(data: Path | None) -> list[str]:
    if data is None:
        raise ConfigError(
            "`all` means those with a file in --data", where="--benchmark", value=ALL, hint="Name the folder"
        )
    names = []
    for entry in BENCHMARKS.values():
        try:
            _local(entry.name, data)
        except ConfigError:
            continue
        names.append(entry.name)
    if not names:
        raise ConfigError("no file of a benchmark is in this folder", where="--data", value=str(data))
    return names


def _local(name: str, data: Path) -> Path:
    from arpo.tasks.benchmark_files import local_file

    entry = benchmark(name)
    return local_file(data, (entry.name, *entry.files))


def _read(name: str, data: Path | None) -> BenchmarkQuestions:
    if _is_source(name):
        tasks, _ = load_with_report(DataConfig(source=name, split="test"))
        title = Path(name).stem if name.endswith(SUFFIXES) else re.sub(r"[^A-Za-z0-9._-]+", "-", name)
        return BenchmarkQuestions.from_tasks(title, tasks)
    entry = benchmark(name)
    tasks = entry.tasks(data=data)
    return BenchmarkQuestions.from_tasks(
        entry.name, tasks, title=entry.title, metric=entry.metric, judged=entry.judged, public=True
    )


def _is_source(name: str) -> bool:
    return name == "atlas" or name.startswith(("gym:", "hf:")) or name.endswith(SUFFIXES) or is_import_path(name)


# --- presets


@dataclass(frozen=True, slots=True)
class Preset:
    """Published settings, laid over a recipe before the command line's own. Source of the numbers: arXiv 2507.19849.

    Tools stay the recipe's: where passages come from depends on keys and corpora.
    """

    says: str
    overrides: tuple[str, ...]
    tools: tuple[str, ...]  # that an agent is expected to have under it


_SAMPLING = ("evaluation.temperature=0.6", "evaluation.top_p=0.95", "evaluation.greedy_limit=0")

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "arpo-reasoning": Preset(
            "temperature 0.6, top-p 0.95, 3 calls, snippets of search results, answers of 4,096 tokens in all",
            (
                *_SAMPLING,
                "rollout.max_calls=3",
                "rollout.turn_tokens=2048",
                "rollout.branch_tokens=5632",
                "chat.result_tokens=1024",
            ),
            ("search", "python"),
        ),
        "arpo-deepsearch": Preset(
            "temperature 0.6, top-p 0.95, 5 samples, 5 calls, pages opened and summarised, answers of 10,000 tokens in "
            "all",
            (
                *_SAMPLING,
                "evaluation.samples=5",
                "rollout.max_calls=5",
                "rollout.turn_tokens=4096",
                "rollout.branch_tokens=12000",
                "chat.result_tokens=2048",
            ),
            ("search", "page", "python"),
        ),
    }
)


def preset(name: str) -> Preset:
    """Raises ConfigError naming the nearest."""
    if name not in PRESETS:
        raise ConfigError("there is no such preset", where="--preset", value=name, hint=nearest(name, PRESETS))
    return PRESETS[name]
