"""What a recipe names by an import path and builds with options: `{use: "my_pkg.mod:name", options: {...}}`.

Knows how options meet the parameters of a class or function. Refuses to know what is built: tools, rules and surrogates
say that.
"""

import inspect
from collections.abc import Mapping
from typing import Any, Self, TypeVar

from pydantic import Field, model_validator

from arpo.config import Config, checked, conflict
from arpo.config_errors import NO_SECRETS
from arpo.errors import ConfigError, nearest
from arpo.secrets import secrets_in
from arpo.yaml_positions import Located


class UseWithOptions(Config):
    """An object of your own, and what it is built with."""

    use: str
    """An import path such as `my_pkg.mod:name`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments."""

    @model_validator(mode="after")
    def _no_secrets(self) -> Self:
        refuse_secrets(self.options)
        return self


T = TypeVar("T", bound=Config)


def custom(kind: type[T], given: Any, where: str) -> T:
    """The configuration of this kind that `given` describes. Raises ConfigError, which names the key below `where`."""
    try:
        return checked(kind, Located(given))
    except ConfigError as error:
        inside = error.where if error.where.startswith(where) else f"{where}.{error.where}" if error.where else where
        raise ConfigError(error.message, where=inside, value=error.value, hint=error.hint) from error


def refuse_secrets(options: Mapping[str, Any]) -> None:
    """Raises an error for a validator where `options` hold a secret in plain text."""
    for where in secrets_in(options):
        raise conflict(NO_SECRETS, f"options.{where}")


def parameters_of(target: Any) -> dict[str, inspect.Parameter]:
    """What `target` can be called with; of a class what `__init__` takes, whatever its `__new__` passes on."""
    has_init = inspect.isclass(target) and target.__init__ is not object.__init__
    parameters = dict(inspect.signature(target.__init__ if has_init else target).parameters)
    if has_init:
        parameters.pop(next(iter(parameters)))  # self
    return parameters


def check_options(target: Any, options: Mapping[str, Any], where: str) -> None:
    """Raises ConfigError, naming the nearest, for an option that `target` does not take."""
    known = parameters_of(target)
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    for key in options:
        if key not in known and not takes_any:
            raise ConfigError("no such option", where=f"{where}.options", value=key, hint=nearest(key, known))


def build(target: Any, options: Mapping[str, Any], where: str, use: str) -> Any:
    """`target(**options)`. Raises ConfigError for options that do not fit and for whatever else the target raises. It
    names `where`, and the option that a ConfigError of the target names."""
    check_options(target, options, where)
    try:
        return target(**options)
    except ConfigError as error:  # it names its own argument
        raise at_option(error, options, where, use) from error
    except Exception as error:  # code of a user's own
        how = "with these options" if options else "without arguments"
        wrong = f"cannot be built {how} ({type(error).__name__}: {error})"
        raise ConfigError(wrong, where=f"{where}.options" if options else where, value=dict(options) or use) from error


def at_option(error: ConfigError, options: Mapping[str, Any], where: str, use: str) -> ConfigError:
    """`error` with the place in the recipe of the option that it names."""
    place = f"{where}.options.{error.where}" if error.where.split(".")[0] in options else f"{where} ({use})"
    return ConfigError(error.message, where=place, value=error.value, hint=error.hint)
