"""Programs that want others to fail: calls at the same time, branches of one session, and whoever waits for them."""

import asyncio
import json
import re
import string
from collections.abc import Iterator

import pytest
from at_levels import AT, entered
from hostile import PROGRAMS, SPIES
from sandboxed import run, text

from arpo.core.tree import CallStatus
from arpo.sandbox import boot
from arpo.sandbox.levels import LEVELS
from arpo.sandbox.limits import Limits
from arpo.sandbox.verdict import Ran
from arpo.sandbox.warm import WarmSandbox
from arpo.tools.python import PythonTool, SessionPythonTool

LIMITS = Limits(cpu_seconds=9, seconds=120, memory_mb=256, file_mb=8)


@pytest.fixture(scope="module", params=AT)
def sandbox(request: pytest.FixtureRequest) -> Iterator[WarmSandbox]:
    yield from entered(request.param, limits=LIMITS, imports=["math"], at_once=8, sessions=12)


# All names that a program can guess, or find in its memory, are tried with every call that takes one.
SABOTAGE = """
import gc, json, os, re, time
here = os.path.realpath('.')
names = {str(n) for n in range(40)} | {'files', 'room', 'rest', 'new'}
seen, ahead = set(), gc.get_objects()
while ahead:
    o = ahead.pop()
    if id(o) in seen: continue
    seen.add(id(o))
    if isinstance(o, str) and len(o) < 5000: names.update(re.findall('[0-9a-f]{32}', o))
    elif not isinstance(o, (str, bytes, bytearray)): ahead += gc.get_referents(o)
own = set(here.split('/'))
folders, tops = set(), {'/scratch', '/scratch/files'}
part = here
while part != '/':
    tops.add(part); part = os.path.dirname(part)
for top in tops:
    folders |= {os.path.join(top, n) for n in names}
    folders |= {os.path.join(top, n, m) for n in names for m in ('files', 'room')}
folders -= {here, here + '/files', here + '/room', os.path.dirname(here)} | set(tops)
acts = dict(
    stat=os.stat, readlink=os.readlink, statvfs=os.statvfs, listdir=os.listdir, utime=lambda p: os.utime(p, (1, 1)),
    chmod=lambda p: os.chmod(p, 0), rename=lambda p: os.rename(p, p + 'x'), rmdir=os.rmdir,
    truncate=lambda p: os.truncate(p + '/mine', 0), unlink=lambda p: os.unlink(p + '/mine'), chdir=os.chdir,
)
reached, end = set(), time.monotonic() + SECONDS
while True:
    for p in folders:
        for name, act in acts.items():
            try: act(p)
            except OSError: continue
            reached.add((name, p))
    if time.monotonic() > end: break
print(json.dumps([own & names and [], sorted(reached)]))
"""
HONEST = """
import os, time
with open('mine', 'w') as file: file.write('1')
os.mkdir('d'); os.symlink('mine', 'link')
before = os.stat('.').st_mode, os.stat('mine').st_mtime_ns, os.readlink('link')
for n in range(20):
    open('mine').read(); open('d/%d' % n, 'w').close(); time.sleep(0.02)
assert before == (os.stat('.').st_mode, os.stat('mine').st_mtime_ns, os.readlink('link')) and len(os.listdir('d')) == 20
print('well')
"""


def reached(ran: Ran) -> list[str]:
    assert ran.ending == "ok", ran
    return [f"{act} {path}" for act, path in json.loads(ran.text)[1]]


async def test_no_call_reaches_the_files_of_another(sandbox: WarmSandbox) -> None:
    attack = SABOTAGE.replace("SECONDS", "0.5")
    calls = [sandbox.run(attack if number % 4 == 3 else HONEST, seconds=120.0) for number in range(8)]
    for number, ran in enumerate(await asyncio.gather(*calls)):
        if number % 4 == 3:
            assert reached(ran) == []
        else:
            assert ran == Ran(text="well")


