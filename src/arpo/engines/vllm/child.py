"""Runs in vLLM's own environment, which need not have arpo: vLLM's server, which ends as soon as its standard input is
closed.

So a server outlives no run, however the run ends. Standard library alone.
"""

import os
import runpy
import signal
import threading
import time


def _end_with_parent() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(15)
    os.killpg(0, signal.SIGKILL)


threading.Thread(target=_end_with_parent, daemon=True).start()
runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__", alter_sys=True)
