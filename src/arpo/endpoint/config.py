"""The address, limits and prices of a served model. Imports nothing heavy.

A key is never written into a recipe: only the name of the environment variable that holds it.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from arpo.config import Config, Url


class EndpointConfig(Config):
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
    retries: Annotated[int, Field(ge=0)] = 4
    """Further attempts of a request that may be tried again (429, 5xx, a broken connection), with growing waits."""
    patience_s: Annotated[float, Field(gt=0)] = 600.0
    """How long the endpoint may be down before everything stops; until then requests wait."""
    prices: dict[Literal["prompt", "cached", "completion"], Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    """Money for a million tokens of prompts (`prompt`), of those that the endpoint says it had cached (`cached`; else
    as `prompt`) and of what it writes (`completion`)."""
    budget: Annotated[float, Field(gt=0)] | None = None
    """Money after which nothing more is asked; null: no limit."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Fields of every request, for instance `{reasoning_effort: low}`; null takes one out that the model refuses:
    `{seed: null, temperature: null}`. With `max_tokens: null` the limit of an answer is sent as
    `max_completion_tokens`."""
    prompt: Literal["text", "tokens"] = "text"
    """Of an agent with the formats `tags` and `template`: the context as text, or as tokens of `model.source`, which
    must then be the served model's own (vLLM and SGLang take them): nothing is tokenised twice and nothing in a tool's
    text can act."""
