"""The folder of one run: the only place where training writes.

    RUN/recipe.yaml            the resolved recipe
        environment.json       where it ran (a list: one entry each time it was started or resumed)
        metrics.jsonl          one JSON object a step, with its "step"
        notes.jsonl            warnings and events of the run: {time, step, level, text}
        samples.jsonl          a few trajectories as text: {step, task, reward, accuracy, text}
        events/step-000012.frames   the trees of a step (arpo.core.record): a frame as each is scored, another when it has credit
        tokenizer/             the model's, in the Hugging Face form: recorded tokens can be read without the model
        checkpoints/           written by arpo.train.checkpoint
        evaluation/NAME.json   written by arpo.evaluation
        summary.json, report.md, plots/, tensorboard/
        cut/                   what a resumed run did again: kept, not read
        lock                   held while a process writes here

Knows names, steps and how files survive a crash. Refuses to know what metrics, frames and recipes mean. One process writes; any
number may read, also while it writes.
"""

import contextlib
import fcntl
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from arpo.core.record import TreeRecord, decode, encode
from arpo.errors import ConfigError, FormatError
from arpo.evaluation.results import read_history
from arpo.files import json_line, read_json, read_json_lines, write_atomic, write_json

_LINES = ("metrics.jsonl", "notes.jsonl", "samples.jsonl")
_STEP = re.compile(r"step-(\d+)\.frames$")


class RunFolder:
    """Reads a run folder; writes it too when made by `create`, which holds the lock until `close` (or the end of `with`)."""

    def __init__(self, path: Path | str) -> None:
        """For reading. Raises ConfigError where `path` holds no run."""
        self.path = Path(path)
        self._lock: IO[bytes] | None = None
        self._appending: dict[Path, IO[bytes]] = {}
        if not (self.path / "recipe.yaml").exists():
            raise ConfigError("this folder holds no run", where=str(path), hint="a run folder has a recipe.yaml")

    @classmethod
    def create(cls, path: Path | str, run_yaml: str, environment: Mapping[str, Any], *, resume: bool = False) -> "RunFolder":
        """Make a run folder, or with `resume` go on with one, and lock it.

        Raises ConfigError where the folder is not empty (without `resume`), holds no run (with it), or another process writes it.
        A resumed run keeps its recipe.yaml: `run_yaml` is written as recipe.resumed.yaml beside it where it differs.
        """
        path = Path(path)
        recipe = path / "recipe.yaml"
        if resume and not recipe.exists():
            raise ConfigError("there is no run to resume here", where=str(path), hint="start it without --resume")
        if not resume and path.exists() and (not path.is_dir() or any(p.name != "lock" for p in path.iterdir())):
            hint = "Go on with the run in it (--resume), move that aside (--again), or choose another folder (--out)"
            raise ConfigError("the run folder is not empty", where=str(path), hint=hint)
        path.mkdir(parents=True, exist_ok=True)
        lock = _take_lock(path / "lock")
        try:
            if not resume:
                write_atomic(recipe, run_yaml)
            elif recipe.read_text(encoding="utf-8") != run_yaml:
                write_atomic(path / "recipe.resumed.yaml", run_yaml)
            started = read_json(path / "environment.json") if resume and (path / "environment.json").exists() else []
            write_json(path / "environment.json", [*started, {"time": time.time(), **environment}])
            for name in ("events", "checkpoints", "evaluation"):
                (path / name).mkdir(exist_ok=True)
            if resume:
                for name in _LINES:
                    _drop_unfinished_line(path / name)
            run = cls(path)
        except BaseException:
            lock.close()
            raise
        run._lock = lock
        run.write_summary(status="going")  # whoever ends the run says how; a crash leaves this behind
        return run

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files and let go of the lock. A crash does so too."""
        for file in self._appending.values():
            file.close()
        self._appending.clear()
        if self._lock is not None:
            (self.path / "lock").unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    # --- writing

    def _append(self, path: Path, content: bytes) -> None:
        if self._lock is None:
            raise ValueError(f"{self.path} was opened for reading")
        if path not in self._appending:
            if path.parent.name == "events":  # one step's file is open at a time
                for old in [p for p in self._appending if p.parent.name == "events"]:
                    self._appending.pop(old).close()
            self._appending[path] = path.open("ab")
        self._appending[path].write(content)
        self._appending[path].flush()

    def sync(self) -> None:
        """Make what was appended outlive the machine, not only the process: to be called before a checkpoint is declared done."""
        for file in self._appending.values():
            os.fsync(file.fileno())

    def append_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Add one line for `step`, at once visible to readers. NaN and infinity are written as null."""
        self._append(self.path / "metrics.jsonl", json_line({"step": step, **metrics}))

    def note(self, text: str, *, step: int | None = None, level: str = "info") -> None:
        """Add a warning ("warning"), or an event worth reading later ("info")."""
        self._append(self.path / "notes.jsonl", json_line({"time": time.time(), "step": step, "level": level, "text": text}))

    def append_sample(self, step: int, text: str, **facts: Any) -> None:
        """Keep a trajectory as text for the report, with facts such as task, reward, accuracy, leaf."""
        self._append(self.path / "samples.jsonl", json_line({"step": step, **facts, "text": text}))

    def append_tree(self, step: int, record: TreeRecord) -> None:
        """Add a tree to the log of `step`, as one flushed frame."""
        self._append(self.events_path(step), encode(record))

    def write_summary(self, **values: Any) -> Path:
        """Set these keys of summary.json, keeping the others. `status` says how the run ended ("finished", "stopped", ...)."""
        return write_json(self.path / "summary.json", {**self.summary(), **values})

    def keep_tokenizer(self, tokenizer: Any) -> None:
        """Save the model's tokenizer (a transformers one). Done again at every start: a kill may have cut an earlier one short."""
        tokenizer.save_pretrained(self.path / "tokenizer")

    def cut_back(self, step: int) -> Path | None:
        """Take out everything written after `step`, the last one that the checkpoint holds, as if it had not happened.

        What is cut is kept under cut/ (a new numbered folder each time, returned; None where there was nothing to cut).
        """
        if self._lock is None:
            raise ValueError(f"{self.path} was opened for reading")
        for file in self._appending.values():
            file.close()
        self._appending.clear()
        aside = self.path / "cut" / f"{_next_number(self.path / 'cut'):03d}-after-step-{step:06d}"
        for name in _LINES:
            self._cut_lines(self.path / name, step, aside)
        for path in self._event_files():
            if _step_of(path) > step:
                (aside / "events").mkdir(parents=True, exist_ok=True)
                os.replace(path, aside / "events" / path.name)
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
        return found

    def recipe_text(self) -> str:
        return (self.path / "recipe.yaml").read_text(encoding="utf-8")

    def environment(self) -> list[dict[str, Any]]:
        path = self.path / "environment.json"
        return list(read_json(path)) if path.exists() else []

    def state(self) -> str:
        """How the run ended, or "still going", or "cut off before its end"."""
        status = str(self.summary().get("status", "going"))
        return status if status != "going" else "still going" if self.is_live() else "cut off before its end"

    def is_live(self) -> bool:
        """True while some process holds the lock."""
        if self._lock is not None:
            return True
        path = self.path / "lock"
        if not path.exists():
            return False
        with path.open("rb") as file:
            return not _try_lock(file)

    def event_steps(self) -> list[int]:
        """Steps that have an event log, in order."""
        return [_step_of(path) for path in self._event_files()]

    def trees(self, step: int) -> Iterator[TreeRecord]:
        """The trees of a step in the order in which they were first written, up to the last whole frame; of a task that was written
        again (with credit, after the update) the last. Raises FormatError, naming file, frame and byte, for anything that is no
        record."""
        path = self.events_path(step)
        if not path.exists():
            return
        with path.open("rb") as file:
            try:
                last = {record.tree.task: record for record in decode(file)}
            except FormatError as error:
                raise FormatError(f"{path}: {error}") from error
        yield from last.values()

    def events_path(self, step: int) -> Path:
        return self.path / "events" / f"step-{step:06d}.frames"

    def _event_files(self) -> list[Path]:
        found = [p for p in (self.path / "events").glob("step-*.frames") if _STEP.search(p.name)]
        return sorted(found, key=_step_of)


