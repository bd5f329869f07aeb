"""The folder of one run: the only place where training writes.

    RUN/recipe.yaml            the resolved recipe
        recipe.resumed.yaml    that of the last resumption, where it differs: what the next one goes on with
        fingerprints.json      what its results depend on (arpo.runs.fingerprint)
        environment.json       where it ran (a list: one entry each time it was started or resumed)
        tasks/train.jsonl      tasks that a program brought (arpo.tasks.in_memory); validation and test likewise
        metrics.jsonl          one JSON object a step, with its "step"
        states.jsonl           where the run stands after a step (arpo.runs.checkpoint:TrainState)
        notes.jsonl            warnings and events of the run: {time, step, level, text}
        samples.jsonl          a few trajectories as text: {step, task, reward, accuracy, text}
        events/step-000012.frames   the trees of a step (arpo.core.record): a frame when scored, another with credit
        tokenizer/             the model's, in the Hugging Face form: recorded tokens can be read without the model
        checkpoints/           written by arpo.runs.checkpoint
        evaluation/NAME/       evaluations of held-out tasks (arpo.evaluation.manifest)
        summary.json, report.md, plots/, tensorboard/
        cut/                   what a resumed run did again: kept, not read
        lock                   held while a process writes here

Knows names, steps and how files survive a crash. Refuses to know what metrics, frames and recipes mean. One process
writes; any number may read, also while it writes.
"""

import os
import re
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from arpo.core.record import Frames, TreeRecord, decode, encode
from arpo.errors import ConfigError, FormatError
from arpo.files import (
    PARTIAL,
    cut_unfinished_line,
    json_line,
    open_to_append,
    read_json,
    read_json_lines,
    sync_folder,
    write_atomic,
    write_json,
)
from arpo.foreign import is_number, open_file, read_text
from arpo.runs.atomic import clear_partial, settle
from arpo.runs.lock import Lock, is_held
from arpo.runs.summary import check_summary
from arpo.yaml_positions import read

MOST_STEPS = 1_000_000_000
RESUMED = "recipe.resumed.yaml"
ENVIRONMENT = "environment.json"
BYTES = "records/bytes"  # metric: the size of a step's file of trees
STATES = "states.jsonl"
_LINES = ("metrics.jsonl", STATES, "notes.jsonl", "samples.jsonl")
VALIDATION = "validation"  # evaluations whose names start so were made during training
_OF_A_STEP = re.compile(rf"(?:step|{VALIDATION})-(\d{{1,9}})(?:\.frames)?$")


def is_run(path: Path) -> bool:
    """True for a folder that a run was written to: a project's folder has a recipe.yaml of its user, but no
    environment.json."""
    return (path / "recipe.yaml").is_file() and (path / ENVIRONMENT).is_file()


