"""The window of past head entropies that the adaptive threshold uses (docs/method.md, section 4, rule `threshold`).

The window follows from finished trees and the window before, so it does not depend on which tree finished first, and a
resumed run continues with the window in its checkpoint.
"""

from collections.abc import Iterable

from arpo.core.branching import StepStats
from arpo.core.entropy import head_entropy
from arpo.core.place import Step
from arpo.core.tree import RolloutTree


def post_tool_heads(tree: RolloutTree, head: int) -> list[float]:
    """Head entropies (nats) after the tips of `tree`, by depth, then path. Tips whose probe was never written are left
    out."""
    tips = sorted(tree.observations, key=lambda place: (len(place), place))
    probes = ((*tip, 0) for tip in tips)
    return [head_entropy(tree.turns[probe].entropies, head) for probe in probes if probe in tree.turns]


def next_stats(stats: StepStats, trees: Iterable[RolloutTree], *, step: Step, head: int, window: int) -> StepStats:
    """The statistics for `step`: the last `window` head entropies of `stats` followed by `trees`, in task order."""
    heads = [*stats.window]
    for tree in trees:
        heads += post_tool_heads(tree, head)
    return StepStats(step=step, window=tuple(heads[-window:]) if window > 0 else ())
