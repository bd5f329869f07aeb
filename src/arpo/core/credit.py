"""From rewards of leaves to credit of tokens (algorithm sections 5 and 6)."""

from collections.abc import Mapping
from dataclasses import dataclass

from arpo.core.place import Place
from arpo.core.score import Score
from arpo.core.tree import RolloutTree


@dataclass(frozen=True, slots=True)
class ScoredTree:
    """A tree with a score for every leaf that has one (leaves ended by the world have none)."""

    tree: RolloutTree
    scores: Mapping[Place, Score]


@dataclass(frozen=True, slots=True)
class CreditedTree:
    """A scored tree with the advantage of each scored leaf, and the credit of each (turn, leaf) pair on its path."""

    scored: ScoredTree
    advantages: Mapping[Place, float]  # A_i by leaf
    credit: Mapping[tuple[Place, Place], float]  # A(s, i) by (turn, leaf), eq. of section 6

    @property
    def tree(self) -> RolloutTree:
        return self.scored.tree
