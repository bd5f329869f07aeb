"""Sessions of the python tool: what a branch keeps, what two branches share, what ends one."""

import asyncio
import os
import subprocess
import sys

import pytest
from sandboxed import SOURCE, TASK, needs_sandbox, run, text

from arpo.core.tree import CallStatus
from arpo.rollout.states import ToolStates
from arpo.sandbox import limits
from arpo.tools.python import PythonTool, SessionPythonTool


async def test_two_branches_share_the_variables_of_their_trunk_and_no_others(sessions: PythonTool) -> None:
    assert isinstance(sessions, SessionPythonTool)
    trunk = await sessions.open(TASK)
    await text(sessions, "import math\nx = [1]\ndef double(n): return 2 * n\nopen('f', 'w').write('trunk')", trunk)
    captured = await sessions.fork(trunk)
    assert captured.live  # a forked process
    assert await text(sessions, "x.append(2); y = 'first'; open('f', 'w').write('first'); x", trunk) == "[1, 2]"
    sibling = await sessions.fork(captured)
    assert (
        await text(sessions, "x.append(double(3)); z = math.pi; (x, open('f').read())", sibling) == "([1, 6], 'trunk')"
    )
    assert "NameError" in await text(sessions, "y", sibling) and "NameError" in await text(sessions, "z", trunk)
    assert await text(sessions, "(x, open('f').read())", trunk) == "([1, 2], 'first')"
    later = await sessions.fork(captured)
    assert await text(sessions, "(x, open('f').read())", later) == "([1], 'trunk')"
    for state in (trunk, captured, sibling, later):
        await sessions.close(state)
        await sessions.close(state)


async def test_replayed_and_forked_sessions_are_the_same(sessions: PythonTool) -> None:
    """The slow twin of a forked process is the trunk's calls made again."""
    assert isinstance(sessions, SessionPythonTool)
    trunk = await sessions.open(TASK)
    for number, code in enumerate(
        ["import random\nx = random.random()", "1 / 0", "y = [x, random.random()]\ny.append(len(y))"]
    ):
        await run(sessions, code, trunk, seed=number)
    forked, replayed = await sessions.fork(trunk), await sessions.fork(trunk)
    assert forked.live
    sessions._sandboxed.end(replayed)
    said = [await text(sessions, "(x, y, random.random())", state, seed=9) for state in (trunk, forked, replayed)]
    assert said[0] == said[1] == said[2]
    for state in (trunk, forked, replayed):
        await sessions.close(state)


async def test_output_that_had_no_room_is_not_the_next_calls(sessions: PythonTool) -> None:
    state = await sessions.open(TASK)
    assert "more than 4000 bytes" in await text(
        sessions, "import sys\nfor _ in range(900): sys.stdout.write('spilled')", state
    )
    assert await text(sessions, "print('next')", state) == "next"
    await sessions.close(state)


async def test_more_sessions_than_may_live_go_on_by_replay(sessions: PythonTool) -> None:
    assert isinstance(sessions, SessionPythonTool)
    states = [await sessions.open(TASK) for _ in range(15)]
    for number, state in enumerate(states):
        assert await text(sessions, f"n = {number}", state) == "(no output)"
    said = await asyncio.gather(*(text(sessions, "n += 100; n", state) for state in states))
    assert said == [str(number + 100) for number in range(15)]
    assert [await text(sessions, "n", state) for state in reversed(states)] == [
        str(number + 100) for number in reversed(range(15))
    ]
    for state in states:
        await sessions.close(state)


DEAF = (
    "import signal\nx = 2\nfor n in (signal.SIGXCPU, signal.SIGPROF): signal.signal(n, signal.SIG_IGN)\n"
    "while True: pass"
)


