"""What the world and the numbers do to a step: lost leaves, a lost step, a lost validation, losses that are not
finite."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from loop_world import PLAIN, answer, go, mixed_on_odd, texts, training

from arpo.engines import SamplingParams
from arpo.engines.scripted import Script, ScriptedEngine
from arpo.errors import ArpoError, EngineError, LearnerError
from arpo.learner import Update
from arpo.runs import checkpoint
from arpo.runs.checkpoint import TrainState
from arpo.runs.folder import RunFolder
from tiny_project import TinyProject


def dead(_engine: ScriptedEngine, _asked: int, _text: str, _params: SamplingParams) -> Script:
    return Script(said=answer("odd"), fails_after=2)


def test_a_step_lost_to_the_engine_stops_the_run_and_says_why(tiny_project: TinyProject, tmp_path: Path) -> None:
    with training(tiny_project, tmp_path / "run", dead, *PLAIN) as trainer, pytest.raises(EngineError) as error:
        asyncio.run(trainer.train())
    assert (
        "step 1" in str(error.value)
        and "the script fails after 2 tokens" in str(error.value)
        and "12 trajectories" in str(error.value)
    )


def test_leaves_lost_to_the_engine_leave_their_group(tiny_project: TinyProject, tmp_path: Path) -> None:
    def now_and_then(engine: ScriptedEngine, asked: int, text: str, params: SamplingParams) -> "Script | str":
        good = mixed_on_odd(engine, asked, text, params)
        return Script(said=good, fails_after=2) if params.seed % 3 == 0 else good

    _, folder = go(tiny_project, tmp_path / "run", now_and_then, *PLAIN, "train.steps=2", "rollout.retries=0")
    lost = sum(line["leaves/lost"] for line in folder.metrics())
    assert 0 < lost < 24 and sum(line["leaves/scored"] for line in folder.metrics()) == 24 - lost


def test_a_validation_lost_to_the_engine_is_no_validation(tiny_project: TinyProject, tmp_path: Path) -> None:
    def dies(engine: ScriptedEngine, asked: int, text: str, params: SamplingParams) -> "Script | str":
        return dead(engine, asked, text, params) if engine.version else mixed_on_odd(engine, asked, text, params)

    with (
        training(tiny_project, tmp_path / "run", dies, *PLAIN, "train.eval_every=1") as trainer,
        pytest.raises(EngineError, match="validation-000001"),
    ):
        asyncio.run(trainer.train())
    assert trainer.state.best is None
    saved, _ = checkpoint.newest(tmp_path / "run" / "checkpoints")
    assert saved is not None and saved.state.step == 1 and saved.state.validated == 0, (
        "so a resumed run validates it first"
    )


def test_three_steps_in_a_row_without_a_finite_loss_stop_the_run(tiny_project: TinyProject, tmp_path: Path) -> None:
    plan = ("train.steps=9", "optim.lr=1.0e+30", "optim.weight_decay=0", "rollout.leaves=8", "rollout.roots=8")
    with (
        training(tiny_project, tmp_path / "run", mixed_on_odd, *PLAIN, *plan) as trainer,
        pytest.raises(ArpoError, match=r"3 steps in a row .* lower optim.lr"),
    ):
        asyncio.run(trainer.train())
    folder = RunFolder(tmp_path / "run")
    assert sum("its update was skipped" in text for text in texts(folder)) == 3
    saved, _ = checkpoint.newest(folder.path / "checkpoints")
    bad = [line["step"] for line in folder.metrics() if line["train/updates"] and line["train/skipped_updates"]]
    assert saved is not None and saved.state.step == bad[0] - 1, (
        "the weights may be what is broken: they push out no checkpoint"
    )
    trainer.history = [dict(line) for line in folder.metrics()]  # as a resumed run has it
    assert trainer.bad_updates == len(bad) == 2


def test_weights_that_an_update_broke_end_the_run_and_reach_no_checkpoint(
    tiny_project: TinyProject, tmp_path: Path
) -> None:
    """A loss and a gradient that are finite, and a step of the optimizer that leaves the numbers there are."""
    import torch

    with training(tiny_project, tmp_path / "run", mixed_on_odd, *PLAIN, "train.steps=9", "rollout.leaves=8") as trainer:
        update = trainer.learner.update

        def breaks(*arguments: Any, **more: Any) -> Update:
            result = update(*arguments, **more)
            if trainer.step == 3:
                with torch.no_grad():
                    next(trainer.learner.policy.parameters())[7, 7] = float("inf")
            return result

        trainer.learner.update = breaks  # type: ignore[assignment, method-assign]
        with pytest.raises(
            ArpoError, match=r"step 3 broke the weights \(model\.embed_tokens\.weight is not finite\): lower optim\.lr"
        ):
            asyncio.run(trainer.train())
    saved, passed = checkpoint.newest(tmp_path / "run" / "checkpoints")
    assert saved is not None and saved.state.step == 2 and passed == []


def test_what_was_saved_after_a_skipped_update_is_not_resumed_from(tiny_project: TinyProject, tmp_path: Path) -> None:
    """Ctrl-C after one bad step: the weights are kept, but may be what is broken."""
    plan = ("train.steps=9", "optim.lr=1.0e+30", "optim.weight_decay=0", "rollout.leaves=8", "rollout.roots=8")
    with training(tiny_project, tmp_path / "run", mixed_on_odd, *PLAIN, *plan) as trainer:
        finish = trainer.finish_step

        def interrupted(*arguments: object) -> None:
            finish(*arguments)  # type: ignore[arg-type]
            if trainer.bad_updates:
                raise KeyboardInterrupt

        trainer.finish_step = interrupted  # type: ignore[assignment, method-assign]
        with pytest.raises(KeyboardInterrupt):
            asyncio.run(trainer.train())
    last = trainer.state
    assert last.skipped == 1 and checkpoint.path_of(tmp_path / "run" / "checkpoints", last.step).is_dir()
    saved, passed = checkpoint.newest(tmp_path / "run" / "checkpoints")
    assert saved is not None and saved.state.step < last.step and saved.state.skipped == 0
    assert len(passed) == 1 and "updates that were skipped" in passed[0]


def test_a_learner_lost_again_and_again_is_made_anew_three_times_a_step(
    tiny_project: TinyProject, tmp_path: Path
) -> None:
    """In step 2; that which is made anew may be lost, too. What it holds is saved in no checkpoint."""
    with training(tiny_project, tmp_path / "run", mixed_on_odd, *PLAIN, "train.steps=3") as trainer:
        update, recovered = trainer.learner.update, list[tuple[str, int, bool]]()

        def loses(*arguments: Any, **more: Any) -> Update:
            if trainer.step == 2:
                raise LearnerError("rank 1 is gone")
            return update(*arguments, **more)

        def recover(error: LearnerError, state: TrainState) -> Any:
            recovered.append((str(error), state.step, trainer.consistent))
            if len(recovered) == 2:
                raise LearnerError("and once more")
            return trainer.learner

        trainer.learner.update, trainer.recover = loses, recover  # type: ignore[assignment, method-assign]
        with pytest.raises(LearnerError, match="rank 1 is gone"):
            asyncio.run(trainer.train())
    assert recovered == [("rank 1 is gone", 1, False), ("rank 1 is gone", 1, False), ("and once more", 1, False)]
    assert trainer.state.step == 1
    saved, _ = checkpoint.newest(tmp_path / "run" / "checkpoints")
    assert saved is not None and saved.state.step == 1


def test_trees_are_on_disk_before_anything_is_trained(tiny_project: TinyProject, tmp_path: Path) -> None:
    def falls_over(*_: object, **_more: object) -> None:
        raise MemoryError("the update")

    with training(tiny_project, tmp_path / "run", mixed_on_odd, *PLAIN) as trainer:
        trainer.learner.update = falls_over  # type: ignore[assignment, method-assign]
        with pytest.raises(MemoryError):
            asyncio.run(trainer.train())
    records = list(RunFolder(tmp_path / "run").trees(1))
    assert len(records) == trainer.run.train.tasks_per_step and all(record.scores for record in records)
