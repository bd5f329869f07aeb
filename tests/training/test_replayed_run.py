"""Whole runs from a record, under a budget, and what they leave behind."""

import json
from pathlib import Path
from typing import Any

import pytest

from arpo.errors import ToolsStoppedError
from arpo.recipe.load import load_recipe
from arpo.runs.folder import RunFolder
from arpo.tools.usage import read_usage
from arpo.training.pipeline import train
from by_timing import BY_TIMING
from tiny_project import TinyProject

SHORT = (
    "train.steps=1",
    "train.tasks_per_step=2",
    "train.save_every=1",
    "rollout.leaves=4",
    "evaluation={limit: 1, greedy_limit: 0}",
    "engine.deterministic=true",
    "tools.0.cache=true",
)


CLOCKS = (*BY_TIMING, "tokens/per_s")
FROM_WHERE = (
    "calls/executed",
    "calls/cached",
    "calls/shared",
)  # answered calls: where from is all that a cache changes


def timeless(folder: Path) -> list[dict[str, Any]]:
    """A run's metrics without clocks, and with the calls that were answered as one number, wherever their answers came
    from."""
    found = []
    for line in RunFolder(folder).metrics():
        kept = {key: value for key, value in line.items() if not key.startswith((*CLOCKS, *FROM_WHERE))}
        found.append(kept | {"from anywhere": sum(line[key] for key in FROM_WHERE)})
    return found


def test_a_second_run_on_the_same_data_makes_no_call(tiny_project: TinyProject, tmp_path: Path) -> None:
    record = f"tools.cache.file={tmp_path / 'record.sqlite'}"
    once = train(load_recipe(tiny_project.recipe, [*SHORT, record, "tools.mode=record"]), out=tmp_path / "once")
    again = train(load_recipe(tiny_project.recipe, [*SHORT, record, "tools.mode=replay"]), out=tmp_path / "again")
    first, second = read_usage(once)["parity"], read_usage(again)["parity"]
    assert first["executed"] > 0 and second["executed"] == second["attempts"] == 0 and second["cached"] > 0
    assert timeless(once) == timeless(again)
    assert any("parity are replayed" in note["text"] for note in RunFolder(again).notes())
    report = (again / "report.md").read_text()
    assert "## Tool calls" in report and "| parity |" in report
    saved = sum(line["calls/inherited"] for line in RunFolder(again).metrics())
    assert ("branching saved" in report) == bool(saved)


def test_a_budget_stops_a_run_that_goes_on_with_a_larger_one(tiny_project: TinyProject, tmp_path: Path) -> None:
    words = [*SHORT[:-2], "evaluation={limit: 1, greedy_limit: 0}"]
    run = tmp_path / "run"
    with pytest.raises(ToolsStoppedError, match=r"budget for calls of tools is used up"):
        train(load_recipe(tiny_project.recipe, [*words, "tools.limits.calls=3"]), out=run)
    assert json.loads((run / "summary.json").read_text())["status"] == "stopped"
    assert read_usage(run)["parity"]["attempts"] == 3
    train(load_recipe(run, ["tools.limits.calls=1000"]), out=run, resume=True)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "finished" and read_usage(run)["parity"]["attempts"] > 3
