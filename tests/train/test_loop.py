"""The loop: what a step takes, records, trains on and says, when it ends, and that it learns.

Turns are scripted except where something is to be learnt, so every step is known beforehand; the learner is real.
"""

import asyncio
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from arpo.chat import Transcript
from arpo.core.record import replay
from arpo.core.score import Score
from arpo.core.tree import Role
from arpo.engines import Engine, SamplingParams
from arpo.engines.scripted import Script, ScriptedEngine
from arpo.errors import ArpoError, ConfigError, EngineError
from arpo.recipe import load_recipe
from arpo.run import Run
from arpo.tasks import Task
from arpo.train import checkpoint
from arpo.train.checkpoint import TrainState
from arpo.train.job import build_job, build_learner, read_tasks
from arpo.train.loop import GateError, Trainer
from arpo.train.order import in_order
from arpo.train.pipeline import train
from arpo.train.progress import Progress
from arpo.train.runfolder import RunFolder
from arpo.train.trackers import Trackers
from tiny_project import TinyProject, question, trace

Play = Callable[[ScriptedEngine, int, str, SamplingParams], "Script | str"]
"""(engine, the number asked about, the prompt's text, params) to a turn."""

PLAIN = ("tools=[]", "rollout.max_calls=0", "rollout.rule=none", "rollout.leaves=4", "rollout.roots=4", "train.trackers=[]")


@contextmanager
def training(
    project: TinyProject, out: Path, play: Play | None, *overrides: str, clock: Callable[[], float] | None = None, **parts: Any
) -> Iterator[Trainer]:
    """A trainer of the project's model, its turns scripted by `play`. `parts`: state, reward, num_steps."""
    run = load_recipe(project.recipe, ["cold_start=null", *overrides])
    job = build_job(run, project.model)
    if play:
        holder: list[ScriptedEngine] = []

        def turn(prompt: Sequence[int], params: SamplingParams) -> "Script | str":
            text = job.tokenizer.decode(prompt)
            asked = int(text.split("Parity of ")[-1].split("<|im_end|>")[0])
            return play(holder[0], asked, text, params)

        holder.append(ScriptedEngine(turn, job.tokenizer))
        engine: Engine = holder[0]
        job = replace(job, agent=replace(job.agent, engine=engine))
    if "reward" in parts:
        job = replace(job, reward=parts["reward"])
    num_steps = parts.get("num_steps", run.train.steps)
    learner = build_learner(job, optim=run.optim, num_updates=num_steps, tell=print)
    progress = Progress(num_steps, minutes=run.train.minutes, console=Console(quiet=True), **({"clock": clock} if clock else {}))
    with RunFolder.create(out, "run: tests", {}) as folder, Trackers(out, (), settings={}) as trackers:
        tasks, validation = (read_tasks(run, split)[0] for split in ("train", "validation"))
        state = parts.get("state", TrainState())
        yield Trainer(
            job, learner, folder, tasks, validation, state=state, num_steps=num_steps, progress=progress, trackers=trackers
        )


def go(project: TinyProject, out: Path, play: Play | None, *overrides: str, **parts: Any) -> tuple[Trainer, RunFolder]:
    with training(project, out, play, *overrides, **parts) as trainer:
        asyncio.run(trainer.train())
    return trainer, RunFolder(out)


def answer(said: str) -> str:
    return f"<answer>{said}</answer>"


def mixed_on_odd(_engine: ScriptedEngine, asked: int, _text: str, params: SamplingParams) -> str:
    """Always `even`, but about an odd number now and then right."""
    return answer("odd" if asked % 2 and params.seed % 2 else "even")


def wrong(_engine: ScriptedEngine, _asked: int, _text: str, _params: SamplingParams) -> str:
    return answer("neither")


def weights(trainer: Trainer) -> list[Any]:
    return [p.detach().clone() for p in trainer.learner.unwrapped.parameters()]


def texts(folder: RunFolder) -> list[str]:
    return [note["text"] for note in folder.notes()]


# --- data order


