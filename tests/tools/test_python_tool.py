"""The python tool: what a program came to, as readable text, whatever the program does."""

import asyncio
import os
import resource
import signal
import sys
from pathlib import Path

import pytest

from arpo.core.tree import Call, CallStatus
from arpo.errors import ConfigError
from arpo.tasks import Task
from arpo.tools import CallContext, monty
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


SLEEPERS = [
    "import time\nfor i in range(4): time.sleep(10)\n'slept'",
    "import time\nwhile True: time.sleep(10)",
    "import time\nwhile True:\n  try: time.sleep(10)\n  except BaseException: pass",
    "import asyncio\nasync def f():\n  while True: await asyncio.sleep(10)\nawait f()",
    "import asyncio\nasync def f(): await asyncio.sleep(1e9)\nasync def g(): await asyncio.gather(f(), f())\nawait g()",
]


async def test_programs_that_sleep_hold_no_worker(python):
    """More than there are workers: afterwards the next call is answered. Sleeping takes no time."""
    done = await asyncio.gather(*(run(python, code, deadline_s=60.0) for code in SLEEPERS * 2))
    assert done[0].text == "slept" and all(
        one.status in (CallStatus.OK, CallStatus.ERROR, CallStatus.TIMEOUT) for one in done
    )
    assert (await run(python, "6 * 7", deadline_s=60.0)).text == "42"


async def test_programs_that_run_into_their_limit_take_none_of_the_time_of_others():
    tool = PythonTool(seconds=0.5, at_once=1)
    endless = [asyncio.create_task(run(tool, "while True: pass")) for _ in range(4)]
    await asyncio.sleep(0.05)
    honest = await run(tool, "6 * 7")
    assert honest.text == "42", honest
    assert {outcome.status for outcome in await asyncio.gather(*endless)} == {CallStatus.TIMEOUT}


async def test_a_worker_that_does_not_end_is_killed_and_replaced():
    """Whatever keeps it: here it is stopped by a signal, so that it does not even notice its limit."""
    before = workers()
    tool = PythonTool(seconds=1.0, at_once=1)
    new = workers() - before
    running = asyncio.create_task(run(tool, "while True: pass", deadline_s=60.0))
    await asyncio.sleep(0.2)
    for pid in new:
        os.kill(pid, signal.SIGSTOP)
    assert (await running).text == "TimeoutError: stopped after 1 s"
    assert (await run(tool, "6 * 7", deadline_s=60.0)).text == "42" and not new & workers()
    tool.close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere its owner alone ends it")
async def test_a_worker_whose_owner_does_nothing_is_ended_by_the_kernel(monkeypatch):
    """As where the owner was killed. Comparing nested lists does not notice the interpreter's own limit."""
    monkeypatch.setattr(monty, "GRACE_S", 600.0)
    tool = PythonTool(seconds=0.1, at_once=1)
    nested = "x, y = [], []\nfor i in range(60): x, y = [x, x], [y, y]\nx == y"
    assert (await run(tool, nested, deadline_s=60.0)).text == "TimeoutError: stopped after 0.1 s"
    tool.close()


def workers():
    """Processes of this one."""
    return {int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()}


LARGE_VALUES = [
    "x = [0] * 1000\ny = [x] * 1000\nz = [y] * 1000\n[z] * 1000",
    "x = {}\nfor i in range(50): x = {0: x, 1: x}\nx",
    "x = []\nfor i in range(100000): x = [x]\nx",
    "x = []\nx.append(x)\nx",
    "['x' * 1000] * 10**6",
]


@pytest.mark.parametrize("code", LARGE_VALUES)
async def test_a_value_that_grows_when_copied_stays_in_its_interpreter(python, code):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    done = await run(python, code, deadline_s=60.0)
    assert len(done.text) < 2_100
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB


@pytest.mark.parametrize(
    "code, text",
    [
        ("x = 1; x + 1  # why", "2"),
        ("(1,\n 2)", "(1, 2)"),
        ("1, 2", "(1, 2)"),
        ("'é'; 'ü'", "ü"),
        ("f'{1}'\n\n# the end", "1"),
        ("lambda: 1 / 0\nNone", "(no output)"),
        ("str = repr = print = 'named'\nstr", "named"),
        ("'a\\ud800'; 2", "2"),
        ("async def f(): return 9\nawait f()", "9"),
    ],
)
async def test_the_last_expression_is_shown_wherever_it_stands(python, code, text):
    assert (await run(python, code)).text == text


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


async def test_a_program_that_would_take_long_to_be_read_is_refused() -> None:
    context = CallContext(task=TASK, deadline_s=5.0, seed=0)
    result = await PythonTool()({"code": "x = 1\n" * 20_000}, context)
    assert result.status is CallStatus.REFUSED and "100,000 characters" in result.text
