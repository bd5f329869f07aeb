"""Validation while training: the best is kept, and when a run ends early."""

import asyncio
import shutil
from pathlib import Path

import pytest
from loop_world import PLAIN, Play, answer, go, mixed_on_odd, texts, training

from arpo.engines import SamplingParams
from arpo.engines.scripted import ScriptedEngine
from arpo.evaluation.samples import read_samples
from arpo.runs import checkpoint
from tiny_project import TinyProject, question


def peaks_at(best: int) -> Play:
    """Answers of version `best` are right more often than those before and after it."""

    def play(engine: ScriptedEngine, asked: int, _text: str, params: SamplingParams) -> str:
        if asked < 31:  # training
            return answer("odd" if params.seed % 2 else "even")
        right = asked - 31 < 5 - abs(engine.version - best)
        return answer(question(asked)["answer"] if right else "neither")

    return play


def test_the_best_validation_is_remembered_and_kept(tiny_project: TinyProject, tmp_path: Path) -> None:
    plan = ("train.steps=5", "train.eval_every=1", "train.keep_last=1", "train.save_every=1")
    trainer, folder = go(tiny_project, tmp_path / "run", peaks_at(2), *PLAIN, *plan)
    assert (trainer.state.best_step, trainer.state.best, trainer.state.stale_evaluations) == (2, 1.0, 3)
    assert sorted(path.name for path in (folder.path / "checkpoints").iterdir()) == ["step-000002", "step-000005"]
    newest, _ = checkpoint.newest(folder.path / "checkpoints")
    assert newest is not None and newest.state == trainer.state
    assert sorted(path.stem for path in (folder.path / "evaluation").iterdir()) == [
        f"validation-00000{n}" for n in range(1, 6)
    ]


def test_it_stops_when_validation_no_longer_rises(tiny_project: TinyProject, tmp_path: Path) -> None:
    plan = ("train.steps=9", "train.eval_every=1", "train.early_stop=2")
    trainer, folder = go(tiny_project, tmp_path / "run", peaks_at(2), *PLAIN, *plan)
    assert trainer.state.step == 4 and trainer.state.best_step == 2 and "no better validation" in trainer.ended_early
    assert any("ended after step 4 of 9" in text for text in texts(folder))


def test_the_last_step_is_validated_too(tiny_project: TinyProject, tmp_path: Path) -> None:
    trainer, folder = go(tiny_project, tmp_path / "run", peaks_at(5), *PLAIN, "train.steps=5", "train.eval_every=2")
    assert trainer.state.best_step == 5 == trainer.state.validated
    assert sorted(path.stem[-1] for path in (folder.path / "evaluation").iterdir()) == ["2", "4", "5"]


def test_fewer_steps_are_done_rather_than_overrun(tiny_project: TinyProject, tmp_path: Path) -> None:
    now = [0.0]

    def slow(engine: ScriptedEngine, asked: int, text: str, params: SamplingParams) -> str:
        now[0] += 1.0  # 12 leaves a step
        return mixed_on_odd(engine, asked, text, params)

    trainer, folder = go(
        tiny_project, tmp_path / "run", slow, *PLAIN, "train.steps=9", "train.minutes=1", clock=lambda: now[0]
    )
    assert trainer.state.step == 4 and now[0] <= 60 and "overrun" in trainer.ended_early
    assert [line["seconds/step"] for line in folder.metrics()] == [12, 12, 12, 12] and trainer.state.seconds == 48
    assert checkpoint.newest(folder.path / "checkpoints")[0] is not None


def test_a_run_killed_in_a_validation_asks_only_what_is_missing(tiny_project: TinyProject, tmp_path: Path) -> None:
    plan = ("train.steps=2", "train.eval_every=1", "train.save_every=9", "train.eval_limit=5", "engine.slots=1")
    asked: list[int] = []

    class KilledError(Exception):
        pass

    def dies(engine: ScriptedEngine, number: int, text: str, params: SamplingParams) -> str:
        if number >= 31:  # validation
            asked.append(number)
            if len(asked) == 3:
                raise KilledError
        return mixed_on_odd(engine, number, text, params)

    def lives(engine: ScriptedEngine, number: int, text: str, params: SamplingParams) -> str:
        asked.extend([number] if number >= 31 else [])
        return mixed_on_odd(engine, number, text, params)

    with pytest.raises(KilledError):
        go(tiny_project, tmp_path / "run", dies, *PLAIN, *plan)
    folder = tmp_path / "run" / "evaluation" / "validation-000001"
    before = read_samples(folder)
    saved, _ = checkpoint.newest(tmp_path / "run" / "checkpoints")
    assert len(before) == 2 and saved is not None and (saved.state.step, saved.state.validated) == (1, 0)
    shutil.copytree(tmp_path / "run", tmp_path / "resumed", ignore=shutil.ignore_patterns("lock"))

    asked.clear()
    with training(tiny_project, tmp_path / "resumed", lives, *PLAIN, *plan, state=saved.state, resume=True) as trainer:
        asyncio.run(trainer.validate())
    after = read_samples(tmp_path / "resumed" / "evaluation" / "validation-000001")
    assert len(asked) == 3 and len(after) == 5 and {key: after[key] for key in before} == before
    assert trainer.state.validated == 1 and trainer.state.best_step == 1
    asked.clear()
    with training(tiny_project, tmp_path / "resumed", lives, *PLAIN, *plan, state=saved.state, resume=True) as trainer:
        asyncio.run(trainer.validate())
    assert not asked and trainer.state.validated == 1, "a validation that is whole is read, not made again"
