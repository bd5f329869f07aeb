"""Long conversations in two ways, from one protocol: contexts that are recomposed of notes against dropped results.

    arpo bench recall [-- --steps 20] [--out runs/recall-bench] [--quick]

Both sides are recipes/recall.yaml: a fact on the first 10 pages, asked for on page 200, 2,000 tokens a context, a model
trained from scratch. Each makes its cold start, is trained for so many steps of 16 leaves, and asked held-out questions
before and after. What was stopped goes on with the same command; memory and processor time are then those of the last
part.
"""

import argparse
import ctypes
import os
import resource
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _figures import at_least, at_most, finish

from arpo.evaluation.statistics import Estimate
from arpo.recipe.load import load_recipe
from arpo.runs.folder import RunFolder
from arpo.training.pipeline import train

CONTEXTS = {
    "recompose": "{use: recompose, at: %s, options: {heading: noted}}",
    "drop_results": "{use: drop_results, at: %s, options: {text: dropped}}",
}
WORLD = "{turns: 24, early: 6, facts: 2, words: 4}"
QUICK = (
    *(f"data.{split}.options={WORLD}" for split in ("train", "validation", "test")),
    *("rollout.max_calls=24", "rollout.branch_tokens=300", "evaluation.limit=4"),
    *("cold_start.num_traces=64", "cold_start.epochs=1"),
)
MOST_MINUTES = 30
MOST_GROWN = 0.05


class _Heap(ctypes.Structure):
    """glibc's `struct mallinfo2`, in bytes."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    ]


def allocated_mb() -> float | None:
    """What this process has allocated and not freed, in MB; None where the C library does not say (glibc does). What
    is resident besides is freed memory that the allocator keeps: it grows in jumps with fragmentation."""
    try:
        mallinfo2 = ctypes.CDLL(None).mallinfo2
    except (AttributeError, OSError, TypeError):
        return None
    mallinfo2.restype = _Heap
    heap = mallinfo2()
    return float(heap.uordblks + heap.hblkhd) / 2**20


def resident_mb() -> float:
    """What this process holds now; its peak where there is no /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return pages * resource.getpagesize() / 2**20


def side(context: str, folder: Path, steps: int, quick: bool) -> dict[str, Any]:
    """The figures of one context policy, after its run."""
    policy = CONTEXTS[context] % (100 if quick else "null")
    recipe = load_recipe("recall", [*(QUICK if quick else ()), f"rollout.context={policy}", f"train.steps={steps}"])
    resident: list[float] = []
    allocated: list[float | None] = []

    def after_step(_step: int, _metrics: Mapping[str, float]) -> None:
        resident.append(round(resident_mb(), 1))
        live = allocated_mb()
        allocated.append(None if live is None else round(live, 1))

    used = sum(os.times()[:2])
    train(recipe, out=folder, resume=(folder / "recipe.yaml").exists(), callbacks=[after_step])
    run = RunFolder(folder)
    summary, metrics = run.summary(), run.metrics()
    before, after = (Estimate(**summary[f"accuracy_{when}"]) for when in ("before", "after"))
    return {
        "before": 100 * before.mean,
        "after": 100 * after.mean,
        "interval": [100 * after.low, 100 * after.high],
        "questions": after.n,
        "steps": len(metrics),
        "leaves_a_step": metrics[-1]["leaves/all"],
        "contexts_a_leaf": metrics[-1].get("contexts/a_leaf", 1.0),
        "tokens_generated": sum(line["tokens/generated"] for line in metrics),
        "minutes": sum(summary["seconds"].values()) / 60,
        "cpu_minutes": (sum(os.times()[:2]) - used) / 60,
        "resident_mb_by_step": resident,
        "allocated_mb_by_step": allocated,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=load_recipe("recall").train.steps)
    parser.add_argument("--out", type=Path, help="where both runs are kept (default: nowhere)")
    parser.add_argument("--quick", action="store_true", help="a short log, 2 steps")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="arpo-recall-") as made:
        out, steps = options.out or Path(made), 2 if options.quick else options.steps
        sides = {context: side(context, out / context, steps, options.quick) for context in CONTEXTS}
    goals = [
        at_least(
            "points of accuracy that recompose ends above drop_results",
            20,
            sides["recompose"]["after"] - sides["drop_results"]["after"],
        ),
        at_most("minutes of the longer side", MOST_MINUTES, max(each["minutes"] for each in sides.values())),
    ]
    for name, each in sides.items():
        held = each["allocated_mb_by_step"]
        if None in held:
            held = each["resident_mb_by_step"]
        if len(held) > 1:
            half = len(held) // 2
            what = f"memory grown from the first half of the run to its second, by their peaks after a step, {name}"
            goals.append(at_most(what, MOST_GROWN, max(held[half:]) / max(held[:half]) - 1))
    return finish("recall", sides, goals)


if __name__ == "__main__":
    sys.exit(main())
