"""A session inside its own process: it waits for programs, runs them on the same names, and forks itself when told to.

Commands come as one small packet with descriptors: `R` (run; output, program), `F` (fork; the new one's own socket). Answers are
the ending as one byte (run) or the new process's number as eight (fork). What holds the other end believes neither.
"""

import os
import signal
import socket
import struct
import time
from typing import Any

from arpo.sandbox import child, limits, payload, program, scratch

RUN, FORK = b"R", b"F"
HEADER = struct.Struct("<c64s")  # command, name of a folder


def pack(command: bytes, folder: str = "") -> bytes:
    return HEADER.pack(command, folder.encode())


def live(control: socket.socket, cell: child.Cell, names: dict[str, Any]) -> None:
    """Serve commands until the other end is closed. Never returns."""
    number = 0
    while True:
        try:
            got, descriptors, _, _ = socket.recv_fds(control, HEADER.size, 2)
        except OSError:
            os._exit(0)
        if len(got) < HEADER.size:
            os._exit(0)
        command, folder = HEADER.unpack(got)
        if command == RUN:
            number += 1
            _run(control, cell, names, number, *descriptors)
        elif command == FORK:
            control = _fork(control, folder.rstrip(b"\0").decode(), *descriptors)


def _run(control: socket.socket, cell: child.Cell, names: dict[str, Any], number: int, output: int, brought: int) -> None:
    myself = os.getpid()
    code, seed = payload.read_program(brought)
    child.attach(output)
    os.close(output)
    program.listen()
    limits.grant_cpu(cell.limits, time.process_time(), hard=False)
    child.seed(seed)
    ending = program.run(code, names, cell.limits, label=f"<call {number}>", last=False)
    if os.getpid() != myself:  # the program forked, and this is not the session
        os._exit(0)
    signal.setitimer(signal.ITIMER_PROF, 0)
    child.detach()
    control.send(bytes([ending]))


def _fork(control: socket.socket, folder: str, other: int) -> socket.socket:
    """In the old one: its socket, after an answer. In the new one: the new one's, in a copy of the folder."""
    scratch.copy(os.getcwd(), folder)
    try:
        made = os.fork()
    except OSError:
        os.close(other)
        control.send(struct.pack("<q", -1))
        return control
    if made:
        os.close(other)
        control.send(struct.pack("<q", made))
        return control
    control.close()
    os.chdir(folder)
    os.environ.update(HOME=folder, TMPDIR=folder)
    return socket.socket(fileno=other)
