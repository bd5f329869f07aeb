"""The python tool: what a program came to, as readable text, whatever the program does."""

import pytest

from arpo.core.tree import Call, Status
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
    assert (done.status, done.text) == (Status.OK, text)


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
    assert done.status is Status.ERROR and word in done.text


async def test_a_program_that_never_ends_is_stopped_and_the_next_one_runs(python):
    done = await run(python, "while True: pass", deadline_s=0.5)
    assert done.status is Status.TIMEOUT
    assert (await run(python, "1")).text == "1"


async def test_output_is_limited(python):
    assert len((await run(python, "'a' * 10**6")).text) < 2_100
    assert len((await run(python, "print('a' * 10**6)")).text) < 2_100


async def test_calls_share_nothing(python):
    await run(python, "secret = 5")
    assert "NameError" in (await run(python, "secret")).text
