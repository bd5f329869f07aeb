"""Whether a run fits into the memory of the machine that it is started on: looked at before anything is loaded.

Knows the machine: its GPUs, or on a CPU its main memory. The arithmetic is `arpo.assembly.memory_plan`'s.
"""

import os
from pathlib import Path

from arpo.assembly.memory_plan import CPU, Gpus, check_fits, plan_memory, shape_of
from arpo.errors import ConfigError
from arpo.learner.ranks import rank_and_size
from arpo.models.loading import compute_dtype, device_of
from arpo.recipe.run import RunConfig


def check_memory(run: RunConfig, source: Path, *, override: bool = False) -> str | None:
    """Raises ConfigError where training `run`, whose model lies in the folder `source`, cannot fit into this machine's
    memory, with the keys that would make it fit; with `override` the message is returned as a warning. None where it
    fits, where the machine does not say how much it has, or where ranks compute elsewhere (`cluster.ranks`)."""
    if run.cluster.ranks is not None:
        return None
    device = device_of(run.model)
    size = rank_and_size()[1]
    if (machine := _machine(device.type, size)) is None:
        return None
    dtype = str(compute_dtype(run.model, device)).removeprefix("torch.")
    exact = run.model_copy(update={"model": run.model.model_copy(update={"dtype": dtype})})
    try:
        check_fits(plan_memory(exact, shape_of(run, source), machine, ranks=size))
    except ConfigError as error:
        if not override:
            raise
        return str(error)
    return None


def _machine(kind: str, ranks: int) -> Gpus | None:
    """What ranks of the learner compute on here. Main memory is divided among those of this machine."""
    if kind == "cuda":
        import torch

        devices = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        return Gpus(len(devices), devices[0].name, min(device.total_memory for device in devices))
    if (free := free_memory()) is None:
        return None
    here = int(os.environ.get("LOCAL_WORLD_SIZE", ranks))
    return Gpus(ranks, CPU, free / here)


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes of main memory that the machine has free, or the container that this runs in (cgroup v2), if that is less;
    None where the machine does not say."""
    try:
        lines = (root / "proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) * 1024
    except (OSError, StopIteration):
        return None
    group = root / "sys/fs/cgroup"
    try:
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return min(free, limit - used + int(counts.get("inactive_file", 0)))  # a cache of files makes room
    except (OSError, ValueError):  # no group, or one without a limit ("max")
        return free
