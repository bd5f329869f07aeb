"""The cache and the limits of tool calls."""

from typing import Annotated, Literal

from pydantic import Field

from arpo.config import Config

Mode = Literal["live", "record", "replay"]
ERROR_WINDOW = 200
"""Over how many of a tool's last calls the share of failing ones is taken."""
EMPTY_DAYS = 1.0
"""How long a result in which nothing was found is fresh at most."""


class LimitsConfig(Config):
    """Limits of calls, for all tools (`tools.limits`) or where those of one tool differ (null: as there). The budget of
    a tool counts its own calls alone."""

    rate: Annotated[float, Field(gt=0)] | None = None
    """Most calls a second to a provider (what a tool says stands behind it, else the tool); null: no limit."""
    concurrency: Annotated[int, Field(ge=1)] | None = None
    """Most calls at a time to a provider; null: no limit."""
    calls: Annotated[int, Field(ge=0)] | None = None
    """Most calls that a run may execute; further attempts count, what comes from the cache does not. Beyond it the run
    stops. Null: no limit."""
    money: Annotated[float, Field(ge=0)] | None = None
    """Most that a run's calls may cost, by what tools say that a call costs; calls under way are still paid. Beyond it
    the run stops. Null: no limit."""
    retries: Annotated[int, Field(ge=0)] | None = None
    """Further attempts, with growing waits, where a provider says that the same call may work later; null: 3."""
    patience_s: Annotated[float, Field(ge=0)] | None = None
    """Seconds that a provider may be down while the run pauses; then the run stops. Null: 600."""
    error_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """The share of a tool's last 200 calls that may raise or miss their deadline (what a tool reports as its result, as
    a traceback of the model's code, does not count); above it the run stops. Null: 0.9; 1: never."""

    def over(self, general: "LimitsConfig") -> "LimitsConfig":
        """These limits, and those of `general` where these are null."""
        return self.model_copy(update={name: value for name, value in general if getattr(self, name) is None})


DEFAULT_LIMITS = LimitsConfig(retries=3, patience_s=600.0, error_rate=0.9)


class CacheConfig(Config):
    """Where results of calls are kept, and for how long. One file serves any number of runs and processes."""

    file: str | None = None
    """The SQLite file, on a local disk; null: `tools.sqlite` in the user's cache."""
    max_mb: Annotated[float, Field(gt=0)] = 1024.0
    """Most that cached results take; the least recently used go first. What is recorded stays."""
    days: Annotated[float, Field(gt=0)] = 30.0
    """How long a result is fresh; one where nothing was found, for a day at most. Errors are never cached."""
