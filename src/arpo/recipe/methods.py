"""Published methods by name: the key `method` of a recipe, as the keys that it stands for (docs/method.md, section 7).

A preset lies over what a recipe builds on and under what it says itself. It is not kept: a run's recipe has its keys.
"""

from collections.abc import Mapping
from typing import Any

from arpo.errors import ConfigError, nearest

_PPO = {"surrogate": "ppo", "clip_low": 0.2, "clip_high": 0.2, "dual_clip": None}
_FLAT: dict[str, Any] = {"rollout": {"rule": "none"}}
_GRPO: dict[str, Any] = {
    "advantage": {"estimator": "grpo", "weighting": "leaves", "blend": 0.0, "mask": None},
    "loss": {**_PPO, "aggregation": "sequence", "kl_coefficient": 0.0, "entropy_advantage": 0.0},
}
_GSPO = {"surrogate": "gspo", "clip_low": 0.0003, "clip_high": 0.0004}


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Groups merged key by key; what is no mapping (a group that Python built) stays as it is."""
    merged = {**below, **above}
    for key, group in below.items():
        if isinstance(group, Mapping) and isinstance(above.get(key), Mapping):
            merged[key] = {**group, **above[key]}
    return merged


def _method(*groups: Mapping[str, Any], **own: Mapping[str, Any]) -> dict[str, Any]:
    method: dict[str, Any] = _GRPO
    for group in (*groups, own):
        method = _over(method, group)
    return method


METHODS: Mapping[str, Mapping[str, Any]] = {
    "grpo": _method(_FLAT, loss={"kl_coefficient": 0.04}),
    "dr-grpo": _method(_FLAT, advantage={"estimator": "dr_grpo"}, loss={"aggregation": 4096}),
    "dapo": _method(
        _FLAT,
        advantage={"mask": "overlong"},
        loss={"aggregation": "token", "clip_high": 0.28},
        train={"dynamic_sampling": 3},
    ),
    "gspo": _method(_FLAT, loss=_GSPO),
    "cispo": _method(_FLAT, loss={"surrogate": "cispo", "aggregation": "token"}),
    "reinforce++": _method(_FLAT, advantage={"estimator": "reinforce++"}, loss={"aggregation": "token"}),
    "reinforce++-baseline": _method(
        _FLAT, advantage={"estimator": "reinforce++-baseline"}, loss={"aggregation": "token"}
    ),
    "rloo": _method(_FLAT, advantage={"estimator": "rloo"}),
    "arpo": _method(rollout={"rule": "paper"}),
    "arpo-hard": _method(rollout={"rule": "paper"}, advantage={"blend": 1.0}),
    "arpo-released": _method(
        rollout={"rule": "released", "at_call_limit": "end"},
        loss={"aggregation": "token", "dual_clip": 3.0, "tis_cap": None},
    ),
    "aepo": _method(rollout={"rule": "aepo", "roots": "pilot"}, loss={"surrogate": "aepo", "entropy_advantage": 0.2}),
    "tree-grpo": _method(rollout={"rule": "random"}, advantage={"estimator": "tree_grpo"}),
    "gigpo": _method(rollout={"rule": "random"}, advantage={"estimator": "gigpo"}, loss={"kl_coefficient": 0.01}),
    "sampo": _method(
        rollout={"rule": "random"},
        advantage={"estimator": "gigpo"},
        loss={**_GSPO, "kl_coefficient": 0.01},
        train={"dynamic_sampling": 3},
    ),
}


def preset(name: object, where: str = "method") -> dict[str, Any]:
    """The keys that a method stands for. Raises ConfigError."""
    if not isinstance(name, str) or name not in METHODS:
        hint = nearest(str(name), METHODS) or f"One of {', '.join(METHODS)}"
        raise ConfigError("no such method", where=where, value=name, hint=hint)
    return {key: dict(group) for key, group in METHODS[name].items()}


def with_method(given: Mapping[str, Any]) -> dict[str, Any]:
    """`given`, whose `method` is laid under its other keys."""
    own = {key: value for key, value in given.items() if key != "method"}
    return _over(preset(given["method"]), own) if given.get("method") is not None else own
