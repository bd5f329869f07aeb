"""What the runs of `test_shutdown.py` meet: a reward, and an MCP server with work that outlasts its connection."""

import sys
import threading
import time
from pathlib import Path
from typing import Any


def length(_task: Any, said: Any) -> float:
    """So that there is nearly always something to learn."""
    return len(said.turns[-1].text) % 7 / 7


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))
    from mcp_server_for_tests import server

    threading.Thread(target=time.sleep, args=(600,)).start()  # that its input ends is no reason for it to go
    server.run()
