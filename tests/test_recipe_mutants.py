"""Real recipes, damaged as people and editors damage them: a run that reads back equal, or one ConfigError that says
where.

`test_recipe_fuzz.py` puts any value at any key; here the structure itself is changed: keys lost, misspelt, moved or
doubled, groups turned into lists, anchors, tabs, wrong encodings, numbers without end.
"""

import copy
import random
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arpo.config_errors import all_keys
from arpo.errors import ConfigError
from arpo.recipe.load import bundled, load_recipe, show_resolved
from arpo.recipe.run import RunConfig, plain
from arpo.yaml_positions import dump, flat, parse
from tiny_project import RECIPE

TEXTS = {**{name: path.read_text(encoding="utf-8") for name, path in bundled().items()}, "tiny": RECIPE}
WHOLE = {name: plain(load_recipe(name)) for name in ("quickstart", "arpo-reasoning-7b")}  # with every default
KEYS = [".".join(map(str, path)) for path in all_keys(RunConfig)]
lenient = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))

EXTREMES: list[Any] = [
    *(0, -1, 1, 2**31, 2**63, 2**64, 10**30, -(10**30), 1e-320, 1e308, -0.0, 0.5, True, False, None),
    *("", " ", "null", "~", "\ud7ff", "é" * 200, "x" * 5000, "1_000", "0x10", "1:30", "2026-01-01", ".inf", "=", "<<"),
    *([], {}, [[[]]], [{}], {"": 1}, {"a": {"b": []}}),
]
extremes = st.sampled_from(EXTREMES).map(copy.deepcopy)


SHORT = "name: short\ndata: {train: {source: atlas}}\n"


def load(raw: bytes | str, *overrides: str) -> RunConfig | str:
    """The run, which must print and read back equal, or the message of its ConfigError."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "mutant.yaml"
        path.write_bytes(raw if isinstance(raw, bytes) else raw.encode("utf-8", "surrogatepass"))
        try:
            run = load_recipe(path, overrides)
        except ConfigError as error:
            assert str(error).strip() and len(str(error)) < 20_000
            return str(error)
        shown = show_resolved(run)
        again = Path(name) / "again.yaml"
        again.write_text(shown, encoding="utf-8")
        read_back = load_recipe(again)
        assert read_back == run and show_resolved(read_back) == shown
        return run


def groups(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of all groups and lists with something in them."""
    inner = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    return ([at] if inner else []) + [place for key, item in inner for place in groups(item, (*at, key))]


def mutate(recipe: Any, draw: Any) -> Any:
    """One structural change somewhere in `recipe`."""
    at = draw(st.sampled_from(groups(recipe)))
    group = recipe
    for key in at:
        group = group[key]
    keys = list(group) if isinstance(group, dict) else list(range(len(group)))
    key = draw(st.sampled_from(keys))
    how = draw(st.sampled_from(["delete", "rename", "move", "retype", "wrap", "copy", "extreme"]))
    if how == "delete":
        del group[key]
    elif how == "rename" and isinstance(group, dict):
        group[misspelt(str(key), draw)] = group.pop(key)
    elif how == "move":
        recipe[misspelt(str(key), draw) if draw(st.booleans()) else str(key)] = copy.deepcopy(group[key])
    elif how == "retype":
        group[key] = {str: [str(group[key])], int: str(group[key]), dict: list, list: dict}.get(
            type(group[key]), "text"
        )
        group[key] = [] if group[key] is list else {} if group[key] is dict else group[key]
    elif how == "wrap":
        group[key] = [group[key]] if draw(st.booleans()) else {"value": group[key]}
    elif how == "copy":
        group[key] = copy.deepcopy(WHOLE["quickstart"][draw(st.sampled_from(sorted(WHOLE["quickstart"])))])
    else:
        group[key] = draw(extremes)
    return recipe


def misspelt(word: str, draw: Any) -> str:
    at = draw(st.integers(0, max(0, len(word) - 1)))
    return (
        draw(
            st.sampled_from(
                [word[:at] + word[at + 1 :], word + "s", word.upper(), word.replace("_", "-"), f" {word}", "base"]
            )
        )
        or "x"
    )


@lenient
@given(name=st.sampled_from(sorted(TEXTS)), times=st.integers(1, 3), data=st.data())
def test_recipes_with_keys_lost_misspelt_moved_and_retyped(name: str, times: int, data: st.DataObject) -> None:
    recipe: Any = parse(TEXTS[name], name).value
    for _ in range(times):
        if groups(recipe):
            recipe = mutate(recipe, data.draw)
    load(dump(recipe))


@lenient
@given(name=st.sampled_from(sorted(WHOLE)), data=st.data())
def test_whole_recipes_with_one_extreme_value(name: str, data: st.DataObject) -> None:
    """Every key stands there, so every one of them is met."""
    recipe: Any = parse(dump(WHOLE[name]), name).value
    key = data.draw(st.sampled_from(sorted(flat(recipe))))
    group = recipe
    *path, last = key.split(".")
    for part in path:
        group = group[part]
    group[last] = data.draw(extremes)
    load(dump(recipe))


