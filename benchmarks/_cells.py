"""A cell of the comparison: one method with one seed, as a run in a process of its own, and as a small file once it is
finished.

    OUT/cells/arpo-s0.json   figures of a finished cell: enough for every table and plot, so a cell can be moved alone
        runs/arpo-s0/        its run folder; a finished cell keeps no checkpoints (one takes 1.6 GB in the quickstart)
        logs/arpo-s0.log     what its process printed

Knows what makes a method a method, and how a killed cell goes on. Refuses to know how cells are compared.
"""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import ValidationError

from arpo.config import Config
from arpo.core.branching import Paper
from arpo.errors import ArpoError, ConfigError, FormatError
from arpo.evaluation.manifest import EvalManifest
from arpo.evaluation.results import BenchmarkResult, benchmark_result, by_name, read_evaluations
from arpo.evaluation.samples import SampleRecord, read_samples
from arpo.files import as_json, read_json, write_atomic
from arpo.recipe.load import load_recipe
from arpo.recipe.run import RunConfig, plain
from arpo.runs.checkpoint import newest
from arpo.runs.folder import RunFolder, move_aside
from arpo.training.metrics import want_rates
from arpo.yaml_positions import flat

METHODS = ("grpo", "fixed", "random", "arpo")  # as they are shown; the first is what the others are compared with
KEPT = [
    "step",
    "accuracy/probe_lines",
    "reward/probe_lines",
    "leaves/all",
    "leaves/fills",
    "calls/executed",
    "calls/inherited",
    "decisions/tips",
    "decisions/wanted",
    "decisions/granted",
    "tokens/generated",
    "tokens/shared",
    "tokens/forward_unique",
    "train/tokens_trained",
    "entropy/rise_positive",
    "seconds/step",
]
_GRACE_S = 300.0  # a stopped cell ends its update and writes a checkpoint first
_RATES = "rollout.rule.rates"
_OWN = ("out", "code")  # where files lie does not change what a cell measures


class CellError(ArpoError):
    """A cell's process failed, or what it left behind is not a finished run."""


class Answers(Config):
    """One evaluation: accuracy (mean over samples) and family by question."""

    accuracy: dict[str, float]
    family: dict[str, str]
    settings: dict[str, Any]


