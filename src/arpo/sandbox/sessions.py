"""A session inside its own process: it waits for programs, runs them on the same names, and forks itself when told to.

Commands come as one byte with descriptors: `R` (run; output, program), `F` (fork; the new one's own socket). Answers
are the ending as one byte (run) or the new process's number as eight (fork; -1 where it cannot). What holds the other
end believes neither.
"""

import os
import signal
import socket
import struct
import time
from typing import Any

from arpo.sandbox import branches, child, limits, payload, program

RUN, FORK = b"R", b"F"


def live(control: socket.socket, cell: child.Cell, names: dict[str, Any], home: branches.Home) -> None:
    """Serve commands until the other end is closed. Never returns."""
    number = 0
    while True:
        try:
            command, descriptors, _, _ = socket.recv_fds(control, 1, 2)
        except OSError:
            os._exit(0)
        if command == RUN:
            number += 1
            _run(control, cell, names, number, *descriptors)
        elif command == FORK:
            control = _fork(control, cell, home, *descriptors)
        else:
            os._exit(0)


def _run(
    control: socket.socket, cell: child.Cell, names: dict[str, Any], number: int, output: int, brought: int
) -> None:
    myself = os.getpid()
    code, seed = payload.read_program(brought)
    buffer = child.attach(output)
    os.close(output)
    program.listen()
    limits.grant_cpu(cell.limits, time.process_time(), hard=False)
    child.seed(seed)
    ending = program.run(code, names, cell.limits, label=f"<call {number}>", last=False)
    if os.getpid() != myself:  # the program forked, and this is not the session
        os._exit(0)
    signal.setitimer(signal.ITIMER_PROF, 0)
    child.detach(buffer)
    control.send(bytes([ending]))


def _fork(control: socket.socket, cell: child.Cell, home: branches.Home, other: int) -> socket.socket:
    """In the old one: its socket, after an answer. In the new one: the new one's."""
    try:
        made = branches.fork(home, cell.readable, keep=(control.fileno(), other))
    except (OSError, RecursionError):
        made = -1
    if made == 0:
        control.close()
        return socket.socket(fileno=other)
    os.close(other)
    control.send(struct.pack("<q", made))
    return control
