"""The adaptive threshold's memory: heads of earlier steps, as a value (docs/method.md, section 4, rule `threshold`).

It is a function of finished trees and of the window before, so it does not depend on which tree finished first, and a resumed run
continues with the window that its checkpoint holds.
"""

from collections.abc import Iterable

from arpo.core.branching import StepStats
from arpo.core.entropy import head_entropy
from arpo.core.place import Step
from arpo.core.tree import RolloutTree


def post_tool_heads(tree: RolloutTree, head: int) -> list[float]:
    """Head entropies (nats) after the tips of `tree`, by depth, then path; tips without a written probe are left out."""
    tips = sorted(tree.observations, key=lambda place: (len(place), place))
    probes = ((*tip, 0) for tip in tips)
    return [head_entropy(tree.turns[probe].entropies, head) for probe in probes if probe in tree.turns]


def next_stats(stats: StepStats, trees: Iterable[RolloutTree], *, step: Step, head: int, window: int) -> StepStats:
    """The statistics that hold in `step`: the last `window` heads of those in `stats` and then of `trees`, in their task order."""
    heads = [*stats.window]
    for tree in trees:
        heads += post_tool_heads(tree, head)
    return StepStats(step=step, window=tuple(heads[-window:]) if window > 0 else ())
