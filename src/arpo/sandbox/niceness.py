"""Priorities of processes: first the trainer, then short calls, then calls that compute for long. The more long calls
there are, the lower their priority.

The kernel weights processes by niceness (one step is a factor of 1.25). If it groups them by session (autogroup), it
first weights the sandbox as a whole. No process in the sandbox can raise its priority.
"""

import math
import os

ALL = 1  # the sandbox as a whole: less than half of a core that the trainer uses, and short calls hardly wait
CALL = 10  # a short call: a tenth of the trainer's weight
LARGEST = 19
PATIENCE_S = 0.03  # processor time after which a call is no longer short
SHARE = 0.5  # maximum weight of all computing calls together, relative to one thread of the trainer
_STEP = 1.25


def take_the_back_seat() -> None:
    """Lower this process's priority, before it enters the sandbox."""
    os.nice(CALL)
    try:
        with open("/proc/self/autogroup", "w", encoding="ascii") as file:
            file.write(str(ALL))
    except OSError:  # a kernel without autogroups
        return


def among(busy: int, short: int) -> int:
    """The niceness of every one of `busy` computing calls. `short` is the niceness of a short call."""
    return min(LARGEST, max(short, short - CALL + math.ceil(math.log(busy / SHARE, _STEP))))