class RunFolder:
    """Reads a run folder; writes it too when made by `create`, which holds the lock until `close` (or the end of
    `with`)."""

    def __init__(self, path: Path | str) -> None:
        """For reading. Raises ConfigError where `path` holds no run."""
        self.path = Path(path)
        self._lock: Lock | None = None
        self._appending: dict[Path, IO[bytes]] = {}
        self._ends: tuple[tuple[int, int, int], dict[int, Any]] | None = None  # see `_sizes`
        if not (self.path / "recipe.yaml").exists():
            raise ConfigError("this folder holds no run", where=str(path), hint="a run folder has a recipe.yaml")

    @classmethod
    def create(
        cls,
        path: Path | str,
        run_yaml: str,
        environment: Mapping[str, Any],
        *,
        resume: bool = False,
    ) -> "RunFolder":
        """Make a run folder, or with `resume` go on with one, and lock it.

        Raises ConfigError where the folder is not empty (without `resume`), holds no run (with it), cannot be written,
        or another process writes it. A resumed run keeps its recipe.yaml (see `goes_on_with`).
        """
        path = Path(path)
        with _writable(path):
            _check_fits(path, resume)
            path.mkdir(parents=True, exist_ok=True)
            lock = Lock.take(path / "lock")
            try:
                _check_fits(path, resume)  # another process may have made and left a run while we waited
                _tidy(path)
                started = _environments(path / ENVIRONMENT) if resume else []
                write_json(path / ENVIRONMENT, [*started, {"time": time.time(), **environment}])
                if not resume:
                    write_atomic(path / "recipe.yaml", run_yaml)  # last: without it, what a killed start left is no run
                for name in ("events", "checkpoints", "evaluation"):
                    (path / name).mkdir(exist_ok=True)
                for name in _LINES:
                    drop_unfinished_line(path / name)
                run = cls(path)
                run._lock = lock
                run.write_summary(status="going")  # whoever ends the run says how; a crash leaves this behind
            except BaseException:
                lock.release()
                raise
        return run

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files and let go of the lock. A crash does so too."""
        self._close_files()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _close_files(self) -> None:
        for file in self._appending.values():
            file.close()
        self._appending.clear()

    # --- writing

    def _append(self, path: Path, content: bytes) -> None:
        """All of `content`, or on a full disk none of it: what is in the file stays readable."""
        if self._lock is None:
            raise ValueError(f"{self.path} was opened for reading")
        if path not in self._appending:
            self._appending[path] = open_to_append(path)
        file = self._appending[path]
        before, left = os.fstat(file.fileno()).st_size, memoryview(content)
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            with suppress(OSError):
                file.truncate(before)
            raise

    def sync(self) -> None:
        """Make what was appended outlive the machine, not only the process: to be called before a checkpoint is
        declared done."""
        for file in self._appending.values():
            os.fsync(file.fileno())
        for folder in (self.path, self.path / "events"):
            sync_folder(folder)

    def append_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Add one line for `step`, which ends it, at once visible to readers: `metrics`, and the bytes of its trees, so
        that a file that lost some is noticed. NaN and infinity are written as null."""
        events = self.events_path(step)
        size = {BYTES: events.stat().st_size} if events.exists() else {}
        self._append(self.path / "metrics.jsonl", json_line({"step": step, **metrics, **size}))
        trees = self._appending.pop(events, None)
        if trees is not None:
            with trees:
                os.fsync(trees.fileno())

    def append_state(self, state: Mapping[str, Any]) -> None:
        """Add where the run stands after a step: its trees and metrics are written, so that its update can be done
        again."""
        self._append(self.path / STATES, json_line(state))

    def states(self) -> list[dict[str, Any]]:
        """One dict a finished step, in order."""
        return list(read_json_lines(self.path / STATES)) if (self.path / STATES).exists() else []

    def note(self, text: str, *, step: int | None = None, level: str = "info") -> None:
        """Add a warning ("warning"), or an event worth reading later ("info")."""
        self._append(
            self.path / "notes.jsonl", json_line({"time": time.time(), "step": step, "level": level, "text": text})
        )

    def append_sample(self, step: int, text: str, **facts: Any) -> None:
        """Keep a trajectory as text for the report, with facts such as task, reward, accuracy, leaf."""
        self._append(self.path / "samples.jsonl", json_line({"step": step, **facts, "text": text}))

    def append_tree(self, step: int, record: TreeRecord) -> None:
        """Add a tree to the log of `step`, as one flushed frame."""
        self._append(self.events_path(step), encode(record))

    def write_summary(self, **values: Any) -> Path:
        """Set these keys of summary.json, keeping the others. `status` says how the run ended ("finished", "stopped",
        ...)."""
        return write_json(self.path / "summary.json", {**self.summary(), **values})

    def write_recipe(self, run_yaml: str) -> None:
        """Replace recipe.yaml, by what the run was planned to do."""
        write_atomic(self.path / "recipe.yaml", run_yaml)

    def goes_on_with(self, run_yaml: str) -> None:
        """Write it as recipe.resumed.yaml where it differs from recipe.yaml: to be called when the run could be built,
        so that no mistake in it outlives the start."""
        if read_text(self.path / "recipe.yaml") != run_yaml:
            write_atomic(self.path / RESUMED, run_yaml)
        else:
            (self.path / RESUMED).unlink(missing_ok=True)

    def keep_tokenizer(self, tokenizer: Any) -> None:
        """Save the model's tokenizer (a transformers one). Done again at every start: a kill may have cut an earlier
        one short."""
        tokenizer.save_pretrained(self.path / "tokenizer")

    def cut_back(self, step: int) -> Path | None:
        """Take out everything written after `step`, the last one that the checkpoint holds, as if it had not happened.

        What is cut is kept under cut/ (a new numbered folder each time, returned; None where there was nothing to cut).
        """
        if self._lock is None:
            raise ValueError(f"{self.path} was opened for reading")
        self._close_files()
        aside = self.path / "cut" / f"{_next_number(self.path / 'cut'):03d}-after-step-{step:06d}"
        for name in _LINES:
            self._cut_lines(self.path / name, step, aside)
        for path in (*self._event_files(), *(self.path / "evaluation").glob(f"{VALIDATION}-*")):
            if _step_of(path) > step:
                (aside / path.parent.name).mkdir(parents=True, exist_ok=True)
                os.replace(path, aside / path.parent.name / path.name)
        return aside if aside.exists() else None

    def _cut_lines(self, path: Path, step: int, aside: Path) -> None:
        if not path.exists():
            return
        lines = list(read_json_lines(path))
        kept = [line for line in lines if line.get("step") is None or line["step"] <= step]
        if len(kept) == len(lines):
            return
        aside.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, aside / path.name)
        write_atomic(path, b"".join(map(json_line, kept)))

    # --- reading

    def metrics(self) -> list[dict[str, Any]]:
        """One dict a step, in order; null stays None. A step that was written twice counts as written last."""
        return read_history(self.path)

    def notes(self) -> list[dict[str, Any]]:
        return list(read_json_lines(self.path / "notes.jsonl"))

    def samples(self) -> list[dict[str, Any]]:
        return list(read_json_lines(self.path / "samples.jsonl"))

    def summary(self) -> dict[str, Any]:
        path = self.path / "summary.json"
        found = read_json(path) if path.exists() else {}
        if not isinstance(found, dict):
            raise FormatError(f"{path} holds {type(found).__name__}, not an object")
        check_summary(found, str(path))
        return found

    @property
    def recipe(self) -> Path:
        """The resolved recipe that counts now: that of the last resumption where it differs."""
        resumed = self.path / RESUMED
        return resumed if resumed.is_file() else self.path / "recipe.yaml"

    def recipe_values(self) -> dict[str, Any]:
        """What that recipe holds. Raises ConfigError."""
        return read(self.recipe).value

    def environment(self) -> list[dict[str, Any]]:
        return _environments(self.path / ENVIRONMENT)

    def state(self) -> str:
        """How the run ended, or "still going", or "cut off before its end"."""
        status = str(self.summary().get("status", "going"))
        return status if status != "going" else "still going" if self.is_live() else "cut off before its end"

    def is_live(self) -> bool:
        """True while some process holds the lock."""
        if self._lock is not None:
            return True
        return is_held(self.path / "lock")

    def event_steps(self) -> list[int]:
        """Steps that have an event log, in order."""
        return [_step_of(path) for path in self._event_files()]

    def trees(self, step: int) -> Iterator[TreeRecord]:
        """The trees of a step in the order in which they were first written, up to the last whole frame; of a task that
        was written again (with credit, after the update) the last. Raises FormatError, naming file, frame and byte, for
        anything that is no record."""
        path = self.events_path(step)
        if not path.exists():
            return
        records, frames = read_frames(path)
        with naming(path):
            self.check_end(step, frames)
        yield from records

    def check_end(self, step: int, frames: Frames) -> None:
        """Raises FormatError where the file of `step`, all of whose frames were read, ends too early although the step
        is finished: no killed writer left it so."""
        sizes = self._sizes()
        if step not in sizes:
            return
        if frames.tail:
            raise FormatError(
                f"frame {frames.num_read} at byte {frames.offset} is cut short: {frames.tail:,} bytes of it are there"
            )
        size = sizes[step]
        if isinstance(size, int) and size > frames.offset:
            raise FormatError(
                f"frame {frames.num_read} at byte {frames.offset} is missing: the file had {size:,} bytes when the "
                "step ended"
            )

    def _sizes(self) -> dict[int, Any]:
        """By finished step, what its line says of the bytes of its trees. The metrics are read again only where they
        have changed: whoever reads all steps asks once for each."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return {}
        stat = path.stat()
        version = stat.st_ino, stat.st_size, stat.st_mtime_ns
        if self._ends is None or self._ends[0] != version:
            self._ends = version, {line["step"]: line.get(BYTES) for line in self.metrics()}
        return self._ends[1]

    def events_path(self, step: int) -> Path:
        return self.path / "events" / f"step-{step:06d}.frames"

    def _event_files(self) -> list[Path]:
        found = [p for p in (self.path / "events").glob("step-*.frames") if _OF_A_STEP.search(p.name)]
        return sorted(found, key=_step_of)


def read_frames(path: Path) -> tuple[list[TreeRecord], Frames]:
    """The last record of every task in a file of frames, and where reading ended. Raises FormatError as `trees`."""
    with open_file(path) as file, naming(path):
        frames = decode(file)
        return list({record.tree.task: record for record in frames}.values()), frames


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors about what a file holds, with the name of the file."""
    try:
        yield
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from error


