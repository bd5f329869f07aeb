"""Measures which forks paid off: compares the line of a sibling with the line of its probe.

A line continues through probes, so both are independent samples of the policy from the same tip, whatever forks below
them. Knows records. Refuses to know how the comparison is displayed.
"""

from dataclasses import dataclass

from arpo.core.place import Place
from arpo.core.record import TreeRecord
from arpo.core.tree import RolloutTree


@dataclass(frozen=True, slots=True)
class Fork:
    """A tip that got siblings. A reward is None if a failure aborted the line, or if it has no score."""

    place: Place
    rise: float | None
    probe: float | None
    siblings: tuple[float | None, ...]

    @property
    def compared(self) -> tuple[int, int, int]:
        """The numbers of siblings that ended better than the probe, equal to it, and worse."""
        if self.probe is None:
            return 0, 0, 0
        known = [reward for reward in self.siblings if reward is not None]
        better, worse = sum(reward > self.probe for reward in known), sum(reward < self.probe for reward in known)
        return better, len(known) - better - worse, worse


def line_end(tree: RolloutTree, place: Place) -> Place | None:
    """The leaf that the line at `place` reaches through probes; None if it has not ended."""
    while place in tree.observations:
        place = (*place, 0)
    return place if place in tree.endings else None


def line_reward(record: TreeRecord, place: Place) -> float | None:
    leaf = line_end(record.tree, place)
    score = None if leaf is None else record.scores.get(leaf)
    return None if score is None else score.reward


def fork_at(record: TreeRecord, place: Place) -> Fork:
    """The tip at `place`, which has a decision, with the results of its lines."""
    made = record.decisions[place]
    rewards = tuple(line_reward(record, (*place, child)) for child in range(made.decided.granted + 1))
    return Fork(place, None if made.tip is None else made.tip.rise, rewards[0], rewards[1:])


def forks(record: TreeRecord) -> list[Fork]:
    return [fork_at(record, place) for place, made in sorted(record.decisions.items()) if made.decided.granted]


def helped(found: list[Fork]) -> int | None:
    """1: some sibling ended better than its probe; -1: none did, and some ended worse; 0: all equal; None: there is
    nothing to compare."""
    better, equal, worse = (
        (sum(column) for column in zip(*(fork.compared for fork in found), strict=True)) if found else (0, 0, 0)
    )
    if not better + equal + worse:
        return None
    return 1 if better else -1 if worse else 0
