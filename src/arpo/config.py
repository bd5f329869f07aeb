"""The base of every configuration model: unknown keys are errors, values never change after they are checked."""

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError

CONFLICT = "conflict"  # the kind of pydantic's error
NO_SECRETS = (
    "a recipe is written to the run's folder: keep keys in the environment and name the variable"  # and the value is not shown
)


class Config(BaseModel):
    """A part of a recipe. It lives in the file of what it configures and imports nothing heavy."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, arbitrary_types_allowed=True, use_attribute_docstrings=True
    )


def conflict(message: str, *keys: str) -> PydanticCustomError:
    """What a validator of a whole model raises: the values at `keys` of it (dots reach into groups) cannot go together. A recipe's
    mistake is shown at the one of them that was laid over the others, else at the first."""
    return PydanticCustomError(CONFLICT, "{what}", {"what": message, "keys": keys})


def holds_password(url: str) -> bool:
    """Whether `url` has a user's name or password in it: `https://name:password@host`."""
    try:
        return "@" in urlsplit(url).netloc
    except ValueError:  # no URL at all: somebody else says so
        return False


def without_password(url: str) -> str:
    """`url`. Raises ValueError where it holds one."""
    if holds_password(url):
        raise ValueError(NO_SECRETS)
    return url


Url = Annotated[str, Field(pattern=r"^https?://"), AfterValidator(without_password)]
"""Of a service."""
