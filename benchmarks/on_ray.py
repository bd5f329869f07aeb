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
import resource
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


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="arpo bench on-ray --", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="1 step of 2 tasks: to see that it works")
    options = parser.parse_args(arguments)
    ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    most = 1 if options.quick else options.steps
    more = ("train.tasks_per_step=2", "train.gates=null") if options.quick else ()
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
        before, began = spent(), time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "arpo", "train", *recipe, f"train.steps={steps}", *changes, f"out={out}"],
            stdout=subprocess.DEVNULL,
        )
        while process.poll() is None and not list(out.glob("events/*")):
            time.sleep(0.05)
        start_s = time.monotonic() - began
        if process.wait():
            raise SystemExit(
                f"the run with {' '.join(changes) or 'one process'} failed: exit code {process.returncode}"
            )
        with suppress(ChildProcessError):
            while True:
                os.wait()
        return {"start_s": start_s, "cpu_s": spent() - before}


def spent() -> float:
    """Processor seconds of all processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    raise SystemExit(main())
