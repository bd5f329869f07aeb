"""The base of every configuration model: unknown keys are errors, values never change after they are checked."""

from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from arpo.config_errors import CONFLICT, NO_SECRETS

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)  # it has no public name


class _Told(ModelMetaclass):
    def __call__(cls, *given: Any, **values: Any) -> Any:
        """What Python code constructs is refused as a recipe's part would be. (Pydantic validates groups inside without
        this.)"""
        try:
            return super().__call__(*given, **values)
        except ValidationError as error:
            from arpo.config_errors import config_error  # which reads configuration models
            from arpo.yaml_positions import Located

            raise config_error(error, Located(values), cls) from None


class Config(BaseModel, metaclass=_Told):
    """A part of a recipe. It lives in the file of what it configures and imports nothing heavy. Constructed with what
    cannot be, it raises ConfigError."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, arbitrary_types_allowed=True, use_attribute_docstrings=True
    )


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
