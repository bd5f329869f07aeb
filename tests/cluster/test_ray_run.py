"""`cluster.ranks`: the run of one process, with the ranks on other nodes of Ray."""

import json
from pathlib import Path
from typing import Any

import pytest

from arpo.display.terminal import Console
from arpo.recipe.load import load_recipe
from arpo.training.pipeline import train
from tiny_project import TinyProject

pytestmark = pytest.mark.slow

SHORT = (
    "cold_start=null",
    "loss.entropy_coefficient=0.01",  # which teaches where all rewards are equal
    "train.steps=2",
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


@pytest.fixture(scope="module")
def undisturbed(ray_nodes: Any, tiny_files: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of two ranks on two nodes, and what it says."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    return out, run(tiny_files, out, "cluster.ranks=2")


def test_two_ranks_on_ray_train_what_one_process_does(
    undisturbed: tuple[Path, str], tiny_files: TinyProject, tmp_path: Path
) -> None:
    two, text = undisturbed
    run(tiny_files, tmp_path / "one")
    assert text.index("driver on") < text.index("step 1"), text
    assert text.count("rank 0 on") == text.count("rank 1 on") == 1
    for one, other in zip(metrics(tmp_path / "one"), metrics(two), strict=True):
        for name in ("train/loss", "train/grad_norm", "reward/leaves"):
            assert other[name] == pytest.approx(one[name], rel=1e-3, abs=1e-4), name
    assert {path.name for path in (two / "logs").iterdir()} == {"rank-0.log", "rank-1.log"}
