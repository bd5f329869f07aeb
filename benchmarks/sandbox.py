"""Sandboxed Python: latency beside a bare subprocess, 16 busy calls beside a trainer, and a soak that looks for
leaks."""

import argparse
import asyncio
import gc
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _figures import at_least, at_most, finish, median

from arpo.sandbox import levels
from arpo.sandbox.limits import Limits
from arpo.sandbox.warm import WarmSandbox

SIMPLE = "print(1 + 1)"
SYMPY = "import sympy as sp\nx = sp.symbols('x')\nprint(sp.solve(x**2 - 5*x + 6, x))"
MEBIBYTE = 1 << 20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=10_000, help="of the soak")
    parser.add_argument("--rounds", type=int, default=200, help="of the latencies")
    parser.add_argument("--quick", action="store_true", help="small numbers, to see that it works")
    args = parser.parse_args()
    if args.quick:
        args.calls, args.rounds = 300, 20
    figures: dict[str, Any] = {"levels": {}}
    working = [found for found in levels.probe() if found.works]
    if not working:
        print(
            "no sandbox works on this machine:", "; ".join(f"{found.level}: {found.reason}" for found in levels.probe())
        )
        return finish("sandbox", figures, [])
    for found in working:
        figures["levels"][found.level] = latencies(found.level, args.rounds)
    best = figures["levels"][working[0].level]
    figures["one_core"] = on_one_core(beside_a_trainer, working[0].level)
    figures["soak"] = soak(working[0].level, args.calls)
    goals = [
        at_most("simple code, median ms", 5.0, best["simple_ms"]["median"]),
        at_most("code with sympy, median ms", 30.0, best["sympy_ms"]["median"]),
        at_most("processes left by the soak", 0, figures["soak"]["processes"]),
        at_most("descriptors left by the soak, inside and outside", 0, figures["soak"]["descriptors"]),
        at_most("files left by the soak in any scratch folder", 0, figures["soak"]["files"]),
        at_most("scratch folders lost in the soak", 0, figures["soak"]["folders_lost"]),
        at_most("times that the sandbox died in the soak", 0, figures["soak"]["restarts"]),
        at_most("growth of the warm interpreter over the soak, MiB", 4.0, figures["soak"]["growth_inside_mib"]),
        at_most("growth of the trainer over the soak, MiB", 8.0, figures["soak"]["growth_outside_mib"]),
        at_least(
            "what a trainer of one thread keeps beside 16 busy calls, all on one core",
            0.5,
            figures["one_core"]["kept"],
        ),
    ]
    return finish("sandbox", figures, goals)


def latencies(level: str, rounds: int) -> dict[str, Any]:
    """Milliseconds a call, one at a time, in turn with a bare subprocess."""
    begun = time.perf_counter()
    sandbox = started(level)
    figures: dict[str, Any] = {"start_s": time.perf_counter() - begun}
    sides = {"simple": SIMPLE, "sympy": SYMPY}
    seconds: dict[str, list[float]] = {f"{name}{side}": [] for name in sides for side in ("", "_bare")}

    async def turns() -> None:
        for number in range(rounds):
            for name, code in sides.items():
                start = time.perf_counter()
                ran = await sandbox.run(code, seconds=10.0)
                seconds[name].append(time.perf_counter() - start)
                assert ran.ending == "ok", ran
                if number < max(3, rounds // 20):
                    start = time.perf_counter()
                    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)  # noqa: ASYNC221  in turn
                    seconds[f"{name}_bare"].append(time.perf_counter() - start)

    asyncio.run(turns())
    for name, taken in seconds.items():
        figures[f"{name}_ms"] = {
            "median": median(taken) * 1e3,
            "p95": statistics.quantiles(taken, n=20)[-1] * 1e3,
            "of": len(taken),
        }
    sandbox.close()
    return figures


def beside_a_trainer(level: str) -> dict[str, float]:
    """Work that one thread does in a second alone, and with 16 programs that compute without end; they take turns."""
    sandbox = started(level)
    alone, beside = [], []

    async def busy() -> None:
        calls = [asyncio.create_task(sandbox.run("while True: pass", seconds=2.0)) for _ in range(16)]
        await asyncio.sleep(0.7)  # they have computed for a while
        beside.append(await asyncio.to_thread(work_in_a_second))
        await asyncio.gather(*calls)

    for _ in range(3):
        alone.append(work_in_a_second())
        asyncio.run(busy())
    sandbox.close()
    return {"alone": median(alone), "beside_16": median(beside), "kept": median(beside) / median(alone)}


