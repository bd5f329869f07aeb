"""The address, limits and prices of a served model. Imports nothing heavy.

A key is never written into a recipe: only the name of the environment variable that holds it.
"""

from typing import Annotated, Any

from pydantic import Field

from arpo.config import Config, Url


class ServedModel(Config):
    """A model behind an OpenAI-compatible endpoint."""

    url: Url
    """The endpoint, up to `/v1`."""
    model: Annotated[str, Field(min_length=1)]
    """Its name there."""
    key_env: str = ""
    """The environment variable that holds the key. Empty: none is sent."""
    timeout_s: Annotated[float, Field(gt=0)] = 300.0
    """Seconds for one answer."""
    concurrency: Annotated[int, Field(ge=0)] = 64
    """Requests at a time; 0: no limit."""
    rate: Annotated[float, Field(ge=0)] = 0.0
    """Requests a second; 0: no limit."""
    price_in: Annotated[float, Field(ge=0)] = 0.0
    """Money for a million tokens of prompts."""
    price_cached: Annotated[float, Field(ge=0)] | None = None
    """Money for a million of those that the endpoint says it had cached; null: as `price_in`."""
    price_out: Annotated[float, Field(ge=0)] = 0.0
    """Money for a million tokens that it writes."""
    budget: Annotated[float, Field(gt=0)] | None = None
    """Money after which nothing more is asked; null: no limit."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Sent with every request as they are, for instance `{reasoning_effort: low}`."""
    omit: tuple[str, ...] = ()
    """Fields never sent, for models that refuse them: `[seed, temperature, top_p]`."""
    length_key: Annotated[str, Field(min_length=1)] = "max_tokens"
    """What the endpoint calls the limit of an answer; some want `max_completion_tokens`."""


class EndpointConfig(ServedModel):
    """A served model with retries, for callers other than tools (the gateway retries those)."""

    retries: Annotated[int, Field(ge=0)] = 4
    """Further attempts of a request that may be tried again (429, 5xx, a broken connection), with growing waits."""
    patience_s: Annotated[float, Field(gt=0)] = 600.0
    """How long the endpoint may be down before everything stops; until then requests wait."""
