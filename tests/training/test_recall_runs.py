"""Runs on the recall world with a scripted agent and a real learner: contexts that were rewritten survive a kill, and
what a long branch holds does not grow with its turns."""

import asyncio
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import recall_player
from arpo.assembly.components import build_components
from arpo.core.credit import AdvantageConfig, credit
from arpo.core.tree import RolloutTree
from arpo.display.terminal import Console
from arpo.engines import SamplingParams
from arpo.engines.base import EngineWrapper
from arpo.engines.local import LocalEngine
from arpo.learner.packing import pack
from arpo.models.sources import fetch
from arpo.recipe.load import load_recipe
from arpo.runs.folder import RunFolder
from arpo.tasks import recall
from arpo.training.pipeline import train
from by_timing import BY_TIMING
from small_world import rollouts

CLOCKS = (*BY_TIMING, "tokens/per_s")


RECOMPOSE = "{use: recompose, options: {heading: noted}}"
DROP = "{use: drop_results, options: {text: dropped}}"


def settings(turns: int = 24, context: str = RECOMPOSE) -> list[str]:
    options = f"{{turns: {turns}, early: 6, facts: 2, words: 4}}"
    data = ", ".join(
        f"{split}: {{source: 'arpo.tasks.recall:tasks', options: {options}}}" for split in ("train", "test")
    )
    return [
        *(f"data={{{data}}}", "engine.kind=recall_player:engine", "cold_start=null", "train.trackers=[]"),
        *("train.steps=3", "train.tasks_per_step=2", "train.save_every=1", "evaluation.limit=4"),
        *(f"rollout.max_calls={turns}", "rollout.branch_tokens=120", f"rollout.context={context}"),
        *("rollout.leaves=4", "rollout.roots=2"),
    ]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARPO_CACHE", str(tmp_path / "cache"))


def trained(out: Path, *changes: str, resume: bool = False) -> RunFolder:
    recipe = load_recipe("recall", [*settings(), *changes])
    train(recipe, out=out, resume=resume, console=Console(quiet=True))
    return RunFolder(out)


def steps(folder: RunFolder) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if not key.startswith(CLOCKS)} for line in folder.metrics()]


def written(tree: RolloutTree) -> dict[Any, Any]:
    """All but how long tools took."""
    turns = {place: (turn.tokens, turn.logprobs, turn.entropies) for place, turn in tree.turns.items()}
    return {**turns, **{("seen", *at): (seen.tokens, seen.new_context) for at, seen in tree.observations.items()}}


@pytest.mark.parametrize("context", [RECOMPOSE, pytest.param(DROP, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_goes_on_as_if_nothing_had_been(tmp_path: Path, context: str) -> None:
    whole = trained(tmp_path / "whole", f"rollout.context={context}")
    cut = tmp_path / "cut"
    here = Path(recall_player.__file__).parent
    source = Path(sys.modules["arpo"].__file__ or "").parents[1]
    command = [sys.executable, "-m", "arpo", "train", "recall", *settings(context=context), "--out", str(cut)]
    turns = sum(len(record.tree.turns) for step in (1, 2) for record in whole.trees(step))
    asked = {"KILLED_AT": str(4 * 25 + turns + 9), "PYTHONPATH": f"{source}:{here}"}  # in its third step
    killed = subprocess.run(command, env={**os.environ, **asked}, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stdout + killed.stderr
    assert len(RunFolder(cut).metrics()) == 2
    again = trained(cut, f"rollout.context={context}", resume=True)
    assert steps(again) == steps(whole) and again.summary()["accuracy_after"] == whole.summary()["accuracy_after"]
    for step in (1, 2, 3):
        trees = [record.tree for record in whole.trees(step)]
        assert [written(record.tree) for record in again.trees(step)] == [written(tree) for tree in trees]
        assert all(any(seen.new_context for seen in tree.observations.values()) for tree in trees)
    assert all(line["contexts/a_leaf"] > 2 for line in whole.metrics())


class Read(EngineWrapper):
    """Plays turns whose prompts a real engine has read."""

    def __init__(self, player: recall_player.Played, reader: LocalEngine) -> None:
        super().__init__(player)
        self.reader = reader

    async def sample(self, prompt: Any, params: SamplingParams) -> Any:  # type: ignore[override]
        asked = SamplingParams(max_tokens=1, seed=params.seed, tree=params.tree)
        async for _ in self.reader.sample(prompt, asked):
            pass
        async for chunk in self.engine.sample(prompt, params):
            yield chunk


def test_memory_does_not_grow_with_turns() -> None:
    """The keys and values that a real engine holds for a tree, its longest prompt, and the learner's largest pack."""

    def held(turns: int) -> tuple[int, int, int, float]:
        run = load_recipe("recall", settings(turns))
        components = build_components(run, fetch(run.model.source), None)
        player = components.agent.engine
        while not isinstance(player, recall_player.Played):
            player = player.engine  # type: ignore[attr-defined]
        player.longest = 0
        reader = LocalEngine(components.model, dtype="float32", slots=4, lanes=1)
        agent = replace(components.agent, engine=Read(player, reader))
        task = recall.tasks("train", **run.data.train.options)[0]
        (one,) = asyncio.run(_grown(agent, run.rollout, task, reader))
        (credited,) = credit([one.scored], AdvantageConfig())
        contexts = [len(one.grown.tree.contexts(leaf)) for leaf in one.grown.tree.leaves()]
        packs = max(each.num_unique for each in pack([credited], 256))
        return reader.lanes[0].decoder.slots.store.numel(), player.longest, packs, min(contexts)

    (few, *short, least), (many, *long, most) = held(50), held(400)
    assert many == few and most > 6 * least
    assert long[0] <= short[0] + 12 <= 132 and long[1] <= 256, "a turn more or less, inside the same limits"


async def _grown(agent: Any, rules: Any, task: Any, reader: LocalEngine) -> Any:
    try:
        return await rollouts(agent, rules, task)
    finally:
        await reader.close()


def test_notes_outlast_their_pages_and_results_do_not(tmp_path: Path) -> None:
    """Of the same agent, which notes every other fact."""
    noted, dropped = (
        trained(tmp_path / name, f"rollout.context={context}", "train.steps=1", "evaluation.limit=40")
        for name, context in (("noted", RECOMPOSE), ("dropped", DROP))
    )
    known, guessed = (each.summary()["accuracy_after"]["mean"] for each in (noted, dropped))
    assert 0.25 < known < 0.75 and guessed == 0
