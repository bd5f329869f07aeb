"""Import paths (`package.module:name`): what one of a recipe names (a tool, a reward, a rule, a function that gives tasks), and
which one names an object, so that a run that was made in Python can be read back."""

import sys
from contextvars import ContextVar
from importlib import import_module
from pathlib import Path
from typing import Any

from arpo.errors import ConfigError, nearest

_importing: ContextVar[str] = ContextVar("_importing", default="")


def refuse_while_imported(what: str) -> None:
    """Raises ConfigError where a file that a run names does `what` as soon as it is imported: reading a run must not start one."""
    if module := _importing.get():
        raise ConfigError(f"{module} calls {what} as soon as it is imported", hint='Put that below `if __name__ == "__main__":`')


def import_from_path(path: str, where: str) -> Any:
    """The object called `path` (`package.module:name`).

    Raises ConfigError, naming `where`, for what is no such path, cannot be imported, or is not in its module.
    """
    module, _, names = path.partition(":")
    if not module or not names:
        raise ConfigError("not an import path", where=where, value=path, hint="Write module:name")
    token = _importing.set(module)
    try:
        found: Any = import_module(module)
    except Exception as error:  # an import runs whatever stands in the user's file
        missing = isinstance(error, ModuleNotFoundError) and error.name in (module, module.partition(".")[0])
        hint = "It is looked for beside the recipe, or in the folder that the key `code` names" if missing else ""
        raise ConfigError(
            f"cannot import {module} ({type(error).__name__}: {error})", where=where, value=path, hint=hint
        ) from error
    finally:
        _importing.reset(token)
    for name in names.split("."):
        if not hasattr(found, name):
            raise _not_there(module, name, found, where, path)
        found = getattr(found, name)
    return found


def _not_there(module: str, name: str, found: Any, where: str, path: str) -> ConfigError:
    last = path.replace(":", ".").rpartition(".")[2]
    file = f"Write it at the top level of a file, and name that: {where}=FILE:{last if last.isidentifier() else 'NAME'}"
    if module == "__main__":
        return ConfigError("stood in a notebook or at a prompt, where only that finds it", where=where, value=path, hint=file)
    if name in ("<locals>", "<lambda>"):
        return ConfigError("was made inside a function, where nothing else finds it", where=where, value=path, hint=file)
    hint = nearest(name, [word for word in dir(found) if not word.startswith("_")])
    return ConfigError(f"{module} has no {name!r}", where=where, value=path, hint=hint)


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
