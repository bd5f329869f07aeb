"""A process next to the zygote that makes and empties scratch folders and detects when they overflow.

The next program must not learn the names of a program's files, so no process from which calls are forked may read such
a folder. This process may read it, since nothing is forked from it. For the same reason it alone knows the names of the
folders where nothing else hides them: 128 random bits, new after every call.
"""

import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any

from arpo.sandbox import child, linux, packets, scratch

NAME_BYTES = 16


class Sweeper:
    """The client. Answers arrive on `fileno()` in the order of requests: {"emptied": number, "ok": ...} or
    {"over": [number, ...]}. `hidden` folders are made under secret names in `base`; others are there, by number."""

    def __init__(self, base: str, slots: int, *, hidden: bool) -> None:
        self._control, theirs = packets.pair()
        if not os.fork():
            _serve(theirs, base, slots, hidden)
        theirs.close()
        self.folders = [self._folder() for _ in range(slots)]

    def _folder(self) -> int:
        received = packets.receive(self._control, 1)
        if received is None:
            raise EOFError("the scratch folders could not be made")
        return received[1][0]

    def fileno(self) -> int:
        return self._control.fileno()

    def empty(self, slot: int) -> None:
        packets.send(self._control, {"empty": slot})

    def look(self, slots: Sequence[int], most_bytes: int, most_files: int) -> None:
        """Ask which of the folders exceed the limits."""
        packets.send(self._control, {"look": slots, "bytes": most_bytes, "files": most_files})

    def end(self) -> None:
        """Close the socket, which ends the process."""
        self._control.close()

    def answer(self) -> dict[str, Any]:
        received = packets.receive(self._control)
        if received is None:
            raise EOFError("the sweeper is gone")
        return received[0]


def _serve(control: socket.socket, base: str, slots: int, hidden: bool) -> None:
    """Never returns."""
    try:
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
        child.close_all_but([control.fileno()])
        paths = [_made(base) if hidden else os.path.join(base, str(number)) for number in range(slots)]
        for path in paths:
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            packets.send(control, {}, [folder])
            os.close(folder)
        while (received := packets.receive(control)) is not None:
            request = received[0]
            if "empty" in request:
                number = request["empty"]
                emptied = _emptied(paths[number])
                if hidden and emptied:
                    paths[number] = _renamed(paths[number])
                packets.send(control, {"emptied": number, "ok": emptied})
            else:
                most = request["bytes"], request["files"]
                over = [number for number in request["look"] if scratch.overflows(paths[number], *most)]
                packets.send(control, {"over": over})
    finally:
        os._exit(0)


def _made(base: str) -> str:
    path = os.path.join(base, os.urandom(NAME_BYTES).hex())
    os.mkdir(path, scratch.OWNER_ONLY)
    return path


def _renamed(path: str) -> str:
    name = os.path.join(os.path.dirname(path), os.urandom(NAME_BYTES).hex())
    os.rename(path, name)
    return name


def _emptied(folder: str) -> bool:
    try:
        scratch.empty(folder)
    except OSError as error:
        print(f"{folder} is not used any more: {error}", file=sys.stderr, flush=True)
        return False
    return True
