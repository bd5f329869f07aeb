"""Models by their numbers alone, randomly initialised: what a benchmark of speed needs of a model."""

from collections.abc import Mapping
from typing import Any

import torch

SHAPES: Mapping[str, Mapping[str, Any]] = {
    "tiny": {  # only to see that a benchmark works
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 49_152,  # that of the recorded trees
    },
    "SmolLM2-135M": {
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49_152,
    },
    "Qwen2.5-1.5B": {
        "model_type": "qwen2",
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151_936,
    },
    "Qwen2.5-7B": {
        "model_type": "qwen2",
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152_064,
        "tie_word_embeddings": False,
    },
}


def model_of(
    shape: str, *, layers: int | None = None, device: str = "cpu", dtype: torch.dtype = torch.float32, **changes: Any
) -> Any:
    """In training mode; `layers`: that many instead of its own;
    `changes`: other numbers."""
    from transformers import AutoConfig, AutoModelForCausalLM

    numbers = {**SHAPES[shape], **changes}
    config = AutoConfig.for_model(
        numbers.pop("model_type"),
        tie_word_embeddings=numbers.pop("tie_word_embeddings", True),
        max_position_embeddings=32_768,
        bos_token_id=1,
        eos_token_id=2,
        **numbers,
    )
    config.num_hidden_layers = layers or config.num_hidden_layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: config.num_hidden_layers]
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False).train()
