"""The cache and the limits of tool calls: for all tools, and for one tool where it differs."""

from typing import Annotated, Literal

from pydantic import Field

from arpo.config import Config

Mode = Literal["live", "record", "replay"]
Days = Annotated[float, Field(gt=0)]


class LimitsConfig(Config):
    """Limits of calls: rate and concurrency of each provider, the budget of the run, the error rate of each tool."""

    rate: Annotated[float, Field(gt=0)] | None = None
    """Most calls a second to a provider (what a tool says stands behind it, else the tool); null: no limit."""
    concurrency: Annotated[int, Field(ge=1)] | None = None
    """Most calls at a time to a provider; null: no limit."""
    calls: Annotated[int, Field(ge=0)] | None = None
    """Most calls that a run may execute; further attempts count, what comes from the cache does not. Beyond it the run
    stops."""
    money: Annotated[float, Field(ge=0)] | None = None
    """Most that a run's calls may cost, by what tools say that a call costs; calls under way are still paid. Beyond it
    the run stops."""
    retries: Annotated[int, Field(ge=0)] = 3
    """Further attempts, with growing waits, where a provider says that the same call may work later."""
    patience_s: Annotated[float, Field(ge=0)] = 600.0
    """Seconds that a provider may be down while the run pauses; then the run stops."""
    error_rate: Annotated[float, Field(gt=0, le=1)] | None = 0.9
    """The share of a tool's last calls that may raise or miss their deadline (what a tool reports as its result, as a
    traceback of the model's code, does not count); above it the run stops. null: any."""
    error_window: Annotated[int, Field(ge=1)] = 200
    """Over how many of a tool's last calls that share is taken."""


class CacheConfig(Config):
    """Where results of calls are kept, and for how long. One file serves any number of runs and processes."""

    file: str | None = None
    """The SQLite file, on a local disk; null: `tools.sqlite` in the user's cache."""
    max_mb: Annotated[float, Field(gt=0)] = 1024.0
    """Most that cached results take; the least recently used go first. What is recorded stays."""
    days: Days = 30.0
    """How long a result is fresh."""
    empty_days: Days = 1.0
    """How long it is where nothing was found. Errors are never cached."""


class ToolCacheConfig(Config):
    """Whether and for how long results of this tool are kept."""

    keep: bool | None = None
    """null: where the tool says that its results may be kept (`cacheable`)."""
    days: Days | None = None
    """null: as in `tools.cache`."""
    empty_days: Days | None = None
    """null: as in `tools.cache`."""


class ToolLimitsConfig(Config):
    """Limits of this tool where they differ from `tools.limits`; its budget counts its own calls alone."""

    rate: Annotated[float, Field(gt=0)] | None = None
    """Most calls a second; null: as there."""
    concurrency: Annotated[int, Field(ge=1)] | None = None
    """Most calls at a time; null: as there."""
    calls: Annotated[int, Field(ge=0)] | None = None
    """Most calls of this tool that a run may execute; null: only the run's budget counts."""
    money: Annotated[float, Field(ge=0)] | None = None
    """Most that they may cost; null: only the run's budget counts."""
    retries: Annotated[int, Field(ge=0)] | None = None
    """Further attempts; null: as there."""
    error_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    """The share of failing calls that stops the run; null: as there; 1: none does."""
