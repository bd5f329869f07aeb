"""Losses on rows: pure functions of log-probabilities, credit and masks (docs/method.md, section 7).

Knows formulas. Refuses to know trees, models and optimisers. A row is a trajectory, so nothing here depends on packing.

A surrogate is a function from ratios and advantages to what is maximised a token; `policy_loss` weighs it, adds
divergence and entropy, and sums it up. A new method is one more surrogate: a function of your own, named by its import
path in `loss.surrogate`.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from arpo.errors import ConfigError
from arpo.import_path import import_from_path
from arpo.learner.config import SURROGATES, CustomSurrogate, EntropyTarget, LossConfig

FARTHEST = 20.0
"""Nats. A log-ratio above it counts as it: in float32 the exponential of 89 is infinite, which would spoil the gradient
of the whole update also where the token is clipped and has none."""


@dataclass(frozen=True, slots=True)
class Objective:
    """What a surrogate returns: `value_BL`, which training maximises, and per-token metrics (bool masks by name: where
    it clipped). `pool`: how it averages log-ratios over a row or a turn, to [B, L] or [B, 1]; the mismatch with the
    engine is then averaged in the same way before it becomes a weight. None: each token has its own."""

    value_BL: Tensor
    token_metrics: Mapping[str, Tensor]
    pool: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """What else is known of each token. Padding holds 0; nothing here carries a gradient but `logprob_BL`."""

    logprob_BL: Tensor
    old_logprob_BL: Tensor
    engine_logprob_BL: Tensor
    entropy_BL: Tensor
    """Of the policy, nats, at temperature 1."""
    turn_BL: Tensor
    """The number of the turn on its path, from 0."""
    position_BL: Tensor
    """The number of the token among the policy's tokens of its path, from 0."""


Surrogate = Callable[..., Objective]
"""(log_ratio_BL, advantage_BL, mask_BL, config) to an objective. `log_ratio` = logp - logp_old carries the gradient of
logp; the mask lets a sequence-level ratio be formed. Values at padding are ignored. A surrogate with a parameter
`tokens` gets `Tokens` too, as a keyword argument."""


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Weights of divergence and entropy bonus at one update."""

    kl: float
    entropy: float


@dataclass(frozen=True, slots=True)
class LossReport:
    """Detached values of N policy tokens, from which metrics are computed. Reports of micro-batches are joined first,
    so that percentiles and maxima are of the whole batch."""

    tokens: Mapping[str, Tensor]
    """By name a [N] tensor, float32 or bool."""
    loss: float
    """The part of the whole batch's loss."""

    def to(self, device: str) -> "LossReport":
        return LossReport({name: values.to(device) for name, values in self.tokens.items()}, self.loss)


def policy_loss(
    logprob_BL: Tensor,
    old_logprob_BL: Tensor | None,
    engine_logprob_BL: Tensor,
    advantage_BL: Tensor,
    mask_BL: Tensor,
    config: LossConfig,
    *,
    denominator: float,
    reference_logprob_BL: Tensor | None = None,
    entropy_BL: Tensor | None = None,
    trained_BL: Tensor | None = None,
    turn_BL: Tensor | None = None,
    length_B: Tensor | None = None,
    coefficients: Coefficients | None = None,
) -> tuple[Tensor, LossReport]:
    """The loss to be minimised (a scalar) and what metrics are made of.

    `logprob_BL` carries the gradient; `old_logprob_BL` is the learner's at the start of the step (None: the first
    update, equal to `logprob_BL` without gradient), `engine_logprob_BL` the sampling engine's. `denominator` is the
    whole batch's (see `loss_denominator`), so that losses of micro-batches and of the parts of a split tree add up to
    the loss of the whole. Tokens outside `trained_BL` (None: all are inside) add nothing to the sum; the denominator
    counts them. `turn_BL`: the turn of each token (None: all are of one turn). `length_B`: see
    `aggregate`. `coefficients`: of divergence and bonus at this update (None: the config's first).

    Raises ConfigError where the config asks for a reference or an entropy that is not given, or its surrogate gives no
    objective.
    """
    now = coefficients or first_coefficients(config)
    _check_inputs(config, now, reference_logprob_BL, entropy_BL)
    logprob_BL, engine_logprob_BL, advantage_BL = (
        _clean(t, mask_BL) for t in (logprob_BL, engine_logprob_BL, advantage_BL)
    )
    old_BL = logprob_BL.detach() if old_logprob_BL is None else _clean(old_logprob_BL, mask_BL).detach()
    log_ratio_BL, mismatch_BL = logprob_BL - old_BL, old_BL - engine_logprob_BL
    more = _tokens(logprob_BL, old_BL, engine_logprob_BL, mask_BL, entropy_BL, turn_BL)
    kl_BL: Tensor | None = None
    if reference_logprob_BL is not None:
        reference_BL = _clean(reference_logprob_BL, mask_BL).detach()
        kl_BL = k3(logprob_BL, reference_BL)
        if config.estimator == "reward":
            advantage_BL = advantage_BL - now.kl * to_go(old_BL - reference_BL)
    objective = evaluate(surrogate_of(config), log_ratio_BL, advantage_BL, mask_BL, config, more)
    value_BL = objective.value_BL
    if config.tis_cap is not None:
        pooled_BL = mismatch_BL if objective.pool is None else objective.pool(mismatch_BL)
        value_BL = value_BL * pooled_BL.exp().clamp(max=config.tis_cap)
    tokens = {"log_ratio": log_ratio_BL, "mismatch": mismatch_BL, "advantage": advantage_BL, **objective.token_metrics}
    if kl_BL is not None:
        tokens["kl_reference"] = kl_BL
        value_BL = value_BL - now.kl * _penalty(kl_BL, log_ratio_BL, config) if now.kl else value_BL
    if entropy_BL is not None:
        tokens["entropy"] = _clean(entropy_BL, mask_BL)
        value_BL = value_BL + now.entropy * tokens["entropy"] if now.entropy else value_BL
    if trained_BL is not None:
        value_BL = torch.where(trained_BL, value_BL, 0.0)
    loss = -aggregate(value_BL, mask_BL, config, denominator, length_B)
    return loss, LossReport({name: values.detach()[mask_BL] for name, values in tokens.items()}, float(loss.detach()))


