"""Import paths (`package.module:name`): what one of a recipe names (a tool, a reward, a rule, a function that gives tasks), and
which one names an object, so that a run that was made in Python can be read back."""

import sys
from importlib import import_module
from pathlib import Path
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


def import_path(value: Any) -> str:
    """The path that names `value`. An object is named by the variable of its module that holds it, else by its class.

    What stands in the script that runs (`__main__`) is named as another process would import it.
    """
    if hasattr(value, "__qualname__"):
        return f"{_module_name(value.__module__)}:{value.__qualname__}"
    for module in dict.fromkeys((type(value).__module__, "__main__")):
        for name, held in list(vars(sys.modules.get(module, object)).items()):
            if held is value:
                return f"{_module_name(module)}:{name}"
    return import_path(type(value))


def import_folder(value: Any) -> Path | None:
    """The folder that must be on Python's path for `import_path(value)`; None where it is installed, or in no file."""
    module = (value if hasattr(value, "__qualname__") else type(value)).__module__
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None or "site-packages" in Path(file).parts:
        return None
    path = Path(file).resolve()
    path = path.parent if path.name == "__init__.py" else path
    return path.parents[_module_name(module).count(".")]


def _module_name(module: str) -> str:
    """`module`; for the script that runs, what it is called when it is imported."""
    main = sys.modules.get("__main__")
    if module != "__main__" or getattr(main, "__file__", None) is None:
        return module
    spec = getattr(main, "__spec__", None)  # there is one under `python -m`
    return str(spec.name) if spec else Path(str(main.__file__)).stem  # type: ignore[union-attr]
