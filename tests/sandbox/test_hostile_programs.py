"""Each hostile program is contained at every level that this machine has, and the next call is correct."""

import asyncio
import os
import re
import socket
import string
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from at_levels import AT, entered
from hostile import BURNERS, PROGRAMS

from arpo.sandbox import linux
from arpo.sandbox.limits import Limits
from arpo.sandbox.syscalls import numbers
from arpo.sandbox.verdict import Ran
from arpo.sandbox.warm import SPARE, WarmSandbox

LIMITS = Limits(cpu_seconds=1, seconds=3, memory_mb=128, file_mb=8, output_bytes=4000)
SECRET = "swordfish-of-the-trainer"
# what no program should get through to, by number: mount, ptrace, bpf, keyrings, io_uring, userfaultfd and their like
DANGEROUS = {
    "x86_64": "41, 46, 49, 101, 155, 161, 165, 166, 175, 246, 248, 250, 256, "
    "272, 304, 308, 310, 311, 321, 323, 425, 428, 434, 438",
    "aarch64": "39, 40, 51, 97, 104, 117, 198, 200, 211, 217, 219, "
    "264, 265, 268, 270, 271, 280, 282, 425, 428, 434, 438",
}


@dataclass(frozen=True)
class Trainer:
    """What a program would like to get at."""

    folder: Path
    recipe: Path
    port: int
    touched: list[str]

    def filled(self, program: str) -> str:
        known = {
            "RECIPE": self.recipe,
            "SECRET_NAME": self.recipe.name,
            "FOLDER": self.folder,
            "SECRET": SECRET,
            "PID": os.getpid(),
            "PORT": self.port,
            "HOST": "10.0.0.1",
            "UNIX": self.folder / "unix",
            "ABSTRACT": f"arpo-test-{os.getpid()}",
            "CALLS": DANGEROUS[linux.ARCHITECTURE],
            "CLONE": numbers(linux.ARCHITECTURE)["clone"],
        }
        filled = string.Template(program).safe_substitute({name: str(value) for name, value in known.items()})
        return filled.replace("ESCAPED", r"ESC\x41PED")  # said by a program that runs, not by a message that quotes it


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trainer]:
    """A folder with a recipe that anybody could write, open sockets of every kind, and a secret in the environment."""
    folder = tmp_path_factory.mktemp("trainer")
    for part in (folder, *folder.parents[:2]):
        part.chmod(0o777)
    recipe = folder / "recipe-7f3a.yaml"
    recipe.write_text("base: quickstart\n")
    recipe.chmod(0o666)
    touched: list[str] = []
    tcp = socket.create_server(("127.0.0.1", 0))
    port = tcp.getsockname()[1]
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", port))
    unix, abstract, datagram = (
        socket.socket(socket.AF_UNIX, kind) for kind in (socket.SOCK_DGRAM, *[socket.SOCK_STREAM] * 2)
    )
    unix.bind(str(folder / "unix"))
    (folder / "unix").chmod(0o777)
    abstract.bind(f"\0arpo-test-{os.getpid()}")
    abstract.listen()
    for listening, name, take in (
        (tcp, "tcp", "accept"),
        (udp, "udp", "recv"),
        (unix, "unix", "recv"),
        (abstract, "abstract", "accept"),
    ):
        threading.Thread(target=_note, args=(listening, name, take, touched), daemon=True).start()
    before = os.environ.get("ARPO_TEST_SECRET")
    os.environ["ARPO_TEST_SECRET"] = SECRET
    yield Trainer(folder, recipe, port, touched)
    for each in (tcp, udp, unix, abstract, datagram):
        each.close()
    if before is None:
        del os.environ["ARPO_TEST_SECRET"]


def _note(listening: socket.socket, name: str, take: str, touched: list[str]) -> None:
    try:
        getattr(listening, take)(*([1] if take == "recv" else []))
    except OSError:
        return
    touched.append(name)


@pytest.fixture(scope="module", params=AT)
def sandbox(request: pytest.FixtureRequest, trainer: Trainer) -> Iterator[WarmSandbox]:
    yield from entered(request.param, limits=LIMITS, imports=["math"], at_once=8)


def check_next(ran: Ran) -> None:
    assert ran == Ran(text="[]\n42"), ran


NEXT = "import os, sys, math, json\nprint(os.listdir('.'))\nint(math.sqrt(36)) * 7"


@pytest.mark.parametrize("name", PROGRAMS)
async def test_contained_and_the_next_call_is_correct(name: str, sandbox: WarmSandbox, trainer: Trainer) -> None:
    ran = await sandbox.run(trainer.filled(PROGRAMS[name]), seconds=3.0)
    assert ("ESCAPED" in ran.text) == (name == "fakes results"), ran.text
    assert SECRET not in ran.text
    assert len(ran.text) < LIMITS.output_bytes + 2000
    ran.text.encode()  # text it is
    check_next(await sandbox.run(NEXT, seconds=3.0))
    assert trainer.recipe.read_text() == "base: quickstart\n" and trainer.recipe.stat().st_mode & 0o777 == 0o666
    assert sorted(path.name for path in trainer.folder.iterdir()) == [trainer.recipe.name, "unix"]
    assert not trainer.touched and sandbox.starts == 1, sandbox.last_words


async def test_what_goes_on_for_ever_ends_with_words(sandbox: WarmSandbox) -> None:
    """All at the same time, more than may run at once."""
    ran = await asyncio.gather(*(sandbox.run(program, seconds=3.0) for program, _ in BURNERS.values()))
    for (name, (_, words)), one in zip(BURNERS.items(), ran, strict=True):
        assert one.ending in ("error", "time", "cpu"), (name, one.ending, one.text[-300:])
        assert re.search(words, one.text[-600:]), (name, one.ending, one.text[-300:])
        assert len(one.text) < LIMITS.output_bytes + 2000, name
    check_next(await sandbox.run(NEXT, seconds=3.0))
    assert sandbox.starts == 1, sandbox.last_words


async def test_every_place_is_still_there_and_empty(sandbox: WarmSandbox) -> None:
    """After all of them, in any order; more locked folders than there are places."""
    await asyncio.gather(*(sandbox.run(PROGRAMS["leaves its own folder locked"], seconds=3.0) for _ in range(20)))
    check_next(await sandbox.run(NEXT, seconds=3.0))
    held = sandbox.count()
    assert (held["slots"], held["files"], held["calls"]) == (8 + SPARE, 0, 0)


def test_there_are_enough_of_them() -> None:
    assert len(PROGRAMS) + len(BURNERS) >= 60