def on_one_core(measure: Callable[[str], dict[str, float]], level: str) -> dict[str, float]:
    """`measure`, with this process and all that it starts on one core."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        return measure(level)
    finally:
        os.sched_setaffinity(0, before)


def work_in_a_second() -> float:
    """Rounds of pure computing, as of a trainer that owns one core."""
    end, rounds = time.perf_counter() + 1.0, 0
    while time.perf_counter() < end:
        sum(range(2000))
        rounds += 1
    return rounds


def soak(level: str, calls: int) -> dict[str, Any]:
    """`calls` calls, 16 at a time, of every kind, ends by limits included; then what is left of them."""
    sandbox = started(level, seconds=0.5)
    kinds = [
        ("print(1 + 1)", "ok"),
        ("open('f', 'w').write('x' * 10000)", "ok"),
        ("1 / 0", "error"),
        ("import sympy; sympy.sqrt(8)", "ok"),
        ("import threading\nthreading.Thread(target=print, args=('t',)).start()", "ok"),
        ("import os; os._exit(3)", "error"),
        ("x = bytearray(10**10)", "error"),
        ("import os\nfor n in range(20): os.mkdir(str(n))\ntry: os.chmod('.', 0)\nexcept OSError: pass", "ok"),
        ("while True: print('x' * 1000)", "error"),
        ("import os; os.kill(os.getpid(), 9)", "error"),
    ]
    wrong: list[str] = []

    async def some(count: int) -> None:
        places = asyncio.Semaphore(64)

        async def one(number: int) -> None:
            code, ending = ("import time; time.sleep(9)", "time") if number % 500 == 499 else kinds[number % len(kinds)]
            async with places:
                ran = await sandbox.run(code, seconds=30.0, seed=number)
            if ran.ending != ending and ran.ending != "time":  # a busy machine may end any of them by time
                wrong.append(f"{code!r}: {ran}")

        for first in range(0, count, 500):  # tasks by the thousand would be the benchmark's own memory
            await asyncio.gather(*(one(number) for number in range(first, min(first + 500, count))))

    asyncio.run(some(1000))  # buffers and caches are what they will be
    before = held(sandbox)
    begun = time.perf_counter()
    asyncio.run(some(calls))
    taken = time.perf_counter() - begun
    time.sleep(0.5)
    after = held(sandbox)
    figures = {
        "calls": calls,
        "seconds": taken,
        "calls_a_second": calls / taken,
        "restarts": sandbox.starts - 1,
        "wrong": wrong[:5],
        "processes": after["processes"] - before["processes"],
        "descriptors": max(0, after["descriptors"] - before["descriptors"]),
        "files": after["files"],
        "folders_lost": before["slots"] - after["slots"],
        "growth_inside_mib": (after["inside"] - before["inside"]) / MEBIBYTE,
        "growth_outside_mib": (after["outside"] - before["outside"]) / MEBIBYTE,
    }
    assert not wrong, wrong[:5]
    sandbox.close()
    return figures


def held(sandbox: WarmSandbox) -> dict[str, int]:
    """What there is of it when nothing runs; descriptors and files inside are counted there, since nobody outside may
    look."""
    gc.collect()
    inside = below(sandbox._inside.process.pid)
    zygote = sandbox._inside.process.pid if sandbox.level == "landlock" else inside[0]
    count = sandbox.count()
    return {
        "processes": len(inside),
        "descriptors": len(os.listdir("/proc/self/fd")) + count["descriptors"],
        "files": count["files"],
        "slots": count["slots"],
        "inside": _resident(zygote),
        "outside": _resident(os.getpid()),
    }


def below(pid: int) -> list[int]:
    """All processes that came of `pid`, older ones first."""
    found: list[int] = []
    try:
        for word in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split():
            found += [int(word), *below(int(word))]
    except OSError:
        pass
    return found


def started(level: str, seconds: float = 10.0) -> WarmSandbox:
    limits = Limits(cpu_seconds=5, seconds=seconds, memory_mb=256, file_mb=16)
    return levels.enter(level, limits=limits, imports=["math", "numpy", "sympy"], at_once=16)


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.exit(main())
