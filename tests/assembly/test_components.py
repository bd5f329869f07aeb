"""A run's parts: what is wrong with one is named by its key."""

from pathlib import Path

import pytest
import torch

from arpo.assembly.components import build_engine, read_tasks
from arpo.engines.config import EngineConfig
from arpo.errors import ConfigError
from arpo.recipe.load import load_recipe


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
