"""Freed memory is kept, and goes back to the system where its memory is scarce."""

import os
import subprocess
import sys

import pytest

from arpo.learner import malloc_trim

HOLES = """
from arpo.learner import malloc_trim
def resident():
    with open("/proc/self/statm") as pages:
        return int(pages.read().split()[1]) * 4096 // 2**20
malloc_trim.keep_freed()
malloc_trim._available = lambda: 0.9
freed = bytearray(b"1") * (16 << 20)  # after this glibc keeps blocks of up to 16 MB in its heap
del freed
kept, large = [], []
for number in range(40):
    large.append(bytearray(b"1") * (4 << 20))
    kept.append(bytearray(b"1") * (100 << 10))
full = resident()
large.clear()
malloc_trim.give_back()
assert full - resident() < 50, "memory is not scarce"
malloc_trim._available = lambda: 0.1
malloc_trim.give_back()
print(full - resident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_holes_between_blocks_that_stay_are_given_back():
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", HOLES], env=environment, capture_output=True, text=True, timeout=600, check=True
    )
    assert int(done.stdout) >= 150  # of 160 MB


def test_it_is_known_how_much_is_free():
    assert 0 < malloc_trim._available() <= 1
