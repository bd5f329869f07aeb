"""Tiny random models of several families, sharp enough that their distributions are not flat."""

import pytest


def tiny_model(family: str = "llama", *, vocabulary: int = 705, seed: int = 0, context: int = 512, **changes):
    """A causal LM with random weights, float32, in evaluation mode."""
    import torch
    import transformers

    sizes = {
        "vocab_size": vocabulary,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": context,
        "initializer_range": 0.15,
        "tie_word_embeddings": True,
    }
    name = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "mistral": "Mistral", "gemma": "Gemma"}[family]
    if family == "mistral":
        sizes["sliding_window"] = None
    config = getattr(transformers, f"{name}Config")(**(sizes | changes))
    torch.manual_seed(seed)
    model = getattr(transformers, f"{name}ForCausalLM")(config)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 1.0 if family != "gemma" else 0.0, 0.2)
    return model.eval()


@pytest.fixture(scope="session")
def make_model():
    return tiny_model


@pytest.fixture(scope="session")
def model(tokenizer):
    """The shared tiny Llama. Do not change it."""
    return tiny_model(vocabulary=len(tokenizer))


@pytest.fixture
def spell(tokenizer):
    """The bytes of a token."""
    from arpo.engines.stops import pieces

    return pieces(tokenizer)


VLLM_SIZES = {
    "context": 1200,
    "num_attention_heads": 4,
    "head_dim": 32,
    "hidden_size": 64,
}  # its CPU kernels want heads of 32


@pytest.fixture(scope="session")
def vllm_network(tokenizer):
    return tiny_model(vocabulary=len(tokenizer), **VLLM_SIZES)


@pytest.fixture(scope="session")
def other_vllm_network(tokenizer):
    return tiny_model(vocabulary=len(tokenizer), seed=5, **VLLM_SIZES)


@pytest.fixture(scope="session")
def other_model(tokenizer):
    """Another tiny Llama of the same shape as `model`. Do not change it."""
    return tiny_model(vocabulary=len(tokenizer), seed=5)