def _environments(path: Path) -> list[dict[str, Any]]:
    starts = read_json(path) if path.exists() else []
    if not isinstance(starts, list) or not all(isinstance(start, dict) for start in starts):
        raise FormatError(f"{path} is not a list of objects, one a start")
    return starts


def move_aside(path: Path) -> Path | None:
    """Rename an earlier run's folder to `NAME.1`, `NAME.2`, ...; returns where it is now, None where there is none.

    Raises ConfigError where it is no run, or a process still writes it."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return None
    if not is_run(path):
        raise ConfigError(
            "this folder holds no run to move aside", where=str(path), hint="Choose another folder (--out)"
        )
    lock = Lock.take(
        path / "lock"
    )  # of two that move it aside at once, the second must not move the first one's new run
    try:
        number = 1
        while (aside := path.with_name(f"{path.name}.{number}")).exists():
            number += 1
        path.rename(aside)
        lock.moved(aside / "lock")
    finally:
        lock.release()
    return aside


def check_is_run(path: Path) -> None:
    """Raises ConfigError where `path` is no run's folder."""
    if is_run(path):
        return
    hint = "A run's folder has a recipe.yaml and an environment.json"
    if (path / "recipe.yaml").is_file():
        hint += f"; this one has a recipe alone, which begins a run: arpo train {path / 'recipe.yaml'}"
    raise ConfigError("there is no run to resume", where=str(path), hint=hint)


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "Choose another folder (--out)"
        raise ConfigError(
            f"the run folder cannot be written ({error.strerror or error})", where=str(path), hint=hint
        ) from error


