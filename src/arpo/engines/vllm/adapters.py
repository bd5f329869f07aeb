"""Whether vLLM can serve a policy's LoRA adapters beside the weights that they add to: an update then sends them alone.

Knows PEFT's configuration and what vLLM 0.32 refuses of it. Where it says no, vLLM gets all weights, merged.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from arpo.errors import ConfigError

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM can be started for
IN_BATCH = 2  # versions of which requests are computed at the same time: those in flight finish with theirs
KEPT = 4  # versions that vLLM keeps at hand, and whose folders stay


class AdapterError(ConfigError):
    """vLLM does not serve these adapters; the message says why."""

    def __init__(self, why: str) -> None:
        super().__init__(why, where="engine.vllm.lora", hint="merged: vLLM gets all weights")


def served_rank(model: Any) -> int:
    """The rank that vLLM has to be started for to serve the adapters of the PEFT `model`. Raises AdapterError."""
    if reason := next(_reasons(model), None):
        raise AdapterError(reason)
    rank = _rank(model.peft_config[model.active_adapters[0]])
    return next(served for served in RANKS if served >= rank)


def base_folder(model: Any) -> Path:
    """Where the weights lie that the adapters of the PEFT `model` add to."""
    return Path(model.get_base_model().name_or_path)


def _reasons(model: Any) -> Iterator[str]:
    if len(model.active_adapters) != 1:
        yield f"the model has {len(model.active_adapters)} active adapters"
    config = model.peft_config[model.active_adapters[0]]
    if getattr(config, "r", None) is None:
        yield f"{type(config).__name__} is not LoRA"
    if (rank := _rank(config)) > RANKS[-1]:
        yield f"their rank is {rank}, and vLLM serves {RANKS[-1]} at most"
    for name in ("use_dora", "lora_bias", "modules_to_save", "layer_replication", "use_qalora"):
        if getattr(config, name, None):
            yield f"vLLM does not serve {name}"
    if config.bias != "none":
        yield f"vLLM does not serve bias {config.bias!r}"
    base = model.get_base_model()
    if any(hasattr(parameter, "quant_state") for parameter in base.parameters()):
        yield "the weights that they add to are in 4 bits, other numbers than the folder's"
    for what, module in (("embeddings", base.get_input_embeddings()), ("LM head", base.get_output_embeddings())):
        if hasattr(module, "base_layer"):
            yield f"they change the {what}"
    if not (base_folder(model) / "config.json").is_file():
        yield "the weights that they add to are in no folder"


def _rank(config: Any) -> int:
    return max([config.r, *(getattr(config, "rank_pattern", None) or {}).values()])