def _tokens(
    logprob_BL: Tensor,
    old_BL: Tensor,
    engine_BL: Tensor,
    mask_BL: Tensor,
    entropy_BL: Tensor | None,
    turn_BL: Tensor | None,
) -> Tokens:
    return Tokens(
        logprob_BL=logprob_BL,
        old_logprob_BL=old_BL,
        engine_logprob_BL=engine_BL,
        entropy_BL=torch.zeros_like(old_BL) if entropy_BL is None else _clean(entropy_BL, mask_BL).detach(),
        turn_BL=torch.zeros_like(mask_BL, dtype=torch.int64) if turn_BL is None else turn_BL,
        position_BL=(mask_BL.cumsum(1) - 1).clamp(min=0),
    )


def first_coefficients(config: LossConfig) -> Coefficients:
    """Of the first update; a bonus that is steered at its greatest."""
    kl, bonus = config.divergence, config.entropy_coefficient
    return Coefficients(kl.coefficient if kl else 0.0, bonus.most if isinstance(bonus, EntropyTarget) else bonus)


def _penalty(kl_BL: Tensor, log_ratio_BL: Tensor, config: LossConfig) -> Tensor:
    """What the divergence takes from a token's value, for a coefficient of 1."""
    match config.estimator:
        case "k3":
            return kl_BL
        case "reverse":
            return log_ratio_BL.clamp(max=FARTHEST).exp() * kl_BL
        case _:  # in the reward, or none
            return torch.zeros_like(kl_BL)


def _check_inputs(
    config: LossConfig, now: Coefficients, reference_logprob_BL: Tensor | None, entropy_BL: Tensor | None
) -> None:
    if now.kl and reference_logprob_BL is None:
        raise ConfigError("a divergence needs the reference's log-probabilities", where="kl_coefficient", value=now.kl)
    if now.entropy and entropy_BL is None:
        raise ConfigError("the bonus needs entropies with gradient", where="entropy_coefficient", value=now.entropy)


def loss_denominator(num_rows: float, num_tokens: float, config: LossConfig) -> float:
    """What the whole batch's sum is divided by: rows (`sequence`), policy tokens over all rows (`token`), rows x the
    number that `aggregation` is.

    A learner with several ranks passes the counts over all of them. Never 0, so that an empty part has loss 0."""
    match config.aggregation:
        case "sequence":
            return float(max(num_rows, 1))
        case "token":
            return float(max(num_tokens, 1))
        case int(length):
            return float(max(num_rows, 1) * length)


def aggregate(
    value_BL: Tensor, mask_BL: Tensor, config: LossConfig, denominator: float, length_B: Tensor | None = None
) -> Tensor:
    """These rows' part of the batch's mean: GRPO (`sequence`), DAPO (`token`), Dr. GRPO (a number). `length_B`: the
    policy's tokens of each row's whole trajectory (None: the row's own)."""
    value_BL = torch.where(mask_BL, value_BL, 0.0)
    if config.aggregation == "sequence":
        length_B = mask_BL.sum(1) if length_B is None else length_B
        return (value_BL.sum(1) / length_B.clamp(min=1)).sum() / denominator
    return value_BL.sum() / denominator


