"""The levels of the sandbox that tests go through: every one at some time, the first that works here and the weakest
always."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from arpo.sandbox import levels
from arpo.sandbox.warm import StartError, WarmSandbox
from sandbox_levels import WORKING

# The strongest level here, and the one that has no view of its own; what lies between differs only in who makes the
# view.
FIRST = {*WORKING[:1], "landlock"}
AT = [pytest.param(level, marks=() if level in FIRST else pytest.mark.slow) for level in levels.LEVELS]


def entered(level: str, **how: Any) -> Iterator[WarmSandbox]:
    """What a fixture yields: a sandbox at `level`, closed in the end. Skips where it is not to be had."""
    try:
        made = levels.enter(level, **how)
    except StartError as error:
        pytest.skip(f"level {level} is not to be had here: {error}")
    yield made
    made.close()


def processes(sandbox: WarmSandbox) -> list[int]:
    """Those below the sandbox."""
    found, ahead = [], [sandbox._inside.process.pid]
    while ahead:
        pid = ahead.pop()
        try:
            below = [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        except FileNotFoundError:
            continue
        found += below
        ahead += below
    return found
