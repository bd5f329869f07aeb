"""The training loop: collect, credit, check, update, publish, record, and now and then validate and save.

Knows the order of things. What each of them does is elsewhere; `Trainer.train` reads as the method's outline.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from random import Random

from arpo.core.branching import StepStats
from arpo.core.credit import CreditedTree, credit, mixed
from arpo.core.window import next_stats
from arpo.engines import Weights
from arpo.errors import ArpoError
from arpo.evaluation.evaluate import evaluate
from arpo.rollout.collect import Rollout, collect
from arpo.rollout.records import record_of
from arpo.tasks import Task
from arpo.train import checkpoint
from arpo.train.checkpoint import TrainState
from arpo.train.gates import gates, tool_use_collapse
from arpo.train.job import Job
from arpo.train.learner import Learner
from arpo.train.meter import Measured, Metrics, measure
from arpo.train.progress import Progress
from arpo.train.runfolder import RunFolder
from arpo.train.trackers import Trackers

BAD_UPDATES = 3  # in a row, then the run stops


class GateError(ArpoError):
    """The first collected step is not fit to be trained on; names the gates that fail."""


class Trainer:
    """Trains a job's policy from `state` on. `reserve_s`: seconds of the budget to keep for what comes after training."""

    def __init__(
        self,
        job: Job,
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
    ) -> None:
        self.job, self.learner, self.folder, self.tasks, self.validation = job, learner, folder, tasks, validation
        self.state, self.num_steps, self.progress, self.trackers, self.reserve_s = state, num_steps, progress, trackers, reserve_s
        self.run, self.saved = job.run, state.step if state.step else -1
        self.bad_updates = 0
        self.whole = True  # False while the weights are ahead of the state
        self.history: list[Metrics] = [dict(line) for line in folder.metrics()]
        self.collapse_told = False

    async def train(self) -> TrainState:
        """Train until the steps, the time or the patience end. Cancelled (Ctrl-C), it saves what is finished and raises."""
        try:
            while self.goes_on():
                batch, position = await self.collect()
                credited = self.credit(batch)
                metrics = self.measure(batch, credited)
                self.record(batch, credited)
                self.check(metrics)
                self.finish_step(batch, position, metrics | self.update(credited))
                await self.publish()
                await self.validate()
                self.save()
        finally:
            if self.whole:
                self.save(last=True)
        return self.state

    @property
    def step(self) -> int:
        """The number of the step under way, from 1."""
        return self.state.step + 1

    def goes_on(self) -> bool:
        stop = self.run.train.early_stop
        if stop and self.state.stale_evaluations >= stop.patience:
            self.note(f"stopped early: no better validation for {self.state.stale_evaluations} evaluations")
            return False
        if self.state.step < self.num_steps and not self.progress.room_for_step(reserve_s=self.reserve_s):
            self.note(f"stopped after step {self.state.step} of {self.num_steps}: the next one would overrun train.minutes")
            return False
        return self.state.step < self.num_steps

    async def collect(self) -> tuple[list[Rollout], int]:
        """A step's rollouts in data order, and the data position after them. Under dynamic sampling, groups that teach nothing are
        replaced by further tasks."""
        train, dynamic = self.run.train, self.run.train.dynamic_sampling
        most = train.tasks_per_step * (dynamic.max_batches if dynamic else 1)
        kept: list[Rollout] = []
        seen = 0
        self.progress.phase("sampling", total=train.tasks_per_step)
        rollouts = collect(
            self.job.agent,
            self._tasks_from(self.state.position, most),
            self.job.reward,
            self.run.rollout,
            stats=StepStats(step=self.step, window=self.state.window),
            seed=self.run.seed,
            in_flight=train.tasks_per_step,
        )
        try:
            async for rollout in rollouts:
                seen += 1
                if dynamic is None or mixed(rollout.scored):
                    kept.append(rollout)
                    self.progress.advance()
                if len(kept) == train.tasks_per_step:
                    break
        finally:
            await rollouts.aclose()
        if not kept:
            kept = [rollout]  # to be measured: there is nothing to train on, and the step says so
        return kept, self.state.position + seen

    def _tasks_from(self, position: int, count: int) -> Iterator[Task]:
        """`count` tasks of the endless, seeded order, from `position` on; every epoch has an order of its own."""
        epoch, order = -1, list(range(len(self.tasks)))
        for at in range(position, position + count):
            if at // len(self.tasks) != epoch:
                epoch, order = at // len(self.tasks), list(range(len(self.tasks)))
                Random(f"{self.run.seed}/order/{epoch}").shuffle(order)
            yield self.tasks[order[at % len(self.tasks)]]

    def credit(self, batch: Sequence[Rollout]) -> list[CreditedTree]:
        return credit([rollout.scored for rollout in batch], self.run.advantage)

    def measure(self, batch: Sequence[Rollout], credited: Sequence[CreditedTree]) -> Metrics:
        step = [
            Measured(tree, rollout.grown.planned_roots, rollout.grown.expansion.decisions)
            for rollout, tree in zip(batch, credited, strict=True)
        ]
        return {
            **measure(step, head_tokens=self.run.rollout.head),
            "tools/seconds": sum(rollout.grown.tool_s for rollout in batch),
            "decisions/waited_s": sum(rollout.grown.waited_s for rollout in batch),
        }

    def record(self, batch: Sequence[Rollout], credited: Sequence[CreditedTree]) -> None:
        self.progress.phase("records")
        for rollout, tree in zip(batch, credited, strict=True):
            self.folder.append_tree(self.step, record_of(rollout, tree))
        self._keep_samples(batch)

    def _keep_samples(self, batch: Sequence[Rollout]) -> None:
        """One trajectory a step as text, for whoever reads the report."""
        rollout = batch[0]
        for leaf, score in list(rollout.scored.scores.items())[:1]:
            text = "".join(rollout.grown.chat.text(segment.tokens) for segment in rollout.grown.tree.path(leaf))
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
            found = gates(metrics, self.run.train.gates)
            self.folder.write_summary(
                gates=[{"what": g.what, "goal": g.goal, "measured": g.measured, "holds": g.holds} for g in found]
            )
            failing = [str(gate) for gate in found if not gate.holds]
            if self.run.train.gates and failing:
                raise GateError(f"the first step's trajectories are not fit to be trained on: {'; '.join(failing)}")
        self.history.append(metrics)
        warning = None if self.collapse_told else tool_use_collapse(self.history)
        if warning:
            self.collapse_told = True
            self.note(warning, level="warning")

    def update(self, credited: Sequence[CreditedTree]) -> Metrics:
        self.progress.phase("update")
        self.whole = False
        metrics = self.learner.update(credited, self.run.train.updates_per_step)
        if not metrics:
            self.note("nothing to train on: all groups have equal rewards", level="warning")
            return {"updates": 0.0}
        self.bad_updates = self.bad_updates + 1 if metrics["skipped_updates"] else 0
        if metrics["skipped_updates"]:
            self.note("a loss or gradient was not finite: its update was skipped", level="warning")
        if self.bad_updates == BAD_UPDATES:
            raise ArpoError(
                f"{BAD_UPDATES} steps in a row had updates without a finite loss: lower optim.lr, or look at the records"
            )
        return {f"train/{name}" if "/" not in name else name: value for name, value in metrics.items()}

    async def publish(self) -> None:
        """Hand the new weights to the engine."""
        self.progress.phase("publication")
        await self.job.agent.engine.load(Weights(self.state.step, self.learner.state()))

    def finish_step(self, batch: Sequence[Rollout], position: int, metrics: Metrics) -> None:
        stats = next_stats(
            StepStats(step=self.step, window=self.state.window),
            [rollout.grown.tree for rollout in batch],
            step=self.step + 1,
            head=self.run.rollout.head,
            window=getattr(self.run.rollout.rule, "window", 0),
        )
        metrics |= {**self.progress.timings(), "tasks/position": position}
        self.history[-1] = metrics
        self.folder.append_metrics(self.step, metrics)
        self.trackers.log(metrics, self.step)
        self.progress.step(metrics)
        seconds = self.state.seconds + metrics["seconds/step"]
        self.state = replace(
            self.state,
            step=self.step,
            position=position,
            window=stats.window,
            seconds=seconds,
            updates=self.learner.updates,
        )
        self.whole = True

    async def validate(self) -> None:
        """Every `train.eval_every` steps: sampled accuracy on validation tasks; remembers the best."""
        train = self.run.train
        if not train.eval_every or self.state.step % train.eval_every or not self.validation:
            return
        results = await evaluate(
            self.job.agent,
            self.validation[: train.eval_limit],
            self.job.reward,
            self.run.rollout,
            name=f"validation-{self.state.step:06d}",
            model=f"step {self.state.step}",
            temperature=self.run.evaluation.temperature,
            top_p=self.run.evaluation.top_p,
            seed=self.run.evaluation.seed,
        )
        results.write(self.folder.path / "evaluation")
        accuracy = results.accuracy.mean
        gain = train.early_stop.min_gain if train.early_stop else 0.0
        better = self.state.best is None or accuracy > self.state.best + gain
        self.note(f"validation accuracy {results.accuracy.percent}" + (" (the best so far)" if better else ""))
        if better:
            self.state = replace(self.state, best=accuracy, best_step=self.state.step, stale_evaluations=0)
            self.save(last=True)
        else:
            self.state = replace(self.state, stale_evaluations=self.state.stale_evaluations + 1)

    def save(self, *, last: bool = False) -> None:
        """Write a checkpoint where one is due: every `train.save_every` steps, and at the end (`last`) unless it is there."""
        every = self.run.train.save_every
        due = last or (every and self.state.step % every == 0)
        if not due or self.state.step in (0, self.saved):
            return
        self.folder.sync()
        policy = self.learner.unwrapped
        checkpoint.save(
            self.folder.path / "checkpoints",
            self.state,
            policy.model,
            self.job.tokenizer,
            self.learner.optimizer,
            keep=self.run.train.keep_last,
        )
        self.saved = self.state.step

    def note(self, text: str, level: str = "info") -> None:
        self.folder.note(text, step=self.state.step, level=level)
        self.progress.say(text if level == "info" else f"warning: {text}")