def surrogate_of(config: LossConfig) -> Surrogate:
    """The surrogate that the config names or holds."""
    named: str | CustomSurrogate | Surrogate = config.surrogate
    if isinstance(named, CustomSurrogate):
        return named.built
    surrogate: Surrogate = import_from_path(SURROGATES[named], "loss.surrogate") if isinstance(named, str) else named
    return surrogate


def evaluate(
    surrogate: Surrogate,
    log_ratio_BL: Tensor,
    advantage_BL: Tensor,
    mask_BL: Tensor,
    config: LossConfig,
    tokens: Tokens,
) -> Objective:
    """What `surrogate` returns; it gets `tokens` where it has a parameter of that name. Raises ConfigError where it is
    no Objective of the rows' shape."""
    more = {"tokens": tokens} if "tokens" in inspect.signature(surrogate).parameters else {}
    objective: object = surrogate(log_ratio_BL, advantage_BL, mask_BL, config, **more)
    if isinstance(objective, Objective) and objective.value_BL.shape == mask_BL.shape:
        return objective
    returned = type(objective).__name__
    if isinstance(objective, Objective):
        returned = f"values of {tuple(objective.value_BL.shape)}"
    raise ConfigError(
        f"returns {returned}, not an Objective with a value for each of {tuple(mask_BL.shape)}", where="loss.surrogate"
    )


def check_surrogate(config: LossConfig) -> None:
    """Try the config's surrogate on a few numbers, before anything is computed for it. Raises ConfigError, and what it
    raises."""
    zeros_BL, mask_BL = torch.zeros(2, 3), torch.tensor([[True, True, True], [True, False, False]])
    alone = config.model_copy(update={"kl_coefficient": 0.0, "entropy_coefficient": 0.0})
    policy_loss(zeros_BL.clone().requires_grad_(), zeros_BL, zeros_BL, zeros_BL + 1, mask_BL, alone, denominator=1.0)


def ppo(log_ratio_BL: Tensor, advantage_BL: Tensor, mask_BL: Tensor, config: LossConfig) -> Objective:
    """`min(r A, clip(r, 1 - low, 1 + high) A)` a token (PPO, arXiv 1707.06347; unequal bounds: DAPO, arXiv 2503.14476);
    with `dual_clip` c, at least `c A` where A < 0 (arXiv 1912.09729)."""
    ratio_BL = log_ratio_BL.clamp(max=FARTHEST).exp()
    free_BL = ratio_BL * advantage_BL
    clipped_BL = ratio_BL.clamp(1 - config.clip_low, 1 + config.clip_high) * advantage_BL
    value_BL = torch.minimum(free_BL, clipped_BL)
    token_metrics = {
        "clipped_high": (ratio_BL > 1 + config.clip_high) & (advantage_BL > 0),
        "clipped_low": (ratio_BL < 1 - config.clip_low) & (advantage_BL < 0),
    }
    if config.dual_clip is not None:
        floor_BL = config.dual_clip * advantage_BL
        token_metrics["clipped_dual"] = (advantage_BL < 0) & (value_BL < floor_BL)
        value_BL = torch.where(advantage_BL < 0, torch.maximum(value_BL, floor_BL), value_BL)
    return Objective(value_BL, token_metrics)


def gspo(log_ratio_BL: Tensor, advantage_BL: Tensor, mask_BL: Tensor, config: LossConfig) -> Objective:
    """`ppo` with the ratio of the whole row, the geometric mean of its tokens' (GSPO, arXiv 2507.18071), in the paper's
    token form `sg(s) r / sg(r)`: the same value and, under `aggregation: sequence`, the same gradient, and each token
    has its own credit."""
    return pooled_ppo(log_ratio_BL, advantage_BL, mask_BL, config, lambda values_BL: row_mean(values_BL, mask_BL))


def pooled_ppo(
    log_ratio_BL: Tensor,
    advantage_BL: Tensor,
    mask_BL: Tensor,
    config: LossConfig,
    pool: Callable[[Tensor], Tensor],
) -> Objective:
    """`ppo` with the ratio `sg(s) r / sg(r)`, s the exponential of the pooled log-ratios."""
    detached_BL = log_ratio_BL.detach()
    objective = ppo(pool(detached_BL) + log_ratio_BL - detached_BL, advantage_BL, mask_BL, config)
    return replace(objective, pool=pool)


