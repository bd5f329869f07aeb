"""What a recipe says about evaluation. Imports nothing heavy."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from arpo.config import Config, conflict
from arpo.endpoint.config import EndpointConfig


class JudgeConfig(EndpointConfig):
    """A model that judges answers beside the rule, at temperature 0."""

    structured: Literal["json_schema", "json_object", "no"] = "json_schema"
    """How the endpoint is asked for JSON; `no` for those that know no `response_format`."""
    max_tokens: Annotated[int, Field(ge=32)] = 1024
    """Most tokens of a verdict, its thoughts included."""


class EvalConfig(Config):
    """How a model is measured: sampled answers (mean accuracy, pass@k) and, beside them, greedy ones."""

    split: Literal["test", "validation", "train"] = "test"
    """Which of the recipe's data; only `test` says something about new questions."""
    limit: Annotated[int, Field(ge=1)] | None = 200
    """Questions asked for sampled answers, the first of the split; null: all."""
    samples: Annotated[int, Field(ge=1)] = 1
    """Independent sampled answers a question."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of sampled answers. (Greedy ones have their own count below.)"""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Of sampled answers."""
    greedy_limit: Annotated[int, Field(ge=0)] | None = 100
    """Questions answered greedily too; 0: none; null: all."""
    k: tuple[Annotated[int, Field(ge=1)], ...] = (1,)
    """pass@k is reported for these; none can exceed `samples`."""
    judge: JudgeConfig | None = None
    """Judges the answers to benchmarks beside the rule; null: the rule alone."""
    seed: int = 0
    """Keys the random numbers of every question and sample: models evaluated with one seed face the same draws."""

    @model_validator(mode="after")
    def _enough_samples(self) -> Self:
        if self.k and max(self.k) > self.samples:
            raise conflict(
                f"pass@{max(self.k)} needs at least {max(self.k)} samples a question: set samples (now {self.samples})",
                "k",
                "samples",
            )
        return self