def move_aside(path: Path) -> Path | None:
    """Rename an earlier run's folder to `NAME.1`, `NAME.2`, ...; returns where it is now, None where there is none.

    Raises ConfigError where it is no run, or a process still writes it."""
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return None
    if RunFolder(path).is_live():
        raise ConfigError("another process is writing this run", where=str(path), hint="choose another folder, or wait for it")
    number = 1
    while (aside := path.with_name(f"{path.name}.{number}")).exists():
        number += 1
    return path.rename(aside)


def _step_of(path: Path) -> int:
    match = _STEP.search(path.name)
    assert match is not None
    return int(match[1])


def _next_number(folder: Path) -> int:
    taken = [int(p.name[:3]) for p in folder.glob("[0-9][0-9][0-9]-*")] if folder.exists() else []
    return max(taken, default=0) + 1


def _try_lock(file: IO[bytes]) -> bool:
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _take_lock(path: Path) -> IO[bytes]:
    """Lock the run. The kernel lets go of the lock when its process ends, however it ends; the file's text says who holds it."""
    patience = time.monotonic() + 0.5  # `is_live` of a reader holds the lock for an instant
    while True:
        file = path.open("a+b")
        if not _try_lock(file):
            if time.monotonic() < patience:
                file.close()
                time.sleep(0.02)
                continue
            file.seek(0)
            holder = file.read().decode(errors="replace").strip() or "unknown"
            file.close()
            raise ConfigError(
                "another process writes this run", where=str(path.parent), value=holder, hint="wait for it, or stop it first"
            )
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):  # else its last holder removed it while we opened it
                break
        file.close()
    file.truncate(0)
    file.write(f"pid {os.getpid()} on {socket.gethostname()}\n".encode())
    file.flush()
    return file


def _drop_unfinished_line(path: Path) -> None:
    """Cut a last line that a crash left half-written, so that the next line starts fresh."""
    if not path.exists():
        return
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        write_atomic(path, content[: content.rfind(b"\n") + 1])
