"""The base of every configuration model: unknown keys are errors, values never change after they are checked."""

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError

CONFLICT = "conflict"  # the kind of pydantic's error


class Config(BaseModel):
    """A part of a recipe. It lives in the file of what it configures and imports nothing heavy."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, arbitrary_types_allowed=True, use_attribute_docstrings=True
    )


def conflict(message: str, *keys: str) -> PydanticCustomError:
    """What a validator of a whole model raises: the values at `keys` of it (dots reach into groups) cannot go together. A recipe's
    mistake is shown at the one of them that was laid over the others, else at the first."""
    return PydanticCustomError(CONFLICT, "{what}", {"what": message, "keys": keys})
