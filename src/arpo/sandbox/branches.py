"""Forks a process that holds variables. The two processes share the state so far and nothing that follows.

The kernel separates memory. Folders separate files: each process restricts itself to its own folder (with Landlock,
which can only be narrowed) and creates the folders of its forks inside its own room. Open files and pipes would stay
shared, and the restriction applies to one thread only, so a process with open files or several threads is not forked.
`seccomp` refuses shared mappings to sessions from the start.
"""

import _thread
import errno
import os
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from arpo.sandbox import landlock, linux, scratch
from arpo.sandbox.limits import DESCRIPTORS
from arpo.sandbox.namespaces import DEVICES

MOST_TIMES_BOUND = 14  # the kernel allows 16 rulesets, and a call already uses one


@dataclass(slots=True)
class Home:
    """The folders of one session: its programs work in `files`; folders for its forks are created in `room`."""

    files: str
    room: str
    bound: int = 0  # times

    @classmethod
    def make(cls, folder: str) -> "Home":
        home = cls(os.path.join(folder, "files"), os.path.join(folder, "room"))
        os.mkdir(home.files)
        os.mkdir(home.room)
        return home


def fork(home: Home, readable: Sequence[str] | None, keep: Collection[int]) -> int:
    """Like os.fork, and sets up `home` in both processes. Both may still read `readable` (None: without Landlock);
    `keep` lists the descriptors that may be open. Raises OSError or RecursionError if this process cannot be forked; it
    is then unchanged."""
    if home.bound >= MOST_TIMES_BOUND:
        raise OSError(errno.E2BIG, "bound too often")
    threads = _thread._count() or linux.has_threads()
    if threads or any(linux.is_open(number) for number in range(3, DESCRIPTORS) if number not in keep):
        raise OSError(errno.EBUSY, "threads, or open files")
    rest, new = os.path.join(home.room, "rest"), os.path.join(home.room, "new")
    theirs = Home(os.path.join(new, "files"), os.path.join(new, "room"), home.bound)
    try:
        for folder in (rest, new, theirs.room):
            os.mkdir(folder)
        scratch.copy(home.files, theirs.files)
        made = os.fork()
    except (OSError, RecursionError):
        scratch.remove(rest)
        scratch.remove(new)
        raise
    if made:
        home.room = rest
    else:
        _move(home.files, theirs.files)
        home.files, home.room = theirs.files, theirs.room
    home.bound += 1
    if readable is not None:
        _bind(readable, home)
    return made


def _bind(readable: Sequence[str], home: Home) -> None:
    try:
        ruleset = landlock.build(readable, [home.files, home.room], execute=False, devices=DEVICES)
        landlock.enter(ruleset)
        os.close(ruleset)
    except OSError as error:
        raise RuntimeError("two halves that would see each other") from error  # ends this one


def _move(old: str, new: str) -> None:
    os.chdir(new)
    os.environ.update(HOME=new, TMPDIR=new)
    tempfile = sys.modules.get("tempfile")
    if tempfile is not None and getattr(tempfile, "tempdir", None) == old:
        setattr(tempfile, "tempdir", None)  # noqa: B010  found anew when it is next asked for
