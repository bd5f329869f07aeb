"""Finished steps done again from the run's records, without an engine: after the loss of a rank, and where a run that
was killed goes on.

A step's records hold its trees with their credit, so the same packs come of them, bit for bit, and the same update.
Knows the run folder and the learner. Refuses to know when a step is done again.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from itertools import count, takewhile
from math import isclose
from pathlib import Path
from typing import Protocol

from arpo.assembly.components import Components, build_learner, hold_model, model_source
from arpo.cluster.ranks import RayRanks
from arpo.core.place import keyed
from arpo.errors import CheckpointError, FormatError, LearnerError
from arpo.learner import Learner
from arpo.learner.rank import ModelSource
from arpo.recipe.run import RunConfig
from arpo.runs import checkpoint
from arpo.runs.checkpoint import Checkpoint, TrainState, state_from
from arpo.runs.folder import STATES, RunFolder
from arpo.runs.shutdown import is_stopping

COMPARED = {"lr": 1e-6, "grad_norm": 0.02}
"""Metrics of an update, and by how much of themselves they may differ when it is done again: other numbers of threads
and ranks add in another order, in bfloat16 visibly."""


def update_seed(seed: int, step: int) -> int:
    """Of what dropout draws in the update of a step."""
    return keyed(seed, step, "", (), "update").getrandbits(63)


def finished_after(folder: RunFolder, step: int) -> list[TrainState]:
    """Where the run stood after each finished step that follows `step`, as far as they can be done again: up to one
    whose update was skipped, after which weights may be broken."""
    states = {state.step: state for state in (state_from(v, folder.path / STATES) for v in folder.states())}
    measured = {line["step"] for line in folder.metrics()} & set(folder.event_steps())
    return [
        states[s] for s in takewhile(lambda s: s in measured and s in states and not states[s].skipped, count(step + 1))
    ]


def replay(
    learner: Learner,
    run: RunConfig,
    folder: RunFolder,
    steps: Sequence[int],
    stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Let the learner do the updates of `steps` again. False where `stop`, which is called before each, returned True.
    Raises CheckpointError where an update is not what it was, or its records are damaged."""
    was = {line["step"]: line for line in folder.metrics()}
    for step in steps:
        if stop():
            return False
        try:
            trees = [record.credited for record in folder.trees(step)]
        except FormatError as error:
            raise CheckpointError(f"the update of step {step} cannot be done again: {error}") from error
        update = learner.update(trees, run.train.updates_per_step, seed=update_seed(run.seed, step))
        for name, tolerance in COMPARED.items():
            before, now = was[step].get(f"train/{name}"), update.metrics.get(name)
            if before is not None and (now is None or not isclose(now, before, rel_tol=tolerance, abs_tol=1e-9)):
                raise CheckpointError(
                    f"the update of step {step}, done again from {folder.events_path(step)}, has {name} {now} "
                    f"instead of {before}"
                )
    return True


class Say(Protocol):
    def __call__(self, text: str, level: str = "info") -> None: ...


class Recovery:
    """Makes the learner of a run: new, as a checkpoint has it, or after a loss of ranks.

    `source`: the folder of the base model; `base`: weights that the training began with (None: the source's);
    `num_updates`: the length of the learning rate's schedule.
    """

    def __init__(
        self, components: Components, source: Path, base: Path | None, folder: RunFolder, *, num_updates: int, say: Say
    ) -> None:
        self.components, self.source, self.base, self.folder = components, source, base, folder
        self.run, self.ranks, self.num_updates, self.say = components.run, components.ranks, num_updates, say

    def learner(self, saved: Checkpoint | None) -> Learner:
        """The learner as it starts, or as it was when the checkpoint was saved, whose weights the model has."""
        reference = self._reference() if saved and self.run.loss.divergence else None
        learner = build_learner(
            self.components, optim=self.run.optim, num_updates=self.num_updates, tell=self.say, reference=reference
        )
        if saved:
            learner.load(saved.path)
        return learner

    def _reference(self) -> ModelSource:
        """The model that the run began with."""
        if self.run.cold_start and self.base is None:
            raise CheckpointError("the cold start that this run is to be kept close to is no longer in the cache")
        shared = self.ranks is not None and self.ranks.size > 1
        return model_source(self.run, self.source, self.base, shared=shared)

    async def do_again(self, learner: Learner, saved: TrainState, finished: Sequence[TrainState]) -> TrainState:
        """Do the `finished` steps that came after the checkpoint of `saved` again. Returns the state after them."""
        began, state = time.monotonic(), finished[-1]
        try:
            if not replay(learner, self.run, self.folder, [each.step for each in finished], is_stopping):
                raise asyncio.CancelledError
        except CheckpointError as error:
            cut = self.folder.cut_back(saved.step)
            raise CheckpointError(
                f"{error}. --resume goes on from step {saved.step}, which is saved; what came after it is in {cut}"
            ) from error
        await self.components.agent.engine.update_weights(self.components.weights(state.step))
        took = time.monotonic() - began
        self.say(f"done again from the records in {took:.1f} s: {_steps(saved.step, state.step)}, not saved before")
        return state

    def recover(self, error: LearnerError, state: TrainState) -> Learner:
        """The learner on ranks that are started anew, as it was at `state`."""
        assert isinstance(self.ranks, RayRanks)
        began = time.monotonic()
        self.ranks.restart()
        saved, _ = checkpoint.newest(self.folder.path / "checkpoints")
        hold_model(self.ranks, self.run, self.source, saved.model if saved else self.base, self.components.dtype)
        learner = self.learner(saved)
        step = saved.state.step if saved else 0
        replay(learner, self.run, self.folder, range(step + 1, state.step + 1))
        self.say(
            f"{error}. {self.ranks.size} ranks are back after {time.monotonic() - began:.1f} s: weights of step "
            f"{step}, then {_steps(step, state.step)} again from the records",
            level="warning",
        )
        return learner


def _steps(after: int, last: int) -> str:
    return "no step" if last == after else f"step {last}" if last == after + 1 else f"steps {after + 1} to {last}"
