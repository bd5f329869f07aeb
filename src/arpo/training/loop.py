"""The training loop: collect, credit, check, update, record, publish, and now and then validate and save.

Knows the order of a step's stages; `Trainer.train` is the method's outline. Refuses to know how a stage works.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from math import fsum
from pathlib import Path
from typing import Any, TypeVar

from arpo.assembly.components import Components
from arpo.core.credit import CreditedTree, credit
from arpo.display.progress import Progress
from arpo.display.terminal import Console
from arpo.engines import Weights
from arpo.engines.stats import Prefill
from arpo.errors import ArpoError, GateError, LearnerError
from arpo.evaluation.questions import eval_specs
from arpo.evaluation.run_eval import evaluate_tasks
from arpo.event_loop import finished
from arpo.learner import MAX_SKIPPED, Learner, Update
from arpo.recipe.train import BUDGETS
from arpo.rollout.collect import Rollout, record_of
from arpo.runs import checkpoint
from arpo.runs.checkpoint import TrainState
from arpo.runs.folder import STATES, VALIDATION, RunFolder
from arpo.tasks import Task
from arpo.terminal_safe import terminal_safe
from arpo.training.batch import Batch, SamplerState, best_and_worst, collect_step, is_used
from arpo.training.callbacks import Callback
from arpo.training.first_step_checks import check_first_step, tool_use_collapse
from arpo.training.metrics import Metrics, TreeStats, step_metrics
from arpo.training.recovery import update_seed
from arpo.training.schedule import make_schedule
from arpo.training.trackers import Trackers

T = TypeVar("T")

MAX_LOSSES = 3
"""So many times in a row, with no finished step between, ranks that are lost are started again."""


class Trainer:
    """Trains the policy of `components` from `state` to step `num_steps`.

    `reserve_s`: seconds of `train.minutes` to keep for what comes after training, besides those in which `last_tokens`
    are sampled for the last evaluation. `min_steps`: steps that are done whatever the minutes. `recover`: makes the
    learner anew as it was at a state, after a loss of ranks; None: a loss ends the training. `copy`: copies the run
    elsewhere, after each checkpoint. `saved`: the state that the newest checkpoint holds; None: `state`.
    """

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
        last_tokens: float = 0.0,
        min_steps: int = 0,
        callbacks: Callback | None = None,
        recover: Callable[[LearnerError, TrainState], Learner] | None = None,
        copy: Callable[[], Awaitable[None]] | None = None,
        saved: TrainState | None = None,
    ) -> None:
        self.copy = copy
        self.recover, self.losses = recover, 0  # losses since the last finished step
        self.components, self.learner, self.folder, self.tasks, self.validation = (
            components,
            learner,
            folder,
            tasks,
            validation,
        )
        self.state, self.num_steps, self.progress, self.trackers = state, num_steps, progress, trackers
        self.reserve_s, self.last_tokens = reserve_s, last_tokens
        self.run, self.min_steps, self.callbacks = components.run, min_steps, callbacks or Callback()
        self.saved = self.saved_before = saved or state  # of the last two checkpoints
        self.writing: asyncio.Task[None] | None = None
        self.ended_early = ""  # the reason, where training ends before the last step
        self.consistent = True  # False while the weights are ahead of the state
        self.history = [_remembered(line) for line in folder.metrics()]
        self.warned_of_collapse = False
        self.arrived: Counter[int] = Counter()  # rollouts to be trained on, by step
        self.schedule = make_schedule(
            self.run,
            self.collect_step,
            self.publish,
            engine=components.agent.engine,
            start=SamplerState(
                step=self.step,
                position=state.position,
                window=state.window,
                outcomes=state.outcomes,
                rates=checkpoint.rates_after(state.step, folder.states(), folder.path / STATES),
            ),
            last_step=num_steps,
        )
        self.prefill = Prefill(components.agent.engine)
        self.room = asyncio.Semaphore(self.run.train.tasks_per_step)  # trees that grow at once, of whatever step

    async def train(self) -> TrainState:
        """Train until the steps, the minutes or the patience run out. Where it is cancelled (Ctrl-C), it saves the
        finished steps and raises.

        Raises GateError where the first step is not fit to be trained on, EngineError or ToolError where every leaf of
        a step was lost to failures of the infrastructure, ArpoError where the loss stays infinite.
        """
        try:
            await self.validate()  # the last step, where an earlier start ended before it did
            async with self.schedule:
                while self.goes_on():
                    batch = await self.collect()
                    credited = self.credit(batch)
                    metrics = self.measure(batch, credited)
                    self.check(metrics)
                    update = await self.update(credited)
                    self.record(batch, credited, update)
                    self.finish_step(batch, {**metrics, **update.metrics})
                    await self.despite_losses(self.publish)
                    await self.validate()
                    await self.despite_losses(self.save)
            self.set_aside()
            await self.validate(last=True)
        finally:
            try:
                if self.consistent:
                    await self.despite_losses(self.save_last)
            finally:
                await self.written()
        return self.state

    @property
    def step(self) -> int:
        """The number of the step under way, from 1."""
        return self.state.step + 1

    def goes_on(self) -> bool:
        stop, step = self.run.train.early_stop, self.state.step
        if step >= self.num_steps:
            return False
        if stop and self.state.stale_evaluations >= stop:
            self.ended_early = f"no better validation for {self.state.stale_evaluations} evaluations"
        elif step >= self.min_steps and not self.progress.room_for_step(
            reserve_s=self.reserve_s, tokens=self.last_tokens
        ):
            self.ended_early = "the next step would overrun train.minutes"
        for name, most in self.run.train.budget.items():
            if (spent := fsum(line.get(BUDGETS[name]) or 0.0 for line in self.history)) >= most:
                self.ended_early = f"{spent:,.0f} {name} are spent (train.budget)"
        if self.ended_early:
            self.note(f"ended after step {step} of {self.num_steps}: {self.ended_early}")
        return not self.ended_early

    async def collect(self) -> Batch:
        """The step's rollouts, some or all of which may be there already."""
        enough = self.run.train.tasks_per_step
        self.progress.phase("sampling", total=enough)
        self.progress.advance(self.arrived[self.step])
        batch = await anext(self.schedule)
        del self.arrived[self.step]
        if batch.used < enough:
            self.note(
                f"only {batch.used} of {len(batch.rollouts)} groups have mixed rewards (train.dynamic_sampling)",
                level="warning",
                step=self.step,
            )
        return batch

    async def collect_step(self, start: SamplerState) -> Batch:
        return await collect_step(self.components, self.tasks, start, self.keep, self.room)

    def keep(self, step: int, rollout: Rollout) -> None:
        """Write a rollout to disk at once: whatever ends the run, its tree can be read."""
        self.folder.append_tree(step, record_of(rollout))
        if is_used(self.run, rollout):
            self.arrived[step] += 1
            if step == self.step:
                self.progress.advance()

    def set_aside(self) -> None:
        """Move away the trees of steps that were sampled ahead and are not trained on, since training ends early."""
        if self.ended_early and (folder := self.folder.cut_back(self.state.step)):
            self.note(f"what was sampled ahead of that is kept in {folder}")

    def uses(self, rollout: Rollout) -> bool:
        """Whether `rollout` is trained on."""
        return is_used(self.run, rollout)

    def credit(self, batch: Batch) -> list[CreditedTree]:
        """Credit in the order of `batch`; a rollout that is not used has none."""
        used = iter(credit([rollout.scored for rollout in batch.rollouts if self.uses(rollout)], self.run.advantage))
        return [
            next(used) if self.uses(rollout) else CreditedTree(rollout.scored, {}, {}) for rollout in batch.rollouts
        ]

    def measure(self, batch: Batch, credited: Sequence[CreditedTree]) -> Metrics:
        step = [*map(TreeStats.from_rollout, batch.rollouts, credited)]
        return {
            **step_metrics(step, head_tokens=self.run.rollout.head, version=self.state.step),
            **self.schedule.figures(batch),
            "tools/seconds": sum(rollout.grown.tool_s for rollout in batch.rollouts),
            "decisions/waited_s": sum(rollout.grown.waited_s for rollout in batch.rollouts),
        }

    def record(self, batch: Batch, credited: Sequence[CreditedTree], update: Update) -> None:
        """Write the step's trees once more, now with their credit and the learner's log-probability of each token."""
        self.progress.phase("records")
        for rollout, tree in zip(batch.rollouts, credited, strict=True):
            self.folder.append_tree(self.step, record_of(rollout, tree, update.logprobs.get(rollout.task.id)))
        self._keep_sample(batch.rollouts[0])
        every = self.run.train.show_every
        for text in best_and_worst(batch.rollouts) if every and self.step % every == 0 else ():
            self.progress.say(terminal_safe(text))

    def _keep_sample(self, rollout: Rollout) -> None:
        """Write one trajectory of the step as text, for the report."""
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
            gates = check_first_step(metrics, self.run.train.gates)
            self.folder.write_summary(gates=[asdict(gate) for gate in gates])
            failing = [str(gate) for gate in gates if not gate.holds]
            if self.run.train.gates and failing:
                raise GateError(f"the first step's trajectories are not fit to be trained on: {'; '.join(failing)}")
        warning = None if self.warned_of_collapse else tool_use_collapse([*self.history, metrics])
        if warning:
            self.warned_of_collapse = True
            self.note(warning, level="warning", step=self.step)

    async def update(self, credited: Sequence[CreditedTree]) -> Update:
        """The learner's update, its metrics named `train/...`."""
        self.progress.phase("update")
        self.consistent = False
        update, broken = await self.despite_losses(partial(self._learn, credited))
        if not update.metrics:
            self.note("nothing to train on: the rewards of every group are equal", level="warning", step=self.step)
            return replace(update, metrics={"train/updates": 0.0, "train/tokens_trained": 0.0})
        if update.metrics["skipped_updates"]:
            self.note("a loss or gradient was not finite: its update was skipped", level="warning", step=self.step)
            if self.bad_updates == MAX_SKIPPED - 1:
                raise ArpoError(
                    f"{MAX_SKIPPED} steps in a row had updates without a finite loss: lower optim.lr, or look at "
                    "the records"
                )
        if broken:
            raise ArpoError(
                f"the update of step {self.step} broke the weights ({broken} is not finite): "
                "lower optim.lr, then resume"
            )
        return replace(update, metrics={f"train/{name}": value for name, value in update.metrics.items()})

    async def _learn(self, credited: Sequence[CreditedTree]) -> tuple[Update, str | None]:
        """The update, and which weight it broke."""

        def work() -> tuple[Update, str | None]:
            seed = update_seed(self.run.seed, self.step)
            update = self.learner.update(credited, self.run.train.updates_per_step, seed=seed)
            return update, self.learner.healthy() if update.metrics else None

        return await self.schedule.learn(work)

    async def despite_losses(self, work: Callable[[], Awaitable[T]]) -> T:
        """What `work` returns. Where the learner loses a rank, it is brought back to the last finished step, and the
        work is done again."""
        lost: LearnerError | None = None
        consistent = self.consistent
        while True:
            try:
                if lost is not None and self.recover is not None:
                    self.consistent = False
                    self.learner = await self.schedule.learn(partial(self.recover, lost, self.state))
                    self.consistent = consistent
                return await work()
            except LearnerError as error:
                self.losses += 1
                if self.recover is None or self.losses > MAX_LOSSES:
                    raise
                lost = error
                with suppress(LearnerError):  # a checkpoint that was being written has lost the same rank
                    await self.written()

    @property
    def bad_updates(self) -> int:
        """Steps in a row, up to the last finished one, in which an update was skipped. Steps without updates do not
        count."""
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
        weights = Weights(version, self.learner.weights(), changing=self.schedule.overlaps)
        await self.components.agent.engine.update_weights(weights)
        self.schedule.published(version)

    def finish_step(self, batch: Batch, metrics: Metrics) -> None:
        position = batch.after.position
        metrics |= {
            **self.prefill.since(),
            **self.progress.timings(),
            "tasks/position": position,
            "tasks/tried": len(batch.rollouts),
        }
        self.history.append(_remembered(metrics))
        self.folder.append_metrics(self.step, metrics)
        self.components.agent.tool_gateway.write_down()
        self.progress.step(metrics)
        self.state = replace(
            self.state,
            step=self.step,
            position=position,
            window=batch.after.window,
            outcomes=batch.after.outcomes,
            rates=batch.rates,
            seconds=self.state.seconds + metrics["seconds/step"],
            skipped=self.bad_updates,
        )
        self.folder.append_state(asdict(self.state))
        self.consistent, self.losses = True, 0
        self.trackers.log(metrics, self.state.step)
        # Last: a callback that raises ends the run and costs it no step.
        self.callbacks.on_step(self.state.step, metrics)

    async def validate(self, *, last: bool = False) -> None:
        """Every `train.eval_every` steps and after the last one: sampled accuracy on validation tasks; remembers the
        best.

        The checkpoint comes first: a run that is killed meanwhile goes on with the same weights, and asks only what is
        missing.
        """
        every, step = self.run.train.eval_every, self.state.step
        last = last or step == self.num_steps  # before the last checkpoint, which then holds the result
        if not every or not (last or step % every == 0) or self.state.validated == step or not self.validation:
            return
        await self.despite_losses(self.save_last)
        self.progress.phase("validation")
        (sampled, *_) = eval_specs(self.run.evaluation, f"{VALIDATION}-{step:06d}")
        spec = replace(sampled, questions=self.run.train.eval_limit, samples=1)
        folder, model, quiet = (
            self.folder.path / "evaluation" / spec.name,
            f"{self.run.name}, step {step}",
            Console(quiet=True),
        )
        results = await evaluate_tasks(
            self.components, self.validation, spec, folder, model=model, split=VALIDATION, console=quiet
        )
        self.trackers.log({"validation/accuracy": results.accuracy.mean}, step)
        accuracy = results.accuracy.mean
        better = self.state.best is None or accuracy > self.state.best
        self.note(f"validation accuracy {results.accuracy.percent}" + (" (the best so far)" if better else ""))
        if better:
            self.state = replace(self.state, validated=step, best=accuracy, best_step=step, stale_evaluations=0)
        else:
            self.state = replace(self.state, validated=step, stale_evaluations=self.state.stale_evaluations + 1)
        self.callbacks.on_evaluation(step, results)

    async def save(self, *, last: bool = False) -> None:
        """Write a checkpoint where one is due: every `train.save_every` steps, and at the end (`last`) unless it is
        there. The learner waits for a copy of its weights and moments alone; they are written in the background.

        After a skipped update only at the end: the weights may be what is broken, and their checkpoint would push out a
        good one. Raises what writing the one before came to.
        """
        every = self.run.train.save_every
        due = last or (every and self.state.step // every > self.saved.step // every)
        if not due or self.state == self.saved or self.state.step == 0 or (self.bad_updates and not last):
            return
        try:
            await self.written()
        finally:  # this one may succeed
            self.progress.phase("checkpoint")
            self.folder.sync()
            write = await self.schedule.learn(self.learner.snapshot)
            self.writing = asyncio.create_task(self._write_checkpoint(self.state, write))
            self.saved_before, self.saved = self.saved, self.state

    async def save_last(self) -> None:
        """Write a checkpoint unless it is there, and wait until it is whole."""
        await self.save(last=True)
        await self.written()

    async def written(self) -> None:
        """Wait until the checkpoint is whole that is being written, where one is. Raises what writing it came to."""
        writing, self.writing = self.writing, None
        if writing is None:
            return
        self.progress.phase("checkpoint")
        try:
            await finished(writing)
        except BaseException:
            self.saved = self.saved_before
            raise

    async def _write_checkpoint(self, state: TrainState, write: Callable[[Path], None]) -> None:
        keep = self.run.train.keep_last + bool(self.bad_updates)  # weights that may be broken push out none
        folder, tokenizer = self.folder.path / "checkpoints", self.components.tokenizer
        saved = await asyncio.to_thread(checkpoint.save, folder, state, write, tokenizer, keep=keep)
        self.callbacks.on_checkpoint(state.step, saved.path)
        if self.copy is not None:
            await self.copy()

    def note(self, text: str, level: str = "info", step: int | None = None) -> None:
        """`step`: None for the last finished one."""
        self.folder.note(text, step=self.state.step if step is None else step, level=level)
        self.progress.say(text if level == "info" else f"warning: {text}")


_REMEMBERED = ("rates/tool_use", "train/updates", "train/skipped_updates", *BUDGETS.values())


def _remembered(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics that later steps look at: the history of a long run stays small."""
    return {key: metrics[key] for key in _REMEMBERED if key in metrics}
