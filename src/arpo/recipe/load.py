"""Recipes: one YAML file a run, every key checked, every default shown.

    name: mine
    base: quickstart              # optional: another recipe (a name or a path) under this one
    method: dapo                  # optional: a published setting (`arpo.recipe.methods`), over base and under the rest
    data: {train: {source: tasks.jsonl}}
    rollout: {leaves: 16, roots: 8}

Finds a recipe by path, by the name of a bundled one, or in a run's folder; lays `key=value` of the command line over
it; turns what is wrong into a ConfigError with file, line and key. Paths in a recipe are read from the recipe's own
folder first.
"""

import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from arpo.config import as_parts
from arpo.config_errors import config_error, where
from arpo.errors import ConfigError, nearest
from arpo.files import as_seen_from_here, expanded
from arpo.recipe.methods import preset
from arpo.recipe.run import RunConfig, plain
from arpo.yaml_positions import COMMAND_LINE, Elsewhere, Keys, Located, dump, lookup, parse, parse_value, read, show

# groups that come in kinds, and the key that names the kind; an entry of a list is written `*`
TAGS: dict[Keys, str] = {
    ("rollout", "rule"): "rule",
    ("rollout", "roots"): "plan",
    ("tools", "offered", "*"): "use",
    ("reward",): "use",
    ("environment",): "use",
    ("data", "train"): "source",
    ("data", "validation"): "source",
    ("data", "test"): "source",
}
# values that may be paths, and how a list's entries are written: `*`
PATHS: tuple[tuple[str, ...], ...] = (
    ("code",),
    ("model", "source"),
    ("data", "*", "source"),
    ("cold_start", "traces"),
    ("tools", "offered", "*", "options", "documents"),
    ("tools", "cache", "file"),
)


def load_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The run that `recipe` describes: a path, the name of a bundled recipe (`quickstart`), or a run's folder.

    `overrides` are `key=value` with dotted keys (`rollout.leaves=8`, `rollout.rule={rule: paper, beta: 0.4}`); values
    are YAML. The folder of the recipe is put on Python's path, so that it can name tools and rewards that lie beside
    it. Raises ConfigError.
    """
    return _run(_read(recipe, overrides))


def recipe_keys(recipe: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The keys that `recipe`, what it builds on and `overrides` set, without the defaults: what `load_recipe` checks.
    Raises ConfigError."""
    return dict(_read(recipe, overrides).value)


def _read(recipe: str | Path, overrides: Sequence[str]) -> Located:
    given = _read_with_bases(find(recipe), ())
    for override in (o for o in overrides if o.startswith("method=")):
        given = _preset(override.removeprefix("method="), f"{COMMAND_LINE}: method").over(given, TAGS)
    for override in (o for o in overrides if not o.startswith("method=")):
        given = _override(given, override)
    return given


def resolved_run(recipe: Mapping[str, Any], name: str) -> RunConfig:
    """The run that was written as `recipe` (`arpo.recipe.run.plain`); messages call it `name`. Raises ConfigError."""
    return _run(parse(dump(recipe), name))


def _run(given: Located) -> RunConfig:
    code = given.value.get("code")
    if isinstance(code, str) and code and code not in sys.path:
        sys.path.insert(0, code)  # before the check, which imports a branching rule of your own
    _refuse_rows(given)
    return _checked(given)


def show_resolved(run: RunConfig) -> str:
    """The whole run as YAML with every default. `load_recipe` reads it back equal, as long as no part of it is a Python
    object."""
    return dump(plain(run))


def folder() -> Path:
    """Where bundled recipes lie: inside the installed package, or beside `src` in a checkout."""
    installed = Path(__file__).parents[1] / "recipes"
    return installed if installed.is_dir() else Path(__file__).parents[3] / "recipes"


def bundled() -> dict[str, Path]:
    """Names and paths of the bundled recipes."""
    return {path.stem: path for path in sorted(folder().glob("*.yaml"))}


