"""The benchmark beside TRL: what it hands from one side to the other is the same thing, and a small run comes to its
figures."""

import json
import subprocess
import sys
from pathlib import Path

import _same_loss as same_loss
import pytest
import torch

from arpo.core.tree import Role

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "against_trl.py"


def test_rows_of_trl_become_trees_with_the_same_tokens_and_credit():
    rows = {
        "prompt_ids": torch.tensor([[0, 7, 8], [0, 7, 8]]),  # padded on the left
        "prompt_mask": torch.tensor([[0, 1, 1], [0, 1, 1]]),
        "completion_ids": torch.tensor([[1, 2, 50, 51, 3, 0], [4, 5, 6, 60, 61, 0]]),
        "completion_mask": torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 0]]),
        "tool_mask": torch.tensor([[1, 1, 0, 0, 1, 0], [1, 1, 1, 0, 0, 0]]),  # the second ends with a result
        "advantages": torch.tensor([0.5, -0.5]),
    }
    (tree,) = same_loss.as_trees(rows, leaves=2)
    grown = tree.tree
    assert list(grown.prompt.tokens) == [7, 8]
    assert {place: list(turn.tokens) for place, turn in grown.turns.items()} == {
        (0,): [1, 2],
        (0, 0): [3],
        (1,): [4, 5, 6],
    }
    assert {place: list(seen.tokens) for place, seen in grown.observations.items()} == {(0,): [50, 51]}
    assert tree.advantages == {(0, 0): 0.5, (1,): -0.5}
    assert tree.credit == {((0,), (0, 0)): 0.5, ((0, 0), (0, 0)): 0.5, ((1,), (1,)): -0.5}
    assert [grown.turns[place].role for place in sorted(grown.turns)] == [Role.ROOT, Role.PROBE, Role.ROOT]


@pytest.mark.slow
def test_a_quick_run_finds_one_loss_on_both_sides(tmp_path):
    pytest.importorskip("trl")
    sizes = {"rounds": 1, "tasks": 2, "leaves": 4, "updates": 30, "completion": 96, "dtype": "float32"}
    small = ["--quick", *(f"--{name}={value}" for name, value in sizes.items())]
    command = [sys.executable, str(SCRIPT), *small, "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2700, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    same = found["figures"]["same_loss"]
    assert same["loss_relative"] < 1e-4 and same["gradient_relative"] < 1e-4, same
    assert {"trl", "none", "arpo"} == set(found["figures"]["median"])
