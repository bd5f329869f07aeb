"""What an import path of a recipe names: a tool, a reward, an engine's factory, a function that gives tasks."""

from importlib import import_module
from typing import Any

from arpo.errors import ConfigError, nearest


def imported(path: str, where: str) -> Any:
    """The object called `path` (`package.module:name`).

    Raises ConfigError, naming `where`, for what is no such path, cannot be imported, or is not in its module.
    """
    module, _, names = path.partition(":")
    if not module or not names:
        raise ConfigError("not an import path", where=where, value=path, hint="Write module:name")
    try:
        found: Any = import_module(module)
    except Exception as error:  # an import runs whatever stands in the user's file
        raise ConfigError(f"cannot import {module} ({type(error).__name__}: {error})", where=where, value=path) from error
    for name in names.split("."):
        if not hasattr(found, name):
            hint = nearest(name, [word for word in dir(found) if not word.startswith("_")])
            raise ConfigError(f"{module} has no {name!r}", where=where, value=path, hint=hint)
        found = getattr(found, name)
    return found
