"""Who goes first: the trainer; then short calls; then those that compute for long, the further back the more of them there are.

The kernel weighs processes by niceness (a step is a factor of 1.25), or, where it groups them by session (autogroup), first the
sandbox as a whole. Nobody inside can go back to the front.
"""

import math
import os

ALL = 1  # of the sandbox as a whole: less than half of a core on which the trainer is busy, and short calls hardly wait for it
CALL = 10  # a tenth of it
LARGEST = 19
PATIENCE_S = 0.03  # of processor time, until a call is not short any more
SHARE = 0.5  # what calls that compute weigh together, at most, where one thread of the trainer's weighs 1
_STEP = 1.25


def take_the_back_seat() -> None:
    """Before the sandbox is entered."""
    os.nice(CALL)
    try:
        with open("/proc/self/autogroup", "w", encoding="ascii") as file:
            file.write(str(ALL))
    except OSError:  # a kernel that does not group
        return


def among(busy: int, own: int) -> int:
    """The niceness of each of `busy` calls that compute. `own`: of a short call."""
    return min(LARGEST, max(own, own - CALL + math.ceil(math.log(busy / SHARE, _STEP))))
