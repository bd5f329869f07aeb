"""The configuration of loss and optimizer. Imports nothing heavy."""

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, WrapValidator, model_validator

from arpo.config import Config, conflict
from arpo.errors import ConfigError
from arpo.import_path import import_from_path
from arpo.options import UseWithOptions, build, check_options, custom

SURROGATES = {
    **{name: f"arpo.learner.losses:{name}" for name in ("ppo", "gspo", "cispo", "aepo")},
    **{name: f"arpo.learner.surrogates:{name}" for name in ("sapo", "dppo", "gmpo", "gspo_turn")},
}
"""Import paths by the names in a recipe."""
BY_TURN = ("ppo", "cispo", "aepo", "sapo", "dppo", "gspo_turn")
"""Those that look at a token or a turn alone."""


def _surrogate(given: Any, check: Callable[[Any], Any]) -> Any:
    """A name, a surrogate, or the import path of one, alone or with options: `{use: "my_loss:soft", options: {slope:
    2}}`."""
    if isinstance(given, Mapping):
        return custom(CustomSurrogate, given, "loss.surrogate")
    if isinstance(given, str) and ":" in given:
        return _own_surrogate(given, {})
    return given if callable(given) or isinstance(given, CustomSurrogate) else check(given)


def _own_surrogate(path: str, options: Mapping[str, Any]) -> Callable[..., Any]:
    """The function that an import path names, with `options` as keyword arguments; of a class what it makes of them."""
    where = "loss.surrogate"
    if path not in SURROGATES and ":" not in path:
        hint = f"One of {', '.join(SURROGATES)}, or module:function"
        raise ConfigError("no such surrogate", where=f"{where}.use", value=path, hint=hint)
    path = SURROGATES.get(path, path)
    if "weights" in options:
        inner = _own_surrogate(path, {key: value for key, value in options.items() if key != "weights"})
        from arpo.learner.surrogates import weighed  # imports torch

        return weighed(inner, options["weights"])
    if not callable(target := import_from_path(path, where)):
        hint = "It is a function (log_ratio, advantage, mask, config) -> Objective: see arpo.learner.losses.Surrogate"
        raise ConfigError("is no surrogate", where=where, value=path, hint=hint)
    if isinstance(target, type):
        return build(target, options, where, path)  # type: ignore[no-any-return]
    if not options:
        return target  # type: ignore[no-any-return]
    check_options(target, options, where)
    surrogate = partial(target, **options)
    try:
        signature = inspect.signature(surrogate)
        more = {"tokens": "tokens"} if "tokens" in signature.parameters else {}
        signature.bind("log_ratio", "advantage", "mask", "config", **more)
    except TypeError as error:
        called = "a surrogate is called with (log_ratio, advantage, mask, config) and its options"
        raise ConfigError(f"{called}: {error}", where=f"{where}.options", value=dict(options)) from error
    return surrogate


class CustomSurrogate(UseWithOptions):
    """A surrogate of your own and its options."""

    @cached_property
    def built(self) -> Callable[..., Any]:
        return _own_surrogate(self.use, self.options)

    @model_validator(mode="after")
    def _can_be_built(self) -> Self:
        _ = self.built
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """A divergence from the reference whose estimator or schedule is chosen."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    coefficient: Annotated[float, Field(ge=0)]
    """Its weight at the first update."""
    estimator: Literal["k3", "reverse", "reward"] = "k3"
    """k3: a term whose gradient is that of KL(reference || policy); reverse: r k3, whose gradient is that of KL(policy
    || reference); reward: A - coefficient * (ln p_old - ln p_reference, summed over a token and those after it)."""
    final: Annotated[float, Field(ge=0)] | None = None
    """The weight at the last update, to which it changes linearly; null: it stays."""

    def at(self, update: int, num_updates: int) -> float:
        """The weight at update number `update` (from 0) of `num_updates`."""
        if self.final is None:
            return self.coefficient
        done = min(update, num_updates - 1) / max(num_updates - 1, 1)
        return self.coefficient + (self.final - self.coefficient) * done


@dataclass(frozen=True, slots=True, kw_only=True)
class EntropyTarget:
    """An entropy bonus that sets in where a step's entropy falls below a target."""

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    most: Annotated[float, Field(gt=0)]
    """Its weight at entropy 0."""
    target: Annotated[float, Field(gt=0)]
    """Nats per token, from which on there is no bonus."""

    def at(self, entropy: float) -> float:
        """`most * clip((target - H) / target, 0, 1)`."""
        return self.most * min(max((self.target - entropy) / self.target, 0.0), 1.0)


def _number_or_group(value: Any) -> str:
    return "group" if isinstance(value, Mapping | Divergence | EntropyTarget) else "number"


_Number = Annotated[Annotated[float, Field(ge=0)], Tag("number")]


