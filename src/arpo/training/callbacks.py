"""What a program of the user's own hears of a run while it goes on: each finished step, each evaluation, each checkpoint.

Knows when something is heard. Refuses to know what is done with it: what a callback raises ends the run.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from arpo.evaluation.results import EvalResults


class Callback:
    """Override what is to be heard. Training waits for each call. What one raises ends the run, which can be resumed."""

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
    """All callbacks of a run, called in their order. A plain function hears of steps."""

    def __init__(self, given: Iterable[Callback | StepFunction] = ()) -> None:
        self.all = [each if isinstance(each, Callback) else _EveryStep(each) for each in given]

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        for each in self.all:
            with _told("on_step", step):
                each.on_step(step, metrics)

    def on_evaluation(self, step: int, results: "EvalResults") -> None:
        for each in self.all:
            with _told("on_evaluation", step):
                each.on_evaluation(step, results)

    def on_checkpoint(self, step: int, path: Path) -> None:
        for each in self.all:
            with _told("on_checkpoint", step):
                each.on_checkpoint(step, path)


@contextmanager
def _told(hook: str, step: int) -> Iterator[None]:
    """An error keeps its type, since a program may wait for that one (a tuner that ends a trial), and says where it came up."""
    try:
        yield
    except Exception as error:
        error.add_note(f"raised by a callback ({hook}, step {step}); what was trained before is in the run's folder")
        raise
