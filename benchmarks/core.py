"""What the method itself costs: expansion, credit and packing of trees of 16 leaves and 4,000 tokens, without model and
tools.

    arpo bench core                    1,000 trees
    arpo bench core -- --quick         100

Trees are grown first, off the clock; measured is what a run does with their events: a fresh expansion is fed with them,
the tree is credited and laid out for training, alone in a pack. One thread, seconds of the processor. Shown beside it:
the time to write the tree's record (a run does so twice a tree).
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from _figures import at_most, finish
from _grown import Grown, Lengths, grow

from arpo.core.credit import AdvantageConfig, ScoredTree, credit
from arpo.core.expansion import Expansion
from arpo.core.record import TreeRecord, encode
from arpo.learner.packing import pack

LEAVES, ROOTS = 16, 8
LENGTHS = Lengths(prompt=range(120, 280), turn=range(16, 76), observation=range(45, 107), calls=3)
METHOD = ("expansion", "credit", "packing")
MOST_MS = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--trees", type=int, default=1000)
    parser.add_argument("--quick", action="store_true", help="100 trees")
    options = parser.parse_args(arguments)
    figures = measure(100 if options.quick else options.trees)
    return finish(
        "core", figures, [at_most("expansion, credit and packing, ms a tree", MOST_MS, figures["ms_a_tree"]["in all"])]
    )


def measure(num_trees: int) -> dict[str, Any]:
    """Milliseconds a tree by part, means over all trees, and what the trees are like."""
    torch.set_num_threads(1)
    spent: dict[str, list[float]] = defaultdict(list)
    sizes: dict[str, list[int]] = defaultdict(list)
    for number in range(-3, num_trees):  # the first three warm up
        grown = grow(number, LENGTHS, leaves=LEAVES, roots=ROOTS)
        seconds, size = once(grown)
        for name, value in seconds.items() if number >= 0 else ():
            spent[name].append(1e3 * value)
        for name, value in size.items() if number >= 0 else ():
            sizes[name].append(value)
    means = {name: statistics.fmean(values) for name, values in spent.items()}
    means["in all"] = sum(means[name] for name in METHOD)
    return {
        "trees": num_trees,
        "a_tree": {name: round(statistics.fmean(values), 1) for name, values in sizes.items()},
        "ms_a_tree": {name: round(value, 3) for name, value in means.items()},
    }


def once(grown: Grown) -> tuple[dict[str, float], dict[str, int]]:
    """Seconds by part for one tree, and its size."""
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        begun = time.process_time()
        made = work()
        seconds[name] = time.process_time() - begun
        return made

    expansion = timed("expansion", lambda: _expand(grown))
    scored = ScoredTree(expansion.tree, grown.scored.scores)
    (credited,) = timed("credit", lambda: credit([scored], AdvantageConfig()))
    (batch,) = timed("packing", lambda: pack([credited], token_budget=1 << 20))
    timed("record", lambda: encode(TreeRecord.from_expansion(expansion, credited)))
    tree = expansion.tree
    return seconds, {
        "leaves": len(tree.endings),
        "tips": len(expansion.decisions),
        "turns": len(tree.turns),
        "tokens": batch.num_unique,
        "tokens_flat": batch.num_flat,
    }


def _expand(grown: Grown) -> Expansion:
    expansion = grown.afresh()
    expansion.start()
    for event in grown.events:
        expansion.feed(event)
    if not expansion.done:
        raise AssertionError("the same events must grow the same tree")
    return expansion


if __name__ == "__main__":
    raise SystemExit(main())
