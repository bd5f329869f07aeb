"""When the world ended every trajectory: say so, and why."""

from collections.abc import Sequence

from arpo.core.tree import StopReason
from arpo.errors import EngineError, ToolError
from arpo.rollout.collect import Rollout


def check_scored(rollouts: Sequence[Rollout], what: str) -> None:
    """Raises EngineError (ToolError where only tools failed) with the first cause if not one leaf of `rollouts` has a score."""
    if not rollouts or any(rollout.scored.scores for rollout in rollouts):
        return
    causes = [
        reason for rollout in rollouts for reason in (*(why for _, why in rollout.grown.failures), *rollout.grown.states.lost)
    ]
    endings = [ending for rollout in rollouts for ending in rollout.grown.tree.endings.values()]
    kind = EngineError if StopReason.ENGINE_FAILED in endings else ToolError
    raise kind(f"{what}: not one of {len(endings)} trajectories could be finished and scored. First cause: {(causes or ['?'])[0]}")
