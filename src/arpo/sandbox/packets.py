"""Messages between the trainer and the program inside: one JSON object per packet, with its descriptors.

Never pickle, since neither side trusts the other. Never a program or its output: they travel only as descriptors
(`payload`).
"""

import json
import os
import socket
from collections.abc import Sequence
from typing import Any

LARGEST = 1 << 16  # maximum size of a packet in bytes


class BrokenPacket(ValueError):
    """The received bytes are not a valid packet."""


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(to: socket.socket, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
    packet = json.dumps(message, ensure_ascii=True).encode()
    if descriptors:
        socket.send_fds(to, [packet], descriptors)
    else:
        to.sendall(packet)


def receive(come_from: socket.socket, most_descriptors: int = 0) -> tuple[dict[str, Any], list[int]] | None:
    """The next packet; None if the other end is closed. Raises BrokenPacket, OSError."""
    packet, descriptors, flags, _ = socket.recv_fds(come_from, LARGEST, most_descriptors, socket.MSG_CMSG_CLOEXEC)
    if not packet:
        return None
    try:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise BrokenPacket("more than fits into a packet")
        message = json.loads(packet)
        if not isinstance(message, dict):
            raise BrokenPacket(f"not an object: {type(message).__name__}")
    except ValueError as error:
        for descriptor in descriptors:
            os.close(descriptor)
        raise BrokenPacket(str(error)) from error
    return message, descriptors
