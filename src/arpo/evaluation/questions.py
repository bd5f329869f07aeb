"""Which questions an evaluation asks: benchmarks by name, or any other source of tasks, and a part of them.

Knows names and selections. Refuses to know how a benchmark is read (`arpo.tasks.benchmarks`) and asked.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from arpo.errors import ConfigError, FormatError, nearest
from arpo.tasks import Task
from arpo.tasks.benchmarks import BENCHMARKS, benchmark
from arpo.tasks.data import IMPORT_PATH, SUFFIXES, DataConfig, load_with_report

ALL = "all"  # every benchmark that has a file in --data


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkQuestions:
    """A benchmark and those of its tasks that are asked."""

    name: str
    title: str
    metric: str  # "" where each task, or the recipe, says so itself
    judged: bool  # its authors let a model judge: the rule here is another measure
    public: bool  # one of `arpo.tasks.benchmarks`: its own measure counts, not the recipe's
    tasks: tuple[Task, ...]
    num_all: int  # tasks before a part was chosen
    digest: str  # of ids, questions and answers of all of them: two folders with one digest were asked the same

    def part(
        self, *, ids: Sequence[str] = (), limit: int | None = None, shard: tuple[int, int] | None = None
    ) -> "BenchmarkQuestions":
        """Those that fit one of `ids` (whole, or with `*`), of these the first `limit`, of these every n-th from the i-th on."""
        tasks = [t for t in self.tasks if not ids or any(t.id == each or fnmatchcase(t.id, each) for each in ids)][:limit]
        return replace(self, tasks=tuple(tasks if shard is None else tasks[shard[0] - 1 :: shard[1]]))


def read_shard(text: str) -> tuple[int, int]:
    """`2/8` as (2, 8). Raises ConfigError."""
    match = re.fullmatch(r"\s*(\d{1,6})\s*/\s*(\d{1,6})\s*", text)
    found = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= found[0] <= found[1]:
        raise ConfigError("should be i/n with 1 <= i <= n", where="--shard", value=text, hint="e.g. 1/4, 2/4, 3/4 and 4/4")
    return found


def choose(
    names: Sequence[str],
    *,
    data: Path | None = None,
    ids: Sequence[str] = (),
    limit: int | None = None,
    shard: tuple[int, int] | None = None,
) -> list[BenchmarkQuestions]:
    """The benchmarks called `names` (or sources: atlas, a file, hf:org/name, gym:generator, pkg.mod:function), from files in `data`
    where it is given. Raises ConfigError for an unknown name or an empty choice, FormatError for what is wrong in a file."""
    wanted = list(dict.fromkeys(name.strip() for name in names if name.strip()))
    if wanted == [ALL]:
        wanted = _there(data)
    if not wanted:
        raise ConfigError("names no benchmark", where="--benchmark", hint=f"One of {', '.join(BENCHMARKS)}, atlas, or a file")
    whole = [_read(name, data) for name in wanted]
    if twice := [name for name, count in Counter(each.name for each in whole).items() if count > 1]:
        raise ConfigError("two sources have one name", where="--benchmark", value=twice[0])
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
        raise ConfigError("`all` means those with a file in --data", where="--benchmark", value=ALL, hint="Name the folder")
    found = []
    for entry in BENCHMARKS.values():
        try:
            _local(entry.name, data)
        except ConfigError:
            continue
        found.append(entry.name)
    if not found:
        raise ConfigError("no file of a benchmark is in this folder", where="--data", value=str(data))
    return found


def _local(name: str, data: Path) -> Path:
    from arpo.tasks.benchmark_files import local_file

    entry = benchmark(name)
    return local_file(data, (entry.name, *entry.files))


def _read(name: str, data: Path | None) -> BenchmarkQuestions:
    if _is_source(name):
        tasks, _ = load_with_report(DataConfig(source=name, split="test"))
        title = Path(name).stem if name.endswith(SUFFIXES) else re.sub(r"[^A-Za-z0-9._-]+", "-", name)
        return _asked(title, title, "", judged=False, public=False, tasks=tasks)
    entry = benchmark(name)
    tasks = entry.tasks(data=data)
    return _asked(entry.name, entry.title, entry.metric, judged=entry.judged, public=True, tasks=tasks)


def _is_source(name: str) -> bool:
    return name == "atlas" or name.startswith(("gym:", "hf:")) or name.endswith(SUFFIXES) or bool(IMPORT_PATH.fullmatch(name))


def _asked(name: str, title: str, metric: str, *, judged: bool, public: bool, tasks: Sequence[Task]) -> BenchmarkQuestions:
    twice = [each for each, count in Counter(task.id for task in tasks).items() if count > 1]
    if twice:
        raise FormatError(f"{title}: {len(twice)} ids stand for several questions (first: {twice[0]!r})")
    said = json.dumps([[task.id, task.question, list(task.answers)] for task in tasks], ensure_ascii=False)
    digest = hashlib.sha256(said.encode()).hexdigest()[:16]
    return BenchmarkQuestions(
        name=name, title=title, metric=metric, judged=judged, public=public, tasks=tuple(tasks), num_all=len(tasks), digest=digest
    )
