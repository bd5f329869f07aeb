"""The base of every configuration model: unknown keys are errors, values never change after they are checked."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A part of a recipe. It lives in the file of what it configures and imports nothing heavy."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, arbitrary_types_allowed=True, use_attribute_docstrings=True
    )
