"""The worker process of `maths`: reads pairs as JSON lines and answers whether they are equal. It runs as a file and
imports nothing from arpo.

A pair that exceeds its processor time counts as not equal. The limit cannot interrupt one long operation in C code:
then the parent kills this process or, if the parent itself was killed, the kernel does (`ends_with_its_reader`).
math-verify's own limits are off: they cannot be nested, and they count wall time.
"""

import contextlib
import fcntl
import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Iterator
from typing import NoReturn


def equal(gold: str, answer: str) -> bool:
    from math_verify import parse, verify

    read = [parse(text, parsing_timeout=None) for text in (gold, answer)]
    # x > 2 is (2, oo), whichever of them is the gold
    return bool(verify(*read, timeout_seconds=None, allow_set_relation_comp=True))


class OutOfTimeError(BaseException):
    """A BaseException, because math-verify swallows every Exception and continues."""


def out_of_time(*_: object) -> NoReturn:
    raise OutOfTimeError


@contextlib.contextmanager
def ends_with_its_reader() -> Iterator[None]:
    """Inside this context the process ends together with its parent: the kernel sends SIGIO when the pipe closes, and
    SIGIO ends a process that does not handle it. Nothing else can arrive: the parent sends the next pair after this
    answer."""
    flags = fcntl.fcntl(0, fcntl.F_GETFL)
    fcntl.fcntl(0, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(0, fcntl.F_SETFL, flags | os.O_ASYNC)
    try:
        yield
    finally:
        fcntl.fcntl(0, fcntl.F_SETFL, flags)


def main(seconds: float) -> None:
    import math_verify  # noqa: F401  the slow import happens before "ready"

    logging.disable(logging.CRITICAL)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
    signal.signal(signal.SIGPROF, out_of_time)
    out, sys.stdout = sys.stdout, sys.stderr  # the output of a parser must not look like an answer
    print('"ready"', file=out, flush=True)
    for line in sys.stdin:
        gold, answer = json.loads(line)
        try:
            signal.setitimer(
                signal.ITIMER_PROF, seconds
            )  # processor time, so that a busy machine does not change a reward
            try:
                with ends_with_its_reader():
                    result = equal(gold, answer)
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
        except OutOfTimeError:
            result = False
        except Exception:  # noqa: BLE001  foreign code on a model's text: unreadable text is not equal
            result = False
        print(json.dumps(result), file=out, flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]))
