"""Runs of a small job killed with SIGKILL at random moments and resumed: is anything lost, done twice, or different?

Every run is killed once to three times, at a point drawn anew: inside sampling, a tool call, scoring, the update, a
checkpoint (between any two files of it), any other file of the run, a record of TensorBoard, a line or a frame of a
log, the cold start or the storing of it, or at any instant; then it is resumed until it is finished. A third of the
runs has the scripted engine, a third the local one with `deterministic: true`, a third the scripted one with sampling
ahead of training; every tenth life is a process of the command line, the others are forks of one that has torch loaded.
What must hold is `check_killed` and `check_finished`; what does not is printed.
"""

import contextlib
import json
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any

import soak_job

from arpo.assembly.components import read_tasks
from arpo.files import PARTIAL, read_json_lines
from arpo.recipe.load import load_recipe
from arpo.runs import checkpoint
from arpo.runs.folder import RunFolder
from arpo.training.task_sampler import in_order
from by_timing import BY_TIMING

KINDS = (*soak_job.POINTS, "cold start", "log", "random")
CLOCKS = (*BY_TIMING, "ahead/", "tokens/per_s")
MOST_S = 600.0  # for one life; a machine that does other things is slow
PRELOAD = [  # most of a life's processor time would be imports
    "soak_job",
    "accelerate",
    "arpo.engines.local",
    "arpo.learner.local",
    "arpo.training.pipeline",
    "arpo.report.run_report",
    "matplotlib.pyplot",
    "tensorboard.summary.writer.event_file_writer",
    "torch._dynamo",
    "transformers.generation.utils",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.llama.modeling_llama",
]


@dataclass(frozen=True, slots=True)
class Reference:
    """An undisturbed run, and how often it reached each point."""

    recipe: Path
    folder: Path
    reached: dict[str, int]
    seconds: float
    keeping: int  # files touched while a cold start, and what was measured on it, was stored

    @property
    def max_staleness(self) -> int:
        return load_recipe(self.recipe).train.max_staleness


@dataclass(slots=True)
class Tally:
    runs: int = 0
    killed: int = 0  # runs that were killed at least once: a point may lie behind what a life had still to do
    kills: Counter[str] = field(default_factory=Counter)
    lives: Counter[str] = field(default_factory=Counter)
    without_checkpoint: int = 0  # kills before there was one: the run began again
    half_frames: int = 0  # event logs that ended inside a frame
    broken: list[str] = field(default_factory=list)


# --- one life of a run


def live(recipe: str, out: str, resume: bool, environment: dict[str, str], counts: str) -> None:
    """Train until the end, or until it is killed. `counts`: where to write how often each point was reached."""
    from arpo.display.terminal import Console
    from arpo.training.pipeline import train

    os.environ.update(environment)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
        train(load_recipe(recipe), out=Path(out), resume=resume, console=Console(file=nowhere))
    if counts:
        Path(counts).write_text(json.dumps(soak_job.reached))


class Lives:
    """Starts processes: forks of a server that has torch loaded, or of the command line."""

    def __init__(self) -> None:
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(PRELOAD)

    def lead(
        self, recipe: Path, out: Path, *, resume: bool, kill: str, cache: Path, counts: str = "", cli: bool = False
    ) -> int:
        """One life; returns the exit code (negative: the signal). `random:S` is a kill from outside after so many
        seconds."""
        kind, _, after = kill.partition(":")
        environment = {"SOAK_KILL": kill, "SOAK_OUT": str(out), "ARPO_CACHE": str(cache)}
        if cli:
            started = _command(recipe, out, resume, environment)
            wait: Callable[[float | None], object] = lambda s: _waited(started, s)  # noqa: E731
            code: Callable[[], int | None] = started.poll
        else:
            forked = self.context.Process(target=live, args=(str(recipe), str(out), resume, environment, counts))
            forked.start()
            wait, code = forked.join, lambda: forked.exitcode
        pid = started.pid if cli else forked.pid
        assert pid is not None
        wait(float(after) if kind == "random" else MOST_S)
        if code() is None:
            os.kill(pid, signal.SIGKILL)
            wait(60.0)
            if kind != "random":
                raise TimeoutError(f"{kill}: this life took longer than {MOST_S:g} s")
        found = code()
        assert found is not None
        return found