def find(recipe: str | Path) -> Path:
    """The file that `recipe` names. Raises ConfigError with the nearest bundled name."""
    if not str(recipe).strip():
        raise ConfigError("names no recipe", value=str(recipe), hint="A file, a run's folder, or a bundled recipe")
    try:
        path = expanded(recipe)
        if path.is_dir():
            is_model = (path / "config.json").is_file() or (path / "model" / "config.json").is_file()
            path = path / "recipe.yaml"
            if not path.is_file():
                hint = (
                    "A model goes with a recipe: `arpo eval RECIPE --model DIR`, `arpo train RECIPE model.source=DIR`"
                )
                missing = "this folder holds neither a run nor a recipe.yaml"
                raise ConfigError(missing, where=str(recipe), hint=hint if is_model else "")
        if path.is_file():
            return path
    except (OSError, ValueError, RuntimeError) as error:  # a name that no file can have, a home that nobody has
        raise ConfigError("there is no such recipe", value=str(recipe)[:100]) from error
    names = bundled()
    if found := names.get(str(recipe).removesuffix(".yaml")):
        return found
    hint = (
        f"A file, a run's folder, or a bundled recipe; {nearest(str(recipe), names)}"
        if names
        else "A file, or a run's folder"
    )
    raise ConfigError("there is no such recipe", value=str(recipe), hint=hint)


def _preset(name: object, place: str) -> Located:
    """The keys of a method, which stand at `place`."""
    groups = preset(name, place)
    keys: list[Keys] = [(), *((group,) for group in groups), *((g, key) for g, own in groups.items() for key in own)]
    return Located(groups, dict.fromkeys(keys, place))


def _read_with_bases(path: Path, above: tuple[Path, ...]) -> Located:
    """The file with the recipes that it builds on laid under it."""
    if path.resolve() in above:
        raise ConfigError("builds on itself", where=f"{path}: base")
    own = _with_section(read(path, name=as_seen_from_here(path)))
    if above:
        _refuse_foreign(own, path)
    is_bundled = path.parent.resolve() == folder().resolve()
    if above and not is_bundled:
        own = Located(own.value, {keys: Elsewhere(place) for keys, place in own.places.items()})
    if not is_bundled and "code" not in own.value:
        own.value["code"] = str(path.parent.resolve())
        own.places[("code",)] = own.place(())
    for keys in PATHS:
        _anchor(own.value, keys, path.parent)
    if (method := own.value.pop("method", None)) is not None:
        own = own.over(_preset(method, where(own, ("method",))), TAGS)
    base = own.value.pop("base", None)
    if base is None:
        return own
    if not isinstance(base, str):
        raise ConfigError("should be the name or path of another recipe", where=where(own, ("base",)), value=base)
    beside = path.parent / base
    try:
        below = find(beside if os.path.isfile(beside) else base)
    except ConfigError as error:
        raise ConfigError(error.message, where=where(own, ("base",)), value=base, hint=error.hint) from error
    return own.over(_read_with_bases(below, (*above, path.resolve())), TAGS)


def _refuse_foreign(own: Located, path: Path) -> None:
    """Raise ConfigError, which shows nothing of it, where most keys of a file that a recipe builds on are no recipe's:
    messages about the others would show what it holds."""
    known = own.value.keys() & {*RunConfig.model_fields, "base", "method"}
    if 2 * len(known) < len(own.value):
        raise ConfigError("this file, which a recipe builds on, is no recipe", where=str(path))


def _with_section(own: Located) -> Located:
    """`own` with a bare list of tools as the section that it is short for."""
    if not isinstance(tools := own.value.get("tools"), list):
        return own
    moved = {("tools", "offered", *keys[1:]) if keys[:1] == ("tools",) else keys: at for keys, at in own.places.items()}
    return Located({**own.value, "tools": {"offered": tools}}, {**moved, ("tools",): own.places["tools",]})


def _anchor(value: Any, keys: tuple[str, ...], folder: Path) -> None:
    """Make the value at `keys` absolute where it names something that lies in the recipe's folder."""
    key, *rest = keys
    entries: Iterable[Any]
    if key == "*":
        entries = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        for entry in entries:
            _anchor(entry, tuple(rest), folder)
    elif isinstance(value, dict) and key in value:
        if rest:
            _anchor(value[key], tuple(rest), folder)
        elif isinstance(value[key], str) and _is_path(value[key], folder):
            value[key] = str((folder / value[key]).resolve())


def _is_path(text: str, folder: Path) -> bool:
    """True for what looks like a path (`./model`, `data/x.jsonl`, not the bare word `atlas`) and exists there."""
    looks = "/" in text or Path(text).suffix != "" or text == "."
    return (
        looks and not Path(text).is_absolute() and os.path.exists(folder / text)
    )  # False for what no file can be called


