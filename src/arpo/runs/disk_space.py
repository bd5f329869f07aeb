"""Whether the disk holds what a run will write: looked at before the first step.

Checkpoints are known to the byte. Records are not: so much as a step can write must fit beside them, and where the
whole run's might not, that is said.
"""

import errno
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arpo.errors import ConfigError
from arpo.recipe.run import RunConfig

RECORD_BYTES = 25  # a generated token, in both frames of its tree: 17 to 24 were measured
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_TEXTS = (
    "No space left on device",
    "StorageFull",
    "Disk quota exceeded",
)  # of libraries that raise errors of their own


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """Bytes of a run's folder."""

    checkpoints: int  # all that are kept, and the one that is being written
    step_records: int  # most that a step's trees can take
    all_records: int  # of all steps to come
    free: int  # on the disk now, earlier checkpoints of the run included


def space_for(run: RunConfig, model: Any, folder: Path, num_steps: int) -> Space:
    """`num_steps`: steps still to be done. `model`: as it is trained (its optimizer keeps two numbers a parameter)."""
    one = 3 * sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    best = int(run.train.eval_every is not None)
    leaves = run.train.tasks_per_step * (run.train.dynamic_sampling or 1) * run.rollout.leaves
    a_step = leaves * run.rollout.branch_tokens * RECORD_BYTES
    kept = sum(file.stat().st_size for file in (folder / "checkpoints").rglob("*") if file.is_file())
    return Space(
        checkpoints=one * (run.train.keep_last + best + 1),
        step_records=a_step,
        all_records=a_step * num_steps,
        free=shutil.disk_usage(folder).free + kept,
    )


def check_space(space: Space, folder: Path) -> str | None:
    """A warning where the records of a long run may not fit. Raises ConfigError where not even the checkpoints do."""
    needed = space.checkpoints + space.step_records
    if needed > space.free:
        raise ConfigError(
            f"the disk is too full: {_shown(space.free)} are free; checkpoints need {_shown(space.checkpoints)} and a "
            f"step's records up to {_shown(space.step_records)}",
            where=str(folder),
            hint="Free some space, choose another folder (--out), or lower train.keep_last",
        )
    if space.checkpoints + space.all_records > space.free:
        return (
            f"the disk may fill up: {_shown(space.free)} are free, and the records of all steps can come to "
            f"{_shown(space.all_records)} beside {_shown(space.checkpoints)} of checkpoints"
        )
    return None


def is_full(error: BaseException) -> bool:
    """Whether `error`, or what led to it, is a disk without space."""
    return any(
        (isinstance(each, OSError) and each.errno in _FULL) or any(text in str(each) for text in _FULL_TEXTS)
        for each in _chain(error)
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _shown(count: int) -> str:
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"
