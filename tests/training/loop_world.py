"""Trainers of the tiny project whose turns are scripted, so that every step is known beforehand; the learner is
real."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from arpo.assembly.components import build_components, build_learner, read_tasks
from arpo.display.progress import Progress
from arpo.display.terminal import Console
from arpo.engines import Engine, SamplingParams
from arpo.engines.scripted import Script, ScriptedEngine
from arpo.recipe.load import load_recipe
from arpo.runs.checkpoint import TrainState
from arpo.runs.folder import RunFolder
from arpo.training.loop import Trainer
from arpo.training.trackers import Trackers
from tiny_project import TinyProject

Play = Callable[[ScriptedEngine, int, str, SamplingParams], "Script | str"]
"""(engine, the number asked about, the prompt's text, params) to a turn."""

PLAIN = (
    "tools=[]",
    "rollout.max_calls=0",
    "rollout.rule=none",
    "rollout.leaves=4",
    "rollout.roots=4",
    "train.trackers=[]",
)


@contextmanager
def training(
    project: TinyProject,
    out: Path,
    play: Play | None,
    *overrides: str,
    clock: Callable[[], float] | None = None,
    **parts: Any,
) -> Iterator[Trainer]:
    """A trainer of the project's model, its turns scripted by `play`. `parts`: state, reward, num_steps, callbacks,
    resume."""
    run = load_recipe(project.recipe, ["cold_start=null", *overrides])
    components = build_components(run, project.model)
    if play:
        holder: list[ScriptedEngine] = []

        def turn(prompt: Sequence[int], params: SamplingParams) -> "Script | str":
            text = components.tokenizer.decode(prompt)
            asked = int(text.split("Parity of ")[-1].split("<|im_end|>")[0])
            return play(holder[0], asked, text, params)

        holder.append(ScriptedEngine(turn, components.tokenizer))
        engine: Engine = holder[0]
        components = replace(components, agent=replace(components.agent, engine=engine))
    if "reward" in parts:
        components = replace(components, reward=parts["reward"])
    num_steps = parts.get("num_steps", run.train.steps)
    learner = build_learner(components, optim=run.optim, num_updates=num_steps, tell=print)
    progress = Progress(
        num_steps, minutes=run.train.minutes, console=Console(quiet=True), **({"clock": clock} if clock else {})
    )
    with (
        RunFolder.create(out, "run: tests", {}, resume=parts.get("resume", False)) as folder,
        Trackers(out, settings={}, tell=print) as trackers,
    ):
        tasks, validation = (read_tasks(run, split)[0] for split in ("train", "validation"))
        state = parts.get("state", TrainState())
        yield Trainer(
            components,
            learner,
            folder,
            tasks,
            validation,
            state=state,
            num_steps=num_steps,
            progress=progress,
            trackers=trackers,
            callbacks=parts.get("callbacks"),
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
    return [p.detach().clone() for p in trainer.learner.policy.parameters()]


def texts(folder: RunFolder) -> list[str]:
    return [note["text"] for note in folder.notes()]