def _command(recipe: Path, out: Path, resume: bool, environment: dict[str, str]) -> "subprocess.Popen[bytes]":
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    arguments = ["--resume", str(out)] if resume else [str(recipe), "--out", str(out)]
    return subprocess.Popen(
        [sys.executable, "-m", "arpo", "train", *arguments],
        env={**os.environ, "PYTHONPATH": paths, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _waited(process: "subprocess.Popen[bytes]", seconds: float | None) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


# --- what must hold


@dataclass(frozen=True, slots=True)
class Remains:
    """What a killed process left of steps, by step: the line of metrics, the bytes of its trees' file."""

    metrics: dict[int, dict[str, Any]]
    events: dict[int, bytes]


def check_killed(out: Path, tally: Tally) -> Remains | None:
    """Right after a kill: everything reads to its last whole line and frame, and nobody holds the folder."""
    if not (out / "recipe.yaml").exists():
        return None
    folder = RunFolder(out)
    if folder.is_live():
        tally.broken.append(f"{out.name}: a dead process holds the lock")
    folder.notes(), folder.samples(), folder.summary()
    for step in folder.event_steps():
        whole = b"".join(_frames(folder, step))
        tally.half_frames += len(whole) < folder.events_path(step).stat().st_size
    saved, _ = checkpoint.newest(out / "checkpoints")
    tally.without_checkpoint += saved is None
    metrics = {line["step"]: line for line in folder.metrics()}
    if saved and not set(range(1, saved.state.step + 1)) <= set(metrics):
        tally.broken.append(f"{out.name}: a checkpoint of step {saved.state.step} with metrics of {sorted(metrics)}")
    events = {step: folder.events_path(step).read_bytes() for step in folder.event_steps()}
    return Remains(metrics, events)


def _frames(folder: RunFolder, step: int) -> list[bytes]:
    """Bytes of the whole frames: reading them all is the check."""
    from arpo.core.record import decode

    content = folder.events_path(step).read_bytes()
    frames = decode(content)
    found = list(frames)
    return [content[: frames.offset]] if found else []


def check_finished(out: Path, reference: Reference, remains: list[Remains], cache: Path, tally: Tally) -> None:
    """At the end: the same history as the undisturbed run's, tasks in order, what was cut kept, nothing left lying
    about."""
    folder, whole = RunFolder(out), RunFolder(reference.folder)
    laws = {
        "metrics": timeless(folder, reference) == timeless(whole, reference),
        "trees": _all_trees(folder, reference) == _all_trees(whole, reference),
        "versions": all(
            step - 1 - reference.max_staleness <= version < step
            for step in folder.event_steps()
            for record in folder.trees(step)
            for turn in record.tree.turns.values()
            for version, _ in turn.versions
        ),
        "weights": _weights(out) == _weights(reference.folder),
        "tasks": _tasks(folder) == _expected_tasks(reference, len(_tasks(folder))),
        "status": folder.summary().get("status") == "finished",
        "summary": all(
            folder.summary().get(key) == whole.summary().get(key) for key in ("steps", "accuracy_after", "model_step")
        ),
        "nothing lost": all(_kept(out, each) for each in remains),
        "tensorboard": _curve(out) == [(line["step"], round(line["reward/leaves"], 6)) for line in folder.metrics()],
    }
    left = [p for path in (out, cache) for p in path.rglob("*") if p.name.startswith(PARTIAL) or p.name == "lock"]
    tally.broken.extend(f"{out.name}: {path} is left" for path in left)
    tally.broken.extend(f"{out.name}: {law}" for law, holds in laws.items() if not holds)


def timeless(folder: RunFolder, reference: Reference) -> list[dict[str, Any]]:
    by_time = (*CLOCKS, "staleness/") if reference.max_staleness else CLOCKS
    return [{key: value for key, value in line.items() if not key.startswith(by_time)} for line in folder.metrics()]


def _all_trees(folder: RunFolder, reference: Reference) -> list[Any]:
    """All that trees are, but for how long their tools took and, where sampling runs ahead, which weights wrote
    what."""
    found = []
    for record in (record for step in folder.event_steps() for record in folder.trees(step)):
        turns = record.tree.turns
        if reference.max_staleness:
            turns = {place: replace(turn, versions=()) for place, turn in turns.items()}
        thought = record.notes["learner_logprobs"]
        found.append(
            (record.tree.step, record.tree.task, turns, record.scores, record.advantages, record.credit, thought)
        )
    return found


def _curve(out: Path) -> list[tuple[int, float]]:
    """What TensorBoard shows: of its files, in the order of their names, whatever can be read."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it says that it hides what a resumed run did again
    shown = EventAccumulator(str(out / "tensorboard"))
    shown.Reload()
    return [(each.step, round(each.value, 6)) for each in shown.Scalars("reward/leaves")]


def _weights(out: Path) -> bytes:
    saved, _ = checkpoint.newest(out / "checkpoints")
    return (saved.model / "model.safetensors").read_bytes() if saved else b""


def _tasks(folder: RunFolder) -> list[str]:
    return [record.tree.task for step in folder.event_steps() for record in folder.trees(step)]


def _expected_tasks(reference: Reference, count: int) -> list[str]:
    run = load_recipe(reference.recipe)
    steps = run.train.steps or 0
    tasks, _ = read_tasks(run, "train")
    assert count == steps * run.train.tasks_per_step, f"{count} trees in {steps} steps"
    return [task.id for task in in_order(tasks, run.seed, 0, count, apart=run.train.tasks_per_step)]


def _kept(out: Path, each: Remains) -> bool:
    """What the killed process had done after its last checkpoint is in one of the folders under cut/, as it was; or in
    its place, where it died with a whole checkpoint to which only the name had not been given yet."""
    places = [out, *((out / "cut").iterdir() if (out / "cut").exists() else ())]
    lines = [line for place in places for line in read_json_lines(place / "metrics.jsonl")]
    files = {(path.name, path.read_bytes()) for place in places for path in (place / "events").glob("*")}
    return all(line in lines for line in each.metrics.values()) and all(
        (f"step-{step:06d}.frames", content) in files for step, content in each.events.items()
    )


# --- the soak


def references(folder: Path, lives: Lives) -> dict[str, Reference]:
    found: dict[str, Reference] = {}
    recipes, cache, keeping = soak_job.write_job(folder), folder / "cache", 0
    for engine, recipe in recipes.items():
        first, out, counts = folder / f"first-{engine}", folder / f"whole-{engine}", folder / f"{engine}.json"
        reached = []
        for path in (first, out):  # what the first one stores in the cache the second takes from there
            began = time.monotonic()
            if code := lives.lead(recipe, path, resume=False, kill="", cache=cache, counts=str(counts)):
                raise RuntimeError(f"the undisturbed run with the {engine} engine ended with {code}")
            reached.append(json.loads(counts.read_text()))
        keeping = max(keeping, reached[0]["keeping"])  # the very first one stores the weights, too
        found[engine] = Reference(recipe, out, reached[1], time.monotonic() - began, keeping)
    return found


def draw_kill(random: Random, reference: Reference, kind: str) -> str:
    if kind == "cold start":
        return random.choice(
            [f"update:{random.randint(1, soak_job.COLD_STEPS)}", f"keeping:{random.randint(1, reference.keeping)}"]
        )
    if kind == "log":
        return f"log:{random.randint(1, 5)}:{random.randint(1, 9000)}"
    if kind == "random":
        return f"random:{random.uniform(0.05, reference.seconds):.3f}"
    return f"{kind}:{random.randint(1, max(1, reference.reached.get(kind, 1)))}"


def one_run(out: Path, reference: Reference, lives: Lives, random: Random, first: str, tally: Tally) -> None:
    """Killed at `first`, then perhaps again, then resumed to its end."""
    remains: list[Remains] = []
    before = sum(tally.kills.values())
    cache = (
        out.with_name(f"cache-{out.name}") if first == "cold start" else out.with_name("cache")
    )  # else it was stored before
    plans = [first, *(random.choice(KINDS) for _ in range(random.choice((0, 0, 1, 2))))]
    for number, kind in enumerate([*plans, ""]):
        kill = draw_kill(random, reference, kind) if kind else ""
        cli = sum(tally.lives.values()) % 10 == 9
        code = lives.lead(reference.recipe, out, resume=(out / "recipe.yaml").exists(), kill=kill, cache=cache, cli=cli)
        tally.lives["command line" if cli else "fork"] += 1
        if code == 0 and (kind != first or number):
            break  # the point lay behind it
        if code in (-signal.SIGKILL, -signal.SIGXFSZ):
            tally.kills[kind] += 1
            if left := check_killed(out, tally):
                remains.append(left)
        elif code != 0:
            tally.broken.append(f"{out.name}: {kill or 'resuming'} ended with {code}: {_reason(out)}")
            return
    tally.killed += sum(tally.kills.values()) > before
    check_finished(out, reference, remains, cache, tally)
    if first == "cold start":
        shutil.rmtree(cache)


def _reason(out: Path) -> str:
    return str(RunFolder(out).summary().get("reason", "")) if (out / "recipe.yaml").exists() else "no folder"


def soak(folder: Path, *, runs: int, seed: int, tell: Callable[[str], None] = print) -> Tally:
    """So many runs in `folder` that were killed at least once. Those in which a law was broken stay there."""
    os.environ["TMPDIR"] = str(folder / "temporary")
    (folder / "temporary").mkdir(parents=True)
    lives, random, tally = Lives(), Random(seed), Tally()
    whole = references(folder, lives)
    tell(
        f"undisturbed: {', '.join(f'{engine} {each.seconds:.1f} s, {each.reached}' for engine, each in whole.items())}"
    )
    while tally.killed < runs and len(tally.broken) < runs:
        kind, engine = (
            KINDS[tally.runs % len(KINDS)],
            soak_job.ENGINES[tally.runs % len(soak_job.ENGINES)],
        )  # 10 and 3: every pair in 30
        out, before = folder / f"run-{tally.runs:03d}-{engine}-{kind}", len(tally.broken)
        one_run(out, whole[engine], lives, random, kind, tally)
        tally.runs += 1
        for text in tally.broken[before:]:
            tell(f"BROKEN  {text}")
        if len(tally.broken) == before:
            shutil.rmtree(out)
        if tally.runs % 10 == 0:
            tell(f"{tally.runs} runs, {sum(tally.kills.values())} kills, {len(tally.broken)} broken")
    left = [
        path.name for path in (folder / "temporary").iterdir() if not path.name.startswith("pymp-")
    ]  # of multiprocessing's own
    tally.broken.extend(f"left in the folder for temporary files: {name}" for name in left)
    return tally