def _override(given: Located, override: str) -> Located:
    """`given` with one `key=value` laid over it."""
    try:
        override.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConfigError("is not text in UTF-8", where=COMMAND_LINE, value=override) from error
    dotted, equals, text = override.partition("=")
    keys = _keys(dotted.strip())
    if not equals or "" in keys:
        raise ConfigError("should be key=value", where=COMMAND_LINE, value=override, hint="e.g. rollout.leaves=8")
    value = parse_value(text, f"{COMMAND_LINE}: {dotted}")
    if keys[0] == "tools" and (isinstance(value, list) if len(keys) == 1 else isinstance(keys[1], int)):
        keys = ("tools", "offered", *keys[1:])  # a bare list of tools
    given = _without_another_kind(given, keys, value)
    places = {place: at for place, at in given.places.items() if place[: len(keys)] != keys}
    places.update({keys[:length]: COMMAND_LINE for length in range(1, len(keys) + 1) if keys[:length] not in places})
    return Located(_with(given.value, (), keys, value), places)


def _keys(dotted: str) -> Keys:
    """`tools.0.k` as `("tools", 0, "k")`: a part of plain digits counts a list's entries."""
    return tuple(int(part) if re.fullmatch("[0-9]{1,9}", part) else part for part in dotted.split("."))


def _tag(keys: Keys) -> str | None:
    """The key that names the kind of the group at `keys`."""
    return TAGS.get(tuple("*" if isinstance(key, int) else key for key in keys))


def _without_another_kind(given: Located, keys: Keys, value: Any) -> Located:
    """Where `value` is another kind of its group (`data.train.source=x.jsonl`), `given` without what belonged to the
    old one; what the command line said before stays."""
    group = lookup(given.value, keys[:-1])
    if not isinstance(group, dict) or keys[-1] != _tag(keys[:-1]) or group.get(str(keys[-1])) == value:
        return given
    kept = {key: inner for key, inner in group.items() if given.places.get((*keys[:-1], key)) == COMMAND_LINE}
    gone = [(*keys[:-1], key) for key in group if key not in kept]
    places = {place: at for place, at in given.places.items() if place[: len(keys)] not in gone}
    return Located(_with(given.value, (), keys[:-1], kept), places)


def _with(group: Any, at: Keys, keys: Keys, value: Any) -> Any:
    """A copy of `group`, which stands at `at`, with `value` at `keys` inside it. A word stands for its kind: `rule:
    paper` becomes a group for `rule.beta=0.4`."""
    if not keys:
        return value
    key, rest = keys[0], keys[1:]
    place = f"{COMMAND_LINE}: {show((*at, *keys))}"
    if isinstance(group, list):
        if not isinstance(key, int) or key >= len(group):
            raise ConfigError(f"{show(at)} has entries 0 to {len(group) - 1}", where=place, value=key)
        return [*group[:key], _with(group[key], (*at, key), rest, value), *group[key + 1 :]]
    if isinstance(group, str) and (tag := _tag(at)):
        group = {tag: group}
    if group is not None and not isinstance(group, dict):
        raise ConfigError(f"{show(at)} holds one value, not a group of keys", where=place, value=group)
    inner = (group or {}).get(str(key))
    return {**(group or {}), str(key): _with(inner, (*at, str(key)), rest, value)}


def _checked(given: Located) -> RunConfig:
    try:
        with as_parts():
            return RunConfig.model_validate(given.value)
    except ValidationError as error:
        raise config_error(error, given, RunConfig) from error
    except ConfigError as error:
        raise _placed(error, given) from error


def _refuse_rows(given: Located) -> None:
    """Raise ConfigError where a recipe holds rows of data: only Python passes rows, and a run keeps those in files."""
    data = given.value.get("data")
    for split, config in data.items() if isinstance(data, dict) else ():
        source = config.get("source") if isinstance(config, dict) else None
        if isinstance(source, list):
            raise ConfigError(
                "a recipe names a source; only Python (arpo.Run) passes rows",
                where=where(given, ("data", str(split), "source")),
                value=source,
                hint="Write the rows to a .jsonl file, one a line",
            )


def _placed(error: ConfigError, given: Located) -> ConfigError:
    """A ConfigError from a part of the configuration, with its place in the file."""
    keys = _keys(error.where) if error.where else ()
    if not keys or keys[0] not in RunConfig.model_fields:
        keys = next((found for name, value in given.value.items() if (found := _where_raised(name, value))), keys)
    value = None if isinstance(given.place(keys), Elsewhere) else error.value
    return ConfigError(error.message, where=where(given, keys), value=value, hint=error.hint)


def _where_raised(name: str, value: Any) -> Keys:
    """The section that raises when it is checked alone, if it is this one."""
    try:
        if name in RunConfig.model_fields:
            with as_parts():
                TypeAdapter(Any if (kind := RunConfig.model_fields[name].annotation) is None else kind).validate_python(
                    value
                )
    except ConfigError as error:
        return (name, *([error.where] if error.where else []))
    except ValidationError:
        pass
    return ()
