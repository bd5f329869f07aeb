"""What is left of a run when it has ended, in whatever way: its folder, and nothing else."""

import asyncio
import contextlib
import errno
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from arpo.display.terminal import Console
from arpo.errors import ArpoError
from arpo.recipe.load import load_recipe
from arpo.runs import checkpoint
from arpo.runs.folder import RunFolder
from arpo.runs.shutdown import is_stopping, run_to_end
from arpo.training.pipeline import train
from tiny_project import TinyProject

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks into /proc")

# Tools and a reward that have processes of their own: two interpreters, a server that does not go by itself, workers
# that score.
SERVER = (
    f"{{use: mcp, options: {{command: [{sys.executable}, {Path(__file__).with_name('leftovers_world.py')}], "
    f"tools: [add]}}}}"
)
PYTHONS = "{use: python}, {use: python, name: sandbox, options: {backend: sandbox, allow_weak_isolation: true}}"
PLAN = (
    "evaluation={limit: 2, greedy_limit: 0}",
    f"tools.offered=[tiny_world:parity, {PYTHONS}, {SERVER}]",
    "reward={answer: maths}",
    "rollout.branch_tokens=400",
    "train={steps: 500, save_every: 500}",
)
PARTS = ("leftovers_world.py", "monty", "arpo/sandbox")

GATES = ("train.gates={format: 1, tool_use: 1, mixed_groups: 1, rise_positive: 1}",)
LOSSES = ("optim={lr: 1.0e+30, weight_decay: 0}", "train.save_every=1", "reward=leftovers_world:length")
BUDGET = ("tools.limits.calls=30",)


def children(pid: int) -> dict[int, str]:
    """Living descendants of a process, with their command lines."""
    found: dict[int, str] = {}
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            for child in map(int, task.read_text().split()):
                found |= {child: Path(f"/proc/{child}/cmdline").read_text().replace("\0", " "), **children(child)}
    return found


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def open_files() -> set[str]:
    return {str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}


def unfinished(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.startswith(".partial-") or path.name == "lock"]


# --- inside a program


def nonsense(_task: object, _said: object) -> float:
    return float("nan")


INSIDE: dict[str, tuple[tuple[str, ...], str, str]] = {  # plan, error, state of the folder
    "the end": ((), "", "finished"),
    "a reward": (("evaluation.seed=9",), "nan", "failed"),
    "gates": (GATES, "not fit to be trained on", "stopped"),
    "losses": (LOSSES, "in a row had updates without a finite loss", "failed"),
    "a budget of calls": (BUDGET, "budget", "stopped"),
}


@pytest.mark.usefixtures("tiny_run")
@pytest.mark.slow
def test_a_run_inside_a_program_leaves_no_process_thread_or_descriptor(
    tiny_project: TinyProject, tmp_path: Path
) -> None:
    """However it ends. What the first one loads for good is there before the others."""
    train(
        load_recipe(tiny_project.recipe, [*PLAN, "train.steps=1"]), out=tmp_path / "first", console=Console(quiet=True)
    )
    gc.collect()
    before = (children(os.getpid()), {thread.name for thread in threading.enumerate()}, open_files())
    for ends, (plan, why, state) in INSIDE.items():
        run = load_recipe(tiny_project.recipe, [*PLAN, f"train.steps={20 if why else 1}", *plan])
        with pytest.raises(ArpoError, match=why) if why else contextlib.nullcontext() as caught:
            train(
                run.model_copy(update={"reward": nonsense}) if ends == "a reward" else run,
                out=tmp_path / ends,
                console=Console(quiet=True),
            )
        del caught, run
        gc.collect()
        assert children(os.getpid()).keys() <= before[0].keys(), ends  # those of other tests
        assert {thread.name for thread in threading.enumerate()} <= before[1], ends
        opened = open_files() - before[2]
        assert not {path for path in opened if str(tmp_path) in path or path.startswith(("pipe:", "socket:"))}, ends
        assert not unfinished(tmp_path) and RunFolder(tmp_path / ends).state() == state, ends


# --- the command line


@dataclass(slots=True)
class Started:
    """A run of the command line in `folder`; its temporary files go to `temporary`. `met`: every process that it
    had."""

    process: "subprocess.Popen[str]"
    folder: Path
    temporary: Path
    met: dict[int, str] = field(default_factory=dict)

    def until(self, reached: Callable[[], bool], patience_s: float = 120.0) -> None:
        patience = time.monotonic() + patience_s
        while not reached():
            now = children(self.process.pid)
            self.met |= {pid: command for pid, command in now.items() if command or pid not in self.met}
            assert time.monotonic() < patience, f"after {self.steps()} steps"
            time.sleep(0.05)

    def seen_by_it(self, path: Path) -> Path:
        """It may have a file system mounted that nobody else sees."""
        return Path(f"/proc/{self.process.pid}/root{path}")

    def steps(self) -> int:
        lines = self.seen_by_it(self.folder / "metrics.jsonl")
        return len(lines.read_bytes().splitlines()) if lines.exists() else 0

    def trains(self) -> bool:
        assert self.process.poll() is None, self.process.communicate()[0]
        return self.steps() >= 2

    def fill(self, disk: Path) -> None:
        """Leave nothing free on the file system at `disk`."""
        with self.seen_by_it(disk / "rubbish").open("wb", buffering=0) as file:
            while True:
                try:
                    file.write(b"\0" * 65536)
                except OSError as error:
                    assert error.errno == errno.ENOSPC
                    return


