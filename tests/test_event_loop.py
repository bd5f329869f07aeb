"""Work is brought to its end wherever that is asked: in a script, and in a notebook, whose cells run inside a loop."""

import asyncio
import contextvars
import os
import signal
import threading
from pathlib import Path

import pytest

import arpo
from arpo.display.terminal import Console
from arpo.event_loop import run_sync
from arpo.runs.folder import RunFolder
from tiny_project import TinyProject

NAMED: contextvars.ContextVar[str] = contextvars.ContextVar("named")


async def answer() -> str:
    await asyncio.sleep(0)
    return NAMED.get("nothing")


async def fail() -> None:
    raise arpo.EngineError("no engine")


def test_it_returns_and_raises_what_the_work_does() -> None:
    assert run_sync(answer()) == "nothing"
    with pytest.raises(arpo.EngineError, match="no engine"):
        run_sync(fail())


def test_so_it_does_inside_a_running_loop_with_the_caller_s_context() -> None:
    async def cell() -> str:
        NAMED.set("context")
        with pytest.raises(arpo.EngineError, match="no engine"):
            run_sync(fail())
        return run_sync(answer())

    assert asyncio.run(cell()) == "context"


def test_ctrl_c_inside_a_running_loop_cancels_the_work_and_waits_for_it() -> None:
    ended: list[str] = []

    async def work() -> None:
        threading.Timer(0.05, os.kill, [os.getpid(), signal.SIGINT]).start()  # as a terminal does: to the process
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0.05)
            ended.append("saved")
            raise

    async def cell() -> None:
        before = signal.signal(
            signal.SIGINT, signal.default_int_handler
        )  # as in a notebook: asyncio.run here set its own
        try:
            run_sync(work())
        finally:
            signal.signal(signal.SIGINT, before)

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(cell())
    assert ended == ["saved"]


def test_a_run_is_trained_from_a_notebook_s_cell(tiny_project: TinyProject, tmp_path: Path) -> None:
    run = arpo.load_recipe(tiny_project.recipe, ["train.steps=1", "evaluation.limit=1", "evaluation.greedy_limit=0"])

    async def cell() -> Path:
        folder: Path = arpo.train(run, out=tmp_path / "run", console=Console(quiet=True))
        return folder

    assert RunFolder(asyncio.run(cell())).summary()["status"] == "finished"
