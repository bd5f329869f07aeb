"""What a recipe says about rollouts: how many leaves from how many roots, which rule branches, and what limits a branch."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from arpo.config import Config


class RolloutConfig(Config):
    """How the tree of one task grows."""

    leaves: Annotated[int, Field(ge=1)] = 16
    """Finished trajectories a task, M."""
    roots: Annotated[int, Field(ge=1)] = 8
    """How many of them start from the prompt, N."""
    root_cap: Annotated[int, Field(ge=1)] | None = None
    """Most leaves below one root; null: min(M, max(2, ceil(1.5 M / N)))."""
    head: Annotated[int, Field(ge=1)] = 20
    """Tokens after a tool result over which entropy is averaged, k."""
    rule: Any = None
    """What decides at a tip: none, fixed, random, paper, released, threshold or aepo, with its parameters."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of sampling in training; the learner computes log-probabilities at the same one."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Training needs 1: below it the engine's distribution is not the learner's."""
    max_calls: Annotated[int, Field(ge=0)] = 3
    """Tool calls a branch may make."""
    turn_tokens: Annotated[int, Field(ge=1)] = 512
    """Most tokens of one turn."""
    branch_tokens: Annotated[int, Field(ge=2)] = 4096
    """Most tokens of a branch, prompt and tool text included."""
    at_call_limit: Literal["tell", "end"] = "tell"
    """After the last call the model is told that none is left and may answer, or a further call ends the branch."""
    retries: Annotated[int, Field(ge=0)] = 1
    """How often a leaf that the world ended (engine died, provider down) is asked again."""
    tool_deadline_s: Annotated[float, Field(gt=0)] = 10.0
    """Seconds a tool call may take, for tools without a deadline of their own."""
    reward_deadline_s: Annotated[float, Field(gt=0)] = 30.0
    """Seconds a reward may take for one leaf."""

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.roots > self.leaves:
            raise ValueError(f"roots ({self.roots}) cannot exceed leaves ({self.leaves})")
        if self.head > self.turn_tokens:
            raise ValueError(f"head ({self.head}) cannot exceed turn_tokens ({self.turn_tokens}): no turn would be long enough")
        if self.turn_tokens >= self.branch_tokens:
            raise ValueError(
                f"branch_tokens ({self.branch_tokens}) must exceed turn_tokens ({self.turn_tokens}): it counts the prompt and tool text too"
            )
        return self
