"""What a rank of the learner needs of its device's memory, by arithmetic from the model's shapes.

Knows what a rank holds and what its passes keep (`arpo.learner.rank`, `arpo.learner.logprobs`,
`arpo.learner.attention`), and FSDP2's gathered copies. Refuses to know machines and recipes. A model on the meta device
is enough.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from arpo.learner.attention import KEPT_BYTES, TreeLayout
from arpo.learner.logprobs import CHUNK

PER_PASS = ("one layer's backward", "head")
"""Parts of which the larger counts: the head's backward is over before that of the last layer begins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes of a causal language model. Parameters by number."""

    parameters: int
    """Adapters left out."""
    layer: int
    """Parameters of one decoder layer."""
    adapters: int
    """Trained parameters with LoRA; 0: all parameters are trained."""
    hidden: int
    layers: int
    heads: int
    """Of queries."""
    query_width: int
    """Query heads x their size."""
    key_width: int
    qk_norm: bool
    """Whether queries and keys pass a norm, as in Qwen3."""
    mlp_width: int
    """Columns of the gate that compute a token: of a mixture, those of its experts."""
    vocab: int

    @classmethod
    def from_model(cls, model: Any) -> "ModelShape":
        """Of a transformers or PEFT model, on whatever device."""
        adapted = hasattr(model, "get_base_model")
        base = model.get_base_model() if adapted else model
        config = base.config.get_text_config()
        heads = config.num_attention_heads
        head = getattr(config, "head_dim", None) or config.hidden_size // heads
        keys = getattr(config, "num_key_value_heads", None) or heads
        experts = getattr(config, "num_experts_per_tok", None)
        expert_width = getattr(config, "moe_intermediate_size", None) or config.intermediate_size
        layers = getattr(base.get_decoder(), "layers", ())
        return cls(
            parameters=sum(p.numel() for name, p in base.named_parameters() if ".lora_" not in name),
            layer=sum(p.numel() for name, p in layers[0].named_parameters() if ".lora_" not in name) if layers else 0,
            adapters=sum(p.numel() for p in model.parameters() if p.requires_grad) if adapted else 0,
            hidden=config.hidden_size,
            layers=config.num_hidden_layers,
            heads=heads,
            query_width=heads * head,
            key_width=keys * head,
            qk_norm=any(name.endswith("q_norm.weight") for name, _ in base.named_parameters()),
            mlp_width=experts * expert_width if experts else config.intermediate_size,
            vocab=config.vocab_size,
        )

    @property
    def root(self) -> int:
        """Parameters outside of the layers: embeddings, last norm, head."""
        return self.parameters - self.layers * self.layer

    def key_bytes(self, width: int) -> int:
        """Bytes of a token's keys and values in an engine, `width` bytes a number."""
        return 2 * self.layers * self.key_width * width


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerPlan:
    """How a model is trained. `width`: bytes a number in matrix products, 2 or 4."""

    ranks: int = 1
    replicas: int = 1
    width: int = 2
    checkpointing: bool = False
    offload: bool = False
    reference: bool = False
    """Whether the loss has a divergence. With LoRA its reference are adapters alone."""
    moments: float = 8
    """Bytes that the optimizer keeps a trained parameter: 2.1 in int8."""
    head_chunk: int = CHUNK
    nf4: bool = False
    """Whether the frozen matrices of the layers are in 4 bits (QLoRA)."""

    @property
    def residual(self) -> int:
        """Bytes a number of the stream between layers: autocast, on one rank, leaves it in float32."""
        return 4 if self.ranks == 1 else self.width


def learner_bytes(
    shape: ModelShape, plan: LearnerPlan, tokens: int, layout: TreeLayout | None = None
) -> dict[str, float]:
    """Bytes of a rank by part, while it trains on a pack of `tokens` after others of the same mini-batch. `total` adds
    up what is there at the same time. `layout`: of the pack on a CPU, where attention goes by blocks; None: a kernel
    keeps nothing of a (query, key) pair."""
    sharers = plan.ranks / plan.replicas
    shares = 0.0 if plan.offload and plan.ranks > 1 else 1 / sharers
    trained = shape.adapters or shape.parameters
    frozen: float = plan.width * shape.parameters
    if plan.nf4:  # half a byte, and scales of 64 numbers, themselves of 8 bits
        frozen = 0.516 * shape.layers * shape.layer + plan.width * shape.root
    parts: dict[str, float] = {
        "weights": (frozen + 4 * shape.adapters if shape.adapters else 4 * trained) * shares,
        "gradients": 4 * trained * shares,
        "moments": plan.moments * trained * shares,
        "reference": (4 * trained * shares) if plan.reference else 0,
    }
    if plan.ranks > 1:  # weights, and where all are trained their gradients, also in float32 for the sum over ranks
        copies = plan.width if shape.adapters else 2 * plan.width + 4
        parts["embeddings and head gathered"] = copies * shape.root
        parts["layers gathered"] = (plan.width + copies) * shape.layer
    elif plan.width < 4 and not shape.adapters:
        parts["autocast's copies"] = plan.width * shape.parameters
    parts |= _passing(shape, plan, tokens, layout)
    parts = {name: size for name, size in parts.items() if size}
    passing = max((parts[name] for name in PER_PASS if name in parts), default=0)
    parts["total"] = sum(size for name, size in parts.items() if name not in PER_PASS) + passing
    return parts


