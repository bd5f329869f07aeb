"""A fact of the first turns, asked for many contexts later: notes carry it, results that are dropped do not."""

from pathlib import Path

import pytest

from arpo.display.terminal import Console
from arpo.recipe.load import load_recipe
from arpo.runs.folder import RunFolder
from arpo.training.pipeline import train

RECIPE = Path(__file__).parent / "recall.yaml"
SHORT = ["rollout.max_calls=40", "rollout.branch_tokens=512", "train.steps=8"]
SHORT += [f"data.{split}.options={{turns: 40}}" for split in ("train", "validation", "test")]


@pytest.mark.slow
def test_notes_carry_a_fact_that_dropped_results_lose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(RECIPE.parent)
    monkeypatch.setenv("ARPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("arpo.report.run_report.draw", lambda *_, **__: None)
    accuracy = {}
    for context in ("{use: recompose, at: 200, options: {heading: 'heard:'}}", "{use: drop_results, at: 200}"):
        run = load_recipe(RECIPE, [*SHORT, f"rollout.context={context}"])
        name = run.rollout.context.use
        folder = train(run, out=tmp_path / name, console=Console(quiet=True))
        accuracy[name] = RunFolder(tmp_path / name).summary()["accuracy_after"]["mean"]
        last = list(RunFolder(tmp_path / name).metrics())[-1]
        assert last["contexts/a_leaf"] > 3, folder
    assert accuracy["recompose"] >= accuracy["drop_results"] + 0.2, accuracy
