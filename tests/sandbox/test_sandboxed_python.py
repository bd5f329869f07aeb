"""CPython behind the python tool: what a model reads, what is gone after a call, what cannot be set."""

import asyncio
import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from at_levels import processes
from hostile import PROGRAMS
from sandboxed import SOURCE, TASK, needs_sandbox, options, run, text

from arpo.assembly.components import Setting
from arpo.core.tree import CallStatus
from arpo.errors import ConfigError
from arpo.sandbox import levels, seccomp, syscalls
from arpo.sandbox.limits import Limits
from arpo.tools import CallContext, ToolResult
from arpo.tools.config import ToolConfig, build_tools
from arpo.tools.python import PythonTool
from sandbox_levels import WORKING

# --- what a model reads


@pytest.mark.parametrize(
    "code, shown",
    [
        ("1 + 1", "2"),
        ("'text'", "'text'"),
        ("x = 3\nprint('hi', x)\nx * 2", "hi 3\n6"),
        ("x = 1", "(no output)"),
        ("None", "(no output)"),
        ("", "(no output)"),
        ("```python\n2 * 3\n```", "6"),
        ("    1 + 1", "2"),
        ("import sys\nprint('out')\nprint('err', file=sys.stderr)\nprint('out again')", "out\nerr\nout again"),
        ("import os\nos.write(2, b'raw')\nNone", "raw"),
        ("import sympy as s\nx = s.Symbol('x')\ns.solve(x**2 - 2, x)", "[-sqrt(2), sqrt(2)]"),
        ("import numpy as np\nnp.arange(3) * 2", "array([0, 2, 4])"),
        ("from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\nP(1)", "P(x=1)"),
        ("import asyncio\nasync def f(): return 5\nasyncio.run(f())", "5"),
        ("import threading\nt = threading.Thread(target=print, args=('from a thread',))\nt.start()", "from a thread"),
        ("if __name__ == '__main__':\n    print('main')", "main"),
        ("import tempfile\nwith tempfile.TemporaryFile() as f: f.write(b'x'); print('written')", "written"),
    ],
)
async def test_shown_as_in_a_notebook(python: PythonTool, code: str, shown: str) -> None:
    outcome = await run(python, code)
    assert (outcome.text, outcome.status) == (shown, CallStatus.OK)


@pytest.mark.parametrize(
    "code, shown",
    [
        ("1\nx / 0", "NameError: name 'x' is not defined (line 2: x / 0)"),
        (
            "def f():\n    return 1 / 0\nf()",
            "ZeroDivisionError: division by zero (line 2 in f: return 1 / 0; called from line 3)",
        ),
        ("x = = 1", "SyntaxError: invalid syntax (line 1: x = = 1)"),
        ("import json\njson.loads('{')", None),
        ("print('before')\nraise ValueError('odd')", "before\nValueError: odd (line 2: raise ValueError('odd'))"),
        ("import nosuch", "ModuleNotFoundError: No module named 'nosuch' (line 1: import nosuch)"),
        ("import sys; sys.exit('no')", "SystemExit: no"),
        ("assert 1 == 2, 'unequal'", "AssertionError: unequal (line 1: assert 1 == 2, 'unequal')"),
    ],
)
async def test_an_error_is_one_line_that_names_its_own(python: PythonTool, code: str, shown: str | None) -> None:
    outcome = await run(python, code)
    assert outcome.status is CallStatus.ERROR
    if shown is None:
        assert outcome.text.endswith("(line 2: json.loads('{'))") and "\n" not in outcome.text
    else:
        assert outcome.text == shown


