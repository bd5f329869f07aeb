"""The optimizer's state as files: tensors by parameter's name as safetensors, the number of updates as JSON, nothing
pickled. Whatever number of ranks wrote them, any number reads them.

Knows the two files. Refuses to know checkpoints, which hold them (`arpo.runs.checkpoint`), and models.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from arpo.errors import CheckpointError, FormatError
from arpo.foreign import check_values, loads, read_file
from arpo.learner.int8_moments import exact, rounded
from arpo.learner.shards import Rows, SafetensorsFolder, write

_TENSORS, _NUMBERS = "optimizer", "optimizer.json"
_SLOTS = {"exp_avg", "exp_avg_sq", "step"}  # AdamW's
Named = Mapping[str, torch.nn.Parameter]


def copy_moments(optimizer: torch.optim.Optimizer, named: Named) -> dict[str, Rows]:
    """This rank's part of the moments as they are now, by the parameter's name and the moment's."""
    return {
        f"{name}.{slot}": Rows.copied(exact(value))
        for name, parameter in named.items()
        for slot, value in optimizer.state.get(parameter, {}).items()
    }


def write_moments(folder: Path, moments: Mapping[str, Rows], updates: int, *, first_rank: bool) -> None:
    """Write the `moments` of all ranks and the number of `updates` into `folder`."""
    write(folder, _TENSORS, moments, first_rank=first_rank)
    if first_rank:
        (folder / _NUMBERS).write_text(json.dumps({"updates": updates}))


def load_optimizer(folder: Path, optimizer: torch.optim.Optimizer, named: Named) -> int:
    """Put the moments that `folder` holds into `optimizer`, whose parameters `named` are, and return the number of
    updates.

    The optimizer keeps its settings: a resumed run may have others than the one that saved. Raises CheckpointError
    where the moments belong to another set of parameters.
    """
    try:
        updates = loads(read_file(folder / _NUMBERS))["updates"]
        check_values({"updates": updates}, {"updates": int}, _NUMBERS)
    except (KeyError, TypeError, ValueError, FormatError) as error:
        raise CheckpointError(f"{folder}: {_NUMBERS} is not of this version ({error!r:.80})") from error
    state: dict[Tensor, dict[str, Tensor]] = {}
    with SafetensorsFolder(folder, _TENSORS) as saved:
        for key in saved:
            name, _, slot = key.rpartition(".")
            if name not in named:
                raise CheckpointError(f"{folder}: the optimizer state is of another model (it has {name})")
            parameter = named[name]
            value = torch.zeros((), dtype=torch.float32) if slot == "step" else torch.zeros_like(parameter.detach())
            saved.read_into(key, value)
            if slot == "step" and isinstance(optimizer, torch.optim.AdamW):
                value = value.to(parameter.device)  # a fused step reads it there
            state.setdefault(parameter, {})[slot] = rounded(optimizer, parameter, slot, value)
    if state and len(state) != len(named):
        raise CheckpointError(
            f"{folder}: the optimizer state is of another model ({len(state)} of {len(named)} parameters)"
        )
    if any(moments.keys() != _SLOTS for moments in state.values()):
        raise CheckpointError(f"{folder}: the optimizer state is not of {', '.join(sorted(_SLOTS))}")
    if updates < 0:
        raise CheckpointError(f"{folder}: {_NUMBERS} says {updates} updates")
    optimizer.state.clear()
    optimizer.state.update(state)
    return updates
