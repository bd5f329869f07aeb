"""Write docs/recipes.md: every key of a recipe with its type, default and meaning, from the configuration models
themselves.

    python scripts/write_recipe_docs.py            # write it
    python scripts/write_recipe_docs.py --check    # exit with 1 where it is out of date

Knows pydantic models and dataclasses. Refuses to know what a key means: that is the docstring under the field.
"""

import ast
import dataclasses
import inspect
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from arpo.config import Config
from arpo.core.adaptive import AnyRule
from arpo.core.roots import PassRate, Pilot
from arpo.recipe.run import RunConfig, plain
from arpo.tasks.in_memory import InMemoryTasks
from arpo.tools.config import ToolConfig

PAGE = Path(__file__).parents[1] / "docs" / "recipes.md"
OPENING = """\
# Recipes: every key

<!-- written by scripts/write_recipe_docs.py; do not edit -->

A recipe is a YAML file with the keys below; every key has a default, except those marked as needed. An error about an
unknown key, a wrong type or an impossible combination names file, line, key, value and the nearest valid key. If you
know TRL or verl, [coming-from-trl-or-verl.md](coming-from-trl-or-verl.md) translates their settings.

```yaml
name: mine
base: quickstart                # optional: another recipe under this one, by name or path
method: dapo                    # optional: the keys of a published method, over the base and under the rest
rollout: {leaves: 16, roots: 8, rule: {rule: paper, beta: 0.4}}
```

- `arpo train mine.yaml rollout.leaves=8 'rollout.rule={rule: random, rates: [0.3, 0.1]}'` changes keys on the command
  line; values are YAML.
- `arpo train mine.yaml --print` shows the whole recipe with every default, and `RUN/recipe.yaml` is what a run was
  started with.
- With `base`, groups are merged key by key with those of the base. A list replaces the base's list. A group of another
  kind (another `rule`, plan of `roots` or `source` of tasks) replaces the base's whole group.
- Paths are resolved in the recipe's own folder first. Import paths such as `shop:price` are also looked up there.
- In Python the same keys are arguments: `arpo.Run(name="mine", rollout={"leaves": 8}, ...)`. There `tools`, `reward`,
  `rollout.rule` and `loss.surrogate` may be objects. The run's recipe names them by import path (`mine:price`), so a
  script that defines them is imported when the run is resumed, evaluated or chatted with: put its `arpo.train(run)`
  under `if __name__ == "__main__":`, and objects that are constructed with arguments into variables of the module.
- `arpo.train(run)` returns the run's folder. It takes a `Run`, or a name as on the command line:
  `arpo.train("mine.yaml")`; `callbacks=[...]` are called for each step, evaluation and checkpoint
  ([records.md](records.md#callbacks)).
- `tools: [search]` is short for `tools: {offered: [{use: search}]}`, and `tools.0.name=find` on the command line for
  `tools.offered.0.name=find`; `rule: paper` for `{rule: paper}`, `roots: pilot` for `{plan: pilot}`.
- A recipe is written into the run's folder, so API keys belong in the environment: a recipe with a key in an option, a
  header, a parameter or a URL is refused.

Bundled: `quickstart`, `quickstart_vllm`; for a node of 8 GPUs of 80 GB `arpo-reasoning-7b`, `grpo-reasoning-7b`,
`arpo-deepsearch-8b`, `arpo-deepsearch-14b`; for two cards of 24 GB `qwen3-8b-lora-24gb`. `arpo plan RECIPE --gpus
8xH100-80` says by arithmetic whether a recipe fits ([memory](performance.md#over-several-gpus)).
"""


def page() -> str:
    """The whole page."""
    fields = RunConfig.model_fields
    parts = [OPENING, "## The run", "", *_table(RunConfig, only=lambda annotation: _group(annotation) is None), ""]
    for name, field in fields.items():
        group = _group(field.annotation)
        if group is not None:
            parts += _section(name, group, level=2, optional=field.default is None)
        if name == "tools":
            parts += _section("tools.offered (each entry)", ToolConfig, level=3)
        if name == "rollout":
            parts += _kinds()
    return "\n".join(parts).rstrip() + "\n"


def _section(name: str, model: type, *, level: int, optional: bool = False) -> Iterator[str]:
    """A heading, what the group is, its keys, then the groups inside it."""
    yield from (f"{'#' * level} {name}", "")
    yield from (_about(model) + (" Without it: null." if optional else ""), "")
    inner = {key: group for key, annotation in _annotations(model).items() if (group := _group(annotation)) is not None}
    if len(inner) > 1 and len(set(inner.values())) == 1:  # data.train, data.validation, data.test are alike
        yield from _table(model)
        yield ""
        yield from _section(", ".join(f"{name}.{key}" for key in inner), next(iter(inner.values())), level=level + 1)
        return
    yield from _table(model)
    yield ""
    for key, group in inner.items():
        yield from _section(f"{name}.{key}", group, level=level + 1)


