"""A whole run of a recipe with an environment: tried, trained, evaluated, recorded, and its tools called by hand."""

import io
from pathlib import Path

import pytest

from arpo.cli.tools import show_tools
from arpo.core.record import decode
from arpo.display.terminal import Console
from arpo.dry_run.dry_run import dry_run
from arpo.recipe.load import load_recipe
from arpo.training.pipeline import train
from tiny_project import TinyProject

ENVIRONMENT = '''
import arpo


class Odd(arpo.Environment):
    """Asks on until it is told a word or was asked often enough."""

    def __init__(self, turns: int = 2) -> None:
        self.turns = turns

    def reset(self, task: arpo.Task) -> None:
        self.seen = []

    @arpo.tool
    def parity(self, number: int) -> str:
        """Parity of a number.

        Args:
            number: which
        """
        self.seen.append(number)
        return "odd" if number % 2 else "even"

    def step(self, turn: arpo.AgentTurn) -> arpo.Step:
        if turn.calls:
            return arpo.Step(reward=0.25)
        done = turn.number + 1 >= self.turns
        return arpo.Step(message="And?", done=done, reward=float(len(turn.text) % 2))
'''


@pytest.mark.slow
def test_a_run_in_an_environment(
    own_project: TinyProject, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (own_project.folder / "tiny_env.py").write_text(ENVIRONMENT)
    monkeypatch.syspath_prepend(str(own_project.folder))
    changes = ["environment={use: 'tiny_env:Odd', options: {turns: 3}}", "tools=[]", "reward={}"]
    run = load_recipe(
        own_project.recipe, [*changes, "train.steps=1", "evaluation.limit=2", "evaluation.greedy_limit=1"]
    )
    console = Console(file=io.StringIO(), width=100)
    dry_run(run, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "environment odd (tools: parity): a branch gets a copy of the episode" in shown
    assert show_tools(str(own_project.recipe), [*changes, "parity", "7"])
    assert "odd" in capsys.readouterr().out
    folder = tmp_path / "run"
    train(run, out=folder, console=Console(quiet=True))
    assert load_recipe(folder).environment == run.environment
    records = list(decode((folder / "events" / "step-000001.frames").read_bytes()))
    assert records and any(record.notes["environment"] for record in records)
    assert any(score.reward for record in records for score in record.scores.values())
