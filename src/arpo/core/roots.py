"""Root plans: how many trajectories start from the prompt (docs/method.md, section 4)."""

import math
from dataclasses import dataclass
from typing import Literal

from arpo.core.branching import StrictKeys, require, require_finite


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant(StrictKeys):
    """Root plan: a fixed number of roots."""

    plan: Literal["constant"] = "constant"
    roots: int = 8
    """N: number of trajectories that start from the prompt before any branching."""

    def __post_init__(self) -> None:
        require(self.roots >= 1, "roots", self.roots, "at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pilot(StrictKeys):
    """Root plan: AEPO's pre-monitoring. One trajectory runs to its end as root 0, and its head entropies set the number
    of further roots."""

    plan: Literal["pilot"] = "pilot"
    beta: float = 1.0
    """Slope of the sigmoid, per nat."""

    def __post_init__(self) -> None:
        require_finite(self, "beta")

    def roots(self, leaves: int, root_head: float, tool_heads: tuple[float, ...]) -> int:
        """N = `M * sigmoid(beta * (H_root - mean H_tool))`, rounded half up and clamped to [1, M]; M if there was no
        tool call."""
        if not tool_heads:
            return leaves
        x = self.beta * (root_head - math.fsum(tool_heads) / len(tool_heads))
        share = 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))  # neither form overflows
        return min(leaves, max(1, math.floor(leaves * share + 0.5)))


@dataclass(frozen=True, slots=True, kw_only=True)
class PassRate(StrictKeys):
    """Root plan by difficulty: a task that the policy seldom solves starts more often from the prompt, one that it
    mostly solves branches more."""

    plan: Literal["pass_rate"] = "pass_rate"
    least: int = 1
    """N of a task that is always solved; one that never is has N = M."""
    prior: float = 0.5
    """The rate of a task that has not been tried."""
    memory: float = 0.5
    """What the last visit's accuracy counts in the running rate."""

    def __post_init__(self) -> None:
        require(self.least >= 1, "least", self.least, "at least 1")
        require(0 <= self.prior <= 1, "prior", self.prior, "from 0 to 1")
        require(0 < self.memory <= 1, "memory", self.memory, "above 0, up to 1")

    def roots(self, leaves: int, rate: float | None) -> int:
        """N = `M - (M - least) * rate`, rounded half up and clamped to [1, M]."""
        rate = self.prior if rate is None else rate
        return min(leaves, max(1, math.floor(leaves - (leaves - self.least) * rate + 0.5)))
