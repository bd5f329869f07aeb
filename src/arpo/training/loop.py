"""The training loop: collect, credit, check, update, publish, record, and now and then validate and save.

Knows the order of things. What each of them does is elsewhere; `Trainer.train` reads as the method's outline.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from arpo.assembly.components import Components
from arpo.core.credit import CreditedTree, credit
from arpo.core.place import keyed
from arpo.display.progress import Progress
from arpo.engines import Weights
from arpo.engines.stats import Prefill
from arpo.errors import ArpoError, GateError
from arpo.evaluation.run_eval import eval_specs, run_eval
from arpo.learner.local import BAD_UPDATES, Learner
from arpo.rollout.collect import Rollout
from arpo.rollout.records import record_of
from arpo.runs import checkpoint
from arpo.runs.checkpoint import TrainState
from arpo.runs.folder import VALIDATION, RunFolder
from arpo.tasks import Task
from arpo.terminal_safe import terminal_safe
from arpo.training.asynchronous import make_schedule
from arpo.training.batch import Batch, SamplerState, collect_step, is_used
from arpo.training.callbacks import Callback
from arpo.training.first_step_checks import check_first_step, tool_use_collapse
from arpo.training.metrics import Metrics, TreeStats, step_metrics
from arpo.training.sample_log import best_and_worst
from arpo.training.trackers import Trackers


class Trainer:
    """Trains a job's policy from `state` on. `reserve_s`: seconds of the budget to keep for what comes after training;
    `min_steps`: steps that are done whatever the budget."""

    def __init__(
        self,
        components: Components,
        learner: Learner,
        folder: RunFolder,
        tasks: Sequence[Task],
        validation: Sequence[Task],
        *,
        state: TrainState,
        num_steps: int,
        progress: Progress,
        trackers: Trackers,
        reserve_s: float = 0.0,
        min_steps: int = 0,
        callbacks: Callback | None = None,
    ) -> None:
        self.components, self.learner, self.folder, self.tasks, self.validation = components, learner, folder, tasks, validation
        self.state, self.num_steps, self.progress, self.trackers, self.reserve_s = state, num_steps, progress, trackers, reserve_s
        self.run, self.saved, self.min_steps, self.callbacks = components.run, state, min_steps, callbacks or Callback()
        self.ended_early = ""  # why, where not all steps were done
        self.whole = True  # False while the weights are ahead of the state
        self.history = [_kept(line) for line in folder.metrics()]
        self.collapse_told = False
        self.arrived: Counter[int] = Counter()  # rollouts to be trained on, by step
        self.schedule = make_schedule(
            self.run, self.collect_step, self.publish, engine=components.agent.engine, last_step=num_steps
        )
        self.prefill = Prefill(components.agent.engine)
        self.room = asyncio.Semaphore(self.run.train.tasks_per_step)  # trees that grow at once, of whatever step

    async def train(self) -> TrainState:
        """Train until the steps, the time or the patience end. Cancelled (Ctrl-C), it saves what is finished and raises.

        Raises GateError where the first step is not fit to be trained on, EngineError or ToolError where a whole step was lost to
        the world, ArpoError where the loss stays infinite.
        """
        try:
            await self.validate()  # of the last step, where an earlier start was cut off before it
            async with self.schedule:
                while self.goes_on():
                    batch = await self.collect()
                    credited = self.credit(batch)
                    metrics = self.measure(batch, credited)
                    self.check(metrics)
                    metrics |= await self.update(credited)
                    self.record(batch, credited)
                    self.finish_step(batch, metrics)
                    await self.publish()
                    await self.validate()
                    await self.save()
            self.set_aside()
            await self.validate(last=True)
        finally:
            if self.whole:
                await self.save(last=True)
        return self.state

    @property
    def step(self) -> int:
        """The number of the step under way, from 1."""
        return self.state.step + 1

    def goes_on(self) -> bool:
        stop, step = self.run.train.early_stop, self.state.step
        if step >= self.num_steps:
            return False
        if stop and self.state.stale_evaluations >= stop.patience:
            self.ended_early = f"no better validation for {self.state.stale_evaluations} evaluations"
        elif step >= self.min_steps and not self.progress.room_for_step(reserve_s=self.reserve_s):
            self.ended_early = "the next step would overrun train.minutes"
        if self.ended_early:
            self.note(f"ended after step {step} of {self.num_steps}: {self.ended_early}")
        return not self.ended_early

    async def collect(self) -> Batch:
        """The step's rollouts, which may have been collected by now."""
        enough = self.run.train.tasks_per_step
        self.progress.phase("sampling", total=enough)
        self.progress.advance(self.arrived[self.step])
        state = self.state
        batch = await self.schedule.batch(SamplerState(step=self.step, position=state.position, window=state.window))
        del self.arrived[self.step]
        if batch.used < enough:
            self.note(
                f"only {batch.used} of {len(batch.rollouts)} groups have mixed rewards (train.dynamic_sampling)",
                level="warning",
                step=self.step,
            )
        return batch

    async def collect_step(self, cursor: SamplerState) -> Batch:
        return await collect_step(self.components, self.tasks, cursor, self.keep, self.room)

    def keep(self, step: int, rollout: Rollout) -> None:
        """Write a rollout down at once: whatever ends the run, the tree can be looked at."""
        self.folder.append_tree(step, record_of(rollout))
        if is_used(self.run.train, rollout):
            self.arrived[step] += 1
            if step == self.step:
                self.progress.advance()

    def set_aside(self) -> None:
        """Trees that were sampled ahead and will not be trained, since training ends early, are kept but not read as the run's."""
        if self.ended_early and (kept := self.folder.cut_back(self.state.step)):
            self.note(f"what was sampled ahead of that is kept in {kept}")

    def uses(self, rollout: Rollout) -> bool:
        """Whether it is trained on."""
        return is_used(self.run.train, rollout)

    def credit(self, batch: Batch) -> list[CreditedTree]:
        """In the order of `batch`; what is not used has no credit."""
        used = iter(credit([rollout.scored for rollout in batch.rollouts if self.uses(rollout)], self.run.advantage))
        return [next(used) if self.uses(rollout) else CreditedTree(rollout.scored, {}, {}) for rollout in batch.rollouts]

    def measure(self, batch: Batch, credited: Sequence[CreditedTree]) -> Metrics:
        step = [*map(TreeStats.of, batch.rollouts, credited)]
        return {
            **step_metrics(step, head_tokens=self.run.rollout.head, version=self.state.step),
            **self.schedule.figures(batch),
            "tools/seconds": sum(rollout.grown.tool_s for rollout in batch.rollouts),
            "decisions/waited_s": sum(rollout.grown.waited_s for rollout in batch.rollouts),
        }

    def record(self, batch: Batch, credited: Sequence[CreditedTree]) -> None:
        """The step's trees once more, now with their credit and what the learner thought of each token."""
        self.progress.phase("records")
        for rollout, tree in zip(batch.rollouts, credited, strict=True):
            self.folder.append_tree(self.step, record_of(rollout, tree, self.learner.seen.get(rollout.task.id)))
        self._keep_sample(batch.rollouts[0])
        every = self.run.train.show_every
        for text in best_and_worst(batch.rollouts) if every and self.step % every == 0 else ():
            self.progress.say(terminal_safe(text))

    def _keep_sample(self, rollout: Rollout) -> None:
        """One trajectory a step as text, for whoever reads the report."""
        for leaf, score in list(rollout.scored.scores.items())[:1]:
            text = rollout.grown.prompt_text() + rollout.grown.text(leaf)
            self.folder.append_sample(
                self.step,
                text,
                task=rollout.task.id,
                leaf=list(leaf),
                reward=score.reward,
                accuracy=score.accuracy,
                question=rollout.task.question,
            )

    def check(self, metrics: Metrics) -> None:
        """Before anything is trained: the gates of the first step, and later a warning where tools fall out of use."""
        if self.step == 1:
            found = check_first_step(metrics, self.run.train.gates)
            self.folder.write_summary(
                gates=[{"what": g.what, "goal": g.goal, "measured": g.measured, "holds": g.holds} for g in found]
            )
            failing = [str(gate) for gate in found if not gate.holds]
            if self.run.train.gates and failing:
                raise GateError(f"the first step's trajectories are not fit to be trained on: {'; '.join(failing)}")
        warning = None if self.collapse_told else tool_use_collapse([*self.history, metrics])
        if warning:
            self.collapse_told = True
            self.note(warning, level="warning", step=self.step)

    async def update(self, credited: Sequence[CreditedTree]) -> Metrics:
        import torch

        self.progress.phase("update")
        self.whole = False
        torch.manual_seed(keyed(self.run.seed, self.step, "", (), "update").getrandbits(63))  # dropout's, where there is one
        metrics = await self.schedule.learn(partial(self.learner.update, credited, self.run.train.updates_per_step))
        if not metrics:
            self.note("nothing to train on: the rewards of every group are equal", level="warning", step=self.step)
            return {"train/updates": 0.0, "train/tokens_trained": 0.0}
        if metrics["skipped_updates"]:
            self.note("a loss or gradient was not finite: its update was skipped", level="warning", step=self.step)
            if self.bad_updates == BAD_UPDATES - 1:
                raise ArpoError(
                    f"{BAD_UPDATES} steps in a row had updates without a finite loss: lower optim.lr, or look at the records"
                )
        if weight := self.learner.broken():
            raise ArpoError(
                f"the update of step {self.step} broke the weights ({weight} is not finite): lower optim.lr, then resume"
            )
        return {f"train/{name}": value for name, value in metrics.items()}

    @property
    def bad_updates(self) -> int:
        """Steps in a row, up to the last finished one, of which an update was skipped. Steps without any do not count."""
        count = 0
        for line in reversed(self.history):
            if line.get("train/updates"):
                if not line["train/skipped_updates"]:
                    break
                count += 1
        return count

    async def publish(self) -> None:
        """Hand the newest weights to the engine."""
        self.progress.phase("publication")
        version = self.state.step
        await self.components.agent.engine.load(Weights(version, self.learner.state(), changing=self.schedule.overlaps))
        self.schedule.published(version)

    def finish_step(self, batch: Batch, metrics: Metrics) -> None:
        position = batch.after.position
        metrics |= {
            **self.prefill.since(),
            **self.progress.timings(),
            "tasks/position": position,
            "tasks/tried": len(batch.rollouts),
        }
        self.history.append(_kept(metrics))
        self.folder.append_metrics(self.step, metrics)
        self.components.agent.tool_gateway.write_down()
        self.progress.step(metrics)
        self.state = replace(
            self.state,
            step=self.step,
            position=position,
            window=batch.after.window,
            seconds=self.state.seconds + metrics["seconds/step"],
            updates=self.learner.updates,
            skipped=self.bad_updates,
        )
        self.whole = True
        # Last: a server of metrics that is down, or a callback that raises, ends the run and costs it no step.
        self.trackers.log(metrics, self.state.step)
        self.callbacks.on_step(self.state.step, metrics)

    async def validate(self, *, last: bool = False) -> None:
        """Every `train.eval_every` steps and after the last one: sampled accuracy on validation tasks; remembers the best."""
        every, step = self.run.train.eval_every, self.state.step
        last = last or step == self.num_steps  # before the last checkpoint, which then knows of it
        if not every or not (last or step % every == 0) or self.state.validated == step or not self.validation:
            return
        self.progress.phase("validation")
        (sampled, *_) = eval_specs(self.run.evaluation, f"{VALIDATION}-{step:06d}")
        asking = replace(sampled, questions=self.run.train.eval_limit, samples=1)
        results = await run_eval(self.components, self.validation, asking, model=f"step {step}", console=Console(quiet=True))
        results.write(self.folder.path / "evaluation")
        self.trackers.log({"validation/accuracy": results.accuracy.mean}, step)
        accuracy = results.accuracy.mean
        gain = self.run.train.early_stop.min_gain if self.run.train.early_stop else 0.0
        better = self.state.best is None or accuracy > self.state.best + gain
        self.note(f"validation accuracy {results.accuracy.percent}" + (" (the best so far)" if better else ""))
        if better:
            self.state = replace(self.state, validated=step, best=accuracy, best_step=step, stale_evaluations=0)
            await self.save(last=True)
        else:
            self.state = replace(self.state, validated=step, stale_evaluations=self.state.stale_evaluations + 1)
        self.callbacks.on_evaluation(step, results)

    async def save(self, *, last: bool = False) -> None:
        """Write a checkpoint where one is due: every `train.save_every` steps, and at the end (`last`) unless it is there.

        After a skipped update only at the end: the weights may be what is broken, and their checkpoint would push out a good one.
        A large one takes minutes: where calls of tools are under way meanwhile, they must not miss their deadlines for it.
        """
        every = self.run.train.save_every
        due = last or (every and self.state.step // every > self.saved.step // every)
        if not due or self.state == self.saved or self.state.step == 0 or (self.bad_updates and not last):
            return
        self.progress.phase("checkpoint")
        self.folder.sync()
        path = await self.schedule.learn(self._write_checkpoint)
        self.callbacks.on_checkpoint(self.saved.step, path)

    def _write_checkpoint(self) -> Path:
        policy = self.learner.unwrapped
        saved = checkpoint.save(
            self.folder.path / "checkpoints",
            self.state,
            policy.model,
            self.components.tokenizer,
            self.learner.optimizer,
            keep=self.run.train.keep_last + bool(self.bad_updates),  # what may be broken pushes out nothing
        )
        self.saved = self.state
        return saved.path

    def note(self, text: str, level: str = "info", step: int | None = None) -> None:
        """`step`: None for the last finished one."""
        self.folder.note(text, step=self.state.step if step is None else step, level=level)
        self.progress.say(text if level == "info" else f"warning: {text}")


_REMEMBERED = ("rates/tool_use", "train/updates", "train/skipped_updates")


def _kept(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What later steps ask of a step: a run of many steps must not grow."""
    return {key: metrics[key] for key in _REMEMBERED if key in metrics}
