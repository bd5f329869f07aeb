"""Calls of the python tool in the sandbox, small ones."""

from pathlib import Path
from typing import Any

import pytest

from arpo.core.tree import Call
from arpo.sandbox import levels
from arpo.tasks import Task
from arpo.tools import CallContext
from arpo.tools.call import run_call
from arpo.tools.python import PythonTool
from sandbox_levels import WORKING

TASK = Task(id="t", messages=({"role": "user", "content": "q"},), answers=("a",))
SOURCE = str(Path(levels.__file__).parents[2])
needs_sandbox = pytest.mark.skipif(not WORKING, reason="no sandbox for CPython works on this machine")


def options(**more: Any) -> dict[str, Any]:
    return {"cpu_seconds": 1, "seconds": 30, "memory_mb": 256, "file_mb": 8, "output_bytes": 4000, **more}


async def run(tool: PythonTool, code: str, state: Any = None, seed: int = 7) -> Any:
    context = CallContext(task=TASK, deadline_s=300.0, seed=seed, state=state)
    return await run_call([tool], Call(name="python", arguments={"code": code}), context)


async def text(tool: PythonTool, code: str, state: Any = None, seed: int = 7) -> str:
    return (await run(tool, code, state, seed)).text