def _passing(shape: ModelShape, plan: LearnerPlan, tokens: int, layout: TreeLayout | None) -> Mapping[str, float]:
    """What a pass over `tokens` keeps for its backward, and what the backward of one layer and of the head take."""
    residual = plan.residual
    attention = _Blocks.of(layout, shape, plan.width)
    kept = _layer_keeps(shape, plan) * tokens + attention.kept
    mlp = plan.width * shape.mlp_width * tokens
    # The gradients of the gate and of what it multiplies, of a stream, and in attention those of weights and scores,
    # when all that the MLP kept is free again.
    backward = residual * shape.hidden * tokens + max(2 * mlp, attention.backward - 4 * mlp)
    last_norm = (residual + 2 * plan.width) * shape.hidden * tokens
    checkpoints = shape.layers * residual * shape.hidden * tokens
    held = {"activations": shape.layers * kept + last_norm}
    if plan.checkpointing:
        backward += kept
        held = {"checkpoints": checkpoints + last_norm}
    return {
        **held,
        "attention masks": attention.masks,
        "one layer's backward": backward,
        "head": _head(shape, plan, tokens, on_cpu=layout is not None),
    }


def _head(shape: ModelShape, plan: LearnerPlan, tokens: int, *, on_cpu: bool) -> float:
    """Of the head's backward: a chunk's logits (in half precision a CPU transposes their gradient first), the gradients
    of the hidden states, and of the weight its gradient, the product that a chunk adds to it, and autocast's copy."""
    half = 0 if plan.width == 4 else plan.width * (3 if on_cpu else 2)
    logits = min(plan.head_chunk, tokens) * shape.vocab * (8 + half)
    copies = 0 if shape.adapters else 4 + plan.width * (2 if plan.residual > plan.width else 1)
    return logits + plan.width * shape.hidden * tokens + (copies * shape.vocab * shape.hidden if tokens else 0)


def _layer_keeps(shape: ModelShape, plan: LearnerPlan) -> float:
    """Bytes a token that one layer keeps for its backward. In half precision norms compute in float32, and autocast
    casts what they return for every product again."""
    width, hidden = plan.width, shape.hidden
    cast = plan.residual > width
    inputs = width * (5 if cast else 2)  # of q, k, v and of gate, up
    norms = hidden * (2 * (4 + (4 if cast else width)) + inputs)
    normed = 0 if not shape.qk_norm else (shape.query_width + shape.key_width) * (4 + width)
    attention = width * (2 * shape.query_width + 2 * shape.key_width) + 4 * shape.heads
    mlp = width * 4 * shape.mlp_width
    # PEFT casts the input of each adapted layer to the adapter's float32
    adapted = 4 * (6 * hidden + shape.mlp_width) if shape.adapters and width < 4 else 0
    return norms + normed + attention + mlp + adapted


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Bytes that attention by blocks takes beyond queries, keys, values and result."""

    masks: float = 0
    """Once a pack."""
    kept: float = 0
    """By each layer."""
    backward: float = 0

    @classmethod
    def of(cls, layout: TreeLayout | None, shape: ModelShape, width: int) -> "_Blocks":
        if layout is None:
            return cls()
        weights = layout.num_pairs * shape.heads * width
        gathered = 2 * shape.key_width * width * len(layout.keys_K)  # of every block its path's, in place of the pack's
        largest = max(((block.end - block.start) * block.num_keys for block in layout.blocks), default=0)
        masks = weights * shape.query_width / shape.key_width / shape.heads
        if weights > KEPT_BYTES:  # SDPA keeps its result, of which the output projection has a copy
            return cls(masks, gathered + shape.query_width * width * len(layout.subtree_end_T))
        return cls(masks, gathered + weights, 2 * largest * shape.heads * width)
