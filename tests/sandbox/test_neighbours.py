"""Calls at the same time, and branches of a session, find nothing of each other in memory, descriptors and files."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from at_levels import AT, entered
from hostile import MARK, SECRETIVE, SPIES

from arpo.sandbox import linux
from arpo.sandbox.limits import Limits
from arpo.sandbox.syscalls import numbers
from arpo.sandbox.warm import SPARE, WarmSandbox

LIMITS = Limits(cpu_seconds=20, seconds=40, memory_mb=256, file_mb=8)


@pytest.fixture(scope="module", params=AT)
def sandbox(request: pytest.FixtureRequest) -> Iterator[WarmSandbox]:
    yield from entered(request.param, limits=LIMITS, imports=["math"], at_once=8, sessions=20)


def program(code: str, number: int, *, session: bool = False) -> str:
    return code.replace("MARK", MARK.format(number=number)).replace("$SESSION", str(session))


async def said(sandbox: WarmSandbox, code: str, number: int, session: str | None = None, new: bool = False) -> str:
    past = [] if new else None
    ran = await sandbox.run(
        program(code, number, session=session is not None), seconds=40.0, session=session, past=past
    )
    assert ran.ending == "ok", ran
    return ran.text


def own(spy: str, *numbers: int) -> str:
    """What a spy may find: its own code, where it looks into memory; so a search that finds nothing else is not
    blind."""
    return str(sorted(numbers) if "gc" in spy or "heap" in spy else [])


@pytest.mark.parametrize("spy", SPIES)
async def test_of_many_calls_at_once_none_finds_another(spy: str, sandbox: WarmSandbox) -> None:
    """More than run at a time, so that calls wait; two spies among them, and one after them."""
    codes = [SPIES[spy] if number in (4, 11) else SECRETIVE for number in range(16)]
    found = await asyncio.gather(*(said(sandbox, code, number) for number, code in enumerate(codes)))
    assert [found[4], found[11]] == [own(spy, 4), own(spy, 11)]
    assert found[0] == "{0}\n'{0}'".format(MARK.format(number=0))
    assert await said(sandbox, SPIES[spy], 16) == own(spy, 16)
    assert sandbox.starts == 1, sandbox.last_words


def third(spy: str) -> str:
    """Of a fork of `first`, which had run number 52 and left a file."""
    return "[52]" if "folders" in spy else own(spy, 50, 52, 58)


@pytest.mark.parametrize("spy", SPIES)
async def test_a_branch_finds_its_trunk_and_no_other_branch(spy: str, sandbox: WarmSandbox) -> None:
    """Eleven sessions and two calls without one, at once; `first` and `second` are forked from `trunk`, which ran
    number 50."""
    await said(sandbox, "trunk = 'MARK'", 50, "trunk", new=True)
    assert await sandbox.fork("trunk", "first") and await sandbox.fork("trunk", "second")
    calls = [said(sandbox, SECRETIVE, 51, "trunk"), said(sandbox, SECRETIVE, 52, "first")]
    calls += [said(sandbox, SECRETIVE, number) for number in (53, 54)]
    calls += [said(sandbox, SECRETIVE, 60 + number, f"other{number}", new=True) for number in range(8)]
    *_, during = await asyncio.gather(*calls, said(sandbox, SPIES[spy], 55, "second"))
    assert during == own(spy, 50, 55)
    assert await said(sandbox, SPIES[spy], 56, "second") == own(spy, 50, 55, 56)
    assert await sandbox.fork("first", "third")
    await said(sandbox, SECRETIVE, 57, "first")
    assert await said(sandbox, SPIES[spy], 58, "third") == third(spy)
    for name in ("trunk", "first", "second", "third", *(f"other{number}" for number in range(8))):
        sandbox.end_session(name)
    assert sandbox.starts == 1, sandbox.last_words


async def test_the_memory_that_calls_are_forked_from_has_nothing_of_fifty(sandbox: WarmSandbox) -> None:
    """Read from outside, by root."""
    for first in range(0, 50, 10):
        calls = [said(sandbox, SECRETIVE, number) for number in range(first, first + 8)]
        calls += [said(sandbox, SECRETIVE, first + 8 + number, f"s{first + number}", new=True) for number in range(2)]
        await asyncio.gather(*calls)
        assert await sandbox.fork(f"s{first}", f"f{first}")
        await said(sandbox, SECRETIVE, first, f"f{first}")
    for first in range(0, 50, 10):
        for name in (f"s{first}", f"s{first + 1}", f"f{first}"):
            sandbox.end_session(name)
    held = sandbox.count()
    assert (held["calls"], held["sessions"], held["files"], held["slots"]) == (0, 0, 0, 28 + SPARE)
    first_process = sandbox._inside.process.pid
    zygote = first_process if sandbox.level == "landlock" else below(first_process)[0]
    scanned = 0
    try:
        for part in memory(zygote):
            assert b"SECRET-OF-" not in part
            scanned += len(part)
    except PermissionError:
        pytest.skip("only root may read the memory of what gave up its rights")
    assert scanned > 5 << 20


def below(pid: int) -> list[int]:
    words = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [each for word in words for each in (int(word), *below(int(word)))]


def memory(pid: int) -> Iterator[bytes]:
    """What process `pid` can write to, mapping by mapping."""
    with open(f"/proc/{pid}/maps", encoding="ascii") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as file:
        for line in maps:
            place, rights = line.split()[:2]
            if rights.startswith("rw"):
                start, end = (int(word, 16) for word in place.split("-"))
                file.seek(start)
                yield file.read(end - start)


async def test_what_is_given_up_and_closed_at_once_leaves_nothing(sandbox: WarmSandbox) -> None:
    """Calls that are cancelled while they run, wait or repeat a past, with their sessions closed in the same breath."""
    before = sandbox.count()
    descriptors = len(os.listdir("/proc/self/fd"))
    past = [("import time\ntime.sleep(0.05)", 0)] * 6
    for _ in range(3):
        calls = [
            asyncio.create_task(
                sandbox.run(
                    "import time\ntime.sleep(1)",
                    seconds=9.0,
                    session=f"gone{n}" if n % 3 else None,
                    past=past if n % 3 else None,
                )
            )
            for n in range(30)
        ]
        await asyncio.sleep(0.2)
        for number, call in enumerate(calls):
            call.cancel()
            sandbox.end_session(f"gone{number}")
        await asyncio.gather(*calls, return_exceptions=True)
        assert (await sandbox.run("6 * 7", seconds=9.0)).text == "42"
    await asyncio.sleep(0.2)
    assert sandbox.count() == before and len(os.listdir("/proc/self/fd")) == descriptors
    assert sandbox.starts == 1, sandbox.last_words


async def test_what_a_session_says_to_the_keeper_is_not_kept(sandbox: WarmSandbox) -> None:
    """Neither in words of its own on the socket that it was given, nor in the arguments of a fork that it asks for."""
    word = "import ctypes, os, struct\nword = b'SECRET-OF-' + bytes('7-7f3a', 'ascii')\n"
    speak = "for fd in range(3, 4096):\n  try: os.write(fd, word * 3)\n  except OSError: pass"
    ask = (
        "a, b = (ctypes.c_ulong(n) for n in struct.unpack('QQ', word))\n"
        "ctypes.CDLL(None).syscall(CLONE, 17, None, a, b, None)"
    )
    ask = ask.replace("CLONE", str(numbers(linux.ARCHITECTURE)["clone"]))
    for number, code in enumerate((speak, ask)):
        await sandbox.run(word + code, seconds=5.0, session=f"speaks{number}", past=[])
    assert await said(sandbox, SPIES["scans its heap for a sibling's code"], 3) == "[3]"