def signalled(number: signal.Signals) -> Callable[[Started], None]:
    def act(started: Started) -> None:
        started.until(started.trains)
        started.process.send_signal(number)

    return act


def filled(started: Started) -> None:
    started.until(started.trains)
    started.fill(started.folder.parent)


def nothing(_started: Started) -> None: ...


@dataclass(frozen=True, slots=True)
class End:
    plan: tuple[str, ...]
    act: Callable[[Started], None]
    code: int
    said: str
    status: str


# Gates and a budget end a run as losses do, by an error; SIGTERM and SIGHUP as Ctrl-C does: see above and below.
ENDS = {
    "losses": End(LOSSES, nothing, 2, "lower optim.lr", "failed"),
    "a full disk": End(("train.save_every=1",), filled, 2, "the disk is full", "failed"),
    "Ctrl-C": End((), signalled(signal.SIGINT), 130, "to go on: arpo train --resume", "interrupted"),
    "SIGKILL": End((), signalled(signal.SIGKILL), -signal.SIGKILL, "", "cut off before its end"),
}


def start(project: TinyProject, folder: Path, plan: tuple[str, ...], temporary: Path, inside: list[str]) -> Started:
    temporary.mkdir()
    source = Path(__file__).resolve().parents[2] / "src"
    process = subprocess.Popen(
        [*inside, sys.executable, "-m", "arpo", "train", project.recipe, *PLAN, *plan, "--out", folder],
        env={
            **os.environ,
            "PYTHONPATH": f"{source}:{Path(__file__).parent}",
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(temporary),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.default_int_handler
        ),  # a job in the background ignores it
    )
    return Started(process, folder, temporary)


def small_disk(disk: Path) -> list[str]:
    """The beginning of a command for which a file system of 24 MB is mounted at `disk`, where nobody else sees it."""
    script = 'mount -t tmpfs -o size=24m none "$0" && exec "$@"'
    mount = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, str(disk)]
    if subprocess.run([*mount, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount a file system in a namespace of his own")
    return mount


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_run")
@pytest.mark.parametrize("how", ENDS)
def test_however_a_run_ends_nothing_but_its_folder_is_left(how: str, tiny_project: TinyProject, tmp_path: Path) -> None:
    end, disk = ENDS[how], tmp_path / "disk"
    disk.mkdir()
    inside = small_disk(disk) if how == "a full disk" else []
    started = start(tiny_project, disk / "run", end.plan, tmp_path / "temporary", inside)
    try:
        end.act(started)
        started.until(lambda: started.process.poll() is not None)
        said, _ = started.process.communicate()
    finally:
        if started.process.poll() is None:
            started.process.kill()
            started.process.communicate()
    assert started.process.returncode == end.code and end.said in said and "Traceback" not in said, said
    for part in PARTS:
        assert any(part in command for command in started.met.values()), (part, started.met)
    patience = time.monotonic() + 120
    while alive := {pid: command for pid, command in started.met.items() if lives(pid)}:
        assert time.monotonic() < patience, alive
        time.sleep(0.05)
    assert list(started.temporary.iterdir()) == [] and not unfinished(tiny_project.cache)
    if how != "a full disk":  # which nobody sees any more
        check_folder(disk / "run", end, how)


def check_folder(path: Path, end: End, how: str) -> None:
    """Nobody holds it, it says how the run ended, and the last finished step is in a checkpoint."""
    folder = RunFolder(path)
    assert not folder.is_live() and folder.state() == end.status
    saved, passed = checkpoint.newest(path / "checkpoints")
    assert passed == []
    if how == "SIGKILL":
        return
    assert unfinished(path) == []
    assert (saved.state.step if saved else 0) == len(folder.metrics()) or how == "losses", "those have no finite loss"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_end_a_run_as_ctrl_c_does(number: signal.Signals) -> None:
    ended = []

    async def work() -> None:
        os.kill(os.getpid(), number)
        try:
            await asyncio.sleep(10)
        finally:
            ended.append(is_stopping())

    before = signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_to_end(work())
        assert ended == [True] and signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_a_signal_that_is_ignored_stays_so() -> None:
    """As under `nohup`: the terminal goes, the run does not."""

    async def work() -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.05)

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run_to_end(work())
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        with pytest.raises(KeyboardInterrupt):
            run_to_end(work())
    finally:
        signal.signal(signal.SIGHUP, before)
