"""Whatever stands in a recipe, the answer is a run or a ConfigError: never another exception."""

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arpo.errors import ConfigError
from arpo.located import dump, parse
from arpo.mistakes import all_keys
from arpo.recipe import load_recipe, show_resolved
from arpo.run import Run

KEYS = all_keys(Run)
BASE = {"data": {"train": {"source": "atlas"}}, "tools": [{"use": "search"}], "rollout": {"rule": {"rule": "paper"}}}

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**20), 10**20),
    st.integers(-3, 40),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.sampled_from(["auto", "none", "paper", "pilot", "atlas", "search", "a:b", "1e-5", "x.jsonl", "paper:", "\0", "{", "../.."]),
)
words = st.sampled_from(sorted({str(path[-1]) for path in KEYS})) | st.text(min_size=1, max_size=6)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3), max_leaves=6)
lenient = settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def try_to_load(path: Path, overrides: list[str] = []) -> None:  # noqa: B006 - never changed
    try:
        run = load_recipe(path, overrides)
    except ConfigError as error:
        assert str(error)
        return
    again = path.with_name("again.yaml")
    again.write_text(show_resolved(run), encoding="utf-8")
    assert load_recipe(again) == run


@lenient
@given(path=st.sampled_from(KEYS), value=values)
def test_any_value_at_any_key(path: tuple[str, ...], value: object, tmp_path: Path) -> None:
    recipe = yaml.safe_load(yaml.safe_dump(BASE))
    group = recipe
    for key in path[:-1]:
        inner = group.get(key)
        group[key] = inner if isinstance(inner, dict) else {}
        group = group[key]
    group[path[-1]] = value
    file = tmp_path / "fuzzed.yaml"
    file.write_text(dump(recipe), encoding="utf-8")
    try_to_load(file)


@lenient
@given(key=st.sampled_from(KEYS), value=st.text(max_size=20))
def test_any_text_on_the_command_line(key: tuple[str, ...], value: str, tmp_path: Path) -> None:
    file = tmp_path / "base.yaml"
    file.write_text(dump(BASE), encoding="utf-8")
    try_to_load(file, [".".join(key) + "=" + value])


@lenient
@given(text=st.text(max_size=60))
def test_any_text_as_a_file(text: str, tmp_path: Path) -> None:
    file = tmp_path / "text.yaml"
    file.write_text(text, encoding="utf-8", newline="")
    try_to_load(file)


@pytest.mark.parametrize(
    "text",
    [
        "a: !!timestamp x",
        "? {}\n: 1",
        "seed: 0x",
        "seed: 1_",
        "seed: 0b2",
        "base: [1]",
        "base: '\\0'",
        'data: {train: {source: "\\0/x"}}',
        "code: .\ndata: 1",
    ],
)
def test_texts_that_yaml_stumbles_over(text: str, tmp_path: Path) -> None:
    test_any_text_as_a_file.hypothesis.inner_test(text=text, tmp_path=tmp_path)  # type: ignore[attr-defined]


@lenient
@given(raw=st.binary(max_size=40))
def test_any_bytes_as_a_file(raw: bytes, tmp_path: Path) -> None:
    file = tmp_path / "bytes.yaml"
    file.write_bytes(raw)
    try_to_load(file)


@lenient
@given(value=st.dictionaries(st.text(min_size=1, max_size=5), values, max_size=4))
def test_what_is_written_reads_back_equal(value: dict[str, object]) -> None:
    assert parse(dump(value), "written").value == value
