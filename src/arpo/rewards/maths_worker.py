"""The process behind `maths`: reads pairs as JSON lines, answers whether they are equal. Run as a file; imports nothing of arpo.

A pair that takes more than its processor time comes back as null. Inside one long operation of C code the limit cannot act:
whoever started this process kills it then, and where that one was killed itself, the kernel does (`ends_with_its_reader`).
math-verify's own limits are off (they cannot be nested, and count wall time).
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
    """Not an Exception: math-verify swallows those and goes on."""


def out_of_time(*_: object) -> NoReturn:
    raise OutOfTimeError


@contextlib.contextmanager
def ends_with_its_reader() -> Iterator[None]:
    """Inside, the end of whoever feeds this process ends it too: SIGIO comes when the pipe closes, and ends a process that does not
    ask for it. Nothing else can come: the next pair waits for this one's answer."""
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
    out, sys.stdout = sys.stdout, sys.stderr  # whatever a parser prints must not look like an answer
    print('"ready"', file=out, flush=True)
    for line in sys.stdin:
        gold, answer = json.loads(line)
        try:
            signal.setitimer(signal.ITIMER_PROF, seconds)  # processor time: a busy machine changes no reward
            try:
                with ends_with_its_reader():
                    result = equal(gold, answer)
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
        except OutOfTimeError:
            result = False
        except Exception:  # noqa: BLE001  foreign code over model-written text: what cannot be read is not equal
            result = False
        print(json.dumps(result), file=out, flush=True)


if __name__ == "__main__":
    main(float(sys.argv[1]))
