"""A run's parts: what is wrong with one is named by its key."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from arpo.assembly.components import build_components, build_engine, read_tasks
from arpo.assembly.served import declared_ends
from arpo.engines.config import EngineConfig
from arpo.errors import ConfigError
from arpo.recipe.load import load_recipe
from tiny_project import TinyProject


def test_tasks_that_cannot_be_read_are_named_by_split_and_key(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("data: {train: {source: atlas}, test: {source: nowhere.jsonl}, validation: {split: dev}}\n")
    run = load_recipe(recipe)
    assert len(read_tasks(run, "train")[0]) > 0
    with pytest.raises(
        ConfigError, match=r"^data\.test\.source: no such file.*nowhere\.jsonl.*relative to the recipe's folder"
    ):
        read_tasks(run, "test")
    with pytest.raises(ConfigError, match=r"^data\.validation\.split: unknown split of atlas \(got 'dev'\)"):
        read_tasks(run, "validation")


class Silent:
    """Half an engine."""

    async def sample(self) -> None: ...
    async def close(self) -> None: ...


def test_an_engine_that_lacks_something_is_refused_before_it_is_used() -> None:
    config = EngineConfig(kind="test_components:silent")
    with pytest.raises(
        ConfigError,
        match=r"engine\.kind: this engine has no update_weights and no sleep \(got 'test_components:silent'\)",
    ):
        build_engine(config, torch.nn.Linear(1, 1), None)


def silent(_config: EngineConfig, _model: object, _tokenizer: object) -> Silent:
    return Silent()


def test_a_turn_ends_as_generation_config_says_too(tiny_project: TinyProject, tmp_path: Path) -> None:
    """The engine is asked with the chat format's ends; a served model's tokenizer lies beside the same file."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_project.model, folder)
    file = folder / "generation_config.json"
    about = json.loads(file.read_text()) if file.is_file() else {}
    components = build_components(load_recipe(tiny_project.recipe), folder)
    own = components.agent.format(components.agent.tools).stop_tokens
    call = components.tokenizer.convert_tokens_to_ids("<tool_call>")
    assert call not in own
    file.write_text(json.dumps({**about, "eos_token_id": [*own, call, 3]}))  # 3 is an ordinary token: none ends with it
    components = build_components(load_recipe(tiny_project.recipe), folder)
    assert set(components.agent.format(components.agent.tools).stop_tokens) == {*own, call}
    assert declared_ends(str(folder)) == (*own, call, 3) and declared_ends(str(tmp_path)) == ()
