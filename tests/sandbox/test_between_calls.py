"""Between its calls a session stands still, and nothing of a call reaches the next by the way."""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from at_levels import AT, WORKING, entered, processes

from arpo.sandbox import landlock, linux, seccomp
from arpo.sandbox.limits import Limits
from arpo.sandbox.warm import WarmSandbox

LIMITS = Limits(cpu_seconds=5, seconds=20, memory_mb=128, file_mb=8)


@pytest.fixture(scope="module", params=AT)
def sandbox(request: pytest.FixtureRequest) -> Iterator[WarmSandbox]:
    yield from entered(request.param, limits=LIMITS, at_once=4, sessions=6)


DEAF = (
    "import os, signal, stat, struct, threading\n"
    "for n in (signal.SIGXCPU, signal.SIGPROF): signal.signal(n, signal.SIG_IGN)\n"
)
SOCKET = """
for fd in range(3, 4096):
    try:
        if stat.S_ISSOCK(os.fstat(fd).st_mode): break
    except OSError: pass
"""
STAYS_BUSY = {
    "a thread": DEAF + "def burn():\n  while True: pass\nthreading.Thread(target=burn, daemon=True).start()",
    "says that it has ended": DEAF + SOCKET + "os.write(fd, bytes(1))\nwhile True: pass",
}
HIDES_A_PROCESS = (
    DEAF
    + SOCKET
    + """
os.write(fd, bytes(1))
os.read(fd, 1)
if os.fork() == 0:
    while True: pass
os.write(fd, struct.pack('<q', -1))
os.read(fd, 1)
"""
)


@pytest.mark.parametrize("how", STAYS_BUSY)
async def test_nothing_of_a_session_runs_between_its_calls(how: str, sandbox: WarmSandbox) -> None:
    before = set(processes(sandbox))
    await sandbox.run(STAYS_BUSY[how], seconds=9.0, session=how, past=[])
    await until(lambda: [state(pid) for pid in set(processes(sandbox)) - before] == ["T"])
    sandbox.end_session(how)
    await until(lambda: set(processes(sandbox)) == before)
    assert sandbox.starts == 1, sandbox.last_words


async def test_both_halves_of_a_fork_stand_still_and_go_on(sandbox: WarmSandbox) -> None:
    before = set(processes(sandbox))
    await sandbox.run("x = [1]", seconds=9.0, session="one", past=[])
    assert await sandbox.fork("one", "two")
    await until(lambda: [state(pid) for pid in set(processes(sandbox)) - before] == ["T", "T"])
    for name in ("one", "two", "one"):
        await sandbox.run(f"x.append({name!r})", seconds=9.0, session=name)
    assert (await sandbox.run("x", seconds=9.0, session="one")).text == "[1, 'one', 'one']"
    sandbox.end_session("one")
    assert (await sandbox.run("x", seconds=9.0, session="two")).text == "[1, 'two']"
    sandbox.end_session("two")
    await until(lambda: set(processes(sandbox)) == before)


async def test_a_process_that_a_session_hides_ends_with_it(sandbox: WarmSandbox) -> None:
    """It takes the word to fork for itself, uses it, and says that it could not."""
    before = set(processes(sandbox))
    await sandbox.run(HIDES_A_PROCESS, seconds=9.0, session="hides", past=[])
    assert not await sandbox.fork("hides", "other")
    await until(lambda: set(processes(sandbox)) == before)
    assert (await sandbox.run("6 * 7", seconds=9.0, session="hides", past=[])).text == "42"  # its calls are made again
    sandbox.end_session("hides")
    assert sandbox.starts == 1, sandbox.last_words


async def test_a_branch_that_does_not_listen_does_not_outlive_the_sandbox(sandbox: WarmSandbox) -> None:
    """Of what is killed, as when memory runs out, the next start leaves nothing."""
    await sandbox.run("x = 1", seconds=9.0, session="one", past=[])
    assert await sandbox.fork("one", "two")
    old = sandbox._inside.process.pid
    call = asyncio.create_task(sandbox.run(DEAF + "while True: pass", seconds=9.0, session="two"))
    await until(lambda: "R" in [state(pid) for pid in processes(sandbox)])
    os.killpg(old, signal.SIGKILL)
    assert (await call).gone
    assert (await sandbox.run("6 * 7", seconds=9.0)).text == "42" and sandbox.starts == 2
    await until(
        lambda: not [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if session_of(pid) == old]
    )


async def test_the_times_of_a_folder_tell_the_next_call_nothing(sandbox: WarmSandbox) -> None:
    if sandbox.level != "landlock":  # there no times can be set at all
        await sandbox.run("import os\nos.utime('.', ns=(123456789012345678, 876543210987654321))", seconds=9.0)
    ran = await sandbox.run("import os\nhere = os.stat('.')\nhere.st_atime_ns, here.st_mtime_ns", seconds=9.0)
    accessed, modified = ran.text.strip("()").split(", ")  # the sweeper, which looks at it, may set the first
    assert modified == "0" and accessed != "123456789012345678"


@pytest.mark.skipif(not WORKING, reason="needs Landlock and seccomp")
@pytest.mark.parametrize("abi", [1, 2, 3])
def test_what_landlock_of_older_kernels_does_not_refuse_is_refused(
    abi: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below ABI 3 (Linux 6.2) it asks for what an open's mode says, and the kernel truncates in every mode."""
    outside, library, scratch = tmp_path / "outside", tmp_path / "library", tmp_path / "scratch"
    for folder in (outside, library, scratch):
        folder.mkdir()
        (folder / "f").write_text("precious")
    monkeypatch.setattr(landlock, "abi", lambda: abi)
    if not (pid := os.fork()):
        try:
            linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
            landlock.enter(landlock.build([str(library)], [str(scratch)], execute=False))
            seccomp.enter(seccomp.program(seccomp.SeccompPolicy()))
            for mode in (os.O_RDONLY, 3, os.O_WRONLY, os.O_RDWR):
                for folder in (outside, library, scratch):
                    try:
                        os.close(os.open(folder / "f", mode | os.O_TRUNC))
                    except OSError:
                        continue
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert [(folder / "f").read_text() for folder in (outside, library, scratch)] == ["precious", "precious", ""]


@pytest.mark.skipif(os.geteuid() != 0 or not set(WORKING) - {"landlock"}, reason="needs root, and namespaces")
def test_root_that_needs_a_user_namespace_changes_no_device() -> None:
    """It is the owner of /dev/null then. (The mode is set to what it is.)"""
    from arpo.sandbox import bubblewrap

    for level in set(WORKING) - {"landlock"}:
        made = WarmSandbox(level, limits=LIMITS, at_once=1, bwrap=bubblewrap.executable() or "", own_users=True)
        code = (
            "import os\nopen('/dev/null', 'w').write('x')\nos.chmod('/dev/null', os.stat('/dev/null').st_mode & 0o777)"
        )
        assert "Read-only file system" in made.run_now(code).text
        made.close()


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return ""


def session_of(pid: int) -> int:
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return -1


async def until(true: Callable[[], bool]) -> None:
    """A signal takes a moment."""
    give_up = time.monotonic() + 120
    while not true():
        assert time.monotonic() < give_up
        await asyncio.sleep(0.02)
