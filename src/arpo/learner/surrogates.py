"""Surrogates beyond PPO's family, and weights over any surrogate (docs/method.md, section 7).

Knows formulas on rows, as `arpo.learner.losses` does. Refuses to know trees, models and optimisers.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from arpo.errors import ConfigError, nearest
from arpo.import_path import import_from_path
from arpo.learner.config import LossConfig
from arpo.learner.losses import FARTHEST, Objective, Tokens, evaluate, pooled_ppo, row_mean
from arpo.options import check_options


def sapo(
    log_ratio_BL: Tensor,
    advantage_BL: Tensor,
    mask_BL: Tensor,
    config: LossConfig,
    *,
    tau: float = 1.0,
    tau_negative: float = 1.05,
) -> Objective:
    """`A sigmoid(t (r - 1)) 4 / t`, t by the sign of A: a soft gate whose gradient is PPO's at r = 1 (SAPO, arXiv
    2511.20347)."""
    ratio_BL = log_ratio_BL.clamp(max=FARTHEST).exp()
    t_BL = torch.where(advantage_BL > 0, torch.full_like(advantage_BL, tau), tau_negative)
    return Objective(advantage_BL * torch.sigmoid(t_BL * (ratio_BL - 1)) * 4 / t_BL, {})


def dppo(
    log_ratio_BL: Tensor,
    advantage_BL: Tensor,
    mask_BL: Tensor,
    config: LossConfig,
    *,
    tokens: Tokens,
    low: float = 0.2,
    high: float = 0.2,
) -> Objective:
    """`sg(min(r, 20)) A ln p`, but 0 where p moved further than its bound in the direction of A: `p - p_old > high`
    where A > 0, `< -low` where A < 0 (DPPO with total variation, arXiv 2602.04879). Written with `r / sg(r)` for
    `ln p`."""
    moved_BL = tokens.logprob_BL.detach().exp() - tokens.old_logprob_BL.exp()
    masks = {
        "clipped_high": (moved_BL > high) & (advantage_BL > 0),
        "clipped_low": (moved_BL < -low) & (advantage_BL < 0),
    }
    ratio_BL = log_ratio_BL.detach().clamp(max=FARTHEST).exp().clamp(max=20.0)
    value_BL = ratio_BL * (log_ratio_BL - log_ratio_BL.detach()).exp() * advantage_BL
    return Objective(torch.where(masks["clipped_high"] | masks["clipped_low"], 0.0, value_BL), masks)


def gmpo(
    log_ratio_BL: Tensor,
    advantage_BL: Tensor,
    mask_BL: Tensor,
    config: LossConfig,
    *,
    low: float = 0.4,
    high: float = 0.4,
) -> Objective:
    """`A exp(mean of clipped log-ratios)`, over the row: a log-ratio is at most `high` where A > 0 and at least `-low`
    where A < 0 (GMPO, arXiv 2507.20673)."""
    clipped_BL = torch.where(advantage_BL >= 0, log_ratio_BL.clamp(max=high), log_ratio_BL.clamp(min=-low))
    mean_B1 = row_mean(clipped_BL, mask_BL)
    masks = {
        "clipped_high": (log_ratio_BL > high) & (advantage_BL > 0),
        "clipped_low": (log_ratio_BL < -low) & (advantage_BL < 0),
    }
    value_BL = mean_B1.clamp(max=FARTHEST).exp() * advantage_BL
    return Objective(value_BL, masks, pool=lambda values_BL: row_mean(values_BL, mask_BL))


def gspo_turn(
    log_ratio_BL: Tensor, advantage_BL: Tensor, mask_BL: Tensor, config: LossConfig, *, tokens: Tokens
) -> Objective:
    """`gspo` with the ratio of the turn instead of the row: `s = exp(mean over the turn of ln r)`, in the token form
    `sg(s) r / sg(r)` (AT2PO, arXiv 2601.04767)."""
    shape = (len(mask_BL), int(tokens.turn_BL.max()) + 1 if tokens.turn_BL.numel() else 1)

    def turn_mean(values_BL: Tensor) -> Tensor:
        sums = values_BL.new_zeros(shape).scatter_add_(1, tokens.turn_BL, values_BL * mask_BL)
        counts = values_BL.new_zeros(shape).scatter_add_(1, tokens.turn_BL, mask_BL.to(values_BL))
        return (sums / counts.clamp(min=1)).gather(1, tokens.turn_BL)

    return pooled_ppo(log_ratio_BL, advantage_BL, mask_BL, config, turn_mean)


Weight = Callable[..., Tensor]
"""(advantage_BL, mask_BL, tokens, **options) to a weight of each token, without gradient; 0 drops it. `mismatch` is the
learner's log-probability at the start of the step minus the engine's."""


def icepop(advantage_BL: Tensor, mask_BL: Tensor, tokens: Tokens, *, low: float = 0.5, high: float = 2.0) -> Tensor:
    """Drops a token whose `exp(mismatch)` is outside [low, high] (IcePop)."""
    ratio_BL = _mismatch(tokens).exp()
    return ((ratio_BL >= low) & (ratio_BL <= high)).to(ratio_BL)


def geometric(
    advantage_BL: Tensor, mask_BL: Tensor, tokens: Tokens, *, low: float = 0.99, high: float = 1.01
) -> Tensor:
    """Drops a row whose `exp(mean mismatch)` is outside [low, high]."""
    ratio_B1 = row_mean(_mismatch(tokens), mask_BL).exp()
    return ((ratio_B1 >= low) & (ratio_B1 <= high)).to(ratio_B1).expand_as(mask_BL)


def outlier(advantage_BL: Tensor, mask_BL: Tensor, tokens: Tokens, *, low: float = 1e-4, high: float = 100.0) -> Tensor:
    """Drops a row with a token whose `exp(mismatch)` is outside [low, high]."""
    ratio_BL = _mismatch(tokens).exp()
    far_B1 = (((ratio_BL < low) | (ratio_BL > high)) & mask_BL).any(1, keepdim=True)
    return (~far_B1).to(ratio_BL).expand_as(mask_BL)


def off_policy(advantage_BL: Tensor, mask_BL: Tensor, tokens: Tokens, *, bound: float = 0.02) -> Tensor:
    """Drops tokens with A < 0 of a row whose mean `logp_engine - logp` exceeds `bound` nats (DeepSeek-V3.2's off-policy
    sequence mask, arXiv 2512.02556)."""
    far_B1 = row_mean(tokens.engine_logprob_BL - tokens.logprob_BL.detach(), mask_BL) > bound
    return (~(far_B1 & (advantage_BL < 0))).to(tokens.logprob_BL)


def sequence(advantage_BL: Tensor, mask_BL: Tensor, tokens: Tokens, *, cap: float = 2.0) -> Tensor:
    """`min(exp(sum of mismatch), cap)` for the whole row; in the place of `tis_cap`, which is then null."""
    summed_B1 = (_mismatch(tokens) * mask_BL).sum(1, keepdim=True)
    return summed_B1.clamp(max=FARTHEST).exp().clamp(max=cap).expand_as(mask_BL)


WEIGHTS: Mapping[str, Weight] = {
    "icepop": icepop,
    "geometric": geometric,
    "outlier": outlier,
    "off_policy": off_policy,
    "sequence": sequence,
}


def weighed(surrogate: Callable[..., Objective], weights: object) -> Callable[..., Objective]:
    """`surrogate` times `weights`: a mapping from names in WEIGHTS, or import paths, to their options. Raises
    ConfigError."""
    where = "loss.surrogate.options.weights"
    if not isinstance(weights, Mapping) or not all(v is None or isinstance(v, Mapping) for v in weights.values()):
        raise ConfigError("is no mapping from names to options", where=where, value=weights, hint="{icepop: {}}")
    chosen: list[tuple[str, Weight, dict[str, Any]]] = []
    for name, options in weights.items():
        if ":" not in name and name not in WEIGHTS:
            hint = nearest(name, WEIGHTS) or f"One of {', '.join(WEIGHTS)}, or module:function"
            raise ConfigError("no such weight", where=where, value=name, hint=hint)
        weight = WEIGHTS[name] if name in WEIGHTS else import_from_path(name, where)
        check_options(weight, options or {}, f"{where}.{name}")
        chosen.append((name.rpartition(":")[2], weight, dict(options or {})))

    return partial(_with_weights, surrogate, chosen)  # ranks of the learner are sent it


def _with_weights(
    surrogate: Callable[..., Objective],
    chosen: Sequence[tuple[str, Weight, dict[str, Any]]],
    log_ratio_BL: Tensor,
    advantage_BL: Tensor,
    mask_BL: Tensor,
    config: LossConfig,
    *,
    tokens: Tokens,
) -> Objective:
    objective = evaluate(surrogate, log_ratio_BL, advantage_BL, mask_BL, config, tokens)
    value_BL, metrics = objective.value_BL, dict(objective.token_metrics)
    for name, weight, options in chosen:
        weight_BL = weight(advantage_BL, mask_BL, tokens, **options).detach()
        value_BL = torch.where(weight_BL == 0, 0.0, value_BL * weight_BL)
        metrics[f"dropped_{name}"] = weight_BL == 0
    return Objective(value_BL, metrics, objective.pool)


def _mismatch(tokens: Tokens) -> Tensor:
    return tokens.old_logprob_BL - tokens.engine_logprob_BL
