"""Where else metrics go: TensorBoard in the run folder, and the trackers that Accelerate knows (wandb, trackio, mlflow,
...).

Knows names of trackers and how to feed them. Refuses to know what the metrics mean. Packages are imported when a run
asks for them.
"""

import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from arpo.errors import ConfigError, first_line, install, nearest
from arpo.recipe.train import TrackerName
from arpo.runs.disk_space import is_full
from arpo.threads import work_for
from arpo.yaml_positions import flat

_PER_POSITION = "entropy_at/"  # 40 curves of one shape: in metrics.jsonl and the report, not in trackers
KNOWN = ("tensorboard", "wandb", "trackio", "mlflow")
_WHERE = "train.trackers"
MOST_WAITING = 100  # steps that wait for a client whose server is slow
CLOSING_S = 30.0  # for a client to send what waits when the run has ended


class Tracker(Protocol):
    def log(self, metrics: Mapping[str, float], step: int) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Writes scalars as TensorBoard event files. What an earlier start wrote after step `resumed_after` is hidden."""

    def __init__(self, folder: Path | str, *, resumed_after: int | None = None) -> None:
        _need("tensorboard")
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(str(folder))
        if resumed_after is not None:
            start = SessionLog(status=SessionLog.START)
            self._writer.add_event(Event(wall_time=time.time(), step=resumed_after + 1, session_log=start))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._writer.add_event(self._event(wall_time=time.time(), step=step, summary=self._summary(value=values)))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class _Accelerates:
    """A tracker of Accelerate behind our two methods."""

    def __init__(
        self, name: str, options: Mapping[str, Any], folder: Path, settings: Mapping[str, Any], *, resumed: bool
    ) -> None:
        from accelerate.state import PartialState
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        PartialState()  # their logging asks for it
        if name == "mlflow":
            _mlflow_into(folder)
        project = options.get("project", "arpo")
        self._tracker = LOGGER_TYPE_TO_CLASS[name](project, **_options(name, options, folder, resumed=resumed))
        self._tracker.start()
        self._tracker.store_init_configuration(_flat(settings))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._tracker.log(dict(metrics), step=step)

    def close(self) -> None:
        self._tracker.finish()


class _InBackground:
    """A tracker whose client may block for as long as its server does, in a thread of its own: `log` never waits.

    The client also starts and ends in that thread, since MLflow keeps its run by thread. What it raises, the next `log`
    or `close` raises. Values that find `MOST_WAITING` steps waiting are dropped, which is told once.
    """

    def __init__(self, name: str, make: Callable[[], Tracker], tell: Callable[[str], None]) -> None:
        self._name, self._tell, self._drops = name, tell, False
        self._waiting: queue.Queue[tuple[Mapping[str, float], int] | None] = queue.Queue(MOST_WAITING)
        self._ended: Future[None] = Future()
        started: Future[None] = Future()
        work = work_for(self._ended, self._feed, make, started)
        threading.Thread(target=work, name=f"arpo-{name}", daemon=True).start()
        wait({started, self._ended}, return_when=FIRST_COMPLETED)
        self._raise()

    def _feed(self, make: Callable[[], Tracker], started: "Future[None]") -> None:
        tracker = make()
        started.set_result(None)
        while (values := self._waiting.get()) is not None:
            tracker.log(*values)
        tracker.close()

    def _raise(self) -> None:
        if self._ended.done():
            self._ended.result()

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._raise()
        try:
            self._waiting.put_nowait((metrics, step))
        except queue.Full:
            if not self._drops:
                self._tell(
                    f"the tracker {self._name} is too slow: from step {step} on it gets only a part of the values"
                )
            self._drops = True

    def close(self) -> None:
        until = time.monotonic() + CLOSING_S
        with suppress(queue.Full):
            self._waiting.put(None, timeout=CLOSING_S)
        if wait({self._ended}, timeout=max(0.0, until - time.monotonic())).not_done:
            self._tell(f"the tracker {self._name} has not sent everything within {CLOSING_S:g} s, which is given up")
        self._raise()


def _options(name: str, options: Mapping[str, Any], folder: Path, *, resumed: bool) -> dict[str, Any]:
    """What each is told beside the project's name: the run's, and to keep its files in the run's folder. Trackio has
    one store for all runs ($TRACKIO_DIR), since its page lays them over each other; there a resumed run goes on under
    its name."""
    group, tags = options.get("group"), options.get("tags", ())
    match name:
        case "wandb":
            return {"name": folder.name, "dir": str(folder), "group": group, "tags": tags}
        case "trackio":
            return {"name": folder.name, "group": group, "resume": "allow" if resumed else "never"}
        case _:
            labels = {"group": group} if group else {}
            return {"run_name": folder.name, "tags": {**labels, **dict.fromkeys(tags, "true")}}


def _mlflow_into(folder: Path) -> None:
    """Without a server of the user's ($MLFLOW_TRACKING_URI) MLflow writes into the run's folder, as plain files: its
    database would need packages that a client has no use for, and files have to be allowed."""
    import mlflow

    if "MLFLOW_TRACKING_URI" not in os.environ:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        mlflow.set_tracking_uri((folder / "mlruns").resolve().as_uri())


class Trackers:
    """All trackers of a run; also a context manager. `trackers` (names with their options)
    adds to TensorBoard, which is always there. One that fails is told through `tell`, and gets nothing more: a run
    does not depend on a server of metrics, and does not wait for one.

    Raises ConfigError for a name that nobody knows, whose package is not installed, or which cannot be started.
    """

    def __init__(
        self,
        run: Path | str,
        trackers: Mapping[TrackerName, Mapping[str, Any]] = MappingProxyType({}),
        *,
        settings: Mapping[str, Any] | None = None,
        resumed_after: int | None = None,
        tell: Callable[[str], None],
    ) -> None:
        run, self._tell = Path(run), tell
        check_trackers(trackers)
        tensorboard = TensorBoard(run / "tensorboard", resumed_after=resumed_after)
        self._trackers: dict[str, Tracker] = {"tensorboard": tensorboard}
        resumed = resumed_after is not None
        for name, options in trackers.items():
            if name != "tensorboard":
                make = partial(_Accelerates, name, options, run, settings or {}, resumed=resumed)
                try:
                    self._trackers[name] = _InBackground(name, make, tell)
                except Exception as error:  # its client may raise anything: no key, no network
                    self.close()
                    wrong = f"the tracker {name!r} cannot be started ({type(error).__name__}: {first_line(error)})"
                    raise ConfigError(wrong, where=_WHERE, hint="Set it up, or leave it out") from error

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Numbers alone are sent; the entropies by position stay in the run folder."""
        numbers = {
            name: float(value)
            for name, value in metrics.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and not name.startswith(_PER_POSITION)
        }
        self._each(lambda tracker: tracker.log(numbers, step))

    def close(self) -> None:
        self._each(lambda tracker: tracker.close())

    def _each(self, act: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                act(tracker)
            except Exception as error:
                if is_full(error):
                    raise
                del self._trackers[name]
                self._tell(
                    f"the tracker {name} fails and gets nothing more: {type(error).__name__}: {first_line(error)}"
                )

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_trackers(trackers: Iterable[str]) -> None:
    """Raise ConfigError where one is unknown or not installed: to be called before anything long starts."""
    for name in trackers:
        if name not in KNOWN:
            raise ConfigError("unknown tracker", where=_WHERE, value=name, hint=nearest(name, KNOWN))
        _need(name)


def _need(name: str) -> None:
    if find_spec(name) is None:
        package = "mlflow-skinny" if name == "mlflow" else name
        hint = f"pip install {package}, or all of them: {install('tracking')}"
        raise ConfigError(f"the package of the tracker {name!r} is not installed", where=_WHERE, hint=hint)


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings under dotted names, as the trackers want them: numbers and text."""
    return {
        key: value if isinstance(value, bool | int | float | str) or value is None else str(value)
        for key, value in flat(settings).items()
        if value != {}
    }