def test_steps_consume_tasks_in_order_and_count_them(tiny_project: TinyProject, tmp_path: Path) -> None:
    trainer, folder = go(tiny_project, tmp_path / "run", mixed_on_odd, *PLAIN, "train.steps=3")
    expected = [task.id for task in in_order(trainer.tasks, trainer.run.seed, 0, 9, apart=3)]
    assert [record.tree.task for step in (1, 2, 3) for record in folder.trees(step)] == expected
    assert [line["tasks/position"] for line in folder.metrics()] == [3, 6, 9]
    assert trainer.state.position == 9 and trainer.state.step == 3


@pytest.mark.parametrize("dynamic", ["null", "{max_batches: 3}"])
def test_no_step_takes_a_task_twice_where_epochs_meet(tiny_project: TinyProject, tmp_path: Path, dynamic: str) -> None:
    """Two trees of one task in a step would have the same draws."""
    plan = ("data.train.limit=5", "train.steps=4", f"train.dynamic_sampling={dynamic}")
    trainer, folder = go(tiny_project, tmp_path / "run", mixed_on_odd, *PLAIN, *plan)
    steps = [[record.tree.task for record in folder.trees(step)] for step in (1, 2, 3, 4)]
    assert all(len({*step}) == len(step) for step in steps)
    seen = [task for step in steps for task in step]
    assert trainer.state.position == len(seen) >= 12 and {*seen[:5]} == {*seen[5:10]}


# --- dynamic sampling, and nothing to learn


def test_dynamic_sampling_tries_on_until_a_step_is_full(tiny_project: TinyProject, tmp_path: Path) -> None:
    plan = ("train.steps=3", "train.dynamic_sampling={max_batches: 5}", "rollout.leaves=8", "rollout.roots=8")
    trainer, folder = go(tiny_project, tmp_path / "run", mixed_on_odd, *PLAIN, *plan)
    position = 0
    for step, line in enumerate(folder.metrics(), 1):
        records = list(folder.trees(step))
        mixed = [len({score.reward for score in record.scores.values()}) > 1 for record in records]
        assert sum(mixed) == 3 and mixed[-1], "it stops with the third group that can teach something"
        assert [record.tree.task for record in records] == [
            task.id for task in in_order(trainer.tasks, trainer.run.seed, position, len(records), apart=15)
        ]
        position += len(records)
        assert line["tasks/position"] == position and line["tasks/tried"] == len(records) == line["groups/all"]
        assert line["calls/executed"] == 0 and line["tokens/generated"] == sum(
            len(turn.tokens) for record in records for turn in record.tree.turns.values()
        ), "what was thrown away was sampled, too"
        assert all(bool(record.credit) == teaches for record, teaches in zip(records, mixed, strict=True))
    assert any(line["tasks/tried"] > 3 for line in folder.metrics())


def test_dynamic_sampling_is_bounded(tiny_project: TinyProject, tmp_path: Path) -> None:
    plan = ("train.steps=2", "train.dynamic_sampling={max_batches: 2}")
    trainer, folder = go(tiny_project, tmp_path / "run", wrong, *PLAIN, *plan)
    assert [line["tasks/tried"] for line in folder.metrics()] == [6, 6] and trainer.state.position == 12
    assert any("only 0 of 6 groups have mixed rewards" in text for text in texts(folder))


def test_a_step_that_can_teach_nothing_is_counted_and_said(tiny_project: TinyProject, tmp_path: Path) -> None:
    with training(tiny_project, tmp_path / "run", wrong, *PLAIN, "train.steps=2") as trainer:
        before = weights(trainer)
        asyncio.run(trainer.train())
        assert all(a.equal(b) for a, b in zip(before, weights(trainer), strict=True))
    folder = RunFolder(tmp_path / "run")
    assert [line["train/updates"] for line in folder.metrics()] == [0, 0]
    assert [line["train/tokens_trained"] for line in folder.metrics()] == [0, 0]
    assert sum("nothing to train on" in text for text in texts(folder)) == 2
    assert trainer.state.step == 2 and trainer.state.updates == 0


# --- gates and warnings


