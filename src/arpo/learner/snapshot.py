"""A rank's part of a policy's weights, copied to main memory and then written while updates go on.

Knows transformers and PEFT models, and rows of shards. Refuses to know optimizers and checkpoints.
"""

from pathlib import Path
from typing import Any

from arpo.learner.sharding import base_weights, checkpoint_names, whole, write_config
from arpo.learner.shards import Rows, write


def copied_model(model: Any, *, sharded: bool, first: bool) -> dict[str, Any]:
    """The weights of a transformers model, or the adapters of a PEFT model, as they are now. Of a `sharded` model each
    rank has its rows; all else only the `first` has."""
    if hasattr(model, "get_base_model"):
        state = {name: whole(p.detach()) for name, p in model.named_parameters() if ".lora_" in name}
    elif sharded:
        return {name: Rows.copied(value) for name, value in checkpoint_names(model, base_weights(model)).items()}
    else:
        state = model.state_dict(keep_vars=True)
    if not first:
        return {}
    copies = {id(value): value.detach().to("cpu", copy=True) for value in state.values()}
    return {name: copies[id(value)] for name, value in state.items()}  # what is tied stays so


def write_model(model: Any, folder: Path, copied: dict[str, Any], *, sharded: bool, first: bool) -> None:
    """Write what `copied_model` returned as a Hugging Face folder."""
    if sharded and not hasattr(model, "get_base_model"):
        folder.mkdir(parents=True, exist_ok=True)
        write(folder, "model", copied, first_rank=first)
        if first:
            write_config(model, folder)
    elif first:
        model.save_pretrained(folder, state_dict=copied)
