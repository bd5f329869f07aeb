"""The python tool: what a program came to, as readable text, whatever the program does."""

import pytest

from arpo.core.tree import Call, CallStatus
from arpo.errors import ConfigError
from arpo.tasks import Task
from arpo.tools import CallContext
from arpo.tools.call import run_call
from arpo.tools.python import PythonTool

TASK = Task(id="t", messages=({"role": "user", "content": "q"},), answers=("a",))


@pytest.fixture(scope="module")
def python():
    tool = PythonTool(seconds=2.0, output_chars=2_000)
    yield tool
    tool.close()


async def run(python, code, deadline_s=5.0):
    return await run_call(
        [python], Call(name="python", arguments={"code": code}), CallContext(task=TASK, deadline_s=deadline_s, seed=0)
    )


@pytest.mark.parametrize(
    "code, text",
    [
        ("1 + 1", "2"),
        ("x = 3\nprint('hi', x)\nx * 2", "hi 3\n6"),
        ("'text'", "text"),
        ("print('only')", "only"),
        ("x = 1", "(no output)"),
        ("```python\n2 * 3\n```", "6"),
        ("    y = 4\n    y", "4"),
        ("import math\nmath.sqrt(16)", "4.0"),
    ],
)
async def test_values_and_prints_come_back(python, code, text):
    done = await run(python, code)
    assert (done.status, done.text) == (CallStatus.OK, text)


@pytest.mark.parametrize(
    "code, word",
    [
        ("a = 1\na / 0", "ZeroDivisionError: division by zero (line 2: a / 0)"),
        ("def f(:", "SyntaxError"),
        ("nope", "NameError"),
        ("open('/etc/passwd').read()", "PermissionError"),
        ("import os\nos.environ['HOME']", "Error"),
        ("import subprocess", "Error"),
        ("[0] * 10**9", "MemoryError"),
        ("10 ** 100000", "ValueError"),
    ],
)
async def test_defects_7_and_16_failures_are_errors_and_nothing_of_the_machine_is_seen(python, code, word):
    done = await run(python, code)
    assert done.status is CallStatus.ERROR and word in done.text


async def test_a_program_that_never_ends_is_stopped_and_the_next_one_runs(python):
    done = await run(python, "while True: pass", deadline_s=0.5)
    assert done.status is CallStatus.TIMEOUT
    assert (await run(python, "1")).text == "1"


async def test_output_is_limited(python):
    assert len((await run(python, "'a' * 10**6")).text) < 2_100
    assert len((await run(python, "print('a' * 10**6)")).text) < 2_100


async def test_calls_share_nothing(python):
    await run(python, "secret = 5")
    assert "NameError" in (await run(python, "secret")).text


BACKEND = """
from arpo.tools import ToolResult

class Container:
    isolation = "a container"

    def __init__(self, seconds=1.0, memory_mb=64):
        self.limits = (seconds, memory_mb)

    async def run(self, code, *, seconds, seed):
        return ToolResult(text=f"{code} within {self.limits}")

def bare():
    return Container()
"""


async def test_a_backend_of_ones_own_gets_the_options_and_says_what_it_does_not_take(tmp_path, monkeypatch):
    (tmp_path / "my_backend.py").write_text(BACKEND)
    monkeypatch.syspath_prepend(str(tmp_path))
    tool = PythonTool(backend="my_backend:Container", seconds=7.0)
    assert tool.isolation == "a container" and (await run(tool, "1")).text == "1 within (7.0, 64)"
    assert (await run(PythonTool(backend="my_backend:bare"), "1")).text == "1 within (1.0, 64)"
    with pytest.raises(ConfigError, match=r"my_backend:bare cannot be called with these options: .*seconds"):
        PythonTool(backend="my_backend:bare", seconds=7.0)
    with pytest.raises(ConfigError, match="session: a backend of your own holds no sessions"):
        PythonTool(backend="my_backend:Container", session=True)
