"""What a rank on Ray costs: the quickstart's first steps with `cluster.ranks=1`, and in one process.

    arpo bench on-ray                  4 steps on either side, by turns
    arpo bench on-ray -- --quick       1 step of 2 tasks

Both sides take the same number of steps from the cold start, without evaluations, and grow the same trees. Processor
time is of all processes that a side started, Ray's own included. The start (of the process, of Ray and of the rank) is
paid once, and so counted apart: the figure for a step is the difference between runs of many steps and of one. Seconds
of the start are those to the first tree on disk, its own sampling included.
"""

import argparse
import ctypes
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from _figures import at_most, finish

SIDES = {"in one process": (), "on Ray": ("cluster.ranks=1",)}
QUICKSTART_STEPS = 6
SUBREAPER = 36  # of prctl(2): processes whose parent has ended become ours
LOOK_S = 0.1
TICKS = os.sysconf("SC_CLK_TCK")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="arpo bench on-ray --", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="1 step of 2 tasks: to see that it works")
    options = parser.parse_args(arguments)
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    most = 1 if options.quick else options.steps
    more = ("train.tasks_per_step=2", "train.updates_per_step=1", "train.gates=null") if options.quick else ()
    figures: dict[str, Any] = {"steps": most}
    for name, changes in SIDES.items():
        first = measure(1, (*changes, *more))
        whole = measure(most, (*changes, *more)) if most > 1 else first
        step = (whole["cpu_s"] - first["cpu_s"]) / (most - 1) if most > 1 else first["cpu_s"]
        figures[name] = {
            "start_s": min(first["start_s"], whole["start_s"]),
            "cpu_s": whole["cpu_s"],
            "step_cpu_s": step,
        }
        figures[name]["quickstart_cpu_s"] = first["cpu_s"] + (QUICKSTART_STEPS - 1) * step
    here, there = (figures[name] for name in SIDES)
    ratio = there["quickstart_cpu_s"] / here["quickstart_cpu_s"]
    goals = [
        at_most(f"processor time of {QUICKSTART_STEPS} steps, on Ray over in one process", 1.05, ratio),
        at_most("seconds that the start takes longer on Ray", 20.0, there["start_s"] - here["start_s"]),
    ]
    return finish("on-ray", figures, goals)


def measure(steps: int, changes: Sequence[str]) -> dict[str, float]:
    """Seconds to the first tree, and processor seconds of all processes of a run."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        recipe = ["quickstart", "plan=null", "train.minutes=null", "train.save_every=null", "data.test=null"]
        spent, began = Spent(), time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "arpo", "train", *recipe, f"train.steps={steps}", *changes, f"out={out}"],
            stdout=subprocess.DEVNULL,
        )
        start_s = None
        while process.poll() is None:
            spent.look()
            if start_s is None and list(out.glob("events/*")):
                start_s = time.monotonic() - began
            time.sleep(LOOK_S)
        if process.returncode or start_s is None:
            raise SystemExit(
                f"the run with {' '.join(changes) or 'one process'} failed: exit code {process.returncode}"
            )
        with suppress(ChildProcessError):  # Ray's, which end after it
            while True:
                spent.look()
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    time.sleep(LOOK_S)
        return {"start_s": start_s, "cpu_s": sum(spent.seconds.values())}


class Spent:
    """Processor seconds of all processes below this one, by process and its start, as they were seen last. (What
    getrusage(2) says of children lacks Ray's actors: the raylet does not wait for them.)"""

    def __init__(self) -> None:
        self.seconds: dict[tuple[int, int], float] = {}

    def look(self) -> None:
        stats: dict[int, list[str]] = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                stats[int(path.parent.name)] = path.read_text().rpartition(")")[2].split()
        below = {os.getpid()}
        while more := {pid for pid, stat in stats.items() if int(stat[1]) in below and pid not in below}:
            below |= more
        for pid in below - {os.getpid()}:
            user, system, start = (int(stats[pid][at]) for at in (11, 12, 19))
            self.seconds[pid, start] = (user + system) / TICKS


if __name__ == "__main__":
    raise SystemExit(main())
