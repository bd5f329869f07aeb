"""A process that holds variables becomes two, which share what was until now and nothing that comes after.

Memory parts by itself. Files part by folder: each half binds itself to its own (Landlock, which can only be narrowed), and makes
those of its forks within a room of its own. What two halves would go on to share (open files, pipes) cannot be parted, and what
binds itself here binds one thread: a process that has either is not forked. Shared mappings are refused to sessions from the start
(`seccomp`).
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

MOST_TIMES_BOUND = 14  # the kernel takes 16 rulesets, and a call is bound once before


@dataclass(slots=True)
class Home:
    """Of one session: `files` is where its programs work, `room` where folders for its forks are made."""

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
    """As os.fork, with `home` made right in both. `readable`: what both may go on to read (None: Landlock is not used); `keep`:
    descriptors that may be open. Raises OSError or RecursionError where this process cannot be parted; it is as before then."""
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