async def test_no_branch_reaches_the_files_of_another(sandbox: WarmSandbox) -> None:
    """Forks of a fork, one of which attacks, and a session of another trajectory."""
    await sandbox.run("x = 1", seconds=9.0, session="trunk", past=[])
    for old, new in (("trunk", "one"), ("trunk", "two"), ("one", "three")):
        assert await sandbox.fork(old, new)
    await sandbox.run("x = 1", seconds=9.0, session="other", past=[])
    attack = SABOTAGE.replace("SECONDS", "0.5")
    calls = [sandbox.run(HONEST, seconds=120.0, session=name) for name in ("trunk", "one", "three", "other")]
    *honest, hostile = await asyncio.gather(*calls, sandbox.run(attack, seconds=120.0, session="two"))
    assert honest == [Ran(text="well")] * 4
    assert [path for path in reached(hostile) if not path.endswith("/room")] == []
    for name in ("trunk", "one", "two", "three", "other"):
        sandbox.end_session(name)


FILLS = {
    "fills the room": "n = 0\nwhile True: open(str(n), 'wb').write(b'x' * 10**6); n += 1",
    "leaves the room full": (
        "n = 0\ntry:\n  while True: open(str(n), 'wb').write(b'x' * 10**6); n += 1\nexcept OSError: pass"
    ),
    "takes all names": "n = 0\nwhile True: open(str(n), 'w').close(); n += 1",
    "hides what it takes": "import os, time\nos.mkdir('d', 0o300)\ntime.sleep(0.3)",
}


@pytest.mark.parametrize("how", FILLS)
async def test_a_branch_takes_no_room_of_another(how: str, sandbox: WarmSandbox) -> None:
    """Forks share a file system. Where it is full they part, and the calls are made again: each meets its own limit."""
    await sandbox.run("x = 1", seconds=9.0, session="trunk", past=[])
    assert await sandbox.fork("trunk", "one") and await sandbox.fork("trunk", "two")

    async def call(name: str, code: str) -> Ran:
        ran = await sandbox.run(code, seconds=120.0, session=name)
        if ran.gone and not ran.ending:
            ran = await sandbox.run(code, seconds=120.0, session=f"{name} again", past=[("x = 1", 0)])
        return ran

    honest = "import time\nfor n in range(20):\n  open(str(n), 'w').write('y' * 5000); time.sleep(0.05)\n'well'"
    full, *beside = await asyncio.gather(call("one", FILLS[how]), call("two", honest), call("trunk", honest))
    later = await call("trunk", "open('z', 'w').write('z' * 5000)")
    assert [one.text for one in beside] == ["'well'"] * 2 and later.text == "5000", (beside, later)
    if sandbox.level == "landlock" or how == "fills the room":
        assert full.ending == "error" and "larger than 8 MB" in full.text, full
    for name in ("trunk", "one", "two"):
        sandbox.end_session(name)
        sandbox.end_session(f"{name} again")
    assert sandbox.starts == 1, sandbox.last_words


async def test_names_of_scratch_folders_are_not_in_the_memory_of_calls(sandbox: WarmSandbox) -> None:
    """Where all calls share a view, 128 random bits, new for every call, are all that hides a folder."""
    spy = SPIES["scans its heap for a sibling's code"]
    pattern = "SECRET-OF-([0-9]+)-7f3a"
    assert pattern in spy
    spy = spy.replace(pattern, "arpo-sandbox-.{8}/([0-9a-f]{32})").replace("int(n)", "n.decode()")
    where = "import os, time\ntime.sleep(0.3)\nprint(os.getcwd())"
    calls = [sandbox.run(spy if number == 5 else where, seconds=120.0) for number in range(8)]
    ran = await asyncio.gather(*calls)
    assert all(one.ending == "ok" for one in ran), ran
    folders = {one.text for one in ran[:5] + ran[6:]}
    if sandbox.level == "landlock":
        assert len(folders) == 7 and all(re.fullmatch("[0-9a-f]{32}", folder.rpartition("/")[2]) for folder in folders)
        assert len(re.findall("[0-9a-f]{32}", ran[5].text)) == 1  # its own
        again = {one.text for one in await asyncio.gather(*(sandbox.run(where, seconds=120.0) for _ in range(8)))}
        assert not again & folders
    else:
        assert folders == {"/scratch/files"} and ran[5].text == "[]"


