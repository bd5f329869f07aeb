"""Decides whether two answers are mathematically equal: numbers exactly, everything else with math-verify.

math-verify may hang, and its own time limits work only in the main thread. So it runs in a worker process, which is
killed and replaced if a pair takes too long. A pair that it cannot decide counts as not equal.
"""

import contextlib
import json
import os
import re
import select
import subprocess
import sys
import threading
import time
import weakref
from collections import OrderedDict
from pathlib import Path

from arpo.errors import RewardError
from arpo.rewards.formulas import decide, for_algebra

WORKER = Path(__file__).with_name("maths_worker.py")
START_S = 120.0  # importing sympy on a busy machine
CACHE_SIZE = 20_000
WALL = 4.0  # wall time as a multiple of the processor time; then the worker is killed
# towers of powers and factorials of large numbers: they make a worker hang, and no gold contains them
EXPLODES = re.compile(r"(?:\^|\*\*)[\s{(]*\d+[\s})]*(?:\^|\*\*)|(?:\^|\*\*)[\s{(]*\d{6,}|\d{5,}[\s})]*!|!\s*!")
MAX_CHARS = 2_000  # a longer answer is not a formula


class MathsVerifier:
    """Compares answers in a worker process, which starts at the first comparison. Thread-safe. Calls block, so run them
    off the event loop.

    `seconds` is the processor time that one pair may take.
    """

    def __init__(self, seconds: float = 2.0) -> None:
        self.seconds = seconds
        self._lock = threading.Lock()
        self._worker: subprocess.Popen[bytes] | None = None
        self._cache: OrderedDict[tuple[str, str], bool] = OrderedDict()

    def equal(self, answer: str, gold: str) -> bool:
        """True if `answer` equals `gold`. Raises RewardError if math-verify does not start."""
        equal = compare_quickly(answer, gold)
        return self.equal_by_worker(answer, gold) if equal is None else equal

    def equal_by_worker(self, answer: str, gold: str) -> bool:
        """Like `equal`, with math-verify alone."""
        if max(len(answer), len(gold)) > MAX_CHARS or (EXPLODES.search(answer) and not EXPLODES.search(gold)):
            return False
        answer, gold = for_algebra(answer, gold), for_algebra(gold, answer)
        with self._lock:
            if (answer, gold) not in self._cache:
                self._cache[answer, gold] = self._ask(gold, answer)
                while len(self._cache) > CACHE_SIZE:
                    self._cache.popitem(last=False)
            return self._cache[answer, gold]

    def close(self) -> None:
        with self._lock:
            self._stop()

    def _ask(self, gold: str, answer: str) -> bool:
        for _ in range(2):  # the worker may have died since the last pair: try again with a fresh one
            worker = self._running_worker()
            assert worker.stdin is not None
            try:
                worker.stdin.write(json.dumps([gold, answer]).encode() + b"\n")
                worker.stdin.flush()
                line = _read_line(worker, self.seconds * WALL)
            except BrokenPipeError:
                line = b""
            if line is None:
                self._stop()
                return False
            if line:
                return bool(json.loads(line))
            self._stop()
        return False  # this pair killed two workers

    def _running_worker(self) -> "subprocess.Popen[bytes]":
        if self._worker is not None and self._worker.poll() is None:
            return self._worker
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        worker = subprocess.Popen(
            [sys.executable, "-P", str(WORKER), str(self.seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # the run handles Ctrl-C
        )
        weakref.finalize(self, _end, worker)
        if _read_line(worker, START_S) != b'"ready"\n':
            _end(worker)
            raise RewardError("the maths reward cannot start math-verify: is `math-verify` installed?")
        self._worker = worker
        return worker

    def _stop(self) -> None:
        if self._worker is not None:
            _end(self._worker)
        self._worker = None


def compare_quickly(answer: str, gold: str) -> bool | None:
    """True or False if equality needs no algebra (equal text, two numbers, words), else None."""
    if not answer.strip() or not gold.strip():
        return False
    if answer.strip() == gold.strip():
        return True
    return None if max(len(answer), len(gold)) > MAX_CHARS else decide(answer, gold)


def _read_line(worker: "subprocess.Popen[bytes]", seconds: float) -> bytes | None:
    """The next line; empty if the worker ended, None if it took longer than `seconds`."""
    assert worker.stdout is not None
    deadline, line = time.monotonic() + seconds, b""
    descriptor = worker.stdout.fileno()
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([descriptor], [], [], max(deadline - time.monotonic(), 0))
        if not ready:
            return None
        chunk = os.read(descriptor, 4096)
        if not chunk:
            return b""
        line += chunk
    return line


def _end(worker: "subprocess.Popen[bytes]") -> None:
    worker.kill()
    worker.wait()
    for pipe in (worker.stdin, worker.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
