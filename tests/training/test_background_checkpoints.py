"""Checkpoints are written while training goes on: whole or not at all, and every failure is told."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from loop_world import PLAIN, go, mixed_on_odd, training, weights
from safetensors.torch import load_file

from arpo.display.terminal import Console
from arpo.errors import CheckpointError
from arpo.learner import rank
from arpo.recipe.load import load_recipe
from arpo.runs import checkpoint
from arpo.runs.folder import RunFolder
from arpo.training.callbacks import Callback
from arpo.training.pipeline import train
from tiny_project import TinyProject

EACH = (*PLAIN, "train.save_every=1", "train.keep_last=9")


class Watching(Callback):
    def __init__(self) -> None:
        self.second_step, self.weights = threading.Event(), list[list[torch.Tensor]]()
        self.trainer: Any = None

    def on_step(self, step: int, metrics: Any) -> None:
        self.weights.append(weights(self.trainer))
        if step == 2:
            self.second_step.set()


def test_an_update_waits_for_the_copy_alone(
    tiny_project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first checkpoint is written when the second step is done, and holds what was there after the first."""
    import asyncio

    watching, save = Watching(), checkpoint.save

    def late(*given: Any, **more: Any) -> Any:
        assert watching.second_step.wait(600)
        return save(*given, **more)

    monkeypatch.setattr(checkpoint, "save", late)
    with training(tiny_project, tmp_path, mixed_on_odd, *EACH, "train.steps=3", callbacks=watching) as trainer:
        watching.trainer = trainer
        asyncio.run(trainer.train())
    for step, expected in enumerate(watching.weights, 1):
        saved = load_file(checkpoint.path_of(tmp_path / "checkpoints", step) / "model" / "model.safetensors")
        named = dict(zip((name for name, _ in trainer.learner.policy.model.named_parameters()), expected, strict=True))
        assert saved.keys() <= named.keys() and all(torch.equal(saved[name], named[name]) for name in saved)
    assert not torch.equal(watching.weights[0][0], watching.weights[1][0])
    found, passed = checkpoint.newest(tmp_path / "checkpoints")
    assert found is not None and found.state.step == 3 and passed == [], "training ends after the last one is whole"


@pytest.mark.parametrize("failing", [1, 3])
def test_a_checkpoint_that_cannot_be_written_is_told(
    tiny_project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    """At the next one, which is written all the same, or at the end."""
    written, calls = rank.write_moments, []

    def torn(folder: Path, *given: Any, **more: Any) -> None:
        calls.append(folder)
        if len(calls) == failing:
            raise OSError(28, "No space left on device", str(folder))
        written(folder, *given, **more)

    monkeypatch.setattr(rank, "write_moments", torn)
    with pytest.raises(CheckpointError, match=r"cannot be written: .*No space left"):
        go(tiny_project, tmp_path, mixed_on_odd, *EACH, "train.steps=3")
    found, passed = checkpoint.newest(tmp_path / "checkpoints")
    assert found is not None and found.state.step == 2 and passed == []
    assert not checkpoint.path_of(tmp_path / "checkpoints", failing).exists()


KILLED = """
import os, signal, sys
from arpo.learner import rank
written, calls = rank.write_moments, []
def torn(folder, *given, **more):
    calls.append(folder)
    if len(calls) == 2:
        (folder / "optimizer.safetensors").write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    written(folder, *given, **more)
rank.write_moments = torn
import arpo
arpo.train(arpo.load_recipe(sys.argv[1], sys.argv[3:]), out=sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_kill_in_the_middle_leaves_the_former_checkpoint(tiny_project: TinyProject, tmp_path: Path) -> None:
    out = tmp_path / "run"
    changes = ["cold_start=null", "train.steps=3", "train.save_every=1", "train.trackers=[]"]
    changes += ["evaluation={limit: 1, greedy_limit: 0}", "loss.entropy_coefficient=0.01"]
    line = [sys.executable, "-c", KILLED, str(tiny_project.recipe), str(out), *changes]
    done = subprocess.run(line, cwd=tiny_project.folder, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode == -signal.SIGKILL
    assert any(path.name.startswith(".") for path in (out / "checkpoints").iterdir()), "the torn one"
    found, _ = checkpoint.newest(out / "checkpoints")
    assert found is not None and found.state.step == 1
    train(load_recipe(tiny_project.recipe, changes), out=out, resume=True, console=Console(quiet=True))
    folder = RunFolder(out)
    assert folder.summary()["status"] == "finished" and [line["step"] for line in folder.metrics()] == [1, 2, 3]
    assert all(not path.name.startswith(".") for path in (out / "checkpoints").iterdir())
