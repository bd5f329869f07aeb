"""What no engine can answer: said before anything is computed, with the lengths that do not fit."""

from collections.abc import Sequence

from arpo.engines import SamplingParams
from arpo.errors import EngineError


def check_request(prompt: Sequence[int], params: SamplingParams, context: int | None) -> None:
    """Raise EngineError for an empty prompt, no tokens wanted, or a turn that could outgrow `context` tokens (None: no limit)."""
    if not len(prompt):
        raise EngineError("an empty prompt: there is nothing to continue")
    if params.max_tokens < 1:
        raise EngineError(f"max_tokens is {params.max_tokens}, must be at least 1")
    if params.temperature < 0 or not 0 < params.top_p <= 1:
        raise EngineError(f"temperature {params.temperature} must be at least 0, top_p {params.top_p} in (0, 1]")
    total = len(prompt) + params.max_tokens
    if context is not None and total > context:
        raise EngineError(
            f"a prompt of {len(prompt)} tokens and max_tokens {params.max_tokens} make {total}, more than the context of {context}"
        )
