"""Whether two answers are mathematically equal: exact for plain numbers, math-verify for the rest.

math-verify may hang, and its own limits work in no thread but the main one; so it runs in a process of its own that is kept,
and killed and replaced when a pair takes too long. A pair that cannot be decided is not equal, and counted.
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
REMEMBERED = 20_000
WALL = 4.0  # times the processor time: where even that does not help, the process is killed
# towers of powers and factorials of large numbers: what makes a worker hang, and what no gold looks like
EXPLODES = re.compile(r"(?:\^|\*\*)[\s{(]*\d+[\s})]*(?:\^|\*\*)|(?:\^|\*\*)[\s{(]*\d{6,}|\d{5,}[\s})]*!|!\s*!")
MOST_CHARS = 2_000  # longer answers are no formulas


class MathsVerifier:
    """Compares answers in one worker process, started when first needed. Thread-safe; calls block (run them off the loop).

    `seconds` is the processor time that one pair may take.
    """

    def __init__(self, seconds: float = 2.0) -> None:
        self.seconds = seconds
        self._lock = threading.Lock()
        self._worker: subprocess.Popen[bytes] | None = None
        self._known: OrderedDict[tuple[str, str], bool] = OrderedDict()

    def equal(self, answer: str, gold: str) -> bool:
        """True where `answer` equals `gold`. Raises RewardError where math-verify does not start."""
        quick = compare_quickly(answer, gold)
        return self.equal_by_worker(answer, gold) if quick is None else quick

    def equal_by_worker(self, answer: str, gold: str) -> bool:
        """The same, by math-verify alone."""
        if max(len(answer), len(gold)) > MOST_CHARS or (EXPLODES.search(answer) and not EXPLODES.search(gold)):
            return False
        answer, gold = for_algebra(answer, gold), for_algebra(gold, answer)
        with self._lock:
            if (answer, gold) not in self._known:
                self._known[answer, gold] = self._ask(gold, answer)
                while len(self._known) > REMEMBERED:
                    self._known.popitem(last=False)
            return self._known[answer, gold]

    def close(self) -> None:
        with self._lock:
            self._stop()

    def _ask(self, gold: str, answer: str) -> bool:
        for _ in range(2):  # a worker may have died since the last pair: once more with a fresh one
            worker = self._started()
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
        return False  # it killed two workers

    def _started(self) -> "subprocess.Popen[bytes]":
        if self._worker is not None and self._worker.poll() is None:
            return self._worker
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        worker = subprocess.Popen(
            [sys.executable, "-P", str(WORKER), str(self.seconds)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,  # Ctrl-C is for the run to handle
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
    """The answer where it needs no algebra: equal text, two plain numbers, words; None otherwise."""
    if not answer.strip() or not gold.strip():
        return False
    if answer.strip() == gold.strip():
        return True
    return None if max(len(answer), len(gold)) > MOST_CHARS else decide(answer, gold)


def _read_line(worker: "subprocess.Popen[bytes]", seconds: float) -> bytes | None:
    """The next line; empty where the worker ended, None where it took longer than `seconds`."""
    assert worker.stdout is not None
    until, line = time.monotonic() + seconds, b""
    descriptor = worker.stdout.fileno()
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([descriptor], [], [], max(until - time.monotonic(), 0))
        if not ready:
            return None
        more = os.read(descriptor, 4096)
        if not more:
            return b""
        line += more
    return line


def _end(worker: "subprocess.Popen[bytes]") -> None:
    worker.kill()
    worker.wait()
    for pipe in (worker.stdin, worker.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()
