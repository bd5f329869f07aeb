"""Loads tasks from any source: the atlas, files, the Hugging Face Hub, reasoning-gym, or a function of yours.

Knows sources and the report on loading them. Refuses to know what a row means (`rows`) and how tasks are used.

    source                     rows from
    atlas                      the bundled world (`split`; `options`: `families`)
    path/to/x.jsonl|.json|.parquet|.csv
    hf:org/name                the Hub, or a folder that `datasets` wrote (`split`, `options` go to `load_dataset`)
    gym:leg_counting           a reasoning-gym generator (`options`: `size`, `seed` and the generator's own)
    benchmark:gsm8k            a public benchmark (`options`: `data`, a folder with its files, instead of the Hub)
    my_pkg.my_data:questions   a function that takes split= and `options`, and returns tasks or rows
    rows or tasks themselves   from Python: a list, a generator, a `datasets.Dataset` (arpo.tasks.in_memory)
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, StrictBool, model_validator

from arpo.config import Config, conflict
from arpo.errors import ArpoError, ConfigError, FormatError, first_line, install, nearest
from arpo.files import expanded
from arpo.foreign import WHOLE_BYTES, lines, loads, read_file
from arpo.import_path import import_from_path, is_import_path
from arpo.tasks import Task
from arpo.tasks.in_memory import InMemoryTasks, as_source, read_task
from arpo.tasks.leakage import bare_question
from arpo.tasks.rows import Skipped, TextRepair, task_from_row

SUFFIXES = (".jsonl", ".json", ".parquet", ".csv")
BENCHMARK = "benchmark:"


class DataConfig(Config):
    """Which tasks to use."""

    source: Annotated[str | InMemoryTasks, BeforeValidator(as_source)] = "atlas"
    """atlas, a file (.jsonl, .json, .parquet, .csv), hf:org/name, gym:generator, benchmark:name, or an import path
    pkg.mod:function. From Python also rows or tasks themselves: a list, a generator, a `datasets.Dataset`."""
    split: str = "train"
    """Split of the source, if it has splits (files have none)."""
    limit: int | None = Field(default=None, ge=1)
    """Maximum number of tasks, after shuffling."""
    shuffle: StrictBool | int = False
    """Shuffle the tasks, in an order keyed by the source; a number keys another order."""
    columns: dict[Literal["question", "answer"], str] = Field(default_factory=dict)
    """Columns that hold question and answer, if their names are not the usual ones; dots reach into a column."""
    duplicates: Literal["keep", "drop"] = "keep"
    """What to do with a repeated question. The report counts them in either case."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further options for the source: hf, gym, benchmark and import paths take some. The atlas takes `families`, with
    equal weights (a list) or with a weight for each."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        """Refuse an unknown source, and settings that the source would ignore."""
        source = str(self.source)
        in_memory = isinstance(self.source, InMemoryTasks)
        if not in_memory and not (
            source == "atlas"
            or source.startswith(("gym:", "hf:", BENCHMARK))
            or source.endswith(SUFFIXES)
            or _is_import_path(source)
        ):
            raise conflict(
                f"unknown source of tasks {source!r}: a file ending in {', '.join(SUFFIXES)}, hf:org/name, "
                "gym:generator, benchmark:name, pkg.mod:function, or atlas",
                "source",
            )
        if self.options and (
            in_memory or not (source.startswith(("atlas", "hf:", "gym:", BENCHMARK)) or _is_import_path(source))
        ):
            raise conflict(f"the source {source} takes no options: leave them out", "options", "source")
        if source == "atlas" and (unknown := set(self.options) - {"families"}):
            raise conflict(f"the atlas takes families alone: leave {min(unknown)} out", f"options.{min(unknown)}")
        if self.columns and (source == "atlas" or source.startswith(("gym:", BENCHMARK))):
            raise conflict(f"the source {source} has no columns: leave them out", "columns", "source")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What happened to the rows of a source."""

    source: str
    rows: int  # number of rows read
    tasks: int  # number of tasks returned
    skipped: tuple[Skipped, ...] = ()
    duplicates: int = 0  # rows that repeat an earlier question
    mended: Mapping[str, int] | None = None  # kind of repair -> number of characters
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{self.source}: {self.tasks} tasks from {self.rows} rows"]
        if self.skipped:
            shown = "; ".join(map(str, self.skipped[:3])) + ("; ..." if len(self.skipped) > 3 else "")
            parts.append(f"{len(self.skipped)} skipped ({shown})")
        if self.duplicates:
            parts.append(f"{self.duplicates} repeated questions")
        parts += [f"{count} times: {repair}" for repair, count in (self.mended or {}).items()]
        return ", ".join([*parts, *self.notes])