@pytest.mark.parametrize(
    "code, words, status",
    [
        ("print('first')\nwhile True: pass", "first\nTimeoutError: stopped after 1 s of CPU", CallStatus.TIMEOUT),
        (
            "x = bytearray(10**10)",
            "MemoryError: the program needs more than 256 MB (line 1: x = bytearray(10**10))",
            CallStatus.ERROR,
        ),
        (
            "open('f', 'wb').write(b'x' * 10**7)",
            "OSError: a file, or all files together, would be larger than 8 MB",
            CallStatus.ERROR,
        ),
        ("import os\nos.fork()", "OSError: no processes can be started here (line 2: os.fork())", CallStatus.ERROR),
        (
            "import ctypes\nctypes.string_at(0)",
            "the program crashed: it touched memory that is not its own",
            CallStatus.ERROR,
        ),
    ],
)
async def test_a_limit_says_which(python: PythonTool, code: str, words: str, status: CallStatus) -> None:
    outcome = await run(python, code)
    assert outcome.text.startswith(words) and outcome.status is status


async def test_too_much_output_is_kept_from_its_start_and_said(python: PythonTool) -> None:
    outcome = await run(python, "for n in range(10**9): print(n)")
    assert outcome.text.startswith("0\n1\n2\n") and outcome.text.endswith("stopped: more than 4000 bytes of output")
    assert len(outcome.text) < 4100


async def test_wall_time(python: PythonTool) -> None:
    context = CallContext(task=TASK, deadline_s=0.5, seed=0)
    result = await python({"code": "import time\ntime.sleep(60)"}, context)
    assert result == ToolResult(text="TimeoutError: stopped after 0.5 s", status=CallStatus.TIMEOUT)


async def test_the_same_call_at_the_same_place_draws_the_same(python: PythonTool) -> None:
    code = "import random, numpy\n(random.random(), float(numpy.random.rand()), hash('word'), {'a', 'b', 'c'})"
    assert await text(python, code, seed=1) == await text(python, code, seed=1) != await text(python, code, seed=2)


# --- nothing is left


async def test_calls_at_the_same_time_do_not_meet(python: PythonTool) -> None:
    code = (
        "import os, time\nopen('mine', 'w').write('{n}')\nglobals()['x'] = {n}\ntime.sleep(0.05)\n"
        "(os.listdir('.'), open('mine').read(), x)"
    )
    said = await asyncio.gather(*(text(python, code.format(n=n)) for n in range(40)))
    assert said == [f"(['mine'], '{n}', {n})" for n in range(40)]


async def test_a_call_that_is_given_up_is_stopped(python: PythonTool) -> None:
    inside = python._backend._sandbox._inside  # type: ignore[attr-defined]
    calls = [
        asyncio.create_task(run(python, "import time\ntime.sleep(4)")) for _ in range(30)
    ]  # more than run at a time
    await asyncio.sleep(0.3)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert await text(python, "1 + 1") == "2"  # none of them holds a place
    await asyncio.sleep(0.1)
    assert not inside.pending


async def test_a_sandbox_that_dies_comes_back(python: PythonTool) -> None:
    sandbox = python._backend._sandbox  # type: ignore[attr-defined]
    before = sandbox.starts
    waiting = asyncio.create_task(run(python, "import time\ntime.sleep(0.4)\n'slept'"))
    await asyncio.sleep(0.1)
    os.killpg(sandbox._inside.process.pid, signal.SIGKILL)
    assert (await waiting).text == "'slept'"
    assert await text(python, "import sympy\nsympy.sqrt(4)") == "2" and sandbox.starts == before + 1


@pytest.mark.slow
async def test_hundreds_of_calls_leave_nothing(python: PythonTool) -> None:
    def held() -> tuple[int, int]:
        gc.collect()
        return len(children(python)), len(os.listdir("/proc/self/fd"))

    await asyncio.gather(*(text(python, "1") for _ in range(50)))
    before = held()
    for _ in range(3):
        said = await asyncio.gather(*(text(python, f"open('f', 'w').write('x')\n{n} * 2") for n in range(100)))
        assert said == [str(n * 2) for n in range(100)]
    await asyncio.sleep(0.1)
    assert held() <= before


