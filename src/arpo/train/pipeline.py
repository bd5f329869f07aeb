"""A whole run: model, cold start, evaluation, training, evaluation again, report.

Knows the stages and the run's budget of time. Each stage is elsewhere.
"""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from arpo.errors import ConfigError
from arpo.evaluation.ask import ask, askings
from arpo.evaluation.metrics import paired_difference
from arpo.evaluation.results import Results
from arpo.located import dump
from arpo.run import Run, plain
from arpo.tasks import Task
from arpo.train import checkpoint
from arpo.train.checkpoint import Checkpoint, TrainState
from arpo.train.closing import print_closing
from arpo.train.environment import describe_environment
from arpo.train.imitation import imitate
from arpo.train.job import Job, build_job, build_learner, read_tasks
from arpo.train.loop import Trainer
from arpo.train.progress import Progress, duration
from arpo.train.report import write_report
from arpo.train.runfolder import RunFolder, move_aside
from arpo.train.sources import fetch
from arpo.train.starts import Start
from arpo.train.trackers import Trackers, check_trackers

CLOSING_S = 45.0  # kept of the budget for the last checkpoint and the report


def train(run: Run, *, out: Path | None = None, resume: bool = False, again: bool = False, console: Console | None = None) -> Path:
    """Carry out `run` in the folder `out` (default: the run's own) and return the folder.

    With `resume` the run in that folder goes on from its newest whole checkpoint; with `again` an earlier run there is moved aside
    first. Ctrl-C saves and raises KeyboardInterrupt. Raises ConfigError and the other ArpoErrors; what was computed stays in the folder.
    """
    folder_path = Path(out or run.folder)
    console = console or Console(soft_wrap=True)
    if again and (aside := move_aside(folder_path)):
        console.print(f"the earlier run is kept in {aside}", highlight=False, markup=False)
    check_trackers(run.train.trackers)
    recipe = dump(plain(run.model_copy(update={"out": str(folder_path)})))
    with RunFolder.create(folder_path, recipe, describe_environment(seed=run.seed), resume=resume) as folder:
        asyncio.run(_Pipeline(run, folder, console).carry_out())
    return folder_path


