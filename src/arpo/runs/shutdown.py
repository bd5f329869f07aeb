"""How a run ends that does not come to its end: Ctrl-C, SIGTERM, closed gates, a full disk, an error.

Whatever it is, the folder says so, and the weights of the last finished step are in a checkpoint (the loop saw to
that).
"""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from arpo.display.terminal import Console
from arpo.errors import ArpoError, GateError, ToolsStoppedError
from arpo.event_loop import run_sync
from arpo.runs import checkpoint
from arpo.runs.disk_space import is_full
from arpo.runs.folder import RunFolder

STOPPING = b"\nstopping: what is finished is kept. Ctrl-C again stops at once.\n"


def run_to_end(work: Coroutine[Any, Any, None]) -> None:
    """`complete`, where Ctrl-C, SIGTERM (what schedulers send before they kill) and SIGHUP (a terminal that is gone)
    cancel the work, and raise KeyboardInterrupt when it has saved what is finished. A second Ctrl-C raises it at
    once."""

    async def stoppable() -> None:
        task = asyncio.current_task()
        assert task is not None
        with (
            _cancelled_by(signal.SIGINT, task),
            _cancelled_by(signal.SIGTERM, task),
            _cancelled_by(signal.SIGHUP, task),
        ):
            await work

    try:
        run_sync(stoppable())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


@contextmanager
def _cancelled_by(number: signal.Signals, task: asyncio.Task[Any]) -> Iterator[None]:
    """`task` is cancelled by a signal, at once also where the event loop stands still: `is_stopping` is then true
    within an update.

    A signal that is ignored (`nohup`) stays so. Only the main thread can hear any.
    """
    before = signal.getsignal(number)
    if threading.current_thread() is not threading.main_thread() or before is signal.SIG_IGN:
        yield
        return
    loop, interactive = asyncio.get_running_loop(), number == signal.SIGINT

    def heard(_number: int, _frame: FrameType | None) -> None:
        if task.cancelling():
            if interactive:
                raise KeyboardInterrupt
            return
        if interactive:
            with suppress(OSError):
                os.write(
                    2, STOPPING
                )  # nothing may be asked of a console here: the signal may have come in the middle of a line
        task.cancel()
        loop.call_soon_threadsafe(lambda: None)  # wakes a loop that waits

    signal.signal(number, heard)
    try:
        yield
    finally:
        signal.signal(number, signal.SIG_DFL if before is None else before)


def is_stopping() -> bool:
    """Whether the task that asks was cancelled, and has not come to the `await` where that is raised."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


@contextmanager
def written_down(folder: RunFolder, console: Console) -> Iterator[None]:
    """Write into the summary how a run ended that did not come to its end. Raises ArpoError for a full disk, else what
    happened. SIGTERM and SIGHUP raise KeyboardInterrupt where `run_to_end` does not hear them."""
    with _interrupted_by(signal.SIGTERM), _interrupted_by(signal.SIGHUP):
        try:
            yield
        except KeyboardInterrupt:
            _write(folder, "interrupted", "")
            console.print(f"interrupted; to go on: {_resume(folder)}")
            raise
        except (GateError, ToolsStoppedError) as error:
            _write(folder, "stopped", str(error))
            raise
        except BaseException as error:
            if not is_full(error):
                _write(folder, "failed", f"{type(error).__name__}: {error}")
                raise
            saved, _ = checkpoint.newest(folder.path / "checkpoints")
            kept = f"the checkpoint of step {saved.state.step} is whole" if saved else "no checkpoint was written yet"
            reason = f"the disk is full: {folder.path} could not be written on; {kept}"
            _write(folder, "failed", reason)
            raise ArpoError(f"{reason}. Free some space, then go on: {_resume(folder)}") from error


@contextmanager
def _interrupted_by(number: signal.Signals) -> Iterator[None]:
    """A signal that would end the process raises KeyboardInterrupt, unless an error is being handled: torchrun sends
    SIGTERM as soon as another rank is gone, while the loss of that rank may be on its way to the summary."""

    def heard(_number: int, _frame: FrameType | None) -> None:
        if sys.exc_info()[0] is None:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(number) is not signal.SIG_DFL:
        yield
        return
    signal.signal(number, heard)
    try:
        yield
    finally:
        signal.signal(number, signal.SIG_DFL)


def _write(folder: RunFolder, status: str, reason: str) -> None:
    with suppress(OSError):  # a full disk must not hide why the run ended
        folder.write_summary(status=status, reason=reason)


def _resume(folder: RunFolder) -> str:
    return f"arpo train --resume {folder.path}"
