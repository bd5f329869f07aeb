"""The arithmetic of memory against the resident memory of real updates and engines."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator, and the peak of resident memory in /proc")
def test_updates_take_the_memory_that_arithmetic_says() -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    environment["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "0"  # in bfloat16 its programs take 30 MB, whatever the model
    program = Path(__file__).with_name("peak_memory.py")
    done = subprocess.run([sys.executable, program], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    cases = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(cases) >= 5
    for case in cases:
        assert case["measured"] == pytest.approx(case["total"], rel=0.15), case
