"""Reads YAML and keeps the position of every key, so that an error can point at it.

Reads a subset of YAML 1.2: mappings with text keys, lists, text, numbers, true/false, null. `1e-5` is a number and `no`
is text, as people expect. Duplicate keys, tags, cycles and aliases that expand without end are ConfigErrors with a
line. Refuses to know what a recipe is.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from arpo.errors import ConfigError, FormatError, first_line
from arpo.foreign import read_text

Keys = tuple[str | int, ...]
COMMAND_LINE = "command line"  # the place of a value that no file holds
MAX_VALUES = 20_000
MOST_WHOLE = 1 << 64  # in hexadecimal, a number has more digits than Python shows
MOST_BYTES = 1 << 20  # of a file: reading one takes seconds
DEEPEST = 40


def show(keys: Keys) -> str:
    """`("tools", 0, "k")` as `tools.0.k`."""
    return ".".join(map(str, keys))


class Elsewhere(str):
    """A place in a file that another one builds on: messages do not show what stands there."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Located:
    """A tree of JSON-like values, and the place of each of them ("recipes/a.yaml:12")."""

    value: dict[str, Any]
    places: dict[Keys, str] = field(default_factory=dict)

    def place(self, keys: Keys) -> str:
        """The place of `keys`, or of the nearest enclosing group that has one."""
        for length in range(len(keys), -1, -1):
            if keys[:length] in self.places:
                return self.places[keys[:length]]
        return ""

    def over(self, base: "Located", tags: Mapping[Keys, str]) -> "Located":
        """These values laid over `base`: groups merge key by key, everything else replaces. `tags` maps the path of a
        group to the key that names its kind: a group of another kind replaces the group of `base`."""
        replaced: set[Keys] = set()
        value = _merge(base.value, self.value, (), replaced, tags)
        kept = {
            keys: place
            for keys, place in base.places.items()
            if not any(keys[:length] in replaced for length in range(1, len(keys) + 1))
        }
        return Located(value, {**kept, **self.places, (): self.place(())})


def _merge(
    below: dict[str, Any], above: dict[str, Any], at: Keys, replaced: set[Keys], tags: Mapping[Keys, str]
) -> dict[str, Any]:
    """`above` laid over `below`; `replaced` collects the keys whose value is that of `above` alone."""
    merged = dict(below)
    for key, value in above.items():
        keys = (*at, key)
        old = merged.get(key)
        if isinstance(value, dict) and isinstance(old, dict) and _same_kind(value, old, tags.get(keys)):
            merged[key] = _merge(old, value, keys, replaced, tags)
        else:
            replaced.add(keys)
            merged[key] = value
    return merged


def _same_kind(value: dict[str, Any], old: dict[str, Any], tag: str | None) -> bool:
    return tag is None or tag not in value or value[tag] == old.get(tag)


def read(path: Path, name: str = "") -> Located:
    """Read the YAML file at `path`; messages call it `name`. Raises ConfigError if it cannot be read or is not a group
    of keys."""
    name = name or str(path)
    try:
        text = read_text(path, MOST_BYTES)
    except FormatError as error:
        wrong = "is not UTF-8 text" if "UTF-8" in str(error) else str(error).removeprefix(str(path)).strip()
        raise ConfigError(wrong, where=name) from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise ConfigError(f"cannot be read ({error})", where=name) from error
    return parse(text, name)


def parse(text: str, name: str) -> Located:
    """Parse the YAML `text` of a file called `name`."""
    places: dict[Keys, str] = {}
    value = _Builder(name, places).build(_compose(text, name), ())
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise ConfigError(f"should be a group of keys (`name: ...`), and is a {type(value).__name__}", where=name)
    return Located(value, places)


def parse_value(text: str, where: str) -> Any:
    """Parse one value, as YAML writes it after a key: `3`, `1e-5`, `true`, `[1, 2]`, `{rule: paper}`, or text."""
    return _Builder(where, {}, lines=False).build(_compose(text, where), ())


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2: no sexagesimal numbers, no dates, no `yes`."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 - yaml's own form