def test_failing_gates_are_named_and_nothing_is_trained(tiny_project: TinyProject, tmp_path: Path) -> None:
    with training(tiny_project, tmp_path / "run", mixed_on_odd, *PLAIN, "train.gates={}") as trainer:
        before = weights(trainer)
        with pytest.raises(GateError, match="leaves that used a tool") as error:
            asyncio.run(trainer.train())
        assert "leaves in the right format" not in str(error.value), "this one holds"
        assert all(a.equal(b) for a, b in zip(before, weights(trainer), strict=True))
    folder = RunFolder(tmp_path / "run")
    gates = {gate["what"]: gate for gate in folder.summary()["gates"]}
    assert len(gates) == 4 and not gates["leaves that used a tool"]["holds"] and gates["leaves in the right format"]["holds"]
    assert len(list(folder.trees(1))) == 3, "to be looked at"
    assert folder.metrics() == [] and not list((tmp_path / "run" / "checkpoints").iterdir())


def test_gates_are_measured_without_being_asked_for(tiny_project: TinyProject, tmp_path: Path) -> None:
    _, folder = go(tiny_project, tmp_path / "run", mixed_on_odd, *PLAIN, "train.steps=1")
    assert [gate["holds"] for gate in folder.summary()["gates"]].count(False) >= 2


def test_tool_use_that_collapses_is_said_once(tiny_project: TinyProject, tmp_path: Path) -> None:
    def forgets(engine: ScriptedEngine, asked: int, text: str, params: SamplingParams) -> str:
        """The version counts the steps done."""
        called = "<result>" in text.split("Parity of ")[-1]
        return f"<parity>{asked}</parity>" if engine.version < 4 and not called else mixed_on_odd(engine, asked, text, params)

    _, folder = go(tiny_project, tmp_path / "run", forgets, "train.steps=9", "train.trackers=[]", "rollout.rule=none")
    assert folder.metrics()[0]["rates/tool_use"] == 1 and folder.metrics()[-1]["rates/tool_use"] == 0
    (said,) = [note for note in folder.notes() if "tool use collapsed" in note["text"]]
    assert said["level"] == "warning" and said["step"] == 6


# --- validation, best, early stop, time


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
    assert sorted(path.stem for path in (folder.path / "evaluation").iterdir()) == [f"validation-00000{n}" for n in range(1, 6)]


def test_it_stops_when_validation_no_longer_rises(tiny_project: TinyProject, tmp_path: Path) -> None:
    plan = ("train.steps=9", "train.eval_every=1", "train.early_stop={patience: 2}")
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

    trainer, folder = go(tiny_project, tmp_path / "run", slow, *PLAIN, "train.steps=9", "train.minutes=1", clock=lambda: now[0])
    assert trainer.state.step == 4 and now[0] <= 60 and "overrun" in trainer.ended_early
    assert [line["seconds/step"] for line in folder.metrics()] == [12, 12, 12, 12] and trainer.state.seconds == 48
    assert checkpoint.newest(folder.path / "checkpoints")[0] is not None


# --- what the world does


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
    assert saved is not None and saved.state.step == 1 and saved.state.validated == 0, "so a resumed run validates it first"


def test_three_steps_in_a_row_without_a_finite_loss_stop_the_run(tiny_project: TinyProject, tmp_path: Path) -> None:
    plan = ("train.steps=9", "optim.lr=1.0e+30", "optim.weight_decay=0", "rollout.leaves=8", "rollout.roots=8")
    with (
        training(tiny_project, tmp_path / "run", mixed_on_odd, *PLAIN, *plan) as trainer,
        pytest.raises(ArpoError, match=r"3 steps in a row .* lower optim.lr"),
    ):
        asyncio.run(trainer.train())
    assert sum("its update was skipped" in text for text in texts(RunFolder(tmp_path / "run"))) == 3


# --- what a step leaves

KEYS = {
    "reward": "leaves probe_lines fork_weighted std",
    "accuracy": "leaves probe_lines fork_weighted",
    "rates": "format tool_use mixed_groups",
    "calls": "asked executed inherited cached",
    "tokens": "generated shared trained_unique trained_flat",
    "decisions": "tips wanted granted refused waited_s",
    "entropy": "first after_tool rise rise_positive",
    "leaves": "all scored lost fills siblings",
    "tasks": "position tried",
    "train": "loss grad_norm lr updates skipped_updates tokens_trained tokens_flat mismatch_abs_mean ratio_max clipped_high",
    "seconds": "sampling records update step",
}