class Cell(Config):
    """A finished cell, as its file holds it."""

    kind: Literal["arpo/comparison-cell/1"] = "arpo/comparison-cell/1"
    method: str
    seed: int
    cold_start_key: str
    """A hash of everything that decides the weights of the cold start."""
    recipe: dict[str, Any]
    want_rates: dict[int, float]
    """The share of tips at each depth where the rule wanted a branch."""
    seconds: dict[str, float]
    """By phase. A cell that found the cold start and its evaluation in the cache has short ones."""
    evaluation: dict[str, Answers]
    steps: list[dict[str, float | None]]

    @cached_property
    def results(self) -> dict[str, BenchmarkResult]:
        """The evaluations, with their figures computed again from the answers."""
        return {name: self._results(name, answers) for name, answers in self.evaluation.items()}

    def _results(self, name: str, answers: Answers) -> BenchmarkResult:
        samples = [
            SampleRecord(
                benchmark=name,
                id=id,
                family=answers.family.get(id, ""),
                accuracy=value,
                correct=value >= 0.5,
                reward=value,
            )
            for id, value in answers.accuracy.items()
        ]
        manifest = EvalManifest(
            name=name,
            model=f"{self.method}-s{self.seed}",
            recipe="",
            preset="",
            benchmarks=(),
            samples=1,
            settings=answers.settings,
            decides={},
        )
        return benchmark_result(manifest, name, samples)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is compared. `seeds` are run seeds; `overrides` hold for every cell."""

    recipe: str
    overrides: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    out: Path

    def order(self) -> list[tuple[str, int]]:
        """Cells seed by seed, so that every method soon has one; within a seed, arpo before the random one that needs
        its rates."""
        methods = sorted(self.methods, key=("grpo", "arpo", "random", "fixed").index)
        return [(method, seed) for seed in self.seeds for method in methods]

    def cell_file(self, method: str, seed: int) -> Path:
        return self.out / "cells" / f"{method}-s{seed}.json"

    def run_folder(self, method: str, seed: int) -> Path:
        return self.out / "runs" / f"{method}-s{seed}"


def cell_overrides(plan: Plan, method: str, seed: int, rates: tuple[float, ...] = (0.5,)) -> list[str]:
    """What makes `plan`'s recipe the run of one cell. All methods have the same leaves, cold start, questions and
    draws; all but grpo have the same roots. `fixed` wants as many siblings at the first tool result as fill the tree.
    Raises ConfigError."""
    base = load_recipe(plan.recipe, plan.overrides)
    rollout = base.rollout
    if not isinstance(rollout.rule, Paper) or not isinstance(rollout.roots, int) or rollout.roots >= rollout.leaves:
        raise ConfigError(
            "the comparison needs a recipe for ARPO",
            where=f"{plan.recipe}: rollout",
            hint="rule: paper, and a number of roots below that of leaves",
        )
    siblings = math.ceil((rollout.leaves - rollout.roots) / rollout.roots)
    rule = {
        "grpo": ["rollout.rule=none", f"rollout.roots={rollout.leaves}", "rollout.root_cap=null"],
        "fixed": [f"rollout.rule={{rule: fixed, at: 1, siblings: {siblings}}}"],
        "random": [f"rollout.rule={{rule: random, siblings: {rollout.rule.siblings}, rates: {list(rates)}}}"],
        "arpo": [],
    }[method]
    name = f"name={base.name}-{method}-s{seed}"
    return [*plan.overrides, *rule, name, f"seed={seed}", "train.gates=null", "train.keep_last=1"]


def cell_run(plan: Plan, method: str, seed: int, rates: tuple[float, ...] = (0.5,)) -> RunConfig:
    return load_recipe(plan.recipe, cell_overrides(plan, method, seed, rates))


def rates_of(cell: Cell | None, seed: int) -> tuple[float, ...]:
    """p_d at depth 1, 2, ... for the random rule: how often ARPO's cell of that seed wanted a branch there. Raises
    CellError."""
    if cell is None or not cell.want_rates:
        why = "is not finished" if cell is None else "never came to a tool result"
        raise CellError(f"random takes its rates from arpo's cell of seed {seed}, which {why}")
    rates: list[float] = []
    for depth in range(1, max(cell.want_rates) + 1):  # a depth without a tip has the rate of the one before
        rates.append(round(cell.want_rates.get(depth, rates[-1] if rates else 0.0), 4))
    return tuple(rates)


# --- cells that are there


def finished(plan: Plan, method: str, seed: int) -> Cell | None:
    """The cell where its file is there. Raises FormatError where that holds something else."""
    path = plan.cell_file(method, seed)
    if not path.exists():
        return None
    try:
        return Cell.model_validate(read_json(path))
    except (ConfigError, ValidationError) as error:
        raise FormatError(f"{path} holds no finished cell: {error}") from error


def check_same(plan: Plan, method: str, seed: int, run: RunConfig, *, ignore: tuple[str, ...] = ()) -> None:
    """Raises ConfigError where the cell was begun or finished with other settings than `run`'s."""
    folder = plan.run_folder(method, seed)
    if (cell := finished(plan, method, seed)) is not None:
        there, where = cell.recipe, plan.cell_file(method, seed)
    elif (folder / "recipe.yaml").exists():
        there, where = plain(load_recipe(folder)), folder
    else:
        return
    mine, theirs = flat(plain(run)), flat(there)
    for key in sorted((mine.keys() & theirs.keys()) - {*_OWN, *ignore}):  # a version may have added or dropped a key
        if mine[key] != theirs[key]:
            raise ConfigError(
                f"this cell was made with another {key}",
                where=str(where),
                value=theirs[key],
                hint=f"Asked for now: {mine[key]!r}. Go on with the settings of before, or choose another --out",
            )


def check_begun(plan: Plan) -> None:
    """Every cell's recipe is a valid one, and those that are there were made with it. Raises ConfigError."""
    for method, seed in plan.order():
        check_same(plan, method, seed, cell_run(plan, method, seed), ignore=(_RATES,))


