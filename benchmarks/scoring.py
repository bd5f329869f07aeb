"""Scoring: seconds for 10,000 predictions under every rule-based measure, and whether an expression that explodes can hang it.

Predictions are made from golds as models write them: the gold in a box or a sentence, with a unit, in another spelling, and wrong.
Both sides of the quick path in one run: maths with and without deciding plain numbers and words before algebra.

    arpo bench scoring [--quick] [--data DIR]
"""

import argparse
import asyncio
import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from random import Random

from _figures import at_most, finish, in_turn

from arpo.errors import ConfigError
from arpo.rewards.maths import MathsVerifier
from arpo.rewards.measures import BY_TEXT, answer_measure
from arpo.tasks import Task
from arpo.tasks.benchmarks import BENCHMARKS

DATA = Path(__file__).parents[2] / "shared" / "data" / "benchmarks"
MADE = ("204", "\\frac{3}{4}", "x^2-2x+1", "\\left[0, 2\\pi\\right)", "(3, \\frac{\\pi}{2})", "1,080", "90^\\circ", "New York City")
MADE += ("June 24, 1896", "161.27元", "王建华", "B", "3\\sqrt{13}", "-2 + 7i", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}", "yes")
FORMS = ("{}", "\\boxed{{{}}}", "The answer is {}.", "{}.", "I think that it is {}", "${}$", " {} ", "\\text{{{}}}")
EXPLODING = ("10^{10^{10}}", "9**9**9**9", "2^{3^{99}}", "(10^{9})!", "99999999!", "x^{x^{x^{x^{10000}}}}", "\\sum_{k=1}^{10^9} k!")


def golds_of(data: Path) -> list[str]:
    """Golds of the files in `data`; without any, some made by hand."""
    found: list[str] = []
    for entry in BENCHMARKS.values():
        try:
            found += [task.answers[0] for task in entry.tasks(data=data)]
        except ConfigError:
            continue
    return found or list(MADE)


def pairs_of(golds: Sequence[str], count: int) -> list[tuple[str, str]]:
    """(prediction, gold): half say the gold in some form, half another one."""
    random = Random("scoring")
    made = []
    for _ in range(count):
        gold = random.choice(golds)
        said = gold if random.random() < 0.5 else random.choice(golds)
        made.append((random.choice(FORMS).format(said), gold))
    return made


def by_text(pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """Seconds of every measure that needs no process."""
    seconds = {}
    for name, measure in BY_TEXT.items():
        start = time.perf_counter()
        for answer, gold in pairs:
            measure(answer, gold)
        seconds[name] = time.perf_counter() - start
    return seconds


def by_maths(pairs: Sequence[tuple[str, str]], *, quickly: bool) -> tuple[float, int]:
    """(seconds, pairs found equal), every pair by math-verify unless `quickly`."""
    verifier = MathsVerifier()
    verifier.equal_by_worker("x", "y")  # the worker has started
    try:
        compare = verifier.equal if quickly else verifier.equal_by_worker
        start = time.perf_counter()
        equal = sum(compare(answer, gold) for answer, gold in pairs)
        return time.perf_counter() - start, equal
    finally:
        verifier.close()


def longest_of_exploding() -> tuple[float, int]:
    """Seconds of the slowest exploding pair, in an evaluation's own measure, and how many counted as right."""

    async def all_of_them() -> tuple[float, int]:
        accuracy, longest, right = answer_measure("maths"), 0.0, 0
        await accuracy("x", Task(id="warm", messages=(), answers=("y",)))
        for number, said in enumerate(EXPLODING):
            for gold in ("7", "x + 1", "10^{10^{9}}"):
                start = time.perf_counter()
                right += await accuracy(said, Task(id=str(number), messages=(), answers=(gold,))) > 0
                longest = max(longest, time.perf_counter() - start)
        return longest, right

    return asyncio.run(all_of_them())


def cpu() -> float:
    """Processor seconds of this process and of the workers that have ended."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1,000 predictions")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with benchmark files (default: golds made by hand)")
    options = parser.parse_args()
    count = 1000 if options.quick else 10_000
    golds = golds_of(options.data) if options.data.is_dir() else list(MADE)
    pairs = pairs_of(golds, count)
    start = cpu()
    seconds = by_text(pairs)
    seconds["maths"], equal = by_maths(pairs, quickly=True)
    cpu_s = cpu() - start  # with the worker's start: what a busy machine does not change
    slow, equals = pairs[: count // 20], {}

    def side(quickly: bool) -> None:
        _, equals[quickly] = by_maths(slow, quickly=quickly)

    taken = in_turn({"without": partial(side, False), "with": partial(side, True)}, rounds=2, warm_up=0)
    slow_s, fast_s = min(taken["without"]), min(taken["with"])
    longest, right = longest_of_exploding()
    total = sum(seconds.values())
    for name, value in seconds.items():
        print(f"{name:9} {value:7.2f} s for {count:,} predictions")
    print(f"all       {total:7.2f} s, {cpu_s:.2f} s of processor time")
    print(f"math-verify alone {slow_s:.2f} s, after the quick path {fast_s:.2f} s, for {len(slow):,}")
    figures = {
        "predictions": count,
        "golds": len(set(golds)),
        "seconds": seconds,
        "seconds_all": total,
        "processor_s": cpu_s,
        "maths_equal": equal,
    }
    figures |= {"quick_path": {"pairs": len(slow), "without_s": slow_s, "with_s": fast_s, "equal": [equals[False], equals[True]]}}
    figures |= {"exploding": {"pairs": 3 * len(EXPLODING), "longest_s": longest, "right": right}}
    goals = [
        at_most("seconds for 10,000 predictions with all rule-based measures", 30, total * 10_000 / count),
        at_most("seconds of the slowest exploding expression (deadline 2 s of processor time, 8 s of wall time)", 9, longest),
        at_most("exploding expressions that counted as right", 0, right),
    ]
    return finish("scoring", figures, goals)


if __name__ == "__main__":
    raise SystemExit(main())