def test_every_step_leaves_its_metrics_and_records_that_replay(tiny_run: Path) -> None:
    folder = RunFolder(tiny_run)
    for line in folder.metrics():
        assert [f"{group}/{name}" for group, names in KEYS.items() for name in names.split() if f"{group}/{name}" not in line] == []
        assert all(isinstance(value, int | float) and math.isfinite(value) for value in line.values())
        parts = sum(seconds for key, seconds in line.items() if key.startswith("seconds/") and key != "seconds/step")
        assert parts == pytest.approx(line["seconds/step"], abs=0.1)
        records = list(folder.trees(line["step"]))
        assert len(records) == line["groups/all"] == 3
        for record in records:
            assert replay(record) == record.tree
            assert all(turn.versions[0][0] == line["step"] - 1 for turn in record.tree.turns.values()), (
                "sampled by the last weights"
            )
        roles = [turn.role for record in records for turn in record.tree.turns.values()]
        assert line["leaves/siblings"] == roles.count(Role.SIBLING)


def test_engine_and_learner_agree_in_a_run(tiny_run: Path) -> None:
    assert all(line["train/mismatch_abs_max"] < 1e-4 for line in RunFolder(tiny_run).metrics())


# --- Ctrl-C


def test_cancelled_it_saves_what_is_finished(tiny_project: TinyProject, tmp_path: Path) -> None:
    running: list[asyncio.Task[Any]] = []

    def stopped(engine: ScriptedEngine, asked: int, text: str, params: SamplingParams) -> str:
        if engine.version == 2:
            running[0].cancel()
        return mixed_on_odd(engine, asked, text, params)

    async def main() -> None:
        running.append(asyncio.ensure_future(trainer.train()))
        await running[0]

    plan = ("train.steps=99", "train.save_every=50")
    with training(tiny_project, tmp_path / "run", stopped, *PLAIN, *plan) as trainer, pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    saved, _ = checkpoint.newest(tmp_path / "run" / "checkpoints")
    assert saved is not None and saved.state == trainer.state and saved.state.step == 2


# --- it learns


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


def learnt(run: Run, out: Path, reward: Any) -> list[float]:
    """The reward of plain samples, step by step."""
    train(run.model_copy(update={"reward": reward}), out=out, console=Console(quiet=True))
    return [line["reward/probe_lines"] for line in map(json.loads, (out / "metrics.jsonl").read_text().splitlines())]


QUIET = ("evaluation={limit: 1, greedy_limit: 0}", "train.trackers=[]", "train.save_every=null", "train.tasks_per_step=6")


def test_a_model_from_scratch_learns(tiny_project: TinyProject, tmp_path: Path) -> None:
    plan = ("cold_start=null", "train.steps=30", "optim.lr=1e-2", "rollout.turn_tokens=8", *PLAIN[:3], "rollout.roots=6")
    rewards = learnt(load_recipe(tiny_project.recipe, [*QUIET, *plan]), tmp_path / "run", vowels)
    assert sum(rewards[-3:]) / 3 > 2 * sum(rewards[:3]) / 3, rewards


@pytest.mark.slow
def test_an_agent_learns_to_copy_what_its_tool_says(tiny_project: TinyProject, tmp_path: Path) -> None:
    plan = ("cold_start.steps=40", "train.steps=80", "optim.lr=1e-3", "rollout.leaves=8", "rollout.rule=paper")
    rewards = learnt(load_recipe(tiny_project.recipe, [*QUIET, *plan]), tmp_path / "run", copies)
    assert sum(rewards[-10:]) / 10 > 0.2 + sum(rewards[:10]) / 10, rewards


def test_a_trace_asks_what_the_tests_read() -> None:
    """The scripts above find the number in the prompt."""
    assert trace(7)["question"] == question(7)["question"] == "Parity of 7"
    with pytest.raises(ConfigError):
        load_recipe("no such recipe")
