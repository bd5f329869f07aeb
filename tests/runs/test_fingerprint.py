"""A resumed run knows whether it goes on with what it had."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arpo.core.branching import Fixed
from arpo.errors import ConfigError
from arpo.recipe.load import load_recipe
from arpo.recipe.run import RunConfig
from arpo.runs.code import code_of
from arpo.runs.fingerprint import PARTS, check_resumption, differences, fingerprint, keep_fingerprint
from arpo.runs.folder import RunFolder
from arpo.tasks import Task
from arpo.training.preflight import prepare
from tiny_project import TinyProject, question


def parts_of(project: TinyProject, *overrides: str, **changes: Any) -> dict[str, dict[str, Any]]:
    run = load_recipe(project.recipe, overrides).model_copy(update=changes)
    prepared = prepare(run, resume=True)
    return fingerprint(run, prepared.tasks, prepared.setting.tools, prepared.source)


def trained(path: Path, parts: dict[str, dict[str, Any]]) -> Path:
    """A run's folder with a checkpoint."""
    with RunFolder.create(path, "name: x\n", {}) as folder:
        (path / "checkpoints" / "step-000001").mkdir(parents=True)
        keep_fingerprint(folder, parts)
    return path


def write_lines(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")


def overwrite_weights(project: TinyProject) -> None:
    from safetensors.torch import load_file, save_file

    file = project.model / "model.safetensors"
    tensors = load_file(file)
    save_file({name: tensor + 1e-3 for name, tensor in tensors.items()}, file, metadata={"format": "pt"})


def rewrite(name: str, old: str, new: str) -> Callable[[TinyProject], None]:
    def change(project: TinyProject) -> None:
        path = project.folder / name
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))

    return change


CHANGES: dict[str, tuple[str, Callable[[TinyProject], Any], str]] = {
    "a row inserted": (
        "data",
        lambda p: write_lines(p.folder / "train.jsonl", lambda rows: [json.dumps(question(99)), *rows]),
        "data.train: 1 of its rows inserted (parity/99)",
    ),
    "a row replaced": (
        "data",
        rewrite("train.jsonl", "Parity of 7", "Parity of seven"),
        "data.train: 1 of its rows changed (parity/7)",
    ),
    "a validation row gone": (
        "data",
        lambda p: write_lines(p.folder / "validation.jsonl", lambda rows: rows[1:]),
        "data.validation: 1 of its rows removed (parity/31)",
    ),
    "another order": (
        "data",
        lambda p: write_lines(p.folder / "test.jsonl", lambda rows: rows[::-1]),
        "data.test: the rows are in another order",
    ),
    "another base model": ("model", overwrite_weights, "model: content differs"),
    "another tokenizer": ("tokenizer", rewrite("model/tokenizer.json", '"version"', '"version" '), "tokenizer"),
    "another end of a turn": (
        "tokenizer",
        lambda p: (p.model / "generation_config.json").write_text('{"eos_token_id": [1, 2]}'),
        "tokenizer",
    ),
    "another template": (
        "template",
        lambda p: (p.model / "chat_template.jinja").write_text("{{ messages[0].content }}"),
        "template",
    ),
    "another tool": ("tools", rewrite("tiny_world.py", "number % 2", "number % 3"), "code in tiny_world.py differs"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changed_is_refused_named_and_accepted(name: str, own_project: TinyProject, tmp_path: Path) -> None:
    part, change, words = CHANGES[name]
    folder = trained(tmp_path / "run", parts_of(own_project))
    assert check_resumption(folder, parts_of(own_project), []) == []
    change(own_project)
    now = parts_of(own_project)
    with pytest.raises(ConfigError) as caught:
        check_resumption(folder, now, [])
    assert words in str(caught.value) and f"--accept {part}" in str(caught.value)
    changed = check_resumption(folder, now, [part])
    assert {each.part for each in changed} == {part}
    with RunFolder.create(folder, "name: x\n", {}, resume=True) as opened:
        keep_fingerprint(opened, now, [part], changed)
    assert words in RunFolder(folder).notes()[-1]["text"]
    assert check_resumption(folder, now, []) == [], "what was accepted counts from then on"
    (accepted,) = json.loads((folder / "fingerprints.json").read_text())["accepted"]
    assert accepted["accepted"] == [part] and words in accepted["differences"][0]


def test_code_of_an_estimator_and_a_mask_of_ones_own_is_compared(own_project: TinyProject) -> None:
    file, keys = (
        own_project.folder / "own_credit.py",
        ("advantage.estimator=own_credit:f", "advantage.mask=own_credit:f"),
    )
    for key in keys:
        file.write_text("def f(trees, config):\n    return []\n")
        run = load_recipe(own_project.recipe, [key])
        before = fingerprint(run, {}, (), own_project.model)
        file.write_text("def f(trees, config):\n    return [{}]\n")
        (changed,) = differences(before, fingerprint(run, {}, (), own_project.model))
        assert (changed.part, changed.key) == ("credit", "advantage") and "own_credit.py differs" in changed.text


def test_before_the_first_checkpoint_nothing_depends_on_it(own_project: TinyProject, tmp_path: Path) -> None:
    with RunFolder.create(tmp_path / "run", "name: x\n", {}) as folder:
        keep_fingerprint(folder, parts_of(own_project))
    assert check_resumption(tmp_path / "run", parts_of(own_project, "loss.surrogate=gspo"), []) == []


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("loss.surrogate=gspo", "loss.surrogate"),
        ("rollout.rule=fixed", "rollout.rule"),
        ("optim.lr=1e-5", "optim"),
        ("reward.answer=f1", "reward.answer"),
        ("chat.result_tokens=40", "chat.result_tokens"),
        ("model.lora={rank: 2}", "model.lora"),
        ("cold_start=null", "cold_start"),
        ("data.test.source=validation.jsonl", "data.test.source"),
        ("train.dynamic_sampling=2", "train.dynamic_sampling"),
    ],
)
def test_a_key_that_is_given_accepts_its_own_change_alone(
    tiny_project: TinyProject, tmp_path: Path, override: str, key: str
) -> None:
    folder = trained(tmp_path / "run", parts_of(tiny_project))
    override = override.replace("=validation", f"={tiny_project.folder}/validation")
    others = ["data.validation=null"] if key.startswith("data") else []
    now = parts_of(tiny_project, override, *others)
    assert check_resumption(folder, now, [key, *(["data.validation"] if others else [])])
    with pytest.raises(ConfigError, match="has changed since"):
        check_resumption(folder, now, ["seed", "engine"])