def _check_fits(path: Path, resume: bool) -> None:
    """A run that goes on needs one; a new one needs a free place. What a killed start left of a run counts as
    nothing."""
    if resume:
        check_is_run(path)
    if resume or not path.exists():
        return
    left = ("lock", ENVIRONMENT) if path.is_dir() and not (path / "recipe.yaml").exists() else ("lock",)
    if not path.is_dir() or any(p.name not in left and not p.name.startswith(PARTIAL) for p in path.iterdir()):
        hint = "Go on with the run in it (--resume), move that aside (--again), or choose another folder (--out)"
        raise ConfigError("the run folder is not empty", where=str(path), hint=hint)


def _tidy(path: Path) -> None:
    """Away with what a killed process left half-written."""
    settle(path / "checkpoints")
    for folder in (path, path / "evaluation"):
        clear_partial(folder)


def _step_of(path: Path) -> int:
    """Of a file of one step; 0 where its name says none."""
    match = _OF_A_STEP.search(path.name)
    return int(match[1]) if match else 0


def _next_number(folder: Path) -> int:
    taken = [int(p.name[:3]) for p in folder.glob("[0-9][0-9][0-9]-*")] if folder.exists() else []
    return max(taken, default=0) + 1


def drop_unfinished_line(path: Path) -> None:
    """Cut a last line that a crash left half-written, so that the next line starts fresh."""
    if path.exists():
        with open_to_append(path) as file:
            cut_unfinished_line(file)


def read_history(run: Path | str) -> list[dict[str, Any]]:
    """The metrics of a run folder: one dict a step, in order; null stays None. A step written twice counts as written
    last."""
    path = Path(run) / "metrics.jsonl"
    by_step: dict[int, dict[str, Any]] = {}
    for line in read_json_lines(path):
        step = line.get("step", 0)
        if type(step) is not int or not 0 <= step < MOST_STEPS:
            raise FormatError(f"{path} holds the step {step!r:.40}, which is none")
        for name, value in line.items():
            if type(value) in (int, float) and not is_number(value):
                raise FormatError(f"{path}, step {step} holds {value!r:.40} as {name[:80]!r}")
        if "step" in line:
            by_step[step] = line
    return [by_step[step] for step in sorted(by_step)]