# What the kernel tells of a process by its number.
ABOUT_OTHERS = """
import ctypes, errno, os, platform, time
libc = ctypes.CDLL(None, use_errno=True)
space = ctypes.create_string_buffer(256)
at = ctypes.cast(space, ctypes.c_void_p)
def head(pid): return (ctypes.c_uint32 * 2)(0x20080522, pid)
LOCK_PI, FUTEX = 6, 202 if platform.machine() == 'x86_64' else 98
def lock_of(pid):  # in the name of another: the kernel looks its owner up
    libc.syscall(FUTEX, ctypes.byref(ctypes.c_uint32(pid)), LOCK_PI, 0, (ctypes.c_long * 2)(1, 0), None, 0)
    return ctypes.get_errno() == errno.ENOSYS and 1 / 0
asks = dict(
    clock=lambda pid: time.clock_gettime((~pid << 3) | 2), precise=lambda pid: time.clock_gettime(~pid << 3),
    group=os.getpgid, session=os.getsid, priority=lambda pid: os.getpriority(os.PRIO_PROCESS, pid),
    group_priority=lambda pid: os.getpriority(os.PRIO_PGRP, pid), user=lambda pid: os.getpriority(os.PRIO_USER, 0),
    cores=os.sched_getaffinity, scheduler=os.sched_getscheduler, parameters=os.sched_getparam,
    rights=lambda pid: libc.capget(head(pid), at) and 1 / 0,
    kill=lambda pid: os.kill(pid, 0), thread=lambda pid: time.clock_gettime((~pid << 3) | 6),
    resolution=lambda pid: time.clock_getres((~pid << 3) | 2), owner=lock_of,
    waits=lambda pid: libc.clock_nanosleep((~pid << 3) | 2, 1, (ctypes.c_long * 2)(0, 1), None) and 1 / 0,
)
told = set()
for pid in range(1, 400):
    for name, ask in asks.items():
        if pid == os.getpid(): continue
        try: ask(pid)
        except (OSError, ZeroDivisionError): continue
        told.add(name)
sorted(told), os.getpriority(os.PRIO_PROCESS, 0) < 20, time.process_time() > 0, len(os.sched_getaffinity(0)) > 0
"""


async def test_the_kernel_tells_a_program_of_no_other_process(sandbox: WarmSandbox) -> None:
    busy = [sandbox.run("import time\ntime.sleep(1)", seconds=120.0) for _ in range(6)]
    *_, alone = await asyncio.gather(*busy, sandbox.run(ABOUT_OTHERS, seconds=120.0))
    assert alone.text == "([], True, True, True)", alone
    in_session = await sandbox.run(ABOUT_OTHERS, seconds=120.0, session="asks", past=[])
    assert in_session.text == "([], True, True, True)", in_session
    sandbox.end_session("asks")


# A branch is a child of its trunk's process, and the kernel tells a parent of its children.
ABOUT_BRANCHES = """
import os, resource, signal, time
told = []
for about in (os.WEXITED, os.WSTOPPED, os.WCONTINUED):
    try: told.append(os.waitid(os.P_ALL, 0, about | os.WNOHANG | os.WNOWAIT))
    except OSError: pass
try: told.append(os.wait4(-1, os.WNOHANG | os.WUNTRACED))
except OSError: pass
try: told.append(signal.signal(signal.SIGCHLD, lambda *_: told.append('a signal')))
except OSError: pass
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
told += signal.sigpending()
told, resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime, os.times().children_user
"""


