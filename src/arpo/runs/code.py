"""Digests of the code that a run names by import paths, by its syntax tree, so that a comment or a line break changes
nothing.

Knows modules and what they import from their own folder. Refuses to know tools and rewards.
"""

import ast
import hashlib
import re
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_IMPORT_PATH = re.compile(r"([A-Za-z_][\w.]*):[A-Za-z_][\w.]*")
_OWN = Path(__file__).parents[1]


def code_of(value: Any) -> dict[str, str]:
    """A digest for every file behind the import paths (`module:name`) anywhere in `value`, a configuration of plain
    values: the modules, and those of the same project that they import. arpo's own are left out."""
    digests: dict[str, str] = {}
    for module in sorted(set(_modules(value))):
        if (file := file_of(module)) is not None and _OWN not in file.parents:
            _add(file, _root(file, module), digests)
    return digests


def file_of(module: str) -> Path | None:
    """The Python file of a module; None where it has none (built in, or defined at a prompt)."""
    origin = getattr(sys.modules.get(module), "__file__", None)
    if origin is None:
        try:
            spec = find_spec(module)
        except (ImportError, ValueError, AttributeError):
            return None
        origin = spec.origin if spec else None
    path = Path(origin).resolve() if origin else None
    return path if path is not None and path.suffix == ".py" and path.is_file() else None


def _modules(value: Any) -> Iterator[str]:
    if isinstance(value, str) and (match := _IMPORT_PATH.fullmatch(value)):
        yield match[1]
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _modules(item)


def _root(file: Path, module: str) -> Path:
    """The folder from which `module` is imported."""
    folder = file.parent if file.name == "__init__.py" else file
    return folder.parents[module.count(".")]


def _add(file: Path, root: Path, digests: dict[str, str]) -> None:
    name = str(file.relative_to(root))
    if name in digests:
        return
    source = file.read_bytes()
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        digests[name] = hashlib.sha256(source).hexdigest()[:16]
        return
    digests[name] = hashlib.sha256(ast.dump(tree).encode()).hexdigest()[:16]
    for imported in _imports(tree, file, root):
        _add(imported, root, digests)


def _imports(tree: ast.Module, file: Path, root: Path) -> Iterator[Path]:
    """The files of the project at `root` that `file` imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            starts = [(root, alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            folder = root if node.level == 0 else file.parents[node.level - 1]
            module = node.module.split(".") if node.module else []
            starts = [(folder, [*module, *extra]) for extra in ([], *([alias.name] for alias in node.names))]
        else:
            continue
        for folder, parts in starts:
            path = folder.joinpath(*parts)
            for candidate in (path.with_suffix(".py") if parts else None, path / "__init__.py"):
                if candidate is not None and root in candidate.parents and candidate.is_file():
                    yield candidate.resolve()
