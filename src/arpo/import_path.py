"""Import paths (`package.module:name`): loads the object that a recipe names (a tool, a reward, a rule, a function that
returns tasks), and finds the path of an object, so that a run that was built in Python can be read back."""

import re
import sys
from contextvars import ContextVar
from importlib import import_module
from pathlib import Path
from typing import Any

from arpo.errors import ConfigError, nearest

_importing: ContextVar[str] = ContextVar("_importing", default="")


_IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def is_import_path(text: str) -> bool:
    """True for text of the form `package.module:name`."""
    return _IMPORT_PATH.fullmatch(text) is not None


def refuse_while_imported(what: str) -> None:
    """Raise ConfigError if a file that a run names calls `what` at import time: reading a run must not start one."""
    if module := _importing.get():
        raise ConfigError(
            f"{module} calls {what} as soon as it is imported", hint='Put that below `if __name__ == "__main__":`'
        )


def import_from_path(path: str, where: str) -> Any:
    """The object at an import path (`package.module:name`).

    Raises ConfigError, which names `where`, if `path` is not an import path, its module cannot be imported, or the
    module has no such name.
    """
    module, _, names = path.partition(":")
    if not module or not names:
        raise ConfigError("not an import path", where=where, value=path, hint="Write module:name")
    token = _importing.set(module)
    try:
        value: Any = import_module(module)
    except Exception as error:  # an import runs the user's code
        missing = isinstance(error, ModuleNotFoundError) and error.name in (module, module.partition(".")[0])
        hint = "It is looked for beside the recipe, or in the folder that the key `code` names" if missing else ""
        raise ConfigError(
            f"cannot import {module} ({type(error).__name__}: {error})", where=where, value=path, hint=hint
        ) from error
    finally:
        _importing.reset(token)
    for name in names.split("."):
        if not hasattr(value, name):
            raise _missing(module, name, value, where, path)
        value = getattr(value, name)
    return value


def _missing(module: str, name: str, parent: Any, where: str, path: str) -> ConfigError:
    last = path.replace(":", ".").rpartition(".")[2]
    hint = f"Write it at the top level of a file, and name that: {where}=FILE:{last if last.isidentifier() else 'NAME'}"
    if module == "__main__":
        return ConfigError(
            "is defined in a notebook or at a prompt, which nothing can import", where=where, value=path, hint=hint
        )
    if name in ("<locals>", "<lambda>"):
        return ConfigError("is defined inside a function, which nothing can import", where=where, value=path, hint=hint)
    hint = nearest(name, [word for word in dir(parent) if not word.startswith("_")])
    return ConfigError(f"{module} has no {name!r}", where=where, value=path, hint=hint)


def import_path(value: Any) -> str:
    """The import path of `value`: the variable of its module that holds it, else its class.

    For an object of the running script (`__main__`) this is the path by which another process would import it.
    """
    if hasattr(value, "__qualname__"):
        return f"{_module_name(value.__module__)}:{value.__qualname__}"
    for module in dict.fromkeys((type(value).__module__, "__main__")):
        for name, held in list(vars(sys.modules.get(module, object)).items()):
            if held is value:
                return f"{_module_name(module)}:{name}"
    return import_path(type(value))


def import_folder(value: Any) -> Path | None:
    """The folder that must be on Python's path for `import_path(value)`; None if the module is installed or has no
    file."""
    module = (value if hasattr(value, "__qualname__") else type(value)).__module__
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None or "site-packages" in Path(file).parts:
        return None
    path = Path(file).resolve()
    path = path.parent if path.name == "__init__.py" else path
    return path.parents[_module_name(module).count(".")]


def _module_name(module: str) -> str:
    """The name by which `module` is imported; for the running script, the name that an import would use."""
    main = sys.modules.get("__main__")
    if module != "__main__" or getattr(main, "__file__", None) is None:
        return module
    spec = getattr(main, "__spec__", None)  # set by `python -m`
    return str(spec.name) if spec else Path(str(main.__file__)).stem  # type: ignore[union-attr]
