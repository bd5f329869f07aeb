"""The python tool in the sandbox, with and without sessions; a module shares one."""

from collections.abc import Iterator

import pytest
from sandboxed import options

from arpo.tools.python import PythonTool
from sandbox_levels import WORKING


@pytest.fixture(scope="module")
def python() -> Iterator[PythonTool]:
    if not WORKING:
        pytest.skip("no sandbox for CPython works on this machine")
    tool = PythonTool(backend="sandbox", imports=["sympy", "numpy"], **options())
    yield tool
    tool.close()


@pytest.fixture(scope="module")
def sessions() -> Iterator[PythonTool]:
    if not WORKING:
        pytest.skip("no sandbox for CPython works on this machine")
    tool = PythonTool(backend="sandbox", session=True, live_sessions=6, **options())
    yield tool
    tool.shut()
