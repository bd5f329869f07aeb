"""The smallest model that still is one: a Llama of 40,000 random weights. Benchmarks and tests share it.

Knows shapes. Refuses to know what is asked of it.
"""

from pathlib import Path
from typing import Any


def tiny_llama(tokenizer: Any = None, **changes: Any) -> Any:
    """2 layers, hidden size 32, 4 heads over 2 key heads, with the vocabulary and special tokens of `tokenizer`; always the same
    weights. `changes`: other values of the config."""
    import torch
    import transformers

    config: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    }
    if tokenizer is not None:
        config |= {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
        config |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**config, **changes}))


def write_tiny_model(folder: Path, tokenizer: Any, **changes: Any) -> Path:
    """The model and its tokenizer as a Hugging Face folder."""
    tiny_llama(tokenizer, **changes).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
