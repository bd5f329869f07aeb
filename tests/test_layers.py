"""The layers of ARCHITECTURE.md are those of the code: no file imports from a floor above its own."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import arpo

SOURCE = Path(arpo.__file__).parent
BLOCK = re.search(
    r"^## Layers$.*?^```text\n(.*?)^```$", (Path(__file__).parents[1] / "ARCHITECTURE.md").read_text(), re.M | re.S
)


def floors() -> dict[str, int]:
    """By package or file, the height that the page gives it. What it does not name stands beneath all: 0."""
    assert BLOCK is not None
    found: dict[str, int] = {}
    for line in BLOCK[1].splitlines():
        height = min(found.values(), default=99)
        for name in re.split(r" {2,}", line[:40].strip()):
            found[name] = height if line.startswith("  ") else height - 1
    return found


@cache
def imports(path: Path) -> list[tuple[int, str, str]]:
    """(line, package or file of `arpo`, name) of all that `path` imports, wherever in it."""
    return list(_imports(path))


def _imports(path: Path) -> Iterator[tuple[int, str, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "arpo":
            _, *parts = str(node.module).split(".")
            for name in node.names:
                yield node.lineno, (parts or [name.name])[0], name.name
        elif isinstance(node, ast.Import):
            for name in node.names:
                if name.name.startswith("arpo."):
                    yield node.lineno, name.name.split(".")[1], name.name


def test_the_page_names_every_package() -> None:
    assert {path.parent.name for path in SOURCE.glob("*/__init__.py")} <= set(floors())


def test_imports_go_downwards() -> None:
    height = floors()
    wrong = []
    for path in SOURCE.rglob("*.py"):
        own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if own in ("__init__", "__main__"):  # what `import arpo` offers, loaded when it is asked for; and the command
            continue
        for line, target, name in imports(path):
            taken_by_run = own == "run" and name.endswith("Config")
            if height.get(target, 0) > height.get(own, 0) and not taken_by_run:
                wrong.append(f"{path.relative_to(SOURCE)}:{line} takes {name} from {target}")
    assert wrong == []


def edges() -> dict[str, dict[str, str]]:
    """By package or file of `arpo`, what it imports from `arpo` besides itself, each with one place where it does."""
    found: dict[str, dict[str, str]] = {}
    for path in sorted(SOURCE.rglob("*.py")):
        importer = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if importer in ("__init__", "__main__"):
            continue
        for line, target, _ in imports(path):
            if target != importer:
                found.setdefault(importer, {}).setdefault(target, f"{path.relative_to(SOURCE)}:{line}")
    return found


def test_packages_import_without_circles() -> None:
    """Imports inside of functions count: they hide a circle and do not undo it."""
    graph = edges()
    try:
        TopologicalSorter({importer: set(targets) for importer, targets in graph.items()}).prepare()
    except CycleError as error:
        circle = error.args[1][::-1]  # each imports the next
        raise AssertionError([graph[a][b] for a, b in pairwise(circle)]) from error


def test_the_learner_imports_core_and_foundations_alone() -> None:
    """So that it can run in processes that know nothing of rollouts, engines and run folders."""
    allowed = {"core"} | {path.stem for path in SOURCE.glob("*.py")}
    wrong = {target: place for target, place in edges()["learner"].items() if target not in allowed}
    assert wrong == {}
