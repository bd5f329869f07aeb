"""Training again from recorded trees: the same recipe gives the same weights, another estimator other ones."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from arpo.display.terminal import Console
from arpo.errors import ConfigError
from arpo.runs import checkpoint
from arpo.training.retrain import retrain


def again(run: Path, out: Path, *overrides: str) -> tuple[list[dict[str, Any]], str]:
    """Metrics by step, and what was printed."""
    text = io.StringIO()
    assert retrain(run, overrides, out, console=Console(file=text, width=200)) == out
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()], text.getvalue()


def distance(one: Path, other: Path) -> float:
    """Largest difference of two models' weights."""
    a, b = (load_file(folder / "model.safetensors") for folder in (one, other))
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def test_the_same_recipe_gives_the_weights_of_the_run(tiny_run: Path, tmp_path: Path) -> None:
    lines, printed = again(tiny_run, tmp_path / "same", "evaluation.limit=1", "evaluation.greedy_limit=0")
    saved, _ = checkpoint.newest(tiny_run / "checkpoints")
    assert saved is not None and saved.state.step == len(lines) == 2
    assert all(line["credit/agreement"] == pytest.approx(1.0) for line in lines)
    assert distance(tmp_path / "same" / "model", saved.model) < 1e-6
    assert "+1.000" in printed


def test_another_estimator_is_weighted_for_the_policy_that_sampled_and_compared_with_the_run(
    tiny_run: Path, tmp_path: Path
) -> None:
    overrides = ("advantage.estimator=sibling", "loss.tis_cap=1.5", "optim.lr=1e-2", "evaluation.greedy_limit=0")
    lines, printed = again(tiny_run, tmp_path / "other", *overrides)
    saved, _ = checkpoint.newest(tiny_run / "checkpoints")
    assert saved is not None and distance(tmp_path / "other" / "model", saved.model) > 1e-3
    assert all(line["credit/agreement"] < 0.999 for line in lines)
    first, second = (line["train/mismatch_abs_mean"] for line in lines)
    assert second > 10 * first, "from the second step on the policy is no longer the one that sampled"
    assert lines[0]["train/mismatch_truncated"] == 0 < lines[1]["train/mismatch_truncated"]
    assert (tmp_path / "other" / "evaluation" / "after" / "results.json").is_file()
    assert "accuracy, after" in printed and "mismatch_abs_mean" in printed


@pytest.mark.parametrize(
    ("overrides", "where"),
    [
        (["rollout.leaves=4"], "rollout"),
        (["chat.format=template"], "chat"),
        (["loss.tis_cap=null"], "loss.tis_cap"),
        (["advantage.estimatr=sibling"], "advantage"),
    ],
)
def test_what_cannot_be_trained_again_is_refused(tiny_run: Path, tmp_path: Path, overrides: Sequence[str], where: str):
    with pytest.raises(ConfigError) as caught:
        retrain(tiny_run, overrides, tmp_path / "out", console=Console(quiet=True))
    assert where in str(caught.value)
    assert not (tmp_path / "out").exists()
