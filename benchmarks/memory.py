"""Memory, objects and descriptors over 500 steps of a small job: do they grow?

    python benchmarks/memory.py [--steps 500] [--engine scripted|exact|ahead] [--trace] [--quick]

One process, measured at every publication of weights. A fifth of the steps is warm-up (caches fill, the allocator settles); over
the rest a line is fitted through each series. `--trace` also shows which lines of code hold more at the end than after the warm-up.
"""

import argparse
import gc
import os
import resource
import tempfile
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _soak_job as components
import numpy as np
from _figures import at_most, finish
from rich.console import Console

from arpo.engines import Weights
from arpo.engines.config import EngineConfig
from arpo.recipe.load import load_recipe
from arpo.training.pipeline import train

PAGE = resource.getpagesize()
SERIES = ("rss_mb", "objects", "descriptors", "threads")
samples: list[tuple[float, ...]] = []
snapshots: list[tracemalloc.Snapshot] = []
warm_up = 0


class Measured(components.Mortal):
    """The job's engine; what the process holds is looked at whenever new weights come."""

    async def update_weights(self, weights: Weights) -> None:
        await super().update_weights(weights)
        look()


def look() -> None:
    gc.collect()
    if tracemalloc.is_tracing() and len(samples) in (warm_up, 5 * warm_up - 1):
        snapshots.append(tracemalloc.take_snapshot())
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 2**20
    descriptors, threads = len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))
    samples.append((resident, float(len(gc.get_objects())), float(descriptors), float(threads)))


def scripted(config: EngineConfig, model: Any, tokenizer: Any) -> Measured:
    return Measured(components.scripted(config, model, tokenizer).engine)


ahead = scripted


def exact(config: EngineConfig, model: Any, tokenizer: Any) -> Measured:
    return Measured(components.exact(config, model, tokenizer).engine)


def local(config: EngineConfig, model: Any, tokenizer: Any) -> Measured:
    """With its real way of working: requests come and go in one batch."""
    return Measured(components.exact(config.model_copy(update={"deterministic": False}), model, tokenizer).engine)


def measure(folder: Path, engine: str, steps: int) -> None:
    """Train for `steps` steps in this process; fills `samples`."""
    global warm_up
    warm_up = steps // 5
    samples.clear()
    os.environ["ARPO_CACHE"] = str(folder / "cache")
    recipe = components.write_job(folder)["exact" if engine == "local" else engine]
    plan = [f"engine.kind=memory:{engine}", f"train.steps={steps}", "train.save_every=50", "train.eval_every=50"]
    with open(os.devnull, "w") as nowhere:
        train(load_recipe(recipe, plan), out=folder / "run", console=Console(file=nowhere))


def growth(values: Sequence[float]) -> float:
    """By a line through `values`: from the first to the last."""
    slope = np.polynomial.Polynomial.fit(range(len(values)), values, 1).convert().coef
    return float(slope[1] * len(values)) if len(slope) > 1 else 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--engine", choices=(*components.ENGINES, "local"), default="scripted")
    parser.add_argument("--trace", action="store_true", help="which lines of code hold more (twice as slow)")
    parser.add_argument("--quick", action="store_true", help="100 steps")
    given = parser.parse_args()
    if given.trace:
        tracemalloc.start()
    with tempfile.TemporaryDirectory(prefix="arpo-memory-") as folder:
        measure(Path(folder), given.engine, 100 if given.quick else given.steps)
    series = dict(zip(SERIES, zip(*samples[warm_up:], strict=True), strict=True))
    grown = {name: growth(values) for name, values in series.items()}
    figures = {
        "engine": given.engine,
        "steps": len(samples),
        "after warm-up": {name: values[0] for name, values in series.items()},
        "grown by": {name: round(value, 3) for name, value in grown.items()},
        "rss_kb_a_step": round(1024 * grown["rss_mb"] / len(series["rss_mb"]), 2),
        "objects_a_step": round(grown["objects"] / len(series["objects"]), 2),
    }
    if len(snapshots) == 2:
        for line in snapshots[1].compare_to(snapshots[0], "lineno")[:15]:
            print(line)
    goals = [
        at_most("memory grown over the steps after the warm-up, share of it all", 0.03, grown["rss_mb"] / series["rss_mb"][0]),
        at_most("Python objects grown a step (a step's few remembered figures)", 5, figures["objects_a_step"]),
        at_most("descriptors grown", 1, grown["descriptors"]),
        at_most("threads grown", 1, grown["threads"]),
    ]
    return finish("memory", figures, goals)


if __name__ == "__main__":
    import memory  # the module whose engine the recipe names: its samples, not this script's

    raise SystemExit(memory.main())
