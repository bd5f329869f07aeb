"""Log-probabilities and entropies of given tokens from hidden states, without ever holding the logits of all positions.

Knows the output head and one softmax. Refuses to know trees, rows and losses.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from arpo.errors import ConfigError

CHUNK = 512
"""Positions whose logits are held at a time: 100 MB in float32 at 49,152 words. Larger chunks are no faster."""


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """A model's output layer: logits = cap * tanh(scale * (W h + b) / cap), without the cap where it is None."""

    weight_VH: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, model: Any) -> "Head":
        """The head of a transformers causal language model. Raises ConfigError where it is no linear layer."""
        layer = model.get_output_embeddings()
        if not isinstance(layer, torch.nn.Linear):
            raise ConfigError("the output layer must be linear", where="model", value=type(layer).__name__)
        config = model.config
        scale = getattr(config, "logit_scale", None) or 1.0  # Cohere
        scale /= getattr(config, "logits_scaling", None) or 1.0  # Granite
        return cls(layer.weight, layer.bias, scale, getattr(config, "final_logit_softcapping", None))  # Gemma 2


def token_logprobs(
    hidden_PH: Tensor, targets_P: Tensor, head: Head, *, temperature: float = 1.0, entropy_grad: bool = False, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """(logprob_P, entropy_P) in float32 (float64 for float64 input), nats.

    The log-probability of `targets_P` is at `temperature`, the entropy of the whole distribution at temperature 1 and without
    gradient unless `entropy_grad`. The head's product runs in autocast's precision where that is on, all else in float32. The
    backward computes the logits of a chunk again instead of keeping them.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, not {temperature}")
    device = hidden_PH.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head.weight_VH.dtype
    settings = (dtype, head.scale, head.cap, temperature, entropy_grad, chunk)
    return _TokenLogprobs.apply(hidden_PH, head.weight_VH, head.bias_V, targets_P, settings)


_Settings = tuple[torch.dtype, float, float | None, float, bool, int]


class _TokenLogprobs(torch.autograd.Function):
    """With l = logits, p = softmax(l / T), s = softmax(l), H the entropy of s, and upstream gradients g of log p[target] and
    e of H: dl = g (onehot - p) / T - e s (log s + H)."""

    @staticmethod
    def forward(
        ctx: Any, hidden_PH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, targets_P: Tensor, settings: _Settings
    ) -> tuple[Tensor, Tensor]:
        dtype, scale, cap, temperature, entropy_grad, chunk = settings
        weight = weight_VH.to(dtype)
        exact = torch.promote_types(dtype, torch.float32)
        logprob_P, entropy_P, norm_P = (hidden_PH.new_empty(len(hidden_PH), dtype=exact) for _ in range(3))
        for start in range(0, len(hidden_PH), chunk):
            at = slice(start, start + chunk)
            logits = _logits(hidden_PH[at].to(dtype), weight, bias_V, scale, cap, exact)
            chosen = logits.gather(1, targets_P[at, None])[:, 0]
            norm_P[at], entropy_P[at] = _norm_and_entropy(logits)
            norm = norm_P[at] if temperature == 1 else logits.div_(temperature).logsumexp(1)
            logprob_P[at] = chosen / temperature - norm
        ctx.settings = settings
        if not entropy_grad:
            ctx.mark_non_differentiable(entropy_P)
        ctx.save_for_backward(hidden_PH, weight_VH, bias_V, targets_P, norm_P, entropy_P)
        return logprob_P, entropy_P

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_P: Tensor, grad_entropy_P: Tensor) -> tuple[Tensor | None, ...]:
        hidden_PH, weight_VH, bias_V, targets_P, norm_P, entropy_P = ctx.saved_tensors
        dtype, scale, cap, temperature, entropy_grad, chunk = ctx.settings
        weight = weight_VH.to(dtype)
        needs_hidden, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_hidden = torch.empty_like(hidden_PH) if needs_hidden else None
        grad_weight = torch.zeros_like(weight_VH) if needs_weight else None
        grad_bias = torch.zeros_like(bias_V) if needs_bias else None
        for start in range(0, len(hidden_PH), chunk):
            at = slice(start, start + chunk)
            hidden = hidden_PH[at].to(dtype)
            logits = _logits(hidden, weight, bias_V, scale, cap, norm_P.dtype)
            slope = None if cap is None else 1 - (logits / cap).square()
            entropy = (grad_entropy_P[at], entropy_P[at]) if entropy_grad else None
            grad = _grad_logits(logits, targets_P[at], grad_P[at], norm_P[at], entropy, temperature)
            if slope is not None:
                grad.mul_(slope)
            if scale != 1:
                grad.mul_(scale)
            low = grad.to(dtype)
            if grad_hidden is not None:
                grad_hidden[at] = low @ weight
            if grad_weight is not None:
                grad_weight.add_(low.T @ hidden)
            if grad_bias is not None:
                grad_bias.add_(grad.sum(0))
        return grad_hidden, grad_weight, grad_bias, None, None


def _logits(
    hidden: Tensor, weight_VH: Tensor, bias_V: Tensor | None, scale: float, cap: float | None, exact: torch.dtype
) -> Tensor:
    """[C, V], owned by the caller."""
    logits = (hidden @ weight_VH.T).to(exact)
    if bias_V is not None:
        logits.add_(bias_V)
    if scale != 1:
        logits.mul_(scale)
    return logits if cap is None else logits.div_(cap).tanh_().mul_(cap)


def _norm_and_entropy(logits_CV: Tensor) -> tuple[Tensor, Tensor]:
    """ln sum exp l, and the entropy `norm - sum p l` at temperature 1."""
    norm_C = logits_CV.logsumexp(1)
    weights = (logits_CV - norm_C[:, None]).exp_()
    return norm_C, norm_C - torch.einsum("cv,cv->c", weights, logits_CV)


def _grad_logits(
    logits: Tensor, targets: Tensor, grad: Tensor, norm: Tensor, entropy: tuple[Tensor, Tensor] | None, temperature: float
) -> Tensor:
    """dl of the class's docstring; uses up `logits`. `norm` is ln sum exp l at temperature 1."""
    extra = None
    if entropy is not None:
        grad_entropy, value = entropy
        log_s = logits - norm[:, None]
        extra = log_s.exp().mul_(log_s.add_(value[:, None])).mul_(-grad_entropy[:, None])
    if temperature == 1:
        probs = logits.sub_(norm[:, None]).exp_()
    else:
        probs = logits.div_(temperature).softmax(1)
    result = probs.mul_(-grad[:, None] / temperature)
    result.scatter_add_(1, targets[:, None], (grad / temperature)[:, None])
    return result if extra is None else result.add_(extra)
