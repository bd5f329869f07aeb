"""Callbacks: a run calls a user's program after each step, each evaluation and each checkpoint.

Knows when it calls. Refuses to know what a callback does: an error that one raises ends the run.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from arpo.evaluation.results import EvalResults


class Callback:
    """Override the methods to be called. Training waits for each call. An error that one raises ends the run, which can
    be resumed."""

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Step `step` (from 1) is finished; `metrics` is its line of metrics.jsonl."""

    def on_evaluation(self, step: int, results: "EvalResults") -> None:
        """The weights of step `step` (0: before training) were measured: `results.name`, `results.accuracy.mean`."""

    def on_checkpoint(self, step: int, path: Path) -> None:
        """The checkpoint of step `step` is written, whole, in the folder `path`."""


StepFunction = Callable[[int, Mapping[str, float]], object]


class _EveryStep(Callback):
    def __init__(self, function: StepFunction) -> None:
        self.function = function

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        self.function(step, metrics)


class Callbacks(Callback):
    """The callbacks of a run, called in order. A function is called after each step."""

    def __init__(self, callbacks: Iterable[Callback | StepFunction] = ()) -> None:
        self.all = [one if isinstance(one, Callback) else _EveryStep(one) for one in callbacks]

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        for callback in self.all:
            with _named("on_step", step):
                callback.on_step(step, metrics)

    def on_evaluation(self, step: int, results: "EvalResults") -> None:
        for callback in self.all:
            with _named("on_evaluation", step):
                callback.on_evaluation(step, results)

    def on_checkpoint(self, step: int, path: Path) -> None:
        for callback in self.all:
            with _named("on_checkpoint", step):
                callback.on_checkpoint(step, path)


@contextmanager
def _named(hook: str, step: int) -> Iterator[None]:
    """Add to an error which callback raised it. The error keeps its type, since a program may catch that one (a tuner
    that ends a trial)."""
    try:
        yield
    except Exception as error:
        error.add_note(f"raised by a callback ({hook}, step {step}); the steps before it are in the run's folder")
        raise
