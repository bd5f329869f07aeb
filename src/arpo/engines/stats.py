"""What an engine did, in tokens and seconds: for metrics and benchmarks."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from arpo.engines.base import EngineBase


@dataclass(slots=True)
class EngineStats:
    """Running totals. Seconds are wall time of the threads that compute, added up over them."""

    requests: int = 0
    prefill_tokens: int = 0  # prompt tokens computed
    reused_tokens: int = 0  # prompt tokens whose keys were already known
    copied_tokens: int = 0  # tokens copied between slots (forks, and moves that keep live slots together)
    decode_tokens: int = 0  # tokens sampled
    steps: int = 0
    cancelled: int = 0
    failures: int = 0  # times the model's forward failed
    forward_s: float = 0.0
    sampling_s: float = 0.0
    copy_s: float = 0.0  # finding slots and copying prefixes
    load_s: float = 0.0

    @classmethod
    def total(cls, parts: Iterable["EngineStats"]) -> "EngineStats":
        """The sum of what several counted."""
        parts = list(parts)
        return cls(**{field.name: sum(getattr(part, field.name) for part in parts) for field in fields(cls)})

    @contextmanager
    def clock(self, name: str) -> Iterator[None]:
        """Add the time of a block to the total called `name`."""
        start = perf_counter()
        try:
            yield
        finally:
            setattr(self, name, getattr(self, name) + perf_counter() - start)


class Prefill:
    """Prompt tokens that an engine computed and reused, from one look to the next; nothing for an engine without
    `stats`."""

    def __init__(self, engine: "EngineBase") -> None:
        self._engine = engine
        self._seen = self._now()

    def since(self) -> dict[str, float]:
        """Tokens of prompts, since the last look, whose keys were computed and whose keys were known."""
        before, self._seen = self._seen, self._now()
        return {name: float(value - before[name]) for name, value in self._seen.items()}

    def _now(self) -> dict[str, int]:
        if (stats := self._engine.stats) is None:
            return {}
        return {"engine/prefill_tokens": stats.prefill_tokens, "engine/reused_tokens": stats.reused_tokens}
