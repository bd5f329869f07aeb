"""A process next to the zygote that empties scratch folders and detects when they overflow.

The next program must not learn the names of a program's files, so no process from which calls are forked may read such
a folder. This process may read it, since nothing is forked from it.
"""

import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any

from arpo.sandbox import child, linux, packets, scratch


class Sweeper:
    """The client. Answers arrive on `fileno()` in the order of requests: {"emptied": folder, "ok": ...} or
    {"over": [folder, ...]}."""

    def __init__(self) -> None:
        self._control, theirs = packets.pair()
        if not os.fork():
            _serve(theirs)
        theirs.close()

    def fileno(self) -> int:
        return self._control.fileno()

    def empty(self, folder: str) -> None:
        packets.send(self._control, {"empty": folder})

    def look(self, folders: Sequence[str], most_bytes: int, most_files: int) -> None:
        """Ask which of `folders` exceed the limits."""
        packets.send(self._control, {"look": folders, "bytes": most_bytes, "files": most_files})

    def end(self) -> None:
        """Close the socket, which ends the process."""
        self._control.close()

    def answer(self) -> dict[str, Any]:
        got = packets.receive(self._control)
        if got is None:
            raise EOFError("the sweeper is gone")
        return got[0]


def _serve(control: socket.socket) -> None:
    """Never returns."""
    try:
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
        child.close_all_but([control.fileno()])
        while (got := packets.receive(control)) is not None:
            request = got[0]
            if "empty" in request:
                packets.send(control, {"emptied": request["empty"], "ok": _emptied(request["empty"])})
            else:
                most = request["bytes"], request["files"]
                packets.send(control, {"over": [each for each in request["look"] if scratch.overflows(each, *most)]})
    finally:
        os._exit(0)


def _emptied(folder: str) -> bool:
    try:
        scratch.empty(folder)
    except OSError as error:
        print(f"{folder} is not used any more: {error}", file=sys.stderr, flush=True)
        return False
    return True
