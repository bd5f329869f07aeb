"""Runs in a worker of a vLLM that a run has in its own process: ends it as soon as that process has ended.

A core whose worker is gone ends too, while one that nobody asks anything would stay. Standard library alone.
"""

import os
import select
import signal
import threading

OWNER = "ARPO_VLLM_OWNER"
"""The environment variable with the id of the run's process."""


class Extension:
    """What vLLM adds to its workers (`worker_extension_cls`): nothing, but it imports this file."""


def _end_with(process: int) -> None:
    try:
        handle = os.pidfd_open(process)
    except ProcessLookupError:
        pass  # it ended before this began
    else:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        poll.poll()
    os.kill(os.getpid(), signal.SIGKILL)


threading.Thread(target=_end_with, args=(int(os.environ[OWNER]),), daemon=True).start()
