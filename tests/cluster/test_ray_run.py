"""`cluster.ranks`: the run of one process on Ray, whole whatever dies."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray_cluster import NODE
from safetensors.torch import load_file

from arpo.cluster.ranks import RayRanks
from arpo.display.terminal import Console
from arpo.files import read_json_lines
from arpo.recipe.load import load_recipe
from arpo.training.callbacks import Callback
from arpo.training.pipeline import train
from tiny_project import TinyProject

pytestmark = pytest.mark.slow

STEPS = 6
SHORT = (
    "cold_start=null",
    "loss.entropy_coefficient=0.01",  # which teaches where all rewards are equal
    f"train.steps={STEPS}",
    "train.save_every=2",
    "evaluation.limit=1",
    "evaluation.greedy_limit=0",
)


def run(project: TinyProject, out: Path, *changes: str, **more: Any) -> str:
    """What a run of the tiny project says."""
    console = Console(record=True, width=200)
    train(load_recipe(project.recipe, [*SHORT, *changes]), out=out, console=console, **more)
    return console.export_text()


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def weights(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"step-{step:06d}" / "model" / "model.safetensors")


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.fixture(scope="module")
def undisturbed(ray_nodes: Any, tiny_files: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of two ranks on two nodes, and what it says."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    return out, run(tiny_files, out, "cluster.ranks=2")


def test_two_ranks_on_ray_train_what_one_process_does(
    undisturbed: tuple[Path, str], tiny_files: TinyProject, tmp_path: Path
) -> None:
    two, text = undisturbed
    run(tiny_files, tmp_path / "one", "train.steps=2")
    assert text.index("driver on") < text.index("step 1"), text
    assert text.count("rank 0 on") == text.count("rank 1 on") == 1
    for one, other in zip(metrics(tmp_path / "one"), metrics(two)[:2], strict=True):
        for name in ("train/loss", "train/grad_norm", "reward/leaves"):
            assert other[name] == pytest.approx(one[name], rel=1e-3, abs=1e-4), name
    assert {path.name for path in (two / "logs").iterdir()} == {"rank-0.log", "rank-1.log"}


def rank_processes(run: Path) -> dict[int, int]:
    """Process ids of a run's ranks on this machine: those of the actors, by the number in the name of their log. (Other
    tests may have ranks meanwhile.)"""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            log = (process / "fd" / "1").readlink()
            if b"RankProcess" in (process / "cmdline").read_bytes() and log.is_relative_to(run.resolve()):
                found[int(log.stem.removeprefix("rank-"))] = int(process.name)
    return found


class Disturbances(Callback):
    """After step 1 a rank is killed, after step 3 one is stopped, after step 5 a node of theirs is lost: in the middle
    of what the learner does next, or before it."""

    def __init__(self, cluster: Any, monkeypatch: pytest.MonkeyPatch, run: Path) -> None:
        self.cluster, self.monkeypatch, self.run, self.done = cluster, monkeypatch, run, list[int]()

    def on_step(self, step: int, metrics: Mapping[str, Any]) -> None:
        disturb = {1: self.kill_rank, 3: self.stop_rank, 5: threading.Timer(0.1, self.lose_node).start}.get(step)
        if disturb is not None:
            self.done.append(step)
            disturb()

    def kill_rank(self) -> None:
        os.kill(rank_processes(self.run)[1], signal.SIGKILL)

    def stop_rank(self) -> None:
        """The patience for it is short until it is found out, and no longer: others may be slow."""
        os.kill(rank_processes(self.run)[0], signal.SIGSTOP)
        restart = RayRanks.restart

        def patient_again(ranks: RayRanks) -> None:
            self.monkeypatch.setattr("arpo.cluster.ranks.HUNG_S", 120.0)
            restart(ranks)

        self.monkeypatch.setattr("arpo.cluster.ranks.HUNG_S", 5.0)
        self.monkeypatch.setattr(RayRanks, "restart", patient_again)

    def lose_node(self) -> None:
        (group,) = [g for g in ray.util.placement_group_table().values() if g["state"] == "CREATED"]
        lost = group["bundles_to_node_id"][1]
        (node,) = [node for node in self.cluster.worker_nodes if node.node_id == lost]
        self.cluster.remove_node(node, allow_graceful=False)


def assert_the_same(undisturbed: Path, disturbed: Path) -> None:
    """Every step has the tasks and the update that it would have had, and the weights came out the same."""
    apart = distance(weights(undisturbed, STEPS), weights(disturbed, STEPS))
    assert apart < 1e-6, apart
    was, now = metrics(undisturbed), metrics(disturbed)
    assert [line["tasks/position"] for line in was] == [line["tasks/position"] for line in now]
    assert [line["train/loss"] for line in was] == pytest.approx([line["train/loss"] for line in now], abs=1e-6)


def test_a_rank_killed_one_stopped_and_a_node_lost_change_nothing(
    undisturbed: tuple[Path, str],
    ray_nodes: Any,
    tiny_files: TinyProject,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disturbed = Disturbances(ray_nodes, monkeypatch, tmp_path / "run")
    try:
        run(tiny_files, tmp_path / "run", "cluster.ranks=2", callbacks=[disturbed])
    finally:
        ray_nodes.add_node(**NODE)
    assert disturbed.done == [1, 3, 5]
    notes = [note["text"] for note in read_json_lines(tmp_path / "run" / "notes.jsonl")]
    killed, stopped, without_node = [note for note in notes if "2 ranks are back after" in note]
    assert "died" in killed and "weights of step 0, then step 1 again from the records" in killed
    assert "rank 0 does not answer" in stopped and "then step 3 again" in stopped
    assert "then step 5 again" in without_node
    assert_the_same(undisturbed[0], tmp_path / "run")


def test_a_driver_that_is_killed_goes_on_without_a_difference(
    undisturbed: tuple[Path, str], ray_nodes: Any, tiny_files: TinyProject, tmp_path: Path
) -> None:
    out, at = tmp_path / "run", f"cluster.address={ray_nodes.address}"
    command = [sys.executable, "-m", "arpo", "train", str(tiny_files.recipe), *SHORT, "cluster.ranks=2", at]
    driver = subprocess.Popen([*command, f"out={out}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not ((out / "metrics.jsonl").exists() and len(metrics(out)) >= 3):
        assert driver.poll() is None
        time.sleep(0.02)
    driver.kill()
    driver.wait()
    assert 3 <= len(metrics(out)) < STEPS, "it was to be killed in the middle"
    run(tiny_files, out, "cluster.ranks=2", at, resume=True)
    assert_the_same(undisturbed[0], out)
