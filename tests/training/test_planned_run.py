"""Runs with `plan: auto`: planned once, written down, kept by a resumption, and whole however slow the machine is."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from arpo.display.terminal import Console
from arpo.recipe.load import load_recipe
from arpo.runs.folder import RunFolder
from arpo.training.pipeline import train
from arpo.training.plan import MIN_STEPS
from tiny_project import TinyProject

PLANNED = (
    "plan=auto",
    "train.steps=8",
    "train.trackers=[]",
    "evaluation={limit: 6, greedy_limit: 2}",
    "train.gates=null",
)


def run(project: TinyProject, out: Path, *overrides: str, **options: Any) -> tuple[RunFolder, str]:
    console = Console(record=True, width=200, file=open("/dev/null", "w"))  # noqa: SIM115
    train(load_recipe(project.recipe, [*PLANNED, *overrides]), out=out, console=console, **options)
    return RunFolder(out), console.export_text()


def test_what_fits_is_planned_told_and_written(tiny_project: TinyProject, tmp_path: Path) -> None:
    folder, printed = run(tiny_project, tmp_path / "run", "train.minutes=30")
    assert "this machine: " in printed and "8 steps, 6 questions before and after" in printed
    written = yaml.safe_load(folder.recipe.read_text())
    assert written["plan"] == "made" and written["train"]["steps"] == 8
    assert len(folder.metrics()) == 8 and folder.summary()["status"] == "finished"
    assert "unplanned_cold_start" not in folder.summary(), "it was not shortened"


def test_the_slowest_machine_trains_five_steps_asks_before_and_after_and_says_what_it_is_worth(
    tiny_project: TinyProject, tmp_path: Path
) -> None:
    folder, printed = run(tiny_project, tmp_path / "run", "train.minutes=0.01", "optim.lr=0.000001")
    summary = folder.summary()
    assert summary["status"] == "finished" and len(folder.metrics()) == MIN_STEPS
    assert summary["accuracy_before"]["n"] == summary["accuracy_after"]["n"] == 6
    assert "cannot be told from chance" in printed and f"{MIN_STEPS} steps and 6 questions" in printed
    # A resumption plans nothing anew.
    again = load_recipe(tmp_path / "run", ["train.steps=6"])
    assert again.plan == "made" and again.train.minutes > 0.01
    train(again, out=tmp_path / "run", resume=True, console=Console(quiet=True))
    assert load_recipe(tmp_path / "run").plan == "made"


@pytest.mark.slow
def test_a_cold_start_that_was_cut_too_short_goes_on_and_its_length_is_in_the_key(
    tiny_project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tiny_project
    monkeypatch.setenv("ARPO_CACHE", str(tmp_path / "cache"))
    gates = "train.gates={format: 0.75, tool_use: 0.75, mixed_groups: 0, rise_positive: 0}"
    folder, printed = run(project, tmp_path / "run", "train.minutes=0.01", gates)
    assert "plan: a cold start of 15 updates" in printed
    assert "the cold start was too short and goes on (FAILS" in printed
    written = load_recipe(tmp_path / "run")
    assert 15 < written.cold_start.steps <= 120 and folder.summary()["status"] == "finished"
    assert folder.summary()["gates"][0]["holds"]


def test_without_minutes_there_is_nothing_to_plan(tiny_project: TinyProject, tmp_path: Path) -> None:
    folder, printed = run(tiny_project, tmp_path / "run", "train.minutes=null", "train.steps=1")
    assert "this machine" not in printed and folder.summary()["status"] == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("override", [None, "cold_start.steps=2"])
def test_a_run_that_is_stopped_in_its_shortened_cold_start_lengthens_it_unless_told_its_length(
    tiny_project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str | None
) -> None:
    monkeypatch.setenv("ARPO_CACHE", str(tmp_path / "cache"))
    gates = "train.gates={format: 0.75, tool_use: 0.75, mixed_groups: 0, rise_positive: 0}"

    async def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("arpo.training.pipeline.run_cold_start", stopped)
        run(tiny_project, tmp_path / "run", "train.minutes=0.01", gates)
    console = Console(record=True, width=200, file=open("/dev/null", "w"))  # noqa: SIM115
    overrides = [override, "train.steps=1", "train.gates=null"] if override else []
    train(load_recipe(tmp_path / "run", overrides), out=tmp_path / "run", resume=True, console=console)
    folder = RunFolder(tmp_path / "run")
    assert ("the cold start was too short and goes on (FAILS" in console.export_text()) is (override is None)
    assert folder.summary()["status"] == "finished"
    if override:
        assert load_recipe(folder.recipe).cold_start.steps == 2 and folder.summary()["unplanned_cold_start"] is None
