"""Rewards of length: DAPO's overlong ramp. Knows token counts and limits. Refuses to know answers."""

from typing import Literal

from arpo.chat import Transcript
from arpo.errors import ConfigError
from arpo.tasks import Task


def ramp(length: int, most: int, cache: int) -> float:
    """0 up to `most - cache` tokens, then falling linearly to -1 at `most` and beyond (DAPO's soft overlong punishment,
    arXiv 2503.14476, eq. 13)."""
    return 0.0 if length <= most - cache else max((most - cache - length) / cache, -1.0)


def overlong(
    task: Task,
    transcript: Transcript,
    *,
    of: Literal["branch", "turn", "written"] = "branch",
    most: int | None = None,
    cache: int | None = None,
) -> float:
    """`ramp` of the branch's length (prompt and tool text included) against rollout.branch_tokens, of its longest turn
    against rollout.turn_tokens, or of what the policy wrote against `most`. `cache`: None for a fifth of `most`. Raises
    ConfigError where there is no limit."""
    if of not in (lengths := {"branch": transcript.length, "turn": max(transcript.written, default=0),
                              "written": sum(transcript.written)}):  # fmt: skip
        raise ConfigError("should be branch, turn or written", where="reward.options.of", value=of)
    limits = transcript.limits
    if most is None and limits is not None:
        most = {"branch": limits.branch_tokens, "turn": limits.turn_tokens}.get(of)
    if most is None or most < 1:
        raise ConfigError("needs the most tokens, at least 1", where="reward.options.most", value=most)
    cache = max(most // 5, 1) if cache is None else cache
    if not 1 <= cache <= most:
        raise ConfigError(f"should be from 1 to {most}", where="reward.options.cache", value=cache)
    return ramp(lengths[of], most, cache)
