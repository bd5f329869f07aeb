"""The loop where sampling runs ahead of training: the same steps, by weights that are old, but not too old."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from loop_world import PLAIN, answer, go, mixed_on_odd, training, weights, wrong

from arpo.assembly.components import build_components, formats, read_tasks
from arpo.chat import Transcript
from arpo.chat.config import build_chat
from arpo.core.record import replay
from arpo.core.score import Score
from arpo.core.tree import CallStatus, Turn
from arpo.display.terminal import Console
from arpo.engines import Chunk, SamplingParams, Weights
from arpo.engines.scripted import Script, ScriptedEngine
from arpo.errors import ConfigError, EngineError
from arpo.recipe.load import load_recipe
from arpo.runs import checkpoint
from arpo.runs.folder import RunFolder
from arpo.tasks import Task
from arpo.tools import CallContext, ToolBase, ToolResult
from arpo.training.pipeline import train
from arpo.training.schedule import Asynchronous
from arpo.training.task_sampler import in_order
from by_timing import BY_TIMING
from tiny_project import TinyProject

TIMED = (*BY_TIMING, "ahead/", "tokens/per_s", "staleness/")


def slowly(engine: ScriptedEngine, asked: int, text: str, params: SamplingParams) -> Script:
    """So that updates fall into the middle of turns."""
    said = mixed_on_odd(engine, asked, text, params)
    return Script(said=said, delay_s=(params.seed % 7) / 1000, token_s=0.002)


@pytest.fixture
def long_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine an update could be over before a turn begins: each lasts for many turns of the event loop."""
    learn = Asynchronous.learn

    async def late(self: Asynchronous, work: Callable[[], Any]) -> Any:
        made = await learn(self, work)
        for _ in range(60):
            await asyncio.sleep(0.003)
        return made

    monkeypatch.setattr(Asynchronous, "learn", late)


def turns(folder: RunFolder, step: int) -> list[Turn]:
    return [turn for record in folder.trees(step) for turn in record.tree.turns.values()]


UNFORESEEN = ("train.dynamic_sampling=4", "rollout.rule={rule: threshold, window: 9}")


@pytest.mark.usefixtures("long_updates")
@pytest.mark.parametrize(
    ("most", "extra"),
    [
        (1, UNFORESEEN),
        (2, ()),
        pytest.param(1, (), marks=pytest.mark.slow),
        pytest.param(2, UNFORESEEN, marks=pytest.mark.slow),
    ],
    ids=["1-unforeseen", "2-foreseen", "1-foreseen", "2-unforeseen"],
)
def test_the_steps_are_those_of_training_in_turn_by_weights_within_the_bound(
    tiny_project: TinyProject, tmp_path: Path, most: int, extra: tuple[str, ...]
) -> None:
    """What the script says depends on the request alone, so all but the versions must be equal, to the last weight."""
    plan = (*PLAIN, "train.steps=5", "rollout.leaves=8", "rollout.roots=8", "optim.lr=1e-2", *extra)
    whole, plain = go(tiny_project, tmp_path / "plain", slowly, *plan)
    trainer, folder = go(tiny_project, tmp_path / "ahead", slowly, *plan, f"train.max_staleness={most}")
    tasks = [[record.tree.task for record in folder.trees(step)] for step in range(1, 6)]
    assert tasks == [[record.tree.task for record in plain.trees(step)] for step in range(1, 6)]
    order = in_order(trainer.tasks, trainer.run.seed, 0, sum(map(len, tasks)), apart=12 if extra else 3)
    assert [task for step in tasks for task in step] == [task.id for task in order], "none twice, none left out"
    lags = set()
    for step in range(1, 6):
        assert all(replay(record) == record.tree for record in folder.trees(step))
        versions = [version for turn in turns(folder, step) for version, _ in turn.versions]
        assert all(step - 1 - most <= version <= step - 1 for version in versions)
        lags |= {step - 1 - version for version in versions}
        assert all(turn.versions[0][0] == step - 1 for turn in turns(plain, step))
    assert max(lags) >= 1, "it did run ahead"
    for line, before in zip(folder.metrics(), plain.metrics(), strict=True):
        assert {k: v for k, v in line.items() if not k.startswith(TIMED)} == {
            k: v for k, v in before.items() if not k.startswith(TIMED)
        }
        assert 0 <= line["staleness/mean"] <= line["staleness/max"] <= most
        assert before["staleness/max"] == before["staleness/mean"] == before["staleness/mixed"] == 0
        assert line["ahead/sampling_s"] > 0 and line["tokens/per_s"] > 0
    assert max(line["staleness/max"] for line in folder.metrics()) == max(lags)
    assert all(a.equal(b) for a, b in zip(weights(whole), weights(trainer), strict=True))
    assert replace(trainer.state, seconds=0) == replace(whole.state, seconds=0)


