"""It learns: plain samples earn more at the end of a run than at its beginning."""

import json
from pathlib import Path
from typing import Any

import pytest
from loop_world import PLAIN

from arpo.chat import Transcript
from arpo.core.score import Score
from arpo.display.terminal import Console
from arpo.recipe.load import load_recipe
from arpo.recipe.run import RunConfig
from arpo.tasks import Task
from arpo.training.pipeline import train
from tiny_project import TinyProject


async def vowels(_task: Task, said: Transcript) -> Score:
    """The share of vowels among the characters written."""
    text = said.turns[-1].text
    share = sum(character in "aeiou" for character in text) / max(1, len(text))
    return Score(reward=share, accuracy=share)


async def copies(_task: Task, said: Transcript) -> Score:
    """Right is who calls the tool and answers what it said, whatever was asked."""
    seen = [outcome.text for outcomes in said.outcomes for outcome in outcomes if outcome.ran]
    right = float(bool(seen) and said.answer == seen[-1])
    return Score(reward=right, accuracy=right)


def learnt(run: RunConfig, out: Path, reward: Any) -> list[float]:
    """The reward of plain samples, step by step."""
    train(run.model_copy(update={"reward": reward}), out=out, console=Console(quiet=True))
    return [line["reward/probe_lines"] for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines())]


QUIET = (
    "evaluation={limit: 1, greedy_limit: 0}",
    "train.trackers=[]",
    "train.save_every=null",
    "train.tasks_per_step=6",
)


@pytest.mark.parametrize("most", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_model_from_scratch_learns(tiny_project: TinyProject, tmp_path: Path, most: int) -> None:
    """Sampling in turn with training, or ahead of it."""
    plan = (
        "cold_start=null",
        "train.steps=30",
        "optim.lr=1e-2",
        "rollout.turn_tokens=8",
        *PLAIN[:3],
        "rollout.roots=6",
        f"train.max_staleness={most}",
    )
    rewards = learnt(load_recipe(tiny_project.recipe, [*QUIET, *plan]), tmp_path / "run", vowels)
    assert sum(rewards[-3:]) / 3 > 2 * sum(rewards[:3]) / 3, rewards


@pytest.mark.slow
def test_an_agent_learns_to_copy_what_its_tool_says(tiny_project: TinyProject, tmp_path: Path) -> None:
    plan = ("cold_start.steps=40", "train.steps=80", "optim.lr=1e-3", "rollout.leaves=8", "rollout.rule=paper")
    rewards = learnt(load_recipe(tiny_project.recipe, [*QUIET, *plan]), tmp_path / "run", copies)
    assert sum(rewards[-10:]) / 10 > 0.2 + sum(rewards[:10]) / 10, rewards
