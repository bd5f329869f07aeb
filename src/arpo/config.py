"""The base of every configuration model: unknown keys are errors, values never change after they are checked."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Annotated, Any, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from arpo.config_errors import CONFLICT, NO_SECRETS

if TYPE_CHECKING:
    from arpo.yaml_positions import Located

_inside: ContextVar[bool] = ContextVar("_inside", default=False)  # a group is validated as a part of another one
T = TypeVar("T", bound="Config")


class Config(BaseModel):
    """A part of a recipe. It lives in the file of what it configures and imports nothing heavy.

    The constructor raises ConfigError."""

    def __init__(self, /, **values: Any) -> None:
        if _inside.get():  # pydantic adds the errors of a part to those of the whole
            super().__init__(**values)
            return
        from arpo.yaml_positions import Located

        with _told(Located(values), type(self)):
            super().__init__(**values)

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, arbitrary_types_allowed=True, use_attribute_docstrings=True
    )


def checked(model: type[T], given: "Located") -> T:
    """The configuration that `given` describes. Raises ConfigError with the place of each mistake."""
    with _told(given, model):
        return model.model_validate(given.value)


@contextmanager
def as_parts() -> Iterator[None]:
    """Inside, configurations raise pydantic's ValidationError: for who turns it into a ConfigError with more about its
    place."""
    token = _inside.set(True)
    try:
        yield
    finally:
        _inside.reset(token)


@contextmanager
def _told(given: "Located", model: type) -> Iterator[None]:
    """Turn pydantic's errors about `given` into a ConfigError."""
    try:
        with as_parts():
            yield
    except ValidationError as error:
        from arpo.config_errors import config_error  # which reads configuration models

        raise config_error(error, given, model) from None


def conflict(message: str, *keys: str) -> PydanticCustomError:
    """What a validator of a whole model raises: the values at `keys` of it (dots reach into groups) cannot go together.
    A recipe's mistake is shown at the one of them that was laid over the others, else at the first."""
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
