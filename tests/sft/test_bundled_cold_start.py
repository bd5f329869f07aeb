"""The cold start that comes with arpo fits the recipe that it was made for."""

import importlib.util
import json
from pathlib import Path

import pytest

from arpo.errors import ArpoError
from arpo.event_loop import run_sync
from arpo.recipe.load import load_recipe
from arpo.runs.atomic import fault
from arpo.sft.cache import BUNDLED, SFTCache, bundled_checkpoints

AGAIN = "prompt, tools, traces or settings have changed: python scripts/write_cold_start.py quickstart"
FOLDER = BUNDLED / "quickstart"


def about():
    return json.loads((FOLDER / "cold_start.json").read_text())


def test_it_was_made_by_the_recipes_own_settings_and_is_whole():
    assert about()["key"] == SFTCache(load_recipe("quickstart"), bundled=False).key, AGAIN
    assert fault(FOLDER) is None and dict(bundled_checkpoints()).keys() >= {FOLDER}
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 3e6


@pytest.mark.slow  # converts the real model
def test_the_recipe_makes_the_same_tokens_of_its_traces():
    script = Path(__file__).parents[2] / "scripts/write_cold_start.py"
    spec = importlib.util.spec_from_file_location("write_cold_start", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        found = run_sync(module.first_tokens(load_recipe("quickstart")))
    except ArpoError as error:
        pytest.skip(f"the quickstart's model cannot be fetched here: {error}")
    assert about()["tokens"] == found, AGAIN


def test_a_run_starts_from_it_unless_its_settings_differ_or_its_recipe_says_no(tmp_path, monkeypatch):
    monkeypatch.setenv("ARPO_CACHE", str(tmp_path))
    assert SFTCache(load_recipe("quickstart")).model == FOLDER
    assert SFTCache(load_recipe("quickstart", ["seed=5", "train.steps=3", "rollout.leaves=4"])).model == FOLDER
    for other in (
        "cold_start.bundled=false",
        "cold_start.lr=1e-3",
        "chat.format=template",
        "model.lora.rank=8",
        "cold_start=null",
    ):
        assert SFTCache(load_recipe("quickstart", [other])).model is None, other
    assert SFTCache(load_recipe("quickstart"), bundled=False).model is None, "`arpo sft` makes it"


def test_one_made_here_comes_first(tmp_path, monkeypatch):
    monkeypatch.setenv("ARPO_CACHE", str(tmp_path))
    start = SFTCache(load_recipe("quickstart"))

    class Saved:
        def save_pretrained(self, folder):
            (Path(folder) / type(self).__name__).write_text("here")

    start.keep(Saved().save_pretrained, Saved())
    assert start.model == start.path / "model" != FOLDER