def _kinds() -> Iterator[str]:
    """What `rollout` can hold at its two keys that come in kinds."""
    yield from (
        "### rollout.rule",
        "",
        "What branches at a tip; formulas in [method.md](method.md#branching-rules).",
        "",
    )
    for rule in typing.get_args(AnyRule):
        yield from _kind(f"rule: {rule.__dataclass_fields__['rule'].default}", rule, "rule")
    yield from ("### rollout.roots", "", "A whole number, or a plan:", "")
    yield from _kind("plan: pilot", Pilot, "plan")
    yield from _kind("plan: pass_rate", PassRate, "plan")


def _kind(title: str, kind: type, tag: str) -> Iterator[str]:
    yield from (f"#### {title}", "", _about(kind), "")
    if len(_annotations(kind)) > 1:
        yield from (*_table(kind, skip=tag), "")


def _about(model: type) -> str:
    """The docstring of a group of keys, in lines of 120 characters."""
    text = " ".join((inspect.getdoc(model) or "").split())
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _table(model: type, *, skip: str = "", only: Callable[[Any], bool] = lambda _: True) -> Iterator[str]:
    docs, defaults = _docs(model), _defaults(model)
    yield from ("| key | type | default | meaning |", "|---|---|---|---|")
    for name, annotation in _annotations(model).items():
        if name != skip and only(annotation):
            bounds = _bounds(_fields(model)[name].metadata) if name in _fields(model) else ""
            cells = [f"`{name}`", _shape(annotation, bounds), _default(defaults[name]), docs.get(name, "")]
            yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _annotations(model: type) -> dict[str, Any]:
    hints = typing.get_type_hints(model, include_extras=True)
    return {name: hints[name] for name in _defaults(model)}


def _defaults(model: type) -> dict[str, Any]:
    if dataclasses.is_dataclass(model):
        return {f.name: ... if f.default is dataclasses.MISSING else f.default for f in dataclasses.fields(model)}
    return {
        name: ... if f.is_required() else f.get_default(call_default_factory=True) for name, f in _fields(model).items()
    }


def _fields(model: type) -> dict[str, FieldInfo]:
    return getattr(model, "model_fields", {})


def _docs(model: type) -> dict[str, str]:
    """The docstring under each field, as one line."""
    found: dict[str, str] = {}
    for owner in reversed(model.__mro__):
        if owner is object or not (
            dataclasses.is_dataclass(owner) or (issubclass(owner, Config) and owner is not Config)
        ):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, after in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and _is_text(after):
                found[field.target.id] = " ".join(ast.literal_eval(after.value).split())  # type: ignore[attr-defined]
    return found


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _default(value: Any) -> str:
    if value is ...:
        return "(needed)"
    if isinstance(value, Config) or (dataclasses.is_dataclass(value) and not hasattr(value, "rule")):
        return "see below"
    text = yaml.safe_dump(plain(value), default_flow_style=True, width=1000).replace("\n...", "").strip()
    return f"`{text}`"


def _group(annotation: Any) -> type | None:
    """The configuration model that a key holds, if it is one group of keys."""
    if typing.get_origin(annotation) is Annotated:
        return _group(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        groups = [group for part in typing.get_args(annotation) if (group := _group(part)) is not None]
        return groups[0] if len(groups) == 1 else None
    if isinstance(annotation, type) and (issubclass(annotation, Config) or (dataclasses.is_dataclass(annotation))):
        return None if hasattr(annotation, "rule") or annotation in (Pilot, PassRate) else annotation
    return None


NAMES = {
    InMemoryTasks: "rows",
    int: "whole number",
    float: "number",
    bool: "true or false",
    str: "text",
    type(None): "null",
    Any: "any value",
}


def _shape(annotation: Any, bounds: str = "") -> str:
    """The type of a key in words, with its bounds."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _shape(arguments[0], bounds or _bounds(arguments[1:]))
    if origin in (typing.Union, types.UnionType):
        if all(hasattr(part, "rule") for part in arguments):
            return "a name or a group"
        return ", or ".join(dict.fromkeys(_shape(part, "" if part is type(None) else bounds) for part in arguments))
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (tuple, list):
        inner = [part for part in arguments if part is not ...]
        return f"{len(inner)} numbers" if len(inner) > 1 else f"list of {_shape(inner[0])}"
    if origin is dict:
        return f"group of {_shape(arguments[1])}"
    if annotation in NAMES:
        return f"{NAMES[annotation]}{bounds}"
    return "group"


def _bounds(metadata: Sequence[Any]) -> str:
    """`, at least 1, below 2` from annotations."""
    found = [inner for one in metadata for inner in (one.metadata if isinstance(one, FieldInfo) else [one])]
    words = {Ge: ("at least", "ge"), Gt: ("above", "gt"), Le: ("at most", "le"), Lt: ("below", "lt")}
    said = [f"{words[type(one)][0]} {getattr(one, words[type(one)][1]):g}" for one in found if type(one) in words]
    said = [text for text in said if not text.startswith("below 9.2")]  # 2 ** 63 is no bound worth a word
    return "".join(f", {text}" for text in said)


def main() -> None:
    text = page()
    if "--check" in sys.argv[1:]:
        sys.exit(
            0
            if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
            else f"{PAGE.name} is out of date: run {__file__}"
        )
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
