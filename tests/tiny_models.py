"""Tiny randomly initialised models in exact float64: rotary embeddings and norms compute in float64, too, where
transformers uses float32, so that two ways of computing one thing agree to rounding."""

from collections.abc import Callable
from typing import Any

import torch
import transformers

FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, {}),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, {}),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM, {"head_dim": 8}),
    "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM, {"sliding_window": None}),
    "gemma": (transformers.GemmaConfig, transformers.GemmaForCausalLM, {"head_dim": 8}),
}


def tiny_model(family: str, seed: int = 0, vocab: int = 64) -> transformers.PreTrainedModel:
    """2 layers, hidden 32, 4 heads over 2 key heads."""
    config_class, model_class, extra = FAMILIES[family]
    config = config_class(
        vocab_size=vocab,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
        **extra,
    )
    torch.manual_seed(seed)
    return exact(model_class(config).double())


def exact(model: Any) -> transformers.PreTrainedModel:
    model.model.rotary_emb = _Rotary(model.model.rotary_emb.inv_freq)
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = _norm(module, 1.0 if type(module).__name__.startswith("Gemma") else 0.0)
    return model


class _Rotary(torch.nn.Module):
    def __init__(self, inverse: torch.Tensor) -> None:
        super().__init__()
        self.inverse = inverse.double()

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = position_ids[..., None].double() * self.inverse
        angles = torch.cat((angles, angles), -1)
        return angles.cos(), angles.sin()


def _norm(module: Any, offset: float) -> Callable[[torch.Tensor], torch.Tensor]:
    eps = getattr(module, "variance_epsilon", None) or module.eps

    def forward(x: torch.Tensor) -> torch.Tensor:
        return (module.weight + offset) * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps))

    return forward
