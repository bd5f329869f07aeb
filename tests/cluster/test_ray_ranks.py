"""Ranks on Ray compute what those of torchrun do, bit for bit."""

import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from arpo.cluster.ranks import RayRanks
from arpo.errors import ConfigError
from arpo.learner.config import LossConfig, OptimConfig
from arpo.learner.driver import LearnerDriver
from arpo.learner.rank import ModelSource, Rank, RankSettings
from arpo.learner.ranks import Ranks
from arpo.learner.sharding import Placement
from arpo.runs.disk_space import is_full
from random_trees import random_tree
from rank_processes import on_ranks
from tiny_project import tiny_llama

pytestmark = pytest.mark.slow


def drive(ranks: Ranks, folder: Path) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    """Weights after two updates and a step of fine-tuning, and their metrics; a checkpoint is written to `folder`."""
    settings = RankSettings(loss=LossConfig(kl_coefficient=0.1), optim=OptimConfig(lr=1e-3), tree=True)
    ranks.call("hold", ModelSource(partial(tiny_llama, vocab_size=64)), 0, Placement())
    ranks.call("start", settings, None)
    learner = LearnerDriver(ranks, settings, num_updates=3, token_budget=60)
    trees = [[random_tree(100 * step + number, leaves=4, blend=0.5) for number in range(4)] for step in range(3)]
    metrics = [dict(learner.update(own, 2, seed=step).metrics) for step, own in enumerate(trees[:2])]
    learner.snapshot()(folder)
    metrics.append(learner.sft_step(trees[2]))
    return {name: value.clone() for name, value in learner.weights().items()}, metrics


@pytest.fixture
def ranks(ray_nodes: Any, tmp_path: Path) -> Any:
    made = RayRanks(2, gpu=False, logs=tmp_path / "logs", tell=lambda text: None)
    made.place()
    yield made
    made.close()


def test_two_ranks_on_two_nodes_are_those_of_torchrun(ranks: RayRanks, tmp_path: Path) -> None:
    there, metrics = drive(ranks, tmp_path / "there")
    here, expected = on_ranks(2, partial(drive, folder=tmp_path / "here"), tmp_path, Rank)
    assert there.keys() == here.keys() and all(torch.equal(there[name], here[name]) for name in here)
    assert metrics == expected
    for name in ("optimizer.safetensors", "model/model.safetensors"):
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()
    assert len({node for _, node in ranks._places}) == 2
    with pytest.raises(ConfigError, match="copies of the weights"):  # a rank's error is the call's
        ranks.call("hold", ModelSource(partial(tiny_llama, vocab_size=64)), 0, Placement(replicas=3))
    assert ranks.call("pair_cost")[0] > 0, "the ranks outlive an error that a user can act on"


def test_one_rank_has_the_whole_model(ray_nodes: Any, tmp_path: Path) -> None:
    alone = RayRanks(1, gpu=False, logs=tmp_path / "logs", tell=lambda text: None)
    alone.place()
    try:
        weights, _ = drive(alone, tmp_path / "one")
    finally:
        alone.close()
    assert all(torch.isfinite(value).all() for value in weights.values())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "none", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs to mount a file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_under_the_ranks_is_known_as_one_and_they_go_on(
    ranks: RayRanks, small_disk: Path, tmp_path: Path
) -> None:
    before, _ = drive(ranks, tmp_path / "roomy")
    with pytest.raises(Exception) as raised:
        ranks.call("save_model", small_disk / "checkpoint")
    assert is_full(raised.value)
    again, _ = drive(ranks, tmp_path / "again")
    assert all(torch.equal(before[name], again[name]) for name in before)
