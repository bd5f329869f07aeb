"""What a recipe says about evaluation. Imports nothing heavy."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from arpo.config import Config, conflict
from arpo.endpoint.config import EndpointConfig


class EvalConfig(Config):
    """How a model is measured: sampled answers (mean accuracy, pass@k) and, beside them, greedy ones."""

    split: Literal["test", "validation", "train"] = "test"
    """Which of the recipe's data; only `test` says something about new questions."""
    limit: Annotated[int, Field(ge=1)] | None = 200
    """Questions asked for sampled answers, the first of the split; null: all."""
    samples: Annotated[int, Field(ge=1)] = 1
    """Independent sampled answers a question; pass@k is reported for this number and the powers of 2 below it."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of sampled answers. (Greedy ones have their own count below.)"""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Of sampled answers."""
    greedy_limit: Annotated[int, Field(ge=0)] | None = 100
    """Questions answered greedily too; 0: none; null: all."""
    judge: EndpointConfig | None = None
    """A model that judges the answers to benchmarks beside the rule, at temperature 0; null: the rule alone. Its
    `options` may set `max_tokens` (1024: the most of a verdict, its thoughts included) and `response_format`, for
    endpoints that know no JSON schema: `{type: json_object}`, or null."""
    seed: int = 0
    """Keys the random numbers of every question and sample: models evaluated with one seed face the same draws."""

    @model_validator(mode="after")
    def _judge_reads_messages(self) -> Self:
        if self.judge and self.judge.prompt != "text":
            raise conflict("a judge reads messages: leave prompt out", "judge.prompt")
        return self