async def test_the_kernel_tells_a_trunk_nothing_of_its_branches(sandbox: WarmSandbox) -> None:
    await sandbox.run(ABOUT_BRANCHES, seconds=120.0, session="trunk", past=[])
    assert await sandbox.fork("trunk", "one") and await sandbox.fork("trunk", "two")
    await sandbox.run("sum(range(10**6))", seconds=120.0, session="one")
    watching = f"{ABOUT_BRANCHES}\ntime.sleep(0.3)\n{ABOUT_BRANCHES}"
    trunk = asyncio.create_task(sandbox.run(watching, seconds=120.0, session="trunk"))
    await sandbox.run("sum(range(10**6))", seconds=120.0, session="two")
    sandbox.end_session("one")
    assert (await trunk).text == "([], 0.0, 0.0)"
    sandbox.end_session("two")
    assert (await sandbox.run(ABOUT_BRANCHES, seconds=120.0, session="trunk")).text == "([], 0.0, 0.0)"
    sandbox.end_session("trunk")


async def test_threads_of_one_call_leave_those_of_others(sandbox: WarmSandbox) -> None:
    if sandbox.level == "landlock":
        pytest.skip("there the kernel counts threads by user")
    hoards = (
        "import threading, time\nthreads = []\ntry:\n  for n in range(9999):\n"
        "    threads.append(threading.Thread(target=time.sleep, args=(1,), daemon=True)); threads[-1].start()\n"
        "except RuntimeError: pass\ntime.sleep(0.5)\nlen(threads) < 300"
    )
    starts = "import threading, time\ntime.sleep(0.3)\nthreading.Thread(target=print, args=('well',)).start()"
    *hoarding, honest = await asyncio.gather(
        *(sandbox.run(hoards, seconds=120.0) for _ in range(5)), sandbox.run(starts, seconds=120.0)
    )
    assert {one.text for one in hoarding} == {"True"} and honest.text == "well"


ODD_ERRORS = {
    "its words exit": "class E(Exception):\n  def __str__(self): raise SystemExit(0)\nraise E",
    "its words interrupt": "class E(Exception):\n  def __str__(self): raise KeyboardInterrupt\nraise E",
    "its words are no text": "class E(Exception):\n  def __str__(self): return 5\nraise E",
    "its value exits": "class V:\n  def __repr__(self): raise SystemExit(0)\nV()",
    "its value generates": "class V:\n  def __repr__(self): raise GeneratorExit\nV()",
    "exits with hostile words": "class C:\n  def __str__(self): raise SystemExit(0)\nraise SystemExit(C())",
    "exits with a hostile number": (
        "class C:\n  def __eq__(self, other): raise KeyboardInterrupt\n  def __str__(self): raise ValueError\n"
        "raise SystemExit(C())"
    ),
    "a syntax error that lies": (
        "class E(SyntaxError):\n  filename = property(lambda self: 1 / 0)\nraise E('x', ('<program>', 1, 1, 'x'))"
    ),
    "a syntax error without a text": (
        "class T:\n  def strip(self): raise SystemExit(0)\n  def __bool__(self): return True\n"
        "e = SyntaxError('x')\ne.filename = '<program>'\ne.text = T()\nraise e"
    ),
    "a syntax error with a hostile message": (
        "class M:\n  def __format__(self, how): raise SystemExit(0)\ne = SyntaxError()\ne.filename = '<program>'\n"
        "e.msg = M()\nraise e"
    ),
    "a class that has another name": (
        "class M(type):\n  __name__ = property(lambda c: 1 / 0)\nclass E(Exception, metaclass=M): pass\nraise E('odd')"
    ),
    "a class that denies itself": "class E(Exception):\n  __class__ = property(lambda s: 1 / 0)\nraise E('odd')",
    "a number of an error that exits": (
        "class E(OSError):\n  errno = property(lambda s: (_ for _ in ()).throw(SystemExit(0)))\nraise E(1, 'odd')"
    ),
    "an audit hook": (
        "import sys\ndef hook(event, arguments): raise RuntimeError(event)\nsys.addaudithook(hook)\n"
        "import nosuch\n1 / 0"
    ),
    "an audit hook that exits": (
        "import sys\ndef hook(event, arguments):\n  if armed: raise SystemExit(0)\narmed = False\n"
        "sys.addaudithook(hook)\narmed = True\nopen('x')"
    ),
    "a trace that exits": "import sys\ndef trace(*a): raise SystemExit(0)\nsys.settrace(trace)\ndef f(): pass\nf()",
    "a profile": "import sys\ndef trace(*a): raise ValueError\nsys.setprofile(trace)\nlen('x')\n1 / 0",
    "its standard output exits": (
        "import sys\nclass O:\n  def write(self, t): raise SystemExit(0)\n  def flush(self): raise SystemExit(0)\n"
        "sys.stdout = sys.stderr = O()\n1 / 0"
    ),
    "a group": "raise BaseExceptionGroup('g', [SystemExit(0), ValueError('v')])",
    "a chain without an end": "a, b = ValueError('a'), ValueError('b')\na.__context__ = b\nb.__context__ = a\nraise a",
    "no frames": "raise ValueError('x').with_traceback(None)",
    "a writer that is gone": "import os\nos.write = os.lseek = os.fstat = None\n1 / 0",
}


