"""The loop looks before it trains: gates on the first step, and a warning where tools fall out of use."""

import asyncio
from pathlib import Path

import pytest
from loop_world import PLAIN, go, mixed_on_odd, training, weights

from arpo.engines import SamplingParams
from arpo.engines.scripted import ScriptedEngine
from arpo.errors import GateError
from arpo.runs.folder import RunFolder
from tiny_project import TinyProject


def test_failing_gates_are_named_and_nothing_is_trained(tiny_project: TinyProject, tmp_path: Path) -> None:
    with training(tiny_project, tmp_path / "run", mixed_on_odd, *PLAIN, "train.gates={}") as trainer:
        before = weights(trainer)
        with pytest.raises(GateError, match="leaves that used a tool") as error:
            asyncio.run(trainer.train())
        assert "leaves in the right format" not in str(error.value), "this one holds"
        assert all(a.equal(b) for a, b in zip(before, weights(trainer), strict=True))
    folder = RunFolder(tmp_path / "run")
    gates = {gate["what"]: gate for gate in folder.summary()["gates"]}
    assert (
        len(gates) == 4
        and not gates["leaves that used a tool"]["holds"]
        and gates["leaves in the right format"]["holds"]
    )
    assert len(list(folder.trees(1))) == 3, "to be looked at"
    assert folder.metrics() == [] and not list((tmp_path / "run" / "checkpoints").iterdir())


def test_gates_are_measured_without_being_asked_for(tiny_project: TinyProject, tmp_path: Path) -> None:
    _, folder = go(tiny_project, tmp_path / "run", mixed_on_odd, *PLAIN, "train.steps=1")
    assert [gate["holds"] for gate in folder.summary()["gates"]].count(False) >= 2


def test_tool_use_that_collapses_is_said_once(tiny_project: TinyProject, tmp_path: Path) -> None:
    def forgets(engine: ScriptedEngine, asked: int, text: str, params: SamplingParams) -> str:
        """The version counts the steps done."""
        called = "<result>" in text.split("Parity of ")[-1]
        return (
            f"<parity>{asked}</parity>"
            if engine.version < 4 and not called
            else mixed_on_odd(engine, asked, text, params)
        )

    _, folder = go(tiny_project, tmp_path / "run", forgets, "train.steps=9", "train.trackers=[]", "rollout.rule=none")
    assert folder.metrics()[0]["rates/tool_use"] == 1 and folder.metrics()[-1]["rates/tool_use"] == 0
    (said,) = [note for note in folder.notes() if "tool use collapsed" in note["text"]]
    assert said["level"] == "warning" and said["step"] == 6
