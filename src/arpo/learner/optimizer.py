"""The optimizer's state as files: tensors as safetensors, numbers as JSON, nothing pickled.

Knows the two files. Refuses to know checkpoints, which hold them (`arpo.runs.checkpoint`), and models.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from arpo.errors import CheckpointError

_TENSORS, _NUMBERS = "optimizer.safetensors", "optimizer.json"


def save_optimizer(folder: Path, optimizer: torch.optim.Optimizer, updates: int) -> None:
    """Write the moments of `optimizer`, its settings and the number of `updates` into `folder`."""
    content = optimizer.state_dict()
    tensors, numbers = {}, {}
    for index, slots in content["state"].items():
        for name, value in slots.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{name}"] = value.detach().contiguous()
            else:
                numbers[f"{index}.{name}"] = value
    save_file(tensors, folder / _TENSORS)
    settings = {"updates": updates, "param_groups": content["param_groups"], "numbers": numbers}
    (folder / _NUMBERS).write_text(json.dumps(settings))


def load_optimizer(folder: Path, optimizer: torch.optim.Optimizer) -> int:
    """Put the moments that `folder` holds into `optimizer` and return the number of updates.

    The optimizer keeps its settings: a resumed run may have others than the one that saved. Raises CheckpointError
    where the moments belong to another set of parameters.
    """
    content = json.loads((folder / _NUMBERS).read_text())
    state: dict[int, dict[str, Any]] = {}
    for key, value in {**load_file(folder / _TENSORS), **content["numbers"]}.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    shapes = [tuple(p.shape) for group in optimizer.param_groups for p in group["params"]]
    for index, slots in state.items():
        if index >= len(shapes) or tuple(slots["exp_avg"].shape) != shapes[index]:
            raise CheckpointError(f"{folder}: the optimizer state is of another model (parameter {index})")
    try:
        updates = int(content["updates"])
        current = optimizer.state_dict()["param_groups"]
        groups = [{**now, "params": was["params"]} for now, was in zip(current, content["param_groups"], strict=True)]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    except KeyError as error:
        raise CheckpointError(f"{folder}: {_NUMBERS} is not of this version (it lacks {error})") from error
    except ValueError as error:
        raise CheckpointError(f"{folder}: the optimizer state is of another model ({error})") from error
    return updates
