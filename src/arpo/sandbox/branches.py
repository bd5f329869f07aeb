"""Forks a process that holds variables. The two processes share the state so far and nothing that follows.

The kernel separates memory. Folders separate files: each process restricts itself to its own folder (with Landlock,
which can only be narrowed), which takes a new name that the other cannot know, and creates the folders of its forks
inside its own room. Open files and pipes would stay
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
    """The folders of one session, all in `top`: its programs work in `files`; its forks are made in `room`."""

    top: str
    bound: int = 0  # times

    @property
    def files(self) -> str:
        return os.path.join(self.top, "files")

    @property
    def room(self) -> str:
        return os.path.join(self.top, "room")

    @classmethod
    def make(cls, top: str) -> "Home":
        home = cls(top)
        os.mkdir(home.files)
        os.mkdir(home.room)
        os.chdir(home.files)
        home.tell(top)
        return home

    def inner(self) -> "Home":
        """A home for the time after a fork, in `room`, without its `files`."""
        home = Home(os.path.join(self.room, _name()), self.bound + 1)
        os.mkdir(home.top)
        os.mkdir(home.room)
        return home

    def hide(self) -> None:
        """Take a name that no other process knows."""
        top = os.path.join(os.path.dirname(self.top), _name())
        os.rename(self.top, top)
        self.top = top

    def tell(self, old: str) -> None:
        """Tell the program where its files are, which were in `old`."""
        os.environ.update(HOME=self.files, TMPDIR=self.files)
        tempfile = sys.modules.get("tempfile")
        if tempfile is not None and getattr(tempfile, "tempdir", None) == old:
            setattr(tempfile, "tempdir", None)  # noqa: B010  found anew when it is next asked for


def _name() -> str:
    return os.urandom(16).hex()


def fork(home: Home, readable: Sequence[str] | None, keep: Collection[int]) -> int:
    """Like os.fork, and sets up `home` in both processes. Both may still read `readable` (None: without Landlock);
    `keep` lists the descriptors that may be open. Raises OSError or RecursionError if this process cannot be forked; it
    can then go on."""
    if home.bound >= MOST_TIMES_BOUND:
        raise OSError(errno.E2BIG, "bound too often")
    threads = _thread._count() or linux.has_threads()
    if threads or any(linux.is_open(number) for number in range(3, DESCRIPTORS) if number not in keep):
        raise OSError(errno.EBUSY, "threads, or open files")
    old = home.files
    ours, theirs = home.inner(), home.inner()
    try:
        scratch.copy(old, theirs.files)
        os.rename(old, ours.files)  # refused by Landlock before ABI 2
        made = _forked(old, ours)
    except (OSError, RecursionError):
        scratch.remove(ours.top)
        scratch.remove(theirs.top)
        raise
    mine = ours if made else theirs
    mine.hide()
    home.top, home.bound = mine.top, mine.bound
    if not made:
        os.chdir(home.files)
    home.tell(old)
    if readable is not None:
        _bind(readable, home)
    return made


def _forked(old: str, ours: Home) -> int:
    try:
        return os.fork()
    except OSError:
        os.rename(ours.files, old)
        raise


def _bind(readable: Sequence[str], home: Home) -> None:
    try:
        ruleset = landlock.build(readable, [home.top], execute=False, devices=DEVICES)
        landlock.enter(ruleset)
        os.close(ruleset)
    except OSError as error:
        raise RuntimeError("two halves that would see each other") from error  # ends this one