def test_many_who_ask_at_once_do_not_wait_for_each_other(python: PythonTool) -> None:
    """Who sends waits until there is room, and room comes when answers are read: nobody may hold up both."""
    inside = python._backend._sandbox._now()  # type: ignore[attr-defined]
    answers: list[Any] = []

    def ask() -> None:
        answers.extend(inside.ask({"op": "fork", "session": "nobody", "to": "else"})[1] for _ in range(400))

    asking = [threading.Thread(target=ask, daemon=True) for _ in range(4)]
    for thread in asking:
        thread.start()
    for thread in asking:
        thread.join(timeout=600)
    assert not any(thread.is_alive() for thread in asking)
    assert [answer.result(timeout=600)["forked"] for answer in answers] == [False] * 1600


def children(tool: PythonTool) -> list[int]:
    """Processes below the sandbox."""
    return processes(tool._backend._sandbox)  # type: ignore[attr-defined]


def test_works_in_one_event_loop_after_another(python: PythonTool) -> None:
    assert [asyncio.run(text(python, f"{n} + 1")) for n in range(3)] == ["1", "2", "3"]


@needs_sandbox
def test_nothing_outlives_a_trainer_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "trainer.py"
    script.write_text(
        textwrap.dedent(
            """
            import asyncio, os, sys
            from arpo.tools.python import PythonTool
            from arpo.sandbox.limits import Limits
            from arpo.sandbox import levels
            sandbox = levels.enter(sys.argv[1], limits=Limits(seconds=60))
            print(sandbox._inside.process.pid, sandbox._inside.scratch or "", flush=True)
            asyncio.run(sandbox.run("open('f', 'w').write('x'); import time; time.sleep(50)", seconds=60))
            """
        )
    )
    for level in WORKING:
        process = subprocess.Popen(
            [sys.executable, str(script), level], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": SOURCE}
        )
        assert process.stdout is not None
        inside, _, scratch = process.stdout.readline().decode().strip().partition(" ")
        assert bool(scratch) is (level == "landlock")
        if scratch:
            while not list(Path(scratch).glob("*/f")):
                time.sleep(0.02)
        process.kill()
        process.wait()
        process.stdout.close()
        for _ in range(500):
            if not Path(f"/proc/{inside}").exists():
                break
            time.sleep(0.02)
        assert not Path(f"/proc/{inside}").exists()
        assert not scratch or not Path(scratch).exists() or not list(Path(scratch).glob("*/*"))


CTRL_C = """
import asyncio, sys
from arpo.tasks import Task
from arpo.tools import CallContext
from arpo.tools.python import PythonTool
backend, code = sys.argv[1:]
options = {"backend": "sandbox", "cpu_seconds": 600} if backend == "sandbox" else {}
tool = PythonTool(seconds=600.0, **options)
task = Task(id="t", messages=({"role": "user", "content": "q"},), answers=("a",))
async def main():
    call = asyncio.create_task(tool({"code": code}, CallContext(task=task, deadline_s=600, seed=0)))
    await asyncio.sleep(0.5)
    print("running", flush=True)
    await call
asyncio.run(main())
"""
HEEDS_NO_SIGNAL = (
    "import signal\nfor n in range(1, 65):\n  try: signal.signal(n, signal.SIG_IGN)\n"
    "  except (OSError, ValueError): pass\nwhile True: pass"
)


@needs_sandbox
@pytest.mark.parametrize("backend", ["sandbox", "monty"])
def test_ctrl_c_ends_a_call_that_would_go_on(backend: str) -> None:
    """For ten minutes, by its limits; the sandbox's program heeds no signal that it can ignore."""
    code = HEEDS_NO_SIGNAL if backend == "sandbox" else "while True: pass"
    words = [sys.executable, "-c", CTRL_C, backend, code]
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
        assert process.stdout is not None and process.stdout.readline() == b"running\n"
        tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
        children = [int(child) for task in tasks for child in task.read_text().split()]
        assert children
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == -signal.SIGINT
    for _ in range(1500):
        if not (left := [child for child in children if Path(f"/proc/{child}").exists()]):
            return
        time.sleep(0.02)
    pytest.fail(f"processes go on: {left}")


