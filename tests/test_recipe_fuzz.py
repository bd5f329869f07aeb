"""Whatever stands in a recipe, the answer is a run or a ConfigError: never another exception."""

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arpo.config_errors import all_keys
from arpo.core.codec import _RULES
from arpo.errors import ConfigError
from arpo.recipe.load import load_recipe, show_resolved
from arpo.recipe.run import RunConfig
from arpo.yaml_positions import MOST_WHOLE, dump, parse

KEYS = all_keys(RunConfig)
BASE: dict[str, Any] = {
    "data": {"train": {"source": "atlas"}},
    "tools": {"offered": [{"use": "search"}]},
    "rollout": {"rule": {"rule": "paper"}},
}
SERVED = {"url": "http://localhost:1/v1", "model": "m"}
# What a group needs besides the key that is tried: else it would be refused for what is missing, whatever the value.
NEEDS: dict[str, dict[str, object]] = {
    "data.validation": {"data.validation.source": "v.jsonl"},
    "data.test": {"data.test.source": "t.jsonl"},
    "data.allow_test_questions": {"data.validation.source": "v.jsonl"},
    "engine.endpoint": {"engine.kind": "openai", **{f"engine.endpoint.{key}": value for key, value in SERVED.items()}},
    "engine.vllm": {"engine.kind": "vllm"},
    "evaluation.judge": {f"evaluation.judge.{key}": value for key, value in SERVED.items()},
    "train.early_stop": {"data.validation.source": "v.jsonl", "train.eval_every": 1},
    "train.eval_every": {"data.validation.source": "v.jsonl"},
    "tools.offered": {"tools.offered.use": "search"},
    "reward.bonus": {"reward.bonus_tools": ["search"]},
    "environment.options": {"environment.use": "sql"},
    **{f"rollout.rule.{key}": {"rollout.leftover": "tips"} for key in ("by", "deeper", "memory", "nearest")},
    **{f"rollout.roots.{key}": {"rollout.roots.plan": "pass_rate"} for key in ("least", "prior", "memory")},
    "loss.kl_coefficient": {"loss.kl_coefficient.coefficient": 0.1},
    "loss.entropy_coefficient": {"loss.entropy_coefficient.most": 0.1, "loss.entropy_coefficient.target": 0.5},
}

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-MOST_WHOLE, MOST_WHOLE),
    st.integers(-3, 40),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=8),
    st.sampled_from(
        ["auto", "none", "paper", "pilot", "atlas", "search", "a:b", "1e-5", "x.jsonl", "paper:", "\0", "{", "../.."]
    ),
)
words = st.sampled_from(sorted({str(path[-1]) for path in KEYS})) | st.text(min_size=1, max_size=6)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3), max_leaves=6
)
lenient = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def try_to_load(path: Path, overrides: list[str] = []) -> None:  # noqa: B006 - never changed
    try:
        run = load_recipe(path, overrides)
    except ConfigError as error:
        assert str(error)
        return
    again = path.with_name("again.yaml")
    again.write_text(show_resolved(run), encoding="utf-8")
    assert load_recipe(again) == run


def with_value(path: tuple[str, ...], value: object) -> object:
    """A recipe with `value` at `path`, and with what the groups on the way there need."""
    recipe = yaml.safe_load(yaml.safe_dump(BASE))
    dotted = ".".join(path)
    for group, needed in NEEDS.items():
        if dotted == group or dotted.startswith(f"{group}."):
            for key, other in needed.items():
                _put(recipe, tuple(key.split(".")), deepcopy(other))
    _put(recipe, path, value)
    return recipe


def _put(recipe: object, path: tuple[str, ...], value: object) -> None:
    group: Any = recipe
    for key in path[:-1]:
        inner = group.get(key)
        if isinstance(inner, list):  # of tools: the first
            group = inner[0]
            continue
        group[key] = inner if isinstance(inner, dict) else {}
        group = group[key]
    group[path[-1]] = value


@lenient
@given(path=st.sampled_from(KEYS), value=values)
def test_any_value_at_any_key(path: tuple[str, ...], value: object, tmp_path: Path) -> None:
    file = tmp_path / "fuzzed.yaml"
    file.write_text(dump(with_value(path, value)), encoding="utf-8")
    try_to_load(file)


GOOD: tuple[object, ...] = (
    *(
        None,
        1,
        0.5,
        0.05,
        -1.0,
        True,
        "x",
        "a:b",
        "x.jsonl",
        "http://x/v1",
        "auto",
        "none",
        "pilot",
        "recompose",
        [],
        ["local"],
        [0.9, 0.99],
        2000,
    ),
    *({}, {"x": 1}, {"rule": "none"}, {"train": {"source": "atlas"}}, SERVED),
)
RULES = [{"rule": rule} for rule in _RULES]


def loads(path: tuple[str, ...], file: Path) -> bool:
    """Whether some value is right at `path`: one of ours, or a word that the message names; under one of the rules."""
    for rule in RULES if path[:2] == ("rollout", "rule") and len(path) > 2 else RULES[:1]:
        tried: list[object] = [*GOOD]
        for value in tried:
            recipe: Any = with_value(path, value)
            if len(path) > 2 and path[1] == "rule" and path[2] != "rule":
                recipe["rollout"]["rule"]["rule"] = rule["rule"]
            file.write_text(dump(recipe), encoding="utf-8")
            try:
                load_recipe(file)
                return True
            except ConfigError as error:
                if value is None and (words := re.search(r"should be one of: (\S+?),? ", f"{error} ")):
                    tried.append(words[1])
    return False


@pytest.mark.slow
def test_every_section_is_tried_and_at_every_key_something_is_right(tmp_path: Path) -> None:
    """Else all that is found out about a key is that its group cannot be, and fuzzing it is vain."""
    assert {path[0] for path in KEYS} == set(RunConfig.model_fields)
    assert [".".join(path) for path in KEYS if not loads(path, tmp_path / "good.yaml")] == []


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