def load(config: DataConfig) -> list[Task]:
    """Load the tasks of a source. Raises ConfigError (a wrong source; `where` is the key) or FormatError (wrong
    content)."""
    return load_with_report(config)[0]


def load_with_report(
    config: DataConfig, read: Callable[..., Task | Skipped] = task_from_row
) -> tuple[list[Task], LoadReport]:
    """Load the tasks of a source, with a report on its rows. `read` makes a task from a row, like
    `rows.task_from_row`."""
    mend, tasks, skipped, notes = TextRepair(), [], [], []
    rows, ids = 0, Counter[str]()
    columns = {str(key): column for key, column in config.columns.items()}
    for number, (place, item) in enumerate(_items(config), 1):
        rows = number
        if isinstance(item, Mapping):
            item = read_task(item) or item
        if not isinstance(item, Task):
            name = f"{_stem(config)}/{number}"
            item = read(item, place=place, name=name, source=_stem(config), columns=columns, mend=mend)
            if isinstance(item, Task):
                ids[item.id] += 1
                item = item if ids[item.id] == 1 else replace(item, id=name)  # ids in foreign data need not be unique
        if isinstance(item, Skipped):
            skipped.append(item)
        else:
            tasks.append(item)
    tasks, duplicates = _count_duplicates(tasks, drop=config.duplicates == "drop")
    if not tasks:
        reason = (
            f"no task is left of {rows} rows ({len(skipped)} skipped; first: {skipped[0]})"
            if skipped
            else "holds no rows"
        )
        raise FormatError(f"{config.source}: {reason}")
    if config.shuffle is not False:
        Random(f"{0 if config.shuffle is True else config.shuffle}/tasks/{config.source}/{config.split}").shuffle(tasks)
    tasks = tasks[: config.limit]
    if repeated := ids.total() - len(ids):
        notes.append(f"{repeated} rows repeat an earlier id and get their number as id")
    without_answer = sum(not task.answers for task in tasks)
    if without_answer:
        notes.append(f"{without_answer} without a reference answer (a verifier or an environment scores them)")
    report = LoadReport(
        source=str(config.source),
        rows=rows,
        tasks=len(tasks),
        skipped=tuple(skipped),
        duplicates=duplicates,
        mended=dict(mend.counts),
        notes=tuple(notes),
    )
    return tasks, report


def _stem(config: DataConfig) -> str:
    if isinstance(config.source, InMemoryTasks):
        return "rows"
    source = config.source.removeprefix("hf:")
    return Path(source).stem if source.endswith(SUFFIXES) else source.rstrip("/").rsplit("/", 1)[-1]


def _is_import_path(source: str) -> bool:
    return is_import_path(source) and not source.startswith(("hf:", "gym:", BENCHMARK))


def _items(config: DataConfig) -> Iterator[tuple[str, Any]]:
    """(place, row or task) for every row of the source."""
    source = config.source
    if isinstance(source, InMemoryTasks):
        return _checked(str(source), source.items)
    if source == "atlas":
        from arpo.tasks import atlas

        return ((task.id, task) for task in atlas.tasks(config.split, config.options.get("families")))
    if source.startswith("gym:"):
        from arpo.tasks import gym

        return ((task.id, task) for task in gym.tasks(source.removeprefix("gym:"), config.split, config.options))
    if source.startswith(BENCHMARK):
        return _benchmark(source.removeprefix(BENCHMARK), config)
    if source.startswith("hf:"):
        return _hub(source.removeprefix("hf:"), config)
    if source.endswith(SUFFIXES):
        return file_rows(expanded(source))
    return _function(source, config)