# --- settings


def test_the_isolation_in_force_is_known_to_the_run(python: PythonTool) -> None:
    world = Setting(tools=(python, PythonTool(name="simple")), reward=None, tool_gateway=None)  # type: ignore[arg-type]
    assert world.isolation["simple"] == "monty" and world.isolation["python"].endswith("seccomp")


@needs_sandbox
def test_processes_that_are_allowed_are_counted() -> None:
    tool = PythonTool(backend="sandbox", processes=2, **options())
    code = (
        "import subprocess, sys\n"
        "subprocess.run([sys.executable, '-c', 'print(40 + 2)'], capture_output=True, text=True).stdout"
    )
    assert asyncio.run(text(tool, code)) == "'42\\n'"
    bomb = (
        "import os\nmade = 0\nwhile True:\n  try: pid = os.fork()\n  except OSError: break\n"
        "  if not pid: os._exit(0)\n  made += 1\nmade"
    )
    assert asyncio.run(text(tool, bomb)) == "2"
    stays = "import os, time\nif os.fork() == 0:\n  time.sleep(60)\nprint('gone ahead')\nos._exit(0)"
    asyncio.run(text(tool, stays))
    assert len(children(tool)) <= 2  # what forks, and what sweeps
    tool.close()


@pytest.mark.parametrize(
    "given, words",
    [
        ({"level": "bublewrap"}, "did you mean 'bubblewrap'?"),
        ({"level": "weak"}, "allow_weak_isolation: true"),
        ({"imports": ["nosuchmodule"]}, "nosuchmodule"),
        ({"imports": "math"}, r"\[math, sympy, numpy\]"),
        ({"session": True, "processes": 2}, "could not be forked"),
        ({"seconds": 0}, "above 0"),
        ({"processes": -1}, "0 or more"),
        ({"output_chars": 10}, "backend: monty"),
    ],
)
@needs_sandbox
def test_what_cannot_be_is_said_with_what_would_be_right(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_tools([ToolConfig(use="python", options={"backend": "sandbox", **given})])


def test_options_of_the_sandbox_are_not_taken_by_monty() -> None:
    with pytest.raises(ConfigError, match="backend: sandbox"):
        PythonTool(imports=["sympy"])
    with pytest.raises(ConfigError, match="'monty'"):
        PythonTool(backend="montey")


def test_no_silent_fall_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no level works, there is no tool; where one is named, a lower one does not stand in for it."""
    monkeypatch.setattr("arpo.sandbox.landlock.abi", lambda: 0)
    with pytest.raises(ConfigError, match=r"no sandbox works on this machine .*Landlock.*monty"):
        PythonTool(backend="sandbox")
    monkeypatch.undo()
    monkeypatch.setattr("arpo.sandbox.bubblewrap.executable", lambda: None)
    with pytest.raises(ConfigError, match=r"bwrap is not installed.*Install bubblewrap"):
        PythonTool(backend="sandbox", level="bubblewrap")


def test_weak_isolation_by_name_runs_and_says_what_it_is() -> None:
    tool = PythonTool(backend="sandbox", level="weak", allow_weak_isolation=True, **options())
    assert "not isolated" in tool.isolation
    assert asyncio.run(text(tool, "print(1)\n'two'")) == "1\n'two'"
    assert asyncio.run(text(tool, "1 / 0")) == "ZeroDivisionError: division by zero (line 1: 1 / 0)"
    assert "stopped after" in asyncio.run(text(tool, "while True: pass"))
    assert "of output" in asyncio.run(text(tool, "while True: print('x' * 1000)"))
    assert "PATH" not in os.environ or os.environ.get("HOME", "?") not in asyncio.run(
        text(tool, "import os\nos.environ['HOME']")
    )


async def test_a_backend_of_ones_own() -> None:
    class Container:
        isolation = "a container"

        async def run(self, code: str, *, seconds: float, seed: int) -> ToolResult:
            return ToolResult(text=f"ran {code} within {seconds:g} s")

    tool = PythonTool(backend=Container())
    assert tool.isolation == "a container" and await text(tool, "1") == "ran 1 within 300 s"
    with pytest.raises(ConfigError, match="isolation"):
        PythonTool(backend=object())  # type: ignore[arg-type]


# --- the tables


@pytest.mark.parametrize("architecture", ["x86_64", "aarch64"])
def test_every_name_of_the_list_has_a_number_or_never_had_one(architecture: str) -> None:
    old = set(syscalls.numbers("x86_64")) - set(syscalls.numbers("aarch64"))
    for name in [*seccomp.ALLOWED.split(), *seccomp.ON_OWN_FILES.split()]:
        assert name in syscalls.numbers(architecture) or name in old, name
    made = seccomp.program(
        seccomp.SeccompPolicy(signals_to=seccomp.MYSELF, forks=True, programs=True, own_files=True), architecture
    )
    assert len(made) % 8 == 0 and len(made) // 8 < 4096


@pytest.mark.slow  # every hostile program at every level
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become an ordinary user")
@needs_sandbox
def test_holds_for_an_ordinary_user_too(tmp_path_factory: pytest.TempPathFactory) -> None:
    """As nobody, with the system's Python where it can be read; as root every other test runs."""
    interpreter = next((p for p in ("/usr/bin/python3", sys.executable) if _usable(p)), None)
    if interpreter is None:
        pytest.skip("no Python here can be run by an ordinary user")
    with tempfile.TemporaryDirectory(prefix="arpo-nobody-") as folder:
        shutil.copytree(
            Path(levels.__file__).parent, f"{folder}/arpo/sandbox", ignore=shutil.ignore_patterns("__pycache__")
        )
        shutil.copy(Path(levels.__file__).parents[1] / "errors.py", f"{folder}/arpo/errors.py")
        shutil.copy(Path(__file__).with_name("hostile.py"), folder)
        subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
        words = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", interpreter, "-c", AS_NOBODY]
        environment = {"PYTHONPATH": folder, "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=600)
        assert done.stdout.splitlines() == [f"{level} {len(PROGRAMS)} of {len(PROGRAMS)}" for level in WORKING], (
            done.stderr
        )


AS_NOBODY = """
import os, string
from arpo.sandbox import levels
from arpo.sandbox.limits import Limits
from hostile import PROGRAMS
folder = levels.tempfile.mkdtemp()
recipe = os.path.join(folder, "recipe.yaml")
open(recipe, "w").write("mine")
known = dict(RECIPE=recipe, FOLDER=folder, SECRET="?", PID=os.getpid(), PORT=9, HOST="10.0.0.1", UNIX=folder + "/u")
known |= dict(CALLS="101,", CLONE=56, ABSTRACT="a", SECRET_NAME="recipe.yaml")
for found in levels.probe():
    if not found.works:
        continue
    sandbox = levels.enter(found.level, limits=Limits(cpu_seconds=1, seconds=20, memory_mb=128, file_mb=8))
    held = 0
    for name, program in PROGRAMS.items():
        filled = string.Template(program).safe_substitute(known)
        said = sandbox.run_now(filled.replace("ESCAPED", r"ESC\\x41PED")).text
        escaped = "ESCAPED" in said and name != "fakes results"
        held += not escaped and sandbox.run_now("6 * 7").text == "42" and open(recipe).read() == "mine"
        if escaped:
            print(name, said)
    print(found.level, held, "of", len(PROGRAMS))
    sandbox.close()
os.unlink(recipe)
os.rmdir(folder)
"""


def _usable(interpreter: str) -> bool:
    words = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        interpreter,
        "-c",
        "import sys; assert sys.version_info >= (3, 11)",
    ]
    try:
        return subprocess.run(words, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def test_limits_travel() -> None:
    limits = Limits(cpu_seconds=2, processes=3)
    assert Limits.read(limits.plain()) == limits
