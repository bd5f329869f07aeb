"""Training from Python: by a recipe's name, and with callbacks that hear of steps, evaluations and checkpoints."""

import asyncio
from collections.abc import Mapping
from pathlib import Path

import pytest
from loop_world import PLAIN, mixed_on_odd, training

import arpo
from arpo.display.terminal import Console
from arpo.evaluation.results import EvalResults
from arpo.runs import checkpoint
from arpo.runs.folder import RunFolder
from arpo.training.callbacks import Callbacks
from tiny_project import TinyProject


class Heard(arpo.Callback):
    def __init__(self) -> None:
        self.heard: list[tuple[str, int]] = []

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        assert metrics["groups/all"] > 0
        self.heard.append(("step", step))

    def on_evaluation(self, step: int, results: EvalResults) -> None:
        assert 0 <= results.accuracy.mean <= 1
        self.heard.append((results.name, step))

    def on_checkpoint(self, step: int, path: Path) -> None:
        assert (path / "model" / "config.json").is_file()
        self.heard.append(("checkpoint", step))


def test_a_recipe_is_trained_by_its_path_and_resumed_by_its_folder(tiny_project: TinyProject, tmp_path: Path) -> None:
    recipe = tmp_path / "short.yaml"
    changes = "train: {eval_every: 1, eval_limit: 2}\nevaluation: {limit: 2, greedy_limit: 1}"
    recipe.write_text(f"base: {tiny_project.recipe}\ncode: {tiny_project.folder}\nout: {tmp_path / 'run'}\n{changes}\n")
    heard, steps, quiet = Heard(), [], Console(quiet=True)
    folder = arpo.train(
        recipe, callbacks=[heard, lambda step, metrics: steps.append((step, len(metrics) > 20))], console=quiet
    )
    assert folder == tmp_path / "run" and RunFolder(folder).summary()["status"] == "finished"
    assert steps == [(1, True), (2, True)]
    expected = [("before", 0), ("before-greedy", 0)]
    expected += [("step", 1), ("validation-000001", 1), ("step", 2), ("validation-000002", 2)]
    expected.append(("after-greedy", RunFolder(folder).summary()["model_step"]))
    assert [each for each in heard.heard if each[0] not in ("checkpoint", "after")] == expected
    assert {each for each in heard.heard if each[0] == "checkpoint"} == {("checkpoint", 1), ("checkpoint", 2)}
    assert arpo.train(str(folder), resume=True, console=quiet) == folder
    with pytest.raises(arpo.ConfigError, match="no such recipe"):
        arpo.train("nowhere")
    with pytest.raises(arpo.ConfigError, match="no run to resume"):
        arpo.train(tmp_path, resume=True)


def test_what_a_callback_raises_ends_the_run_and_costs_no_step(tiny_project: TinyProject, tmp_path: Path) -> None:
    class PrunedError(Exception):
        pass

    def prune(step: int, metrics: Mapping[str, float]) -> None:
        if step == 2:
            raise PrunedError("not worth it")

    plan = ("train.steps=99", "train.save_every=50")
    out = tmp_path / "run"
    with (
        training(tiny_project, out, mixed_on_odd, *PLAIN, *plan, callbacks=Callbacks([prune])) as trainer,
        pytest.raises(PrunedError) as error,
    ):
        asyncio.run(trainer.train())
    assert "on_step, step 2" in error.value.__notes__[0]
    saved, _ = checkpoint.newest(out / "checkpoints")
    assert saved is not None and saved.state.step == 2 and len(RunFolder(out).metrics()) == 2