def _benchmark(name: str, config: DataConfig) -> Iterator[tuple[str, Any]]:
    from arpo.tasks.benchmarks import benchmark

    unknown = set(config.options) - {"data"}
    if unknown:
        raise ConfigError(
            "a benchmark's only option is data", where="options", value=sorted(unknown), hint="a folder with its files"
        )
    try:
        return iter([(task.id, task) for task in benchmark(name).tasks(data=config.options.get("data"))])
    except ConfigError as error:
        where = "options.data" if error.where == "--data" else "source"
        raise ConfigError(error.message, where=where, value=error.value, hint=error.hint) from error


def file_rows(path: Path, where: str = "source") -> Iterator[tuple[str, Mapping[str, object]]]:
    """(place, row) for every row of a file. Raises ConfigError (for the key `where`), FormatError."""
    if path.is_dir():
        raise ConfigError("is a folder, not a file", where=where, value=str(path), hint="Name the file in it")
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"a file ends in {', '.join(SUFFIXES)}", where=where, value=str(path))
    if not path.is_file():
        hint = "A path in a recipe is relative to the recipe's folder, else to the folder in which the command runs"
        raise ConfigError("no such file", where=where, value=str(path), hint=hint)
    readers: dict[str, Callable[[Path], Iterator[tuple[str, object]]]] = {
        ".jsonl": _jsonl,
        ".json": _json,
        ".parquet": _parquet,
        ".csv": _csv,
    }
    try:
        for place, row in readers[path.suffix](path):
            if not isinstance(row, Mapping):
                raise FormatError(f"{place}: expected an object (got {row!r:.80})")
            yield place, row
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror or error})") from error


def _jsonl(path: Path) -> Iterator[tuple[str, object]]:
    empty = True
    for number, raw in lines(path):
        line = _without_mark(raw, path) if number == 1 else raw
        if line.strip():
            empty = False
            place = f"{path}, line {number}"
            if number == 1 and line.strip() == b"[":
                raise FormatError(
                    f"{place}: starts a list; a .jsonl file has one object per line, and a list is a .json file"
                )
            yield place, _parsed(line, place)
    if empty:
        raise FormatError(f"{path}: is empty")


def _csv(path: Path) -> Iterator[tuple[str, object]]:
    try:
        text = _bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not UTF-8 at byte {error.start}") from error
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
        for row in reader:
            place = f"{path}, line {reader.line_num}"  # the last line of the row: a field may contain newlines
            if None in row or None in row.values():
                expected = f"expected {len(reader.fieldnames or ())} columns, as in the first line"
                raise FormatError(f"{place}: {expected} (put a text that contains a comma in double quotes)")
            yield place, row
    except csv.Error as error:
        raise FormatError(f"{path}, line {reader.line_num}: not CSV: {error}") from error


def _json(path: Path) -> Iterator[tuple[str, object]]:
    rows = _parsed(_bytes(path), str(path))
    if not isinstance(rows, list):
        raise FormatError(
            f"{path}: expected a list of objects (got {type(rows).__name__}); one object per line is a .jsonl file"
        )
    yield from ((f"{path}, row {number}", row) for number, row in enumerate(rows, 1))


def _bytes(path: Path) -> bytes:
    """The bytes of a text file without a byte order mark."""
    raw = read_file(path, WHOLE_BYTES)  # a larger set is a .jsonl file, which is read line by line
    if not raw.strip():
        raise FormatError(f"{path}: is empty")
    return _without_mark(raw, path)


def _without_mark(raw: bytes, path: Path) -> bytes:
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise FormatError(f"{path}: is UTF-16, not UTF-8: save it as UTF-8 (iconv -f UTF-16 -t UTF-8)")
    return raw.removeprefix(b"\xef\xbb\xbf")


def _parsed(raw: bytes, place: str) -> object:
    try:
        raw.decode("utf-8")
        return loads(raw)
    except UnicodeDecodeError as error:
        raise FormatError(
            f"{place}: not UTF-8 at byte {error.start} ({raw[error.start : error.start + 8]!r})"
        ) from error
    except json.JSONDecodeError as error:
        begins = raw[:60].decode(errors="replace")
        raise FormatError(f"{place}: not JSON: {error.msg} at column {error.colno} ({begins!r})") from error
    except ValueError as error:  # nested too deeply, too many values, a number of many thousand digits
        raise FormatError(f"{place}: unreadable JSON: {first_line(error)}") from error