class _Pipeline:
    def __init__(self, run: Run, folder: RunFolder, console: Console) -> None:
        self.run, self.folder, self.console = run, folder, console
        self.started = time.monotonic()
        self.seconds: dict[str, float] = dict(folder.summary().get("seconds", {}))
        self.spent_before = sum(self.seconds.values())  # by earlier starts of a resumed run
        self.start = Start(run)

    async def carry_out(self) -> None:
        saved, passed = checkpoint.newest(self.folder.path / "checkpoints")
        for wrong in passed:
            self.say(f"checkpoint passed over: {wrong}", level="warning")
        state = saved.state if saved else TrainState()
        if cut := self.folder.cut_back(state.step):
            self.say(f"resuming after step {state.step}; what was written after it is kept in {cut}")
        tasks = {split: self._tasks(split) for split in ("train", "validation", "test")}
        with self.phase("model"):
            source = fetch(self.run.model.source)
            job = build_job(self.run, source, saved.model if saved else self.start.model)
        try:
            if self.run.cold_start and not saved and self.start.model is None:
                await self.cold_start(job)
            before = await self.measure(job, tasks["test"], "before", cached=True) if not saved else self._earlier("before")
            await self.learn(job, tasks, saved, state)
            after = await self.measure(job, tasks["test"], "after")
        finally:
            await job.agent.engine.close()
        self.close(before, after)

    def _tasks(self, split: str) -> list[Task]:
        tasks, report = read_tasks(self.run, split)
        if report and (report.skipped or report.mended or report.duplicates):
            self.say(f"{split} data: {report}")
        return tasks

    async def cold_start(self, job: Job) -> None:
        """Supervised fine-tuning, kept in the cache."""
        with self.phase("cold_start"):
            self.say(f"cold start: {await imitate(job, console=self.console, tell=self.say)}")
            self.start.keep(job.model, job.tokenizer)

    async def measure(self, job: Job, tasks: Sequence[Task], when: str, *, cached: bool = False) -> dict[str, Results]:
        """Sampled and greedy accuracy on held-out tasks, under the names `when` and `when-greedy`."""
        found: dict[str, Results] = {}
        with self.phase(f"evaluation_{when}"):
            for asking in askings(self.run.evaluation, when) if tasks else ():
                results = self.start.results(asking.name, asking.key) if cached else None
                if results is None:
                    results = await ask(job, tasks, asking, model=self.run.name, console=self.console)
                    if cached:
                        self.start.keep_results(asking.name, asking.key, results)
                results.write(self.folder.path / "evaluation")
                self.say(f"{asking.name}: accuracy {results.accuracy.percent} on {results.num_questions} held-out questions")
                found[asking.name] = results
        return found

    def _earlier(self, when: str) -> dict[str, Results]:
        from arpo.evaluation.results import read_all_results

        return {name: results for name, results in read_all_results(self.folder.path).items() if name in (when, f"{when}-greedy")}

    async def learn(self, job: Job, tasks: dict[str, list[Task]], saved: Checkpoint | None, state: TrainState) -> None:
        """The loop, with what it needs set up and the weights that came out best handed to the engine."""
        config = self.run.train
        num_steps = config.steps or max(1, round((config.epochs or 1.0) * len(tasks["train"]) / config.tasks_per_step))
        num_updates = num_steps * config.updates_per_step
        learner = build_learner(job, optim=self.run.optim, num_updates=num_updates, tell=self.say)
        if saved:
            checkpoint.load_optimizer(saved, learner.optimizer)
            learner.updates = state.updates
        minutes = None if config.minutes is None else config.minutes - self.spent_s / 60
        reserve_s = self.seconds.get("evaluation_before", 0.0) + CLOSING_S
        with (
            self.phase("training"),
            Progress(num_steps, minutes=minutes, done=state.step, title=self.run.name, console=self.console) as progress,
            Trackers(self.folder.path, config.trackers, settings=plain(self.run), resumed_after=state.step or None) as trackers,
        ):
            trainer = Trainer(
                job,
                learner,
                self.folder,
                tasks["train"],
                tasks["validation"],
                state=state,
                num_steps=num_steps,
                progress=progress,
                trackers=trackers,
                reserve_s=reserve_s,
            )
            state = await trainer.train()
        if state.best_step and state.best_step != state.step:
            self.say(
                f"the best validation was at step {state.best_step}; checkpoint step-{state.best_step:06d} is kept beside the last"
            )

    def close(self, before: dict[str, Results], after: dict[str, Results]) -> None:
        """Summary, report and the closing table."""
        facts: dict[str, Any] = {}
        for key, name in (("accuracy_before", "before"), ("greedy_before", "before-greedy")):
            if name in before:
                facts[key] = asdict(before[name].accuracy)
        for key, name in (("accuracy_after", "after"), ("greedy_after", "after-greedy")):
            if name in after:
                facts[key] = asdict(after[name].accuracy)
        for key, name in (("accuracy_gain", ""), ("greedy_gain", "-greedy")):
            if f"before{name}" in before and f"after{name}" in after:
                paired = paired_difference(before[f"before{name}"].accuracy_by_question, after[f"after{name}"].accuracy_by_question)
                facts[key] = {**asdict(paired.difference), "p_value": paired.p_value}
        history = self.folder.metrics()
        totals = {"tool_calls": "calls/executed", "tokens_generated": "tokens/generated", "tokens_trained": "train/tokens_trained"}
        facts |= {name: sum(line.get(key) or 0 for line in history) for name, key in totals.items()}
        facts |= {"status": "finished", "steps": len(history), "cold_start_key": self.start.key, "seconds": self.seconds}
        self.folder.write_summary(**facts)
        with self.phase("report"):
            report = write_report(self.folder.path)
        print_closing(self.console, self.folder.summary(), report)

    @property
    def spent_s(self) -> float:
        """Seconds of the run so far, those of earlier starts included."""
        return self.spent_before + time.monotonic() - self.started

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a stage; its seconds are on disk even when it fails."""
        begun, earlier = time.monotonic(), self.seconds.get(name, 0.0)
        try:
            yield
        finally:
            self.seconds[name] = round(earlier + time.monotonic() - begun, 1)
            self.folder.write_summary(seconds=self.seconds)

    def say(self, text: str, level: str = "info") -> None:
        self.folder.note(text, level=level)
        self.console.print(text if level == "info" else f"warning: {text}", highlight=False, markup=False)


def resumed_run(path: Path) -> Run:
    """The run in a folder, as it was started. Raises ConfigError where there is none."""
    from arpo.recipe import load_recipe

    if not (path / "recipe.yaml").is_file():
        raise ConfigError("there is no run to resume", where=str(path), hint="a run folder has a recipe.yaml")
    return load_recipe(path / "recipe.yaml")


__all__ = ["duration", "resumed_run", "train"]
