"""Ctrl-C while calls are under way. Those of the tool `python` are in tests/sandbox/test_sandboxed_python.py."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from calls_of_an_hour import HOUR

import arpo
from localhost import Asked, Reply, serving
from sandbox_levels import WORKING

PROGRAM = Path(__file__).with_name("calls_of_an_hour.py")
PATIENCE_S = HOUR / 10  # far more than any machine needs, and far less than a call takes


def test_nobody_waits_for_calls_when_ctrl_c_is_pressed(tmp_path: Path) -> None:
    over, server = threading.Event(), tmp_path / "server"

    def silent(_asked: Asked) -> Reply:
        over.wait(HOUR)
        return Reply()

    environment = {**os.environ, "PYTHONPATH": str(Path(arpo.__file__).parents[1])}
    with serving(silent) as site:
        command = [sys.executable, str(PROGRAM), f"{site.url}/page", str(server)]
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        try:
            until = time.monotonic() + PATIENCE_S
            while not (site.asked and server.exists()):
                assert process.poll() is None and time.monotonic() < until, process.communicate()[0]
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            said, _ = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
            process.wait()
            over.set()
    assert process.returncode == 130, said
    assert sorted(said.split()) == sorted(["page", "mcp", "function", *(["shell"] if WORKING else [])]), said
    if sys.platform == "linux":
        until = time.monotonic() + PATIENCE_S
        while Path(f"/proc/{server.read_text()}").exists():
            assert time.monotonic() < until, "the MCP server goes on"
            time.sleep(0.02)
