"""The score of a leaf, as a reward gives it."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """`reward` is what training maximises, `accuracy` (0 to 1) what evaluation reports, `parts` each term by name."""

    reward: float
    accuracy: float
    parts: Mapping[str, float] = field(default_factory=dict)