@pytest.mark.parametrize("override", ["train.steps=9", "engine.slots=8", "train.save_every=7", "tools.limits.calls=5"])
def test_what_decides_no_result_may_change(tiny_project: TinyProject, override: str) -> None:
    assert differences(parts_of(tiny_project), parts_of(tiny_project, override)) == []


def test_what_a_plan_may_cut_is_not_compared(tiny_project: TinyProject) -> None:
    planned = parts_of(tiny_project, "cold_start.steps=7", "evaluation.limit=3")
    assert differences(planned, parts_of(tiny_project, "plan=auto")) == []


def test_names_that_accept_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'reward'"):
        check_resumption(tmp_path, {}, ["rewrad"])


TASKS = st.lists(st.integers(0, 9), unique=True).map(
    lambda numbers: [Task(id=str(n), messages=({"role": "user", "content": f"q{n}"},), answers=("a",)) for n in numbers]
)


@given(TASKS, TASKS)
def test_rows_are_equal_exactly_where_tasks_are(one: list[Task], other: list[Task]) -> None:
    from arpo.runs.fingerprint import _row

    before, now = ({"data": {"data.train": [[task.id, _row(task)] for task in tasks]}} for tasks in (one, other))
    assert bool(differences(before, now)) == (one != other)
    for task in one[:1]:
        assert _row(replace(task, metadata={"x": 1})) != _row(task)


def test_code_is_its_syntax_tree_and_that_of_its_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    tool, prices = tmp_path / "shopcode_tool.py", tmp_path / "shopcode_prices.py"
    tool.write_text("import json\nfrom shopcode_prices import PRICES\n\ndef price(item):\n    return PRICES[item]\n")
    prices.write_text("PRICES = {'tea': 18}\n")
    before = code_of({"use": ["shopcode_tool:price", "no import path", "arpo.rewards.config:Measure"]})
    assert set(before) == {"shopcode_tool.py", "shopcode_prices.py"}
    tool.write_text("# a comment\n" + tool.read_text().replace("    return", "\n    return  ") + "# more\n")
    assert code_of("shopcode_tool:price") == before
    prices.write_text("PRICES = {'tea': 19}\n")
    assert {name for name, digest in code_of("shopcode_tool:price").items() if digest != before[name]} == {prices.name}


def test_an_object_is_known_by_the_code_of_its_class(tiny_project: TinyProject) -> None:
    """An own rule may be an object: its class' file counts, its state does not."""
    run: RunConfig = load_recipe(tiny_project.recipe)
    changed = differences(
        parts_of(tiny_project), parts_of(tiny_project, rollout=run.rollout.model_copy(update={"rule": Fixed()}))
    )
    assert [each.key for each in changed] == ["rollout.rule"]
    assert set(PARTS) >= set(parts_of(tiny_project))