class Held(ScriptedEngine):
    """Turns about `questions` stop after their first chunk until new weights come; `begun` is set when one does."""

    questions: frozenset[str]
    begun: threading.Event

    async def sample(self, prompt: Sequence[int], params: SamplingParams) -> AsyncIterator[Chunk]:
        text = self.tokenizer.decode(prompt)
        async for chunk in super().sample(prompt, params):
            yield chunk
            while (
                not chunk.finish
                and self.version == 0
                and any(f"{question}<|im_end|>" in text for question in self.questions)
            ):
                self.begun.set()
                await asyncio.sleep(0.001)


def test_what_is_sampled_across_an_update_says_so(tiny_project: TinyProject, tmp_path: Path) -> None:
    """The first update waits for a turn of the second step, and that turn for the weights that the update makes."""

    def long(_engine: ScriptedEngine, asked: int, _text: str, params: SamplingParams) -> str:
        return f"<think>{'so ' * 18}</think>{answer('odd' if params.seed % 2 else 'even')}"

    plan = (*PLAIN, "train.steps=3", "train.max_staleness=1", "rollout.turn_tokens=60")
    with training(tiny_project, tmp_path / "run", long, *plan) as trainer:
        engine: Any = trainer.components.agent.engine
        engine.__class__, engine.begun = Held, threading.Event()
        engine.questions = frozenset(task.question for task in in_order(trainer.tasks, trainer.run.seed, 3, 3, apart=3))
        update = trainer.learner.update

        def after_a_turn_began(*arguments: Any, **more: Any) -> Any:
            assert engine.begun.wait(60)
            return update(*arguments, **more)

        trainer.learner.update = after_a_turn_began  # type: ignore[method-assign]
        asyncio.run(trainer.train())
    folder = RunFolder(tmp_path / "run")
    mixed = [turn for step in range(1, 4) for turn in turns(folder, step) if len(turn.versions) > 1]
    assert mixed and all(sum(count for _, count in turn.versions) == len(turn.tokens) for turn in mixed)
    assert max(line["staleness/mixed"] for line in folder.metrics()) > 0


class Slow(ToolBase):
    """A tool that lives on the run's own event loop, as the client of a server does."""

    name, description, schema = (
        "slow",
        "Takes its time.",
        {"type": "object", "properties": {"number": {"type": "integer"}}},
    )

    async def __call__(self, _arguments: Any, _context: CallContext) -> ToolResult:
        for _ in range(20):
            await asyncio.sleep(0.02)
        return ToolResult(text="done")