async def test_odd_errors_of_a_program_are_its_own(sandbox: WarmSandbox) -> None:
    """In calls, and in a session, which may have been ended by it."""
    alone = await asyncio.gather(*(sandbox.run(code, seconds=120.0) for code in ODD_ERRORS.values()))
    for name, ran in zip(ODD_ERRORS, alone, strict=True):
        assert "could not be entered" not in ran.text and ran.ending in ("ok", "error"), (name, ran)
        if "exit" not in name:
            assert ran.ending == "error", (name, ran)
    for name, code in ODD_ERRORS.items():
        ran = await sandbox.run(code, seconds=120.0, session=name, past=[])
        assert ran.ending in ("ok", "error"), (name, ran)
        sandbox.end_session(name)
    assert (await sandbox.run("6 * 7", seconds=120.0)).text == "42" and sandbox.starts == 1, sandbox.last_words


SOCKET = (
    "import os, signal, stat, time\nfor fd in range(3, 4096):\n  try:\n"
    "    if stat.S_ISSOCK(os.fstat(fd).st_mode): break\n  except OSError: pass\n"
)
FORGERIES = {
    "says nothing of use": SOCKET + "os.write(fd, b'12345678')\ntime.sleep(9)",
    "says it before its end": SOCKET + "os.write(fd, b'\\0')\ntime.sleep(0.1)\nos._exit(0)",
    "closes its socket": SOCKET + "os.close(fd)\ntime.sleep(9)",
    "says it and ends at once": SOCKET + "os.write(fd, b'\\0')\nos._exit(0)",
    "answers for every later call": (
        SOCKET + "import select\nos.write(fd, b'\\0')\n"
        "while True:\n  select.select([fd], [], [])\n  os.write(fd, b'\\0'); time.sleep(0.01)"
    ),
}


@pytest.mark.parametrize("how", FORGERIES)
async def test_no_program_makes_its_own_branch_unavailable(how: str, sessions: PythonTool) -> None:
    """A branch whose tool is unavailable leaves its group, which would be a way out of a bad reward."""
    assert isinstance(sessions, SessionPythonTool)
    state = await sessions.open(None)  # type: ignore[arg-type]
    for code in ("x = 1", FORGERIES[how], "x", "x", FORGERIES[how], "2 + 2"):
        outcome = await run(sessions, code, state)
        assert outcome.status is not CallStatus.UNAVAILABLE, outcome
    await sessions.close(state)
    assert await text(sessions, "6 * 7", await sessions.open(None)) == "42"  # type: ignore[arg-type]


STALLS = {
    "a handler of SIGCONT": "import signal, time\nsignal.signal(signal.SIGCONT, lambda *_: time.sleep(30))",
    "a hook before forks": "import os, time\nos.register_at_fork(before=lambda: time.sleep(30))",
    "a hook after forks": "import os, time\nos.register_at_fork(after_in_parent=lambda: time.sleep(30))",
}


@pytest.mark.parametrize("how", STALLS)
async def test_a_fork_that_stalls_keeps_nobody_waiting(how: str, sandbox: WarmSandbox) -> None:
    """Calls are answered while it is awaited, and the fork is given up."""
    overtaken = False
    for attempt in range(5):  # a busy machine may be slower than the fork's limit
        name = f"stalls {attempt}"
        await sandbox.run(STALLS[how], seconds=9.0, session=name, past=[])
        fork = asyncio.create_task(sandbox.fork(name, name + " fork"))
        await asyncio.sleep(0.05)
        assert (await sandbox.run("6 * 7", seconds=9.0)).text == "42"
        overtaken = not fork.done()
        assert not await fork
        sandbox.end_session(name)
        if overtaken:
            break
    assert overtaken and sandbox.starts == 1, sandbox.last_words