# --- carrying a cell out


def carry_out(plan: Plan, method: str, seed: int) -> Cell:
    """Run the cell in a process of its own, or go on with it, and keep its figures.

    Raises CellError or another ArpoError where it fails; Ctrl-C lets the process write a checkpoint and raises
    KeyboardInterrupt.
    """
    rates = rates_of(finished(plan, "arpo", seed), seed) if method == "random" else (0.5,)
    run = cell_run(plan, method, seed, rates)
    check_same(plan, method, seed, run)
    folder = plan.run_folder(method, seed)
    arguments = _arguments(plan, method, seed, folder, rates)
    if arguments:
        log = plan.out / "logs" / f"{method}-s{seed}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        code, last = _process([sys.executable, "-P", "-m", "arpo", "train", *arguments], log, f"{method}-s{seed}")
        if code:
            raise CellError(f"exit code {code}, last words: {last or 'none'} (all of them: {log})")
    cell = _cell_of(method, seed, RunFolder(folder), run)
    write_atomic(
        plan.cell_file(method, seed), json.dumps(as_json(cell.model_dump()), indent=1, ensure_ascii=False) + "\n"
    )
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return cell


def _arguments(plan: Plan, method: str, seed: int, folder: Path, rates: tuple[float, ...]) -> list[str]:
    """Of `arpo train`: go on from a checkpoint, or start anew (what was there is moved aside). Empty: the run is
    finished."""
    if (folder / "recipe.yaml").exists():
        if RunFolder(folder).is_live():
            raise CellError(f"another process is writing {folder}: wait for it, or stop it")
        if RunFolder(folder).summary().get("status") == "finished":
            return []
        if newest(folder / "checkpoints")[0]:
            return ["--resume", str(folder)]
        move_aside(folder)
    return [plan.recipe, *cell_overrides(plan, method, seed, rates), "--out", str(folder)]


def _process(command: list[str], log: Path, label: str) -> tuple[int, str]:
    """Exit code and last line. Output goes to `log` and, line by line, to stdout. The process has a session of its own,
    so that Ctrl-C reaches it once, from here."""
    environment = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0", **os.environ, "PYTHONUNBUFFERED": "1"}
    last = ""
    with log.open("a", encoding="utf-8") as file, subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace",
        env=environment, start_new_session=True,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        try:
            for line in child.stdout:
                file.write(line)
                file.flush()
                last = line.strip() or last
                print(f"{label} | {line}", end="", flush=True)
        except KeyboardInterrupt:
            _stop(child, file)
            raise
    return child.returncode, last


def _stop(child: "subprocess.Popen[str]", log: IO[str]) -> None:
    """Ask it to end; kill it after a while, or at a second Ctrl-C."""
    print("\nstopping: the cell ends its step and writes a checkpoint (Ctrl-C again: at once)", flush=True)
    child.send_signal(signal.SIGINT)
    try:
        log.write(child.communicate(timeout=_GRACE_S)[0] or "")
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        child.kill()
        child.communicate()


def _cell_of(method: str, seed: int, folder: RunFolder, run: RunConfig) -> Cell:
    summary, history = folder.summary(), folder.metrics()
    if summary.get("status") != "finished" or not history:
        raise CellError(f"{folder.path} holds no finished run: it is {folder.state()}, with {len(history)} steps")
    return Cell(
        method=method,
        seed=seed,
        cold_start_key=summary["cold_start_key"],
        recipe={key: value for key, value in plain(run).items() if key not in _OWN},
        want_rates=want_rates(history),
        seconds=summary["seconds"],
        evaluation={
            name: Answers(
                accuracy=dict(by_name({name: results})[name].by_question),
                family={s.id: s.family for s in read_samples(folder.path / "evaluation" / name).values()},
                settings=as_json(results.manifest.settings),
            )
            for name, results in read_evaluations(folder.path).items()
            if name in ("before", "before-greedy", "after", "after-greedy")
        },
        steps=[{key: line[key] for key in KEPT if key in line} for line in history],
    )