@needs_sandbox
def test_sessions_need_not_fit_into_the_descriptors_that_a_shell_allows() -> None:
    script = """
import asyncio, resource
from arpo.sandbox import levels
from arpo.sandbox.limits import Limits
resource.setrlimit(resource.RLIMIT_NOFILE, (128, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
sandbox = levels.start(limits=Limits(seconds=60), at_once=4, sessions=40)
async def main():
    return [(await sandbox.run(f"{n}", seconds=60, session=str(n), past=())).text for n in range(40)]
assert asyncio.run(main()) == [str(n) for n in range(40)]
assert sandbox.count()["sessions"] == 40 and sandbox.starts == 1, sandbox.last_words
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=600, env={**os.environ, "PYTHONPATH": SOURCE})


@pytest.mark.parametrize("end", ["import os\nx = 2\nos._exit(0)", DEAF], ids=["leaves", "does not listen"])
async def test_a_session_is_as_before_a_call_that_had_to_be_killed(sessions: PythonTool, end: str) -> None:
    assert isinstance(sessions, SessionPythonTool)
    state = await sessions.open(TASK)
    await text(sessions, "x = 1", state)
    outcome = await run(sessions, end, state)
    assert outcome.status in (CallStatus.ERROR, CallStatus.TIMEOUT) and outcome.text.endswith(
        "(variables are as they were before this call)"
    )
    assert await text(sessions, "x", state) == "1"
    await sessions.close(state)


async def test_an_endless_loop_is_interrupted_and_the_session_lives(sessions: PythonTool) -> None:
    assert isinstance(sessions, SessionPythonTool)
    state = await sessions.open(TASK)
    assert (await text(sessions, "n = 0\nwhile True: n += 1", state)).startswith(
        "TimeoutError: stopped after 1 s of CPU"
    )
    assert await text(sessions, "n > 1000", state) == "True"
    await sessions.close(state)


async def test_a_session_cannot_fork_itself_or_speak_for_the_sandbox(sessions: PythonTool) -> None:
    assert isinstance(sessions, SessionPythonTool)
    state, other = await sessions.open(TASK), await sessions.open(TASK)
    await text(sessions, "mine = 1", other)
    assert "no processes" in await text(sessions, "import os\nos.fork()", state)
    evil = "import os\nfor fd in range(3, 4096):\n  try: os.write(fd, b'12345678')\n  except OSError: pass"
    await text(sessions, evil, state)
    await text(sessions, "import os, signal\nos.kill(-1, 9)", state)
    forked = await sessions.fork(state)
    assert await text(sessions, "1 + 1", forked) == "2" and await text(sessions, "mine", other) == "1"
    for each in (state, other, forked):
        await sessions.close(each)


HOLDS = {
    "a file": ("f = open('log', 'a')\nf.write('trunk ')\nf.flush()", "f.write({!r})\nf.flush()\nopen('log').read()"),
    "a pipe": (
        "import os\nout, into = os.pipe()\nos.set_blocking(out, False)\nsaid = ['trunk ']",
        "os.write(into, b'x')\nsaid.append({!r})\n''.join(said) if len(os.read(out, 9)) == 1 else 'shared'",
    ),
    "a thread": (
        "import threading, time\nsaid = ['trunk ']\n"
        "threading.Thread(target=time.sleep, args=(30,), daemon=True).start()",
        "said.append({!r})\n''.join(said)",
    ),
    "a thread without an object": (
        "import _thread, time\nsaid = ['trunk ']\n_ = _thread.start_new_thread(time.sleep, (30,))",
        "said.append({!r})\n''.join(said)",
    ),
}


@pytest.mark.parametrize("what", HOLDS)
async def test_what_two_branches_would_go_on_to_share_is_made_again(sessions: PythonTool, what: str) -> None:
    assert isinstance(sessions, SessionPythonTool)
    first, then = HOLDS[what]
    trunk = await sessions.open(TASK)
    await text(sessions, first, trunk)
    branch = await sessions.fork(trunk)
    assert not branch.live
    assert await text(sessions, then.format("one"), trunk) == "'trunk one'"
    assert await text(sessions, then.format("two"), branch) == "'trunk two'"
    for state in (trunk, branch):
        await sessions.close(state)


async def test_sessions_have_no_memory_that_two_could_write_to(sessions: PythonTool) -> None:
    assert isinstance(sessions, SessionPythonTool)
    state = await sessions.open(TASK)
    assert "PermissionError" in await text(sessions, "import mmap\nm = mmap.mmap(-1, 4096)", state)
    assert (
        await text(sessions, "m = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)\nlen(m)", state) == "4096"
    )
    await sessions.close(state)


async def test_a_line_of_many_branches_goes_on(sessions: PythonTool) -> None:
    """Longer than a process can be bound to folders: then its calls are made again."""
    assert isinstance(sessions, SessionPythonTool)
    state = await sessions.open(TASK)
    forked = 0
    for number in range(20):
        assert await text(sessions, f"x = {number}\nopen('f', 'a').write('.')", state) == "1"
        branch = await sessions.fork(state)
        forked += bool(branch.live)
        assert await text(sessions, "x = 'other'\nopen('f', 'a').write('!')\n(x, open('f').read())", branch) == (
            f"('other', '{'.' * (number + 1)}!')"
        )
        assert await text(
            sessions, "import tempfile\nwith tempfile.TemporaryFile() as t: pass\n(x, open('f').read())", state
        ) == (f"({number}, '{'.' * (number + 1)}')")
        later = await sessions.fork(state if number % 3 else branch)  # a fork of a fork now and then
        await sessions.close(later)
        await sessions.close(branch)
    assert forked > 5
    await sessions.close(state)


async def test_states_of_a_tree_fork_where_its_branches_do(sessions: PythonTool) -> None:
    """As a rollout uses them: captured at the tip before the first continuation's next call."""
    states = ToolStates([sessions], TASK, 40.0)
    await text(sessions, "x = ['trunk']", (await states.at((0,)))["python"])
    await states.capture((0,))
    await text(sessions, "x.append('probe')", (await states.at((0, 0)))["python"])
    sibling = (await states.at((0, 1)))["python"]
    assert await text(sessions, "x.append('sibling'); x", sibling) == "['trunk', 'sibling']"
    assert await text(sessions, "x", (await states.at((0, 0, 0)))["python"]) == "['trunk', 'probe']"
    await states.close()
    assert not states.lost


BURN = "import os, time\nwhile time.process_time() < 0.2: pass\ntime.sleep(0.2)\nos.getpriority(os.PRIO_PROCESS, 0)"


async def test_calls_that_compute_stand_back_and_short_ones_do_not(python: PythonTool) -> None:
    own = int(await text(python, "import os\nos.getpriority(os.PRIO_PROCESS, 0)"))
    assert own == min(19, os.getpriority(os.PRIO_PROCESS, 0) + limits.CALL_NICENESS)
    among_many = [int(each) for each in await asyncio.gather(*(text(python, BURN) for _ in range(8)))]
    assert min(19, own + 1) <= max(among_many) <= limits.niceness_among(8, own)
    assert await text(python, "import os\nos.getpriority(os.PRIO_PROCESS, 0)") == str(own)