@pytest.mark.parametrize("most", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_calls_under_way_do_not_miss_their_deadline_for_a_checkpoint(
    tiny_project: TinyProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    def play(engine: ScriptedEngine, asked: int, text: str, params: SamplingParams) -> str:
        return mixed_on_odd(engine, asked, text, params) if "done" in text else f"<slow>{asked}</slow>"

    save, during = checkpoint.save, []

    def long_save(*given: Any, **more: Any) -> Any:
        during.append(threading.current_thread())
        time.sleep(2)  # as of a model of some billions
        return save(*given, **more)

    monkeypatch.setattr(checkpoint, "save", long_save)
    plan = ("train.steps=3", f"train.max_staleness={most}", "train.save_every=1", "rollout.deadline_s=1.5")
    with training(tiny_project, tmp_path / "run", play, *plan) as trainer:
        agent = replace(
            trainer.components.agent,
            tools=(Slow(),),
            format=formats(partial(build_chat, trainer.run.chat, trainer.components.tokenizer)),
        )
        trainer.components = replace(trainer.components, agent=agent)
        asyncio.run(trainer.train())
    folder = RunFolder(tmp_path / "run")
    seen = [
        outcome.status
        for step in range(1, 4)
        for r in folder.trees(step)
        for o in r.tree.observations.values()
        for outcome in o.outcomes
    ]
    assert seen and set(seen) == {CallStatus.OK}
    assert len(during) == 3 and threading.main_thread() not in during[:2]


# --- the engine's weights


class Watched(ScriptedEngine):
    """Keeps what it was handed, as an engine does that copies nothing."""

    handed: list[Weights]

    async def update_weights(self, weights: Weights) -> None:
        await super().update_weights(weights)
        self.handed = [*getattr(self, "handed", []), weights]


@pytest.mark.parametrize("most", [0, 1])
def test_an_engine_is_told_whether_its_weights_will_change(
    tiny_project: TinyProject, tmp_path: Path, most: int
) -> None:
    with training(tiny_project, tmp_path / "run", slowly, *PLAIN, f"train.max_staleness={most}") as trainer:
        engine = trainer.components.agent.engine
        engine.__class__ = Watched
        asyncio.run(trainer.train())
        handed = engine.handed  # type: ignore[attr-defined]
    assert [each.version for each in handed] == ([0] if most else []) + [1, 2], "of its own before anything changes"
    assert all(each.changing == bool(most) for each in handed)


def test_the_local_engine_keeps_what_it_loaded_while_the_learner_goes_on(tiny_project: TinyProject) -> None:
    run = load_recipe(tiny_project.recipe, ["cold_start=null"])
    components = build_components(run, tiny_project.model)
    engine: Any = components.agent.engine
    params = SamplingParams(max_tokens=8, temperature=0)

    async def said() -> list[float]:
        return [x async for chunk in engine.sample([5, 6, 7], params) for x in chunk.logprobs]

    async def main() -> None:
        state = {name: value.detach() for name, value in components.model.state_dict().items()}
        await engine.update_weights(Weights(0, state, changing=True))
        before = await said()
        with torch.no_grad():
            for parameter in components.model.parameters():
                parameter.add_(torch.randn_like(parameter))
        await engine.forget()
        assert await said() == before
        await engine.update_weights(Weights(1, state, changing=True))
        assert await said() != before
        await engine.close()

    asyncio.run(main())


# --- how it ends


def test_an_engine_that_fails_ahead_stops_the_run_after_what_was_sampled(
    tiny_project: TinyProject, tmp_path: Path
) -> None:
    asked_last: list[str] = []

    def dies(engine: ScriptedEngine, asked: int, text: str, params: SamplingParams) -> "Script | str":
        good = mixed_on_odd(engine, asked, text, params)
        return Script(said=good, fails_after=1) if f"Parity of {asked}" in asked_last else good

    plan = (*PLAIN, "train.steps=6", "train.max_staleness=2", "train.save_every=9")
    with training(tiny_project, tmp_path / "run", dies, *plan) as trainer:
        asked_last += [task.question for task in in_order(trainer.tasks, trainer.run.seed, 6, 3, apart=3)]
        with pytest.raises(EngineError, match="step 3"):
            asyncio.run(trainer.train())
    saved, _ = checkpoint.newest(tmp_path / "run" / "checkpoints")
    assert trainer.state.step == 2 and saved is not None and saved.state == trainer.state


def test_cancelled_in_an_update_it_finishes_the_step_and_saves(tiny_project: TinyProject, tmp_path: Path) -> None:
    """Ctrl-C while the learner is in its third update and the fourth step is being sampled, which would take an
    hour."""
    cancelled = threading.Event()

    def plays(engine: ScriptedEngine, asked: int, text: str, params: SamplingParams) -> Script:
        return replace(slowly(engine, asked, text, params), delay_s=3600.0 if engine.version == 2 else 0.0)

    async def main() -> None:
        running = asyncio.ensure_future(trainer.train())
        update = trainer.learner.update

        def cancel() -> None:
            running.cancel()
            cancelled.set()

        def slow(*arguments: Any, **more: Any) -> Any:
            if trainer.step == 3:
                loop.call_soon_threadsafe(cancel)
                assert cancelled.wait(60)
            return update(*arguments, **more)

        loop = asyncio.get_running_loop()
        trainer.learner.update = slow  # type: ignore[method-assign]
        await running

    plan = (*PLAIN, "train.steps=99", "train.save_every=50", "train.max_staleness=1")
    with training(tiny_project, tmp_path / "run", plays, *plan) as trainer, pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    folder = RunFolder(tmp_path / "run")
    saved, _ = checkpoint.newest(folder.path / "checkpoints")
    assert saved is not None and saved.state == trainer.state and saved.state.step == 3 == len(folder.metrics())
    again = _resumed(tiny_project, tmp_path, saved.state)
    assert again == [task.id for task in in_order(trainer.tasks, trainer.run.seed, 9, 3, apart=3)]


def _resumed(project: TinyProject, tmp_path: Path, state: checkpoint.TrainState) -> list[str]:
    """Tasks of the first step after `state`."""
    plan = (*PLAIN, f"train.steps={state.step + 2}", "train.max_staleness=1")
    _, folder = go(project, tmp_path / "again", slowly, *plan, state=state)
    assert all(version == state.step for turn in turns(folder, state.step + 1) for version, _ in turn.versions)
    return [record.tree.task for record in folder.trees(state.step + 1)]


def test_what_was_sampled_ahead_of_an_early_end_is_set_aside(tiny_project: TinyProject, tmp_path: Path) -> None:
    """The second validation is no better than the first; steps 3 and 4 have begun by then."""
    plan = (*PLAIN, "train.steps=9", "train.max_staleness=2", "train.eval_every=1", "train.early_stop=1")
    trainer, folder = go(tiny_project, tmp_path / "run", wrong, *plan)
    assert trainer.state.step == 2 and "no better validation" in trainer.ended_early
    assert folder.event_steps() == [line["step"] for line in folder.metrics()] == [1, 2]
    (cut,) = (folder.path / "cut").iterdir()
    assert {path.name for path in (cut / "events").iterdir()} <= {f"step-00000{step}.frames" for step in (3, 4, 5)}
    assert any("sampled ahead" in note["text"] for note in folder.notes())


def test_an_interrupted_run_is_resumed_where_it_was_trained_not_where_it_was_sampled(
    tiny_project: TinyProject, tmp_path: Path
) -> None:
    """A whole run with the local engine: Ctrl-C as soon as a tree of step 4 is written down, then on to the end."""
    plan = ["train.steps=6", "train.max_staleness=2", "train.trackers=[]", "evaluation={limit: 2, greedy_limit: 0}"]
    interrupts = [signal.SIGINT]

    def score(_task: Task, said: Transcript) -> Score:
        if interrupts and (out / "events" / "step-000004.frames").exists():
            os.kill(os.getpid(), interrupts.pop())
        share = len(said.turns[0].text) % 7 / 7
        return Score(reward=share, accuracy=share)

    run, out = (
        load_recipe(tiny_project.recipe, ["cold_start=null", *plan]).model_copy(update={"reward": score}),
        tmp_path / "run",
    )
    with pytest.raises(KeyboardInterrupt):
        train(run, out=out, console=Console(quiet=True))
    saved, _ = checkpoint.newest(out / "checkpoints")
    done = saved.state.step if saved else 0
    cut_off = RunFolder(out)
    assert cut_off.summary()["status"] == "interrupted" and done <= max(cut_off.event_steps()) <= done + 3
    ahead = done < max(cut_off.event_steps())
    train(run, out=out, resume=True, console=Console(quiet=True))
    folder = RunFolder(out)
    assert any("what was written after it is kept in" in note["text"] for note in folder.notes()) == ahead
    assert [line["step"] for line in folder.metrics()] == folder.event_steps() == [1, 2, 3, 4, 5, 6]
    tasks = [record.tree.task for step in folder.event_steps() for record in folder.trees(step)]
    order = in_order(read_tasks(run, "train")[0], run.seed, 0, 18, apart=3)
    assert tasks == [task.id for task in order], "none twice, none left out"
    for step in folder.event_steps():
        oldest = (
            step - 3 if step <= done else max(step - 3, done)
        )  # nothing of the first process is trained by the second
        assert all(oldest <= version < step for turn in turns(folder, step) for version, _ in turn.versions)


def test_it_cannot_be_asked_for_with_an_engine_that_is_deterministic_or_sleeps(tiny_project: TinyProject) -> None:
    with pytest.raises(ConfigError, match="timing decides which weights write a token"):
        load_recipe(tiny_project.recipe, ["train.max_staleness=1", "engine.deterministic=true"])
    with pytest.raises(ConfigError, match="does not sleep while the learner works"):
        load_recipe(tiny_project.recipe, ["train.max_staleness=1", "engine={kind: vllm, vllm: {sleep: true}}"])
