"""Block attention equals the dense mask's; sampling cannot run through it; models that cannot use it are told apart."""

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

import arpo.learner.attention as attention
from arpo.errors import ConfigError
from arpo.learner.attention import attend_dense, attend_tree, layout_of, model_inputs, supports_tree, tree_attention
from arpo.learner.packing import PackedBatch, pack
from random_trees import random_tree
from tiny_models import tiny_model


def packed(seed: int) -> PackedBatch:
    [batch] = pack(
        [random_tree(seed + i, roots=1 + (seed + i) % 4, leaves=2 + (seed + i) % 7) for i in range(2)], 10**6
    )
    return batch


def attended(
    attend, batch: PackedBatch, call_pairs: int, heads: int = 4, dtype: torch.dtype = torch.float64
) -> list[torch.Tensor]:
    """Output and the gradients of query, key and value, as transformers' layers would call it."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, n, batch.num_unique, 8, dtype=dtype, requires_grad=True) for n in (heads, 2, 2))
    out, _ = attend(
        torch.nn.Module(), query, key, value, None, scaling=0.3, dropout=0.0, tree_layout=layout_of(batch, call_pairs)
    )
    out.backward(torch.randn(out.shape, dtype=dtype))
    return [out, query.grad, key.grad, value.grad]


@given(st.integers(0, 10_000), st.sampled_from([0, 50, 500, 10_000]), st.sampled_from([2, 4, 6]), st.booleans())
@settings(max_examples=20, deadline=None)
def test_blocks_equal_the_dense_mask(seed: int, call_pairs: int, heads: int, fused: bool):
    batch = packed(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "KEPT_BYTES", 0 if fused else 2**40)
        fast = attended(attend_tree, batch, call_pairs, heads)
    for mine, expected in zip(fast, attended(attend_dense, batch, 0, heads), strict=True):
        assert mine.shape == expected.shape and torch.allclose(mine, expected, rtol=1e-12, atol=1e-12)


@given(st.integers(0, 10_000), st.sampled_from([0, 50, 500, 10_000]))
@settings(max_examples=20, deadline=None)
def test_blocks_cover_all_queries_and_see_whole_paths(seed: int, call_pairs: int):
    batch = packed(seed)
    layout = layout_of(batch, call_pairs)
    assert [t for block in layout.blocks for t in range(block.start, block.end)] == list(range(batch.num_unique))
    assert sum(block.num_keys for block in layout.blocks) == len(layout.keys_K)
    visible, first = layout.dense(), 0
    for block, mask in zip(layout.blocks, layout.masks(torch.float32, 1), strict=True):
        keys = layout.keys_K[first : first + block.num_keys]
        seen = torch.zeros(block.end - block.start, batch.num_unique, dtype=torch.bool)
        seen[:, keys] = mask == 0
        assert torch.equal(seen, visible[block.start : block.end])
        first += block.num_keys
    assert layout.num_pairs <= layout_of(batch, 10**9).num_pairs
    if call_pairs == 0:
        own = sum((c.end - c.start) * (int(batch.position_T[c.start]) + c.end - c.start) for c in batch.chains)
        assert layout.num_pairs <= own


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 120))
@settings(max_examples=20, deadline=None)
def test_the_block_mask_made_of_ends_is_that_of_the_whole_mask(seed: int, trees: int, longest: int):
    from torch.nn.attention.flex_attention import create_block_mask

    grown = [random_tree(seed + i, roots=1 + (seed + i) % 4, leaves=6, turn=(1, longest)) for i in range(trees)]
    [batch] = pack(grown, 10**6)
    mask = layout_of(batch).flex()
    size = -(-batch.num_unique // attention.BLOCK) * attention.BLOCK
    expected = create_block_mask(mask.mask_mod, None, None, size, size, device="cpu")
    dense = torch.zeros(size, size, dtype=torch.bool)
    dense[: batch.num_unique, : batch.num_unique] = layout_of(batch).dense()
    dense |= torch.eye(size, dtype=torch.bool)
    index = torch.arange(size)
    assert torch.equal(mask.mask_mod(0, 0, index[:, None], index[None]), dense)
    assert mask.shape == expected.shape and mask.BLOCK_SIZE == expected.BLOCK_SIZE
    for kind in ("kv", "full_kv", "q", "full_q"):
        numbers = getattr(expected, f"{kind}_num_blocks")
        assert torch.equal(getattr(mask, f"{kind}_num_blocks"), numbers), kind
        mine, theirs = getattr(mask, f"{kind}_indices"), getattr(expected, f"{kind}_indices")
        seen = torch.arange(numbers.shape[-1]) < numbers[..., None]
        assert mine.dtype == theirs.dtype and torch.equal(mine[seen], theirs[seen]), kind


def test_flex_attention_sees_the_same(monkeypatch: pytest.MonkeyPatch):
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(attention, "_flex_attention", lambda: flex_attention)  # not compiled
    batch = packed(8)
    layout = layout_of(batch)
    query, key, value = (torch.randn(1, n, batch.num_unique, 16) for n in (4, 2, 2))
    with torch.no_grad():
        out = attention._by_flex(query, key, value, layout, 0.3)
        expected, _ = attend_dense(torch.nn.Module(), query, key, value, None, scaling=0.3, tree_layout=layout)
    assert torch.allclose(out, expected, atol=1e-5)


def test_without_a_layout_it_raises_and_afterwards_the_model_samples_as_before():
    model = tiny_model("llama")
    ids = torch.tensor([[5, 6, 7, 8]])
    before = model(input_ids=ids).logits
    with tree_attention(model):
        with pytest.raises(ValueError, match="layout"):
            model(input_ids=ids)
        with pytest.raises(ValueError, match="layout"):
            model.generate(ids, max_new_tokens=2)
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model(input_ids=ids).logits, before)
    assert model.generate(ids, max_new_tokens=2, do_sample=False).shape == (1, 6)


def test_what_it_does_not_compute_raises():
    batch = packed(1)
    layout = layout_of(batch)
    query = torch.randn(1, 2, batch.num_unique, 8)
    for extra in ({"dropout": 0.1}, {"sliding_window": 4}, {"softcap": 30.0}, {"s_aux": torch.ones(2)}):
        with pytest.raises(ValueError, match=next(iter(extra))):
            attend_tree(torch.nn.Module(), query, query, query, None, tree_layout=layout, **extra)
    with pytest.raises(ValueError, match="mask"):
        attend_tree(torch.nn.Module(), query, query, query, torch.ones(1), tree_layout=layout)
    with pytest.raises(ValueError, match="the layout is of"):
        attend_tree(torch.nn.Module(), query[:, :, 1:], query, query, None, tree_layout=layout)
    with pytest.raises(ValueError, match="layout"):
        model_inputs(batch)


def test_a_single_path_needs_no_layout():
    model = tiny_model("qwen2")
    [batch] = pack([random_tree(3, roots=1, leaves=1)], 1000)
    plain = model.model(**model_inputs(batch)).last_hidden_state
    with tree_attention(model):
        assert torch.allclose(model.model(**model_inputs(batch, layout_of(batch))).last_hidden_state, plain, atol=1e-12)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (transformers.LlamaConfig(), None),
        (transformers.Qwen2Config(), None),
        (transformers.Qwen3Config(), None),
        (transformers.GemmaConfig(), None),
        (transformers.MistralConfig(sliding_window=None), None),
        (transformers.MistralConfig(sliding_window=4096), "window of 4096"),
        (transformers.Qwen2Config(use_sliding_window=True, max_window_layers=0), "sliding_attention"),
        (transformers.Gemma2Config(), "sliding_attention"),
        (transformers.Gemma3TextConfig(), "sliding_attention"),
        (transformers.GptOssConfig(), "sliding_attention"),
        (transformers.MambaConfig(), "linear_attention"),
        (transformers.RwkvConfig(), "recurrent"),
        (transformers.Qwen2MoeConfig(), None),
        (transformers.Qwen3NextConfig(), "linear_attention"),
        (transformers.JambaConfig(), "linear_attention"),
        (transformers.BloomConfig(), "attention be replaced"),
        (transformers.LlamaConfig(attention_dropout=0.1), "at random"),
        (
            transformers.LlamaConfig(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}),
            "dynamic",
        ),
        (transformers.T5Config(), "no causal language model"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str | None) else str(value),
)
def test_models_that_can_and_cannot(config: transformers.PreTrainedConfig, reason: str | None):
    found = supports_tree(config)
    assert (found is None) if reason is None else (found is not None and reason in found)


def test_a_model_that_cannot_is_refused():
    model = transformers.MistralForCausalLM(
        transformers.MistralConfig(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            vocab_size=32,
        )
    )
    with pytest.raises(ConfigError, match="sliding window"), tree_attention(model):
        pass