class LossConfig(Config):
    """The loss; [method.md](method.md#7-losses) has its formula, and the keys that make it GRPO's, DAPO's, GSPO's and
    others'."""

    surrogate: Annotated[
        Literal["ppo", "gspo", "cispo", "aepo", "sapo", "dppo", "gmpo", "gspo_turn"], WrapValidator(_surrogate)
    ] = "ppo"
    """What is maximised a token: `ppo` the clipped ratio, `gspo` that of the sequence, `cispo` clips a weight
    instead, `aepo` keeps the gradient of what is clipped above; others: [method.md](method.md#7-losses). Or the
    import path of a surrogate of your own; with options: `{use: "my_loss:soft", options: {slope: 2}}`. The option
    `weights`, such as `{icepop: {high: 2}}`, is for all."""
    aggregation: Literal["sequence", "token"] | Annotated[int, Field(ge=1)] = "sequence"
    """How tokens become one number: the mean of each trajectory's mean (`sequence`), the mean over all tokens
    (`token`), or, for a number, the sum divided by trajectories times that number (Dr. GRPO: the tokens of the longest
    possible response)."""
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """The ratio is clipped below at 1 - clip_low."""
    clip_high: float = Field(default=0.2, gt=0)
    """The ratio is clipped above at 1 + clip_high (DAPO: 0.28)."""
    dual_clip: float | None = Field(default=None, gt=1)
    """The objective at a negative advantage A is at least dual_clip * A (usual: 3)."""
    old_logprobs: Literal["learner", "engine"] = "learner"
    """Whose logp_old the ratio compares with. `learner`: its own at the start of the step, a forward pass over all
    mini-batches but the first. `engine`: those that the tokens were sampled with, which costs nothing; a mismatch then
    counts as a ratio, and there is none left to correct."""
    tis_cap: float | None = Field(default=2.0, gt=0)
    """Truncation C of the weight min(exp(logp_old - logp_engine), C); none: no correction. The mismatch is measured
    either way."""
    kl_coefficient: Annotated[_Number | Annotated[Divergence, Tag("group")], Discriminator(_number_or_group)] = 0.0
    """Weight of the k3 estimate of KL(policy || reference), the reference being frozen; its gradient is that of
    KL(reference || policy). 0: no reference model is loaded. With another estimator or a schedule: `{coefficient: 0.04,
    estimator: reverse, final: 0}`."""
    entropy_coefficient: Annotated[
        _Number | Annotated[EntropyTarget, Tag("group")], Discriminator(_number_or_group)
    ] = 0.0
    """Weight of the entropy bonus (entropy at temperature 1); or steered to a target: `{most: 0.01, target: 0.3}`."""
    entropy_advantage: float = Field(default=0.0, ge=0)
    """a of AEPO's advantage A (1 + a z): z is the engine's entropy at a token, in standard deviations from the step's
    mean."""

    @property
    def surrogate_name(self) -> str | None:
        """Of the built-in surrogate; None for one of your own."""
        name = self.surrogate.use if isinstance(self.surrogate, CustomSurrogate) else self.surrogate
        return name if isinstance(name, str) and name in SURROGATES else None

    @property
    def divergence(self) -> Divergence | None:
        """None: no reference is kept."""
        kl = self.kl_coefficient
        kl = kl if isinstance(kl, Divergence) else Divergence(coefficient=kl)
        return kl if kl.coefficient or kl.final else None

    @property
    def estimator(self) -> str | None:
        """Of the divergence; None where there is none."""
        return self.divergence.estimator if self.divergence else None

    @property
    def whole_rows(self) -> bool:
        """Whether a token's loss needs its whole trajectory, with all its contexts: a ratio or a weight of the
        sequence, a divergence in the reward, or a surrogate of your own, of which nobody knows."""
        weighed = isinstance(self.surrogate, CustomSurrogate) and "weights" in self.surrogate.options
        return weighed or self.estimator == "reward" or self.surrogate_name not in BY_TURN

    @model_validator(mode="after")
    def _clips_once(self) -> Self:
        if self.surrogate_name == "cispo" and self.dual_clip is not None:
            raise conflict(
                "cispo clips a weight, and only from above: dual_clip does nothing there", "dual_clip", "surrogate"
            )
        return self


class OptimConfig(Config):
    """AdamW and its schedule."""

    lr: float = Field(default=1e-6, gt=0)
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of AdamW's two moments."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay."""
    moments: Literal["float32", "int8"] = "float32"
    """Precision of AdamW's two moments. `int8`: 2.1 bytes a parameter instead of 8 (torchao, the extra `int8`)."""
    last_layers: Annotated[int, Field(ge=1)] | None = None
    """Train the last N layers and what follows them. The others and the embeddings stay as they are after the cold
    start, and the backward pass ends before them. null: train all."""
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    """What the rate does after warm-up: stay, or fall towards `final_lr` of its peak, which the update after the
    last one would have."""
    warmup: float = Field(default=0.0, ge=0, lt=1)
    """Share of all updates over which the rate rises linearly from 0."""
    final_lr: float = Field(default=0.0, ge=0, le=1)
    """Where `cosine` and `linear` end, as a share of `lr`."""
    grad_clip: float | None = Field(default=1.0, gt=0)
    """Largest norm of the gradient; none: not clipped."""

    @model_validator(mode="after")
    def _betas_are_decays(self) -> Self:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise conflict("betas must lie in [0, 1)", "betas")
        return self

    def rate(self, update: int, num_updates: int) -> float:
        """Learning rate of update number `update` (from 0) of `num_updates`; beyond the end the last rate holds."""
        num_warm = math.ceil(self.warmup * num_updates)
        if update < num_warm:
            return self.lr * (update + 1) / num_warm
        if self.schedule == "constant":
            return self.lr
        done = (min(update, num_updates - 1) - num_warm) / max(num_updates - num_warm, 1)
        left = 1 - done if self.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.lr * (self.final_lr + (1 - self.final_lr) * left)
