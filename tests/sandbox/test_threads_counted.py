"""Before a session is parted, the kernel is asked whether it has threads: Python counts one only when it has begun."""

import _thread
import subprocess
import sys
import time

import pytest

from arpo.sandbox import linux

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux")

ALONE = "from arpo.sandbox import linux\nprint(linux.has_threads())"


def test_a_thread_is_seen_as_soon_as_it_is_made_and_none_where_there_is_none() -> None:
    for _ in range(50):
        _thread.start_new_thread(time.sleep, (0.005,))
        assert linux.has_threads()
    alone = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=True)
    assert alone.stdout == "False\n"
