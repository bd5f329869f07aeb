"""Log-probabilities and entropies of given tokens from hidden states, without ever holding the logits of all positions.

Knows the LM head and one softmax. Refuses to know trees, rows and losses.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from arpo.errors import ConfigError

CHUNK = 512
"""Positions whose logits are held at a time: at 49,152 words 100 MB in float32, twice, and 50 in bf16. Smaller chunks
cost time in the backward (the weight's gradient is added up once a chunk), larger ones save none."""


@dataclass(frozen=True, slots=True, eq=False)
class LMHead:
    """A model's output layer: logits = cap * tanh(scale * (W h + b) / cap), without the cap where it is None."""

    weight_VH: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    cap: float | None = None

    @classmethod
    def from_model(cls, model: Any) -> "LMHead":
        """The head of a transformers causal language model. Raises ConfigError where it is no linear layer."""
        layer = model.get_output_embeddings()
        if hasattr(layer, "base_layer"):
            hint = "leave the head out: `all-linear` does"
            raise ConfigError("the output layer cannot have adapters", where="model.lora.targets", hint=hint)
        if not isinstance(layer, torch.nn.Linear):
            raise ConfigError("the output layer must be linear", where="model", value=type(layer).__name__)
        config = model.config
        scale = getattr(config, "logit_scale", None) or 1.0  # Cohere
        scale /= getattr(config, "logits_scaling", None) or 1.0  # Granite
        return cls(layer.weight, layer.bias, scale, getattr(config, "final_logit_softcapping", None))  # Gemma 2


def token_logprobs(
    hidden_PH: Tensor,
    targets_P: Tensor,
    head: LMHead,
    *,
    temperature: float = 1.0,
    entropy_grad: bool = False,
    chunk: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """(logprob_P, entropy_P) in float32 (float64 for float64 input), nats.

    The log-probability of `targets_P` is at `temperature`, the entropy of the whole distribution at temperature 1 and
    without gradient unless `entropy_grad`. The head's product runs in autocast's precision where that is on, all else
    in float32. The backward computes the logits of a chunk again instead of keeping them.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, not {temperature}")
    device = hidden_PH.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head.weight_VH.dtype
    settings = (dtype, head.scale, head.cap, temperature, entropy_grad, chunk)
    return _TokenLogprobs.apply(hidden_PH, head.weight_VH, head.bias_V, targets_P, settings)


_Settings = tuple[torch.dtype, float, float | None, float, bool, int]


class _TokenLogprobs(torch.autograd.Function):
    """With l = logits, p = softmax(l / T), s = softmax(l), H the entropy of s, and upstream gradients g of log
    p[target] and e of H: dl = g (onehot - p) / T - e s (log s + H)."""

    @staticmethod
    def forward(
        ctx: Any, hidden_PH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, targets_P: Tensor, settings: _Settings
    ) -> tuple[Tensor, Tensor]:
        dtype, scale, cap, temperature, entropy_grad, chunk = settings
        scratch = _Scratch(hidden_PH, weight_VH, dtype, chunk)
        logprob_P, entropy_P = (hidden_PH.new_empty(len(hidden_PH), dtype=scratch.exact) for _ in range(2))
        for at in scratch.chunks:
            logits, work = scratch.logits(hidden_PH[at], bias_V, scale, cap)
            targets = targets_P[at, None]
            if temperature != 1:
                tempered = torch.div(logits, temperature, out=work)
                logprob_P[at] = tempered.gather(1, targets)[:, 0] - tempered.logsumexp(1)
            torch.log_softmax(logits, 1, out=work)
            if temperature == 1:
                logprob_P[at] = work.gather(1, targets)[:, 0]
            entropy_P[at] = -torch.exp(work, out=logits).mul_(work).sum(1)
        ctx.settings = settings
        if not entropy_grad:
            ctx.mark_non_differentiable(entropy_P)
        ctx.save_for_backward(hidden_PH, weight_VH, bias_V, targets_P, entropy_P)
        return logprob_P, entropy_P

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_P: Tensor, grad_entropy_P: Tensor) -> tuple[Tensor | None, ...]:
        hidden_PH, weight_VH, bias_V, targets_P, entropy_P = ctx.saved_tensors
        dtype, scale, cap, temperature, entropy_grad, chunk = ctx.settings
        scratch = _Scratch(hidden_PH, weight_VH, dtype, chunk)
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden_PH) if needs_hidden else None
        # In half precision, chunk by chunk, it would be twice as far off as one product, and more with every chunk.
        grad_weight = torch.zeros_like(weight_VH, dtype=scratch.exact) if needs_weight else None
        grad_bias = torch.zeros_like(bias_V) if needs_bias else None
        for at in scratch.chunks:
            logits, work = scratch.logits(hidden_PH[at], bias_V, scale, cap)
            slope = scale if cap is None else scale * (1 - (logits / cap).square())
            entropy = (grad_entropy_P[at], entropy_P[at]) if entropy_grad else None
            grad = _grad_logits(logits, work, targets_P[at], grad_P[at], entropy, temperature)
            if cap is not None or scale != 1:
                grad.mul_(slope)
            low = grad.to(dtype)
            if grad_hidden is not None:
                grad_hidden[at] = low @ scratch.weight_VH
            if grad_weight is not None:
                grad_weight.add_(low.T @ hidden_PH[at].to(dtype))
            if grad_bias is not None:
                grad_bias.add_(grad.sum(0))
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight_VH.dtype), grad_bias, None, None


class _Scratch:
    """Memory for the logits of one chunk, used for every chunk: to allocate it anew costs as much time as the
    softmax."""

    def __init__(self, hidden_PH: Tensor, weight_VH: Tensor, dtype: torch.dtype, chunk: int) -> None:
        num, vocab = min(chunk, len(hidden_PH)), len(weight_VH)
        self.chunks = [
            slice(start, min(start + num, len(hidden_PH))) for start in range(0, len(hidden_PH), max(num, 1))
        ]
        self.weight_VH = weight_VH.to(dtype)
        self.exact = torch.promote_types(dtype, torch.float32)
        self._product = hidden_PH.new_empty(num, vocab, dtype=dtype)
        self._logits = self._product if dtype == self.exact else hidden_PH.new_empty(num, vocab, dtype=self.exact)
        self._work = torch.empty_like(self._logits)

    def logits(
        self, hidden_CH: Tensor, bias_V: Tensor | None, scale: float, cap: float | None
    ) -> tuple[Tensor, Tensor]:
        """The logits [C, V] of these positions, and as much memory beside them; both the caller's until the next
        call."""
        num = len(hidden_CH)
        product = torch.mm(hidden_CH.to(self.weight_VH.dtype), self.weight_VH.T, out=self._product[:num])
        logits = self._logits[:num]
        if logits.dtype != product.dtype:
            logits.copy_(product)
        if bias_V is not None:
            logits.add_(bias_V)
        if scale != 1:
            logits.mul_(scale)
        return (logits if cap is None else logits.div_(cap).tanh_().mul_(cap)), self._work[:num]


def _grad_logits(
    logits: Tensor,
    work: Tensor,
    targets: Tensor,
    grad: Tensor,
    entropy: tuple[Tensor, Tensor] | None,
    temperature: float,
) -> Tensor:
    """dl of the class's docstring, in the memory of `work`; uses up `logits`."""
    extra = None
    if entropy is not None:
        log_s = torch.log_softmax(logits, 1, out=work)
        extra = log_s.exp().mul_(log_s.add_(entropy[1][:, None])).mul_(-entropy[0][:, None])
    if temperature != 1:
        logits.div_(temperature)
    result = torch.softmax(logits, 1, out=work).mul_(-grad[:, None] / temperature)
    result.scatter_add_(1, targets[:, None], (grad / temperature)[:, None])
    return result if extra is None else result.add_(extra)
