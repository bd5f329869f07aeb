"""The score that a reward gives a leaf."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Training maximises `reward`, evaluation reports `accuracy` (0 to 1), and `parts` holds every term by name.

    `turns`: rewards of the single turns of the leaf's path, in order, beside `reward`, for the estimators that
    compare turns (`returns`, `gigpo`, `subtree`); empty: none. `notes`: what explains it, such as a judge's reason;
    kept in the record's notes, not compared."""

    reward: float
    accuracy: float
    parts: Mapping[str, float] = field(default_factory=dict)
    turns: tuple[float, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict, compare=False)
