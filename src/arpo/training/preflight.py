"""Preflight: everything that a run needs and may lack is read before its folder is made.

That is tasks, traces, tools, reward and the model's files, so that a mistake in one leaves no folder behind. Knows the
configuration. Refuses to write anything but the model's cache.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from arpo.assembly.components import Setting, build_setting, read_tasks
from arpo.assembly.machine_memory import check_memory
from arpo.errors import ConfigError
from arpo.models.sources import fetch
from arpo.recipe.run import RunConfig, plain
from arpo.rewards.measures import gold_warning
from arpo.runs.fingerprint import fingerprint
from arpo.runs.folder import RunFolder
from arpo.sft.traces import read_traces
from arpo.tasks import Task
from arpo.tasks.in_memory import InMemoryTasks, check_writable, write_tasks
from arpo.tasks.leakage import leaks
from arpo.training.task_sampler import check_enough
from arpo.yaml_positions import dump, parse


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    tasks: dict[str, list[Task]]
    """By split."""
    notes: tuple[tuple[str, str], ...]
    """(text, level) for the run's log."""
    setting: Setting
    source: Path
    """The model's folder."""
    began: float
    """On the monotonic clock."""

    def keep_given_tasks(self, run: RunConfig, folder: Path) -> None:
        """Write what the calling program passed as objects where `with_kept_tasks` reads it."""
        for split in given_splits(run):
            write_tasks(_kept_tasks(folder, split), self.tasks[split])

    def fingerprint(self, run: RunConfig) -> dict[str, dict[str, Any]]:
        """What the results of `run` depend on (`arpo.runs.fingerprint`)."""
        return fingerprint(run, self.tasks, self.setting.tools, self.source)


def prepare(run: RunConfig, *, resume: bool = False, override: bool = False) -> Prepared:
    """Raises ConfigError and FormatError, which name key or file. A run that goes on needs no traces any more. With
    `override` too little memory is a warning."""
    began = time.monotonic()
    tasks: dict[str, list[Task]] = {}
    notes: list[tuple[str, str]] = []
    for split in ("train", "validation", "test"):
        tasks[split], report = read_tasks(run, split)
        if split in given_splits(run):
            check_writable(tasks[split], f"data.{split}.source")
        if report and (report.skipped or report.mended or report.duplicates or report.notes):
            notes.append((f"{split} data: {report}", "info"))
    check_enough(run.train, len(tasks["train"]))
    if why := run.rollout.never_branches:
        notes.append((f"no tree can branch, so all trajectories start from the prompt, as in GRPO: {why}", "warning"))
    # in an environment the words may be the same for every task: its episodes differ by more
    notes += _shared(tasks, run.data.allow_test_questions or run.environment is not None)
    if run.cold_start and not resume:
        read_traces(run.cold_start, run.data.train)
    warnings = {split: gold_warning(tasks[split], run.reward) for split in tasks}
    notes += [(f"{split} data: {text}", "warning") for split, text in warnings.items() if text]
    setting = build_setting(run)
    notes += [(text, "info") for text in setting.notes()]
    source = fetch(run.model.source)
    if warning := check_memory(run, source, override=override):
        notes.append((warning, "warning"))
    return Prepared(tasks=tasks, notes=tuple(notes), setting=setting, source=source, began=began)


def at_its_end(run: RunConfig, folder: Path) -> bool:
    """Whether `folder` holds a finished run with the recipe of `run` (recipes are compared, since objects have no
    equality)."""
    if not (folder / "recipe.yaml").is_file() or RunFolder(folder).summary().get("status") != "finished":
        return False
    was, now = RunFolder(folder).recipe_values(), parse(dump(plain(run)), "now").value
    return {**was, "out": None} == {**now, "out": None}


def given_splits(run: RunConfig) -> list[str]:
    """Splits whose tasks the calling program passes as objects."""
    splits = ("train", "validation", "test")
    return [split for split in splits if (data := getattr(run.data, split)) and isinstance(data.source, InMemoryTasks)]


def with_kept_tasks(run: RunConfig, folder: Path) -> RunConfig:
    """`run` as its recipe says it: tasks that the calling program passed are read from the run's folder, in their
    present order."""
    as_they_are: dict[str, Any] = {"limit": None, "shuffle": False, "columns": {}, "duplicates": "keep"}
    changes = {
        split: getattr(run.data, split).model_copy(
            update={"source": str(_kept_tasks(folder, split).resolve()), **as_they_are}
        )
        for split in given_splits(run)
    }
    return run.model_copy(update={"data": run.data.model_copy(update=changes)}) if changes else run


def _kept_tasks(folder: Path, split: str) -> Path:
    return folder / "tasks" / f"{split}.jsonl"


def _shared(tasks: Mapping[str, Sequence[Task]], allowed: bool) -> list[tuple[str, str]]:
    """Warnings of questions that two splits share. Raises ConfigError where validation is the test set, unless that is
    allowed."""
    notes = []
    for one, other in combinations(tasks, 2):
        shared = leaks(tasks[other], tasks[one])
        if (one, other) == ("validation", "test") and 2 * len(shared.leaks) > shared.num_questions and not allowed:
            message = f"validation tasks choose the checkpoint, and they hold {shared}"
            hint = "Hold out training tasks instead, or set data.allow_test_questions"
            raise ConfigError(f"{message} of the test data", where="data.validation", hint=hint)
        if shared:
            notes.append((f"questions are in {one} and in {other} data: {shared}", "warning"))
    return notes