async def test_a_branch_that_stalls_at_its_start_keeps_nobody_else_waiting(sandbox: WarmSandbox) -> None:
    stall = "import os, time\nos.register_at_fork(after_in_child=lambda: time.sleep(3600))"
    await sandbox.run(stall, seconds=9.0, session="trunk", past=[])
    assert await sandbox.fork("trunk", "branch")
    stalled = asyncio.create_task(sandbox.run("6 * 7", seconds=2.0, session="branch"))
    assert (await sandbox.run("6 * 7", seconds=9.0, session="trunk")).text == "42" and not stalled.done()
    assert (await stalled).ending == "time" and sandbox.starts == 1, sandbox.last_words
    sandbox.end_session("trunk")


async def test_no_branch_takes_the_fork_of_another_for_itself(sandbox: WarmSandbox) -> None:
    """One asks for forks all the time; whatever it says, the forks of its siblings work, and their calls go on."""
    thief = (
        "import os, time\nend, made = time.monotonic() + 2, 0\nwhile time.monotonic() < end:\n"
        "  try: made += 1 if os.fork() else os._exit(0) or 1\n  except OSError: pass\nmade"
    )
    await sandbox.run("x = 1", seconds=9.0, session="trunk", past=[])
    for name in ("one", "two"):
        assert await sandbox.fork("trunk", name)
    stealing = asyncio.create_task(sandbox.run(thief, seconds=30.0, session="one"))
    honest = asyncio.create_task(sandbox.run("import time\ntime.sleep(1)\n'well'", seconds=30.0, session="two"))
    for number in range(5):
        assert await sandbox.fork("trunk", f"fork {number}")
        sandbox.end_session(f"fork {number}")
    assert (await honest).text == "'well'" and (await stealing).text == "0"
    for name in ("trunk", "one", "two"):
        sandbox.end_session(name)


@pytest.mark.parametrize("abi", [pytest.param(abi, marks=[] if abi == 1 else pytest.mark.slow) for abi in (1, 2, 3, 5)])
@pytest.mark.parametrize("level", ["landlock", *(pytest.param(level, marks=pytest.mark.slow) for level in LEVELS[:2])])
async def test_older_kernels_hold_too(level: str, abi: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Landlock, capped to what older kernels have of it, beneath every hostile program and the saboteurs."""
    cap = f"from arpo.sandbox import landlock\nlandlock.abi = lambda: {abi}\nfrom arpo.sandbox import entry"
    monkeypatch.setattr(boot, "BOOT", boot.BOOT.replace("from arpo.sandbox import entry", cap))
    limits = Limits(cpu_seconds=9, seconds=120, memory_mb=128, file_mb=8)
    for sandbox in entered(level, limits=limits, imports=["math"], at_once=8, sessions=4):
        filled = {
            name: string.Template(code).safe_substitute(RECIPE="/usr/recipe", FOLDER="/usr", PID=1, PORT=9, CLONE=56)
            for name, code in PROGRAMS.items()
            if not re.match("bombs|recurses|leaves|fakes|calls by", name)
        }
        codes = [code.replace("ESCAPED", r"ESC\x41PED") for code in filled.values()]
        ran = await asyncio.gather(*(sandbox.run(code, seconds=120.0) for code in codes))
        assert [name for name, one in zip(filled, ran, strict=True) if "ESCAPED" in one.text] == []
        await test_no_call_reaches_the_files_of_another(sandbox)
        await sandbox.run("x = 1", seconds=9.0, session="trunk", past=[])
        assert await sandbox.fork("trunk", "branch") is (abi > 1)  # it moves folders; else the calls are made again
        assert sandbox.starts == 1, sandbox.last_words
