"""What rules and root plans know of earlier steps: head entropies, outcomes of branching, pass rates (docs/method.md,
section 4).

It follows from finished trees and what was known before, so it does not depend on which tree finished first, and a
resumed run continues with what is in its checkpoint.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping

from arpo.core.branching import Outcome, StepStats
from arpo.core.credit import ScoredTree
from arpo.core.entropy import head_entropy
from arpo.core.place import Place, Step
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


def outcomes_of(scored: ScoredTree, head: int) -> list[Outcome]:
    """(depth, head entropy, spread) of each tip with two or more branches that have scored leaves, by depth, then path.
    The spread is the population's standard deviation of the branches' mean rewards."""
    rewards: dict[Place, dict[Place, list[float]]] = defaultdict(lambda: defaultdict(list))
    for leaf, score in scored.scores.items():
        for depth in range(1, len(leaf)):
            rewards[leaf[:depth]][leaf[: depth + 1]].append(score.reward)
    outcomes: list[Outcome] = []
    for tip in sorted(rewards, key=lambda place: (len(place), place)):
        means = [math.fsum(own) / len(own) for own in rewards[tip].values()]
        if len(means) > 1:
            probe, mean = scored.tree.turns.get((*tip, 0)), math.fsum(means) / len(means)
            spread = math.sqrt(math.fsum((m - mean) ** 2 for m in means) / len(means))
            if probe is not None:
                outcomes.append((float(len(tip)), head_entropy(probe.entropies, head), spread))
    return outcomes


def pass_rates(known: Mapping[str, float], trees: Iterable[ScoredTree], memory: float) -> dict[str, float]:
    """The running accuracy of each task of `trees`: `(1 - memory) * known + memory * mean accuracy of its leaves`, or
    that mean where the task is new."""
    rates: dict[str, float] = {}
    for scored in trees:
        accuracies = [score.accuracy for score in scored.scores.values()]
        if accuracies:
            task, mean = scored.tree.task, math.fsum(accuracies) / len(accuracies)
            rates[task] = known[task] + memory * (mean - known[task]) if task in known else mean
    return rates