_INT = re.compile(r"[-+]?(0|[1-9][0-9_]*)|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
for _tag, _pattern, _first in (
    ("bool", re.compile("true|True|TRUE|false|False|FALSE"), "tTfF"),
    ("int", _INT, "-+0123456789"),
    ("float", _FLOAT, "-+0123456789."),
    ("null", re.compile("~|null|Null|NULL|"), "~nN\0"),
    ("merge", re.compile("<<"), "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern.pattern})$"), list(_first))
_Loader.yaml_implicit_resolvers[""] = _Loader.yaml_implicit_resolvers["\0"]  # yaml asks for "" when a scalar is empty


class _Dumper(yaml.SafeDumper):
    """Quotes text that _Loader would not read as text, and writes shared values out instead of using aliases."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers

    def represent_str(self, text: str) -> yaml.ScalarNode:
        """Use double quotes for text with characters that YAML reads as line ends."""
        style = '"' if any(mark in text for mark in "\x85\u2028\u2029\ufeff") else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(str, _Dumper.represent_str)


def _compose(text: str, name: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"is not YAML: {error.problem or error.context}", where=f"{name}{line}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"is not YAML: {first_line(error)}", where=name) from error
    except RecursionError as error:
        raise ConfigError("is nested too deeply", where=name) from error


class _Builder:
    """Turns YAML nodes into JSON-like values."""

    def __init__(self, name: str, places: dict[Keys, str], *, lines: bool = True) -> None:
        self.name, self.places, self.lines = name, places, lines
        self.num_values = 0
        self.loader = _Loader("")

    def build(self, node: yaml.Node | None, at: Keys) -> Any:
        if node is None:
            return None
        self.num_values += 1
        if self.num_values > MAX_VALUES or len(at) > DEEPEST:  # also catches an alias inside itself
            raise ConfigError("expands to too many values: is an alias (*name) inside itself?", where=self._where(node))
        self.places.setdefault(at, self._where(node))
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        kind = "map" if isinstance(node, yaml.MappingNode) else "seq"
        if node.tag != f"tag:yaml.org,2002:{kind}":
            raise ConfigError(f"tags ({node.tag}) are not supported here", where=self._where(node))
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*at, number)) for number, item in enumerate(node.value)]
        return self._group(node, at)

    def _group(self, node: yaml.MappingNode, at: Keys) -> dict[str, Any]:
        if any(key.tag.endswith(":merge") for key, _ in node.value):
            raise ConfigError(
                "`<<` is not supported here: a recipe builds on another by `base: NAME`", where=self._where(node)
            )
        group: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str) or not key:
                raise ConfigError("a key should be a word", where=self._where(key_node))
            if key in group:
                raise ConfigError(f"the key {key!r} appears twice", where=self._where(key_node))
            self.places[(*at, key)] = self._where(key_node)
            group[key] = self.build(value_node, (*at, key))
        return group

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        tag = self.loader.resolve(yaml.ScalarNode, node.value, (node.style is None, node.style is not None))
        if node.tag not in (tag, "tag:yaml.org,2002:str"):
            raise ConfigError(f"tags ({node.tag}) are not supported here", where=self._where(node))
        try:
            value = self.loader.construct_object(node)
        except (ValueError, yaml.YAMLError) as error:  # a number of many thousand digits
            raise ConfigError("is not a usable number", where=self._where(node)) from error
        if type(value) is int and abs(value) > MOST_WHOLE:
            raise ConfigError("is not a usable number", where=self._where(node))
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError("should be a finite number", where=self._where(node), value=value)
        return value

    def _where(self, node: yaml.Node) -> str:
        return f"{self.name}:{node.start_mark.line + 1}" if self.lines else self.name


def lookup(value: Any, keys: Keys) -> Any:
    """The value at `keys` in a tree of JSON-like values, or None."""
    for key in keys:
        exists = (
            key in value
            if isinstance(value, Mapping)
            else isinstance(value, list) and isinstance(key, int) and key < len(value)
        )
        if not exists:
            return None
        value = value[key]
    return value


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of a tree of JSON-like values, by dotted keys. Lists and empty groups are leaves."""
    leaves: dict[str, Any] = {}
    for key, inner in value.items():
        leaves |= flat(inner, f"{prefix}{key}.") if isinstance(inner, Mapping) and inner else {f"{prefix}{key}": inner}
    return leaves


def dump(value: Mapping[str, Any]) -> str:
    """A tree of JSON-like values as YAML. `parse` reads it back equal."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
