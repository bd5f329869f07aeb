"""Log-probabilities in chunks equal those from all logits at once, with every gradient."""

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from arpo.errors import ConfigError
from arpo.learner.logprobs import LMHead, token_logprobs
from tiny_models import tiny_model


def naive(hidden, targets, head: LMHead, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    logits = hidden @ head.weight_VH.T
    if head.bias_V is not None:
        logits = logits + head.bias_V
    logits = logits * head.scale
    if head.cap is not None:
        logits = head.cap * torch.tanh(logits / head.cap)
    log_s = logits.log_softmax(-1)
    return (logits / temperature).log_softmax(-1).gather(1, targets[:, None])[:, 0], -(log_s.exp() * log_s).sum(-1)


@given(
    st.integers(0, 10_000),
    st.integers(1, 12),
    st.integers(1, 15),
    st.sampled_from([0.6, 1.0, 1.7]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1.0, 0.25]),
    st.sampled_from([None, 2.0]),
)
@settings(max_examples=25, deadline=None)
def test_chunks_equal_all_at_once(seed, count, chunk, temperature, bias, with_entropy, scale, cap):
    generator = torch.Generator().manual_seed(seed)
    leaves = [torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((count, 5), (11, 5), (11,))]
    targets = torch.randint(0, 11, (count,), generator=generator)
    weights = torch.randn(2, count, generator=generator, dtype=torch.float64)
    results = []
    for compute in ("chunks", "naive"):
        hidden, weight, offset = (t.clone().requires_grad_() for t in leaves)
        head = LMHead(weight, offset if bias else None, scale, cap)
        if compute == "chunks":
            logprob, entropy = token_logprobs(
                hidden, targets, head, temperature=temperature, entropy_grad=with_entropy, chunk=chunk
            )
            assert entropy.requires_grad == with_entropy
        else:
            logprob, entropy = naive(hidden, targets, head, temperature)
        total = (weights[0] * logprob).sum() + ((weights[1] * entropy).sum() if with_entropy else 0)
        inputs = [hidden, weight, *([offset] if bias else [])]
        results.append([logprob, entropy, *torch.autograd.grad(total, inputs)])
    for mine, expected in zip(*results, strict=True):
        assert torch.allclose(mine, expected, rtol=1e-12, atol=1e-12)


def test_no_positions():
    head = LMHead(torch.randn(7, 4, requires_grad=True))
    logprob, entropy = token_logprobs(torch.zeros(0, 4, requires_grad=True), torch.zeros(0, dtype=torch.int64), head)
    logprob.sum().backward()
    assert logprob.shape == entropy.shape == (0,) and (head.weight_VH.grad == 0).all()


def test_a_frozen_head_needs_no_gradient():
    hidden = torch.randn(3, 4, requires_grad=True)
    head = LMHead(torch.randn(7, 4))
    token_logprobs(hidden, torch.tensor([1, 2, 3]), head)[0].sum().backward()
    assert hidden.grad is not None and head.weight_VH.grad is None


def test_autocast_computes_the_softmax_in_float32():
    hidden, weight = torch.randn(20, 32, requires_grad=True), torch.randn(50, 32, requires_grad=True)
    targets = torch.arange(20)
    exact = token_logprobs(hidden, targets, LMHead(weight))[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough, entropy = token_logprobs(hidden, targets, LMHead(weight))
    assert rough.dtype == entropy.dtype == torch.float32
    assert 0 < float((rough - exact).abs().max()) < 0.3
    rough.sum().backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.float32


def test_the_head_of_a_model():
    model = tiny_model("llama")
    ids = torch.tensor([[3, 4, 5, 6]])
    expected = model(input_ids=ids).logits[0].log_softmax(-1)[:3].gather(1, ids[0, 1:, None])[:, 0]
    hidden = model.model(input_ids=ids).last_hidden_state[0, :3]
    assert torch.allclose(token_logprobs(hidden, ids[0, 1:], LMHead.from_model(model))[0], expected, atol=1e-12)
    shape = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 32,
    }
    granite = transformers.GraniteForCausalLM(
        transformers.GraniteConfig(**shape, logits_scaling=4.0, num_key_value_heads=1)
    )
    gemma = transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**shape, num_key_value_heads=1, head_dim=8))
    for other in (granite, gemma):
        expected = other(input_ids=ids).logits[0].log_softmax(-1)[:3].gather(1, ids[0, 1:, None])[:, 0]
        hidden = other.model(input_ids=ids).last_hidden_state[0, :3]
        assert torch.allclose(token_logprobs(hidden, ids[0, 1:], LMHead.from_model(other))[0], expected, atol=1e-5)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="temperature"):
        token_logprobs(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64), LMHead(torch.zeros(3, 2)), temperature=0.0)
    with pytest.raises(ConfigError, match="linear"):
        LMHead.from_model(
            transformers.BertModel(transformers.BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1))
        )