def row_mean(values_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """[B, 1]."""
    return torch.where(mask_BL, values_BL, 0.0).sum(1, keepdim=True) / mask_BL.sum(1, keepdim=True).clamp(min=1)


def cispo(
    log_ratio_BL: Tensor, advantage_BL: Tensor, mask_BL: Tensor, config: LossConfig, *, two_sided: bool = False
) -> Objective:
    """`sg(min(r, 1 + high)) A ln p` a token: what is clipped is the weight, so that every token keeps a gradient
    (CISPO, arXiv 2506.13585; as there, no lower bound, but with `two_sided` the weight is at least 1 - low). Written
    with `r / sg(r)` for `ln p`: the same gradient, and a value like the others'."""
    ratio_BL = log_ratio_BL.detach().exp()
    weight_BL = ratio_BL.clamp(min=1 - config.clip_low if two_sided else None, max=1 + config.clip_high)
    value_BL = weight_BL * (log_ratio_BL - log_ratio_BL.detach()).exp() * advantage_BL
    return Objective(value_BL, {"clipped_high": ratio_BL > 1 + config.clip_high})


def aepo(log_ratio_BL: Tensor, advantage_BL: Tensor, mask_BL: Tensor, config: LossConfig) -> Objective:
    """`ppo`, but where A > 0 and r > 1 + high the value is `(1 + high) r / sg(r) A`, so that the gradient lives on
    (AEPO's entropy-balanced clipping, arXiv 2510.14545)."""
    clipped = ppo(log_ratio_BL, advantage_BL, mask_BL, config)
    kept_BL = (1 + config.clip_high) * (log_ratio_BL - log_ratio_BL.detach()).exp() * advantage_BL
    return Objective(
        torch.where(clipped.token_metrics["clipped_high"], kept_BL, clipped.value_BL), clipped.token_metrics
    )


def k3(logprob: Tensor, other_logprob: Tensor) -> Tensor:
    """Estimate of KL(p || other) from tokens of p: `exp(d) - 1 - d` with d = ln other - ln p; never below 0 (Schulman's
    k3)."""
    difference = other_logprob - logprob
    return difference.expm1() - difference


def to_go(values_BL: Tensor) -> Tensor:
    """Of each token the sum over it and the tokens after it in its row; padding holds 0."""
    return values_BL.flip(1).cumsum(1).flip(1)


def metrics(reports: Sequence[LossReport], config: LossConfig) -> dict[str, float]:
    """Figures of a whole batch from the reports of its micro-batches; without a policy token only the loss and a count
    of 0.

    `mismatch_*` compares learner and engine (differences of log-probabilities in nats; `kl` the k3 estimate of
    KL(engine || learner)), `ratio_*` the learner with itself at the start of the step, `clipped_*` are shares of
    tokens."""
    joined = {
        name: torch.cat([report.tokens[name].float() for report in reports])
        for name in (reports[0].tokens if reports else ())
    }
    figures = {"loss": sum(report.loss for report in reports), "tokens": 0.0}
    if not joined or not len(joined["log_ratio"]):
        return figures
    log_ratio, mismatch = joined.pop("log_ratio"), joined.pop("mismatch")
    weight = mismatch.exp()
    figures |= {"tokens": float(len(log_ratio)), "advantage_abs": float(joined.pop("advantage").abs().mean())}
    figures |= {name: float(values.mean()) for name, values in joined.items()}  # shares of masks, means of the rest
    figures |= {
        "kl_old": float(k3(torch.zeros_like(log_ratio), log_ratio).mean()),
        "mismatch_abs_mean": float(mismatch.abs().mean()),
        "mismatch_abs_max": float(mismatch.abs().max()),
        "mismatch_kl": float(k3(torch.zeros_like(mismatch), mismatch).mean()),
        "mismatch_truncated": 0.0 if config.tis_cap is None else float((weight > config.tis_cap).float().mean()),
    }
    for prefix, values in (("mismatch_weight", weight), ("ratio", log_ratio.exp())):
        ranked = values.sort().values
        for name, share in (("min", 0.0), ("p01", 0.01), ("p50", 0.5), ("p99", 0.99), ("max", 1.0)):
            figures[f"{prefix}_{name}"] = float(ranked[round(share * (len(ranked) - 1))])
    return figures


def _clean(values_BL: Tensor, mask_BL: Tensor) -> Tensor:
    """0 at padding, so that nothing there can become infinite and spoil a gradient."""
    return torch.where(mask_BL, values_BL, 0.0)