def _parquet(path: Path) -> Iterator[tuple[str, object]]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=1000):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:  # UnicodeDecodeError: a damaged column name
        raise FormatError(f"{path}: not a readable parquet file: {error}") from error


def _hub(name: str, config: DataConfig) -> Iterator[tuple[str, Mapping[str, object]]]:
    try:
        import datasets
    except ImportError as error:
        hint = install("hub")
        raise ConfigError(
            "reading the Hub needs the package datasets", where="source", value=config.source, hint=hint
        ) from error
    try:
        if expanded(name).is_dir():
            dataset = datasets.load_from_disk(str(expanded(name)))
        else:
            dataset = datasets.load_dataset(name, split=config.split, **config.options)
    except (OSError, ValueError, TypeError, RuntimeError) as error:  # unreachable, unknown name or split, wrong options
        hint = f"is the name right, the Hub reachable and HF_HUB_OFFLINE unset? ({type(error).__name__}: {error})"
        raise ConfigError("cannot load from the Hub", where="source", value=config.source, hint=hint) from error
    if isinstance(dataset, Mapping):
        if config.split not in dataset:
            hint = nearest(config.split, map(str, dataset))
            raise ConfigError("the dataset has no such split", where="split", value=config.split, hint=hint)
        dataset = dataset[config.split]
    yield from ((f"{config.source} ({config.split}), row {number}", row) for number, row in enumerate(dataset, 1))


def _function(source: str, config: DataConfig) -> Iterator[tuple[str, Any]]:
    function = import_from_path(source, "source")
    if not callable(function):
        raise ConfigError(
            "is not a function", where="source", value=source, hint="a function that returns tasks or rows"
        )
    try:
        items = function(split=config.split, **config.options)
        if not isinstance(items, Iterable) or isinstance(items, str | bytes | Mapping):
            raise FormatError(f"{source} should return a list of tasks or rows (got {items!r:.80})")
        yield from _checked(source, items)
    except ArpoError:
        raise
    except Exception as error:  # the user's code, which may be a generator
        raise FormatError(f"{source} raised {type(error).__name__}: {error}") from error


def _checked(source: str, items: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    for number, item in enumerate(items, 1):
        place = f"{source}, item {number}"
        if isinstance(item, Task):
            _check_task(item, place)
        elif not isinstance(item, Mapping):
            raise FormatError(f"{place}: expected a Task or an object with question and answer (got {item!r:.80})")
        yield place, item


def _check_task(task: Task, place: str) -> None:
    """Raise FormatError for a hand-made task that cannot be used."""
    if not isinstance(task.id, str) or not task.id:
        raise FormatError(f"{place}: a task's id must be a text (got {task.id!r:.80})")
    valid = isinstance(task.messages, tuple | list) and all(
        isinstance(m, Mapping) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
        for m in task.messages
    )
    place = f"{place}, task {task.id}"
    if not valid or not task.messages or not task.question.strip():
        raise FormatError(
            f"{place}: messages must be a list of role and content, the last one a question (got {task.messages!r:.80})"
        )
    if not isinstance(task.answers, tuple | list) or not all(isinstance(answer, str) for answer in task.answers):
        raise FormatError(f"{place}: answers must be a list of texts (got {task.answers!r:.80})")


def _count_duplicates(tasks: list[Task], *, drop: bool) -> tuple[list[Task], int]:
    """The tasks (without later copies if `drop`) and the number of repeated questions. The same words that are asked
    elsewhere (after other messages, of other documents, in another setup) are another question. Raises FormatError for
    a repeated id."""
    seen: set[tuple[str, str]] = set()
    ids: set[str] = set()
    kept = []
    for task in tasks:
        if task.id in ids:
            raise FormatError(f"two tasks have the id {task.id!r} (second question: {task.question[:60]!r})")
        ids.add(task.id)
        asked = bare_question(task), repr((task.messages, task.documents, task.setup))
        if asked not in seen or not drop:
            kept.append(task)
        seen.add(asked)
    return kept, len(tasks) - len(seen)