LINES = [
    "seed: 1",
    "seed: [1]",
    "\tseed: 1",
    "seed:\t1",
    "seed: 1\t# tab",
    "  indented: 1",
    "a: &a {b: 1}",
    "seed: *a",
    "data: *a",
    "x: &x [*x]",
    "<<: {seed: 1}",
    "? [a, b]\n: 1",
    "? seed\n: 1",
    "- a list",
    "...",
    "---",
    "%YAML 1.1",
    "%TAG ! tag:x,2000:",
    "seed: !!int '1'",
    "seed: !!python/object/apply:os.system [true]",
    "seed: " + "9" * 5000,
    "seed: 0x" + "f" * 100,
    "seed: 1e999",
    "seed: .nan",
    "seed: -.inf",
    "name: |\n  a\n  b",
    "name: >-\n  a",
    "name: 'it''s'",
    'name: "\\ud800"',
    'name: "\\0"',
    'name: "\\x41"',
    "'': 1",
    '"": 1',
    "null: 1",
    "1: 1",
    "true: 1",
    "1.5: 1",
    "[]: 1",
    "{}: 1",
    "a.b: 1",
    "rollout.leaves: 4",
    "{",
    "}",
    "'",
    '"',
    "@",
    "`",
    "seed: @x",
    ": 1",
    "seed",
    "seed:1",
    "# only a comment",
    "\ufeffseed: 1",
    "\u2028seed: 1",
    "\x85seed: 1",
    "\x00",
    "\x07",
    "base: .",
    "base: ..",
    "base: ~",
    "base: []",
    "base: {}",
    "base: mutant.yaml",
    "base: ./mutant.yaml",
    "base: /dev/null",
    "base: quickstart",
    "code: ''",
    "code: /nowhere",
    "out: ''",
    "out: ~nobody/x",
    "a: " + "[" * 100 + "]" * 100,
    "a: " + "{a: " * 60 + "1" + "}" * 60,
    "\n".join(
        ["a: &a [1, 1]", *(f"{y}: &{y} [{', '.join([f'*{x}'] * 8)}]" for x, y in ("ab", "bc", "cd", "de", "ef"))]
    ),  # a bomb
]


@lenient
@given(name=st.sampled_from(sorted(TEXTS)), line=st.sampled_from(LINES), at=st.integers(0, 60), crlf=st.booleans())
def test_recipes_with_a_strange_line_in_them(name: str, line: str, at: int, crlf: bool) -> None:
    lines = TEXTS[name].splitlines()
    lines.insert(min(at, len(lines)), line)
    load(("\r\n" if crlf else "\n").join(lines))


@pytest.mark.parametrize("line", LINES, ids=lambda line: ascii(line)[1:20])
def test_strange_lines_alone(line: str) -> None:
    load(line + "\n" + line)
    load(SHORT + line)


@lenient
@given(name=st.sampled_from(sorted(TEXTS)), data=st.data())
def test_recipes_with_damaged_bytes(name: str, data: st.DataObject) -> None:
    raw = TEXTS[name].encode()
    at, to = (data.draw(st.integers(0, len(raw))) for _ in range(2))
    put = data.draw(
        st.binary(max_size=4)
        | st.sampled_from([b"\xff", b"\xc3", b"\t", b"\r", b"\x00", b"\xef\xbb\xbf", b"*a", b"&a ", b"!!"])
    )
    load(raw[:at] + put + raw[at if data.draw(st.booleans()) else to :])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1", "cp037"])
def test_a_recipe_in_another_encoding_says_so(encoding: str) -> None:
    message = load(("# é\n" + RECIPE).encode(encoding))
    assert isinstance(message, str) and ("UTF-8" in message or "YAML" in message)


def test_a_mark_before_utf8_is_no_part_of_the_first_key() -> None:
    assert isinstance(load(b"\xef\xbb\xbf" + b"name: marked\ndata: {train: {source: atlas}}\n"), RunConfig)


# --- the command line

PARTS = [
    "tools",
    "0",
    "1",
    "-1",
    "²",
    "٣",
    "99999999999999999999",
    "rollout",
    "rule",
    "data",
    "train",
    "options",
    "",
    " ",
]
dotted = st.one_of(
    st.sampled_from(KEYS),
    st.sampled_from(KEYS).map(lambda key: key + ".x"),
    st.lists(st.sampled_from(PARTS), max_size=5).map(".".join),
    st.text(max_size=10),
)
WORDS = [
    "",
    "=",
    "==",
    "[",
    "{",
    "{a: 1",
    "[1, 2]",
    "{rule: paper}",
    "&a 1",
    "*a",
    "!!x 1",
    "\t",
    "\0",
    "- 1",
    "a: b",
    "|",
    "null",
    "none",
]
values = st.one_of(extremes.map(str), st.text(max_size=12), st.sampled_from(WORDS))


@lenient
@given(name=st.sampled_from(["tiny", "quickstart"]), given_=st.lists(st.tuples(dotted, values), min_size=1, max_size=3))
def test_any_overrides(name: str, given_: list[tuple[str, str]]) -> None:
    overrides = [f"{key}={value}" for key, value in given_]
    message = load(TEXTS[name], *overrides)
    assert isinstance(message, RunConfig) or "command line" in message or "mutant.yaml" in message, message


@pytest.mark.parametrize(
    "key",
    [
        "tools.²=x",
        "tools.٣=x",
        "tools." + "9" * 5000 + "=x",
        "tools.-1=x",
        "..=1",
        " =1",
        "=",
        "",
        "a",
        "\0=1",
        "\ud800=1",
    ],
)
def test_keys_that_no_recipe_has(key: str) -> None:
    assert "command line" in str(load(RECIPE, key))


def test_a_misspelt_key_of_any_group_is_told_with_the_right_one() -> None:
    """Not only for some of them: one letter is taken out of every key of the whole recipe."""
    recipe = WHOLE["arpo-reasoning-7b"]
    text, told, tried = dump(recipe), 0, 0
    for key in sorted(flat(recipe)):
        *path, last = key.split(".")
        if len(last) < 5 or "options" in path or path[-1:] == ["columns"]:
            continue
        at = random.Random(key).randrange(1, len(last))
        wrong = last[:at] + last[at + 1 :]
        message = load(text, ".".join([*path, wrong]) + "=1")
        tried += 1
        told += isinstance(message, str) and repr(last) in message and "command line" in message
    assert tried > 60 and told == tried
