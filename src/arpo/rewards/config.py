"""The configuration of the reward, and the function that builds the reward from it."""

import inspect
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from arpo.config import Config, checked, conflict
from arpo.errors import ConfigError, nearest
from arpo.import_path import import_from_path
from arpo.options import refuse_secrets
from arpo.yaml_positions import Located

if TYPE_CHECKING:
    from arpo.rewards import Reward
    from arpo.rewards.several import Several

BUILT_IN = {"judge": "arpo.rewards.judge:JudgeReward", "overlong": "arpo.rewards.length:overlong"}
"""Import paths by the names in a recipe."""

Measure = Literal["auto", "exact", "f1", "contains", "maths", "numeric", "choice", "short", "gaia"]


class RewardConfig(Config):
    """The reward: the paper's rule over an answer measure, or a function of your own."""

    answer: Measure = "auto"
    r"""How to compare an answer with the golds: `exact`, `f1`, `contains` (tokens, numbers whole), `maths`
    (equivalence), `numeric` (units, tolerance), `choice` (a letter), `short` (a number, date or phrase), `gaia` (its
    authors' rule), or `auto`: the verifier or measure that the task names, else maths for golds that are numbers or
    contain LaTeX, else f1."""
    bonus: float = Field(default=0.0, ge=0)
    """Added to the reward of a right answer if all `bonus_tools` ran (the paper: 0.1)."""
    bonus_tools: tuple[str, ...] = ()
    """Tools that must have run for the bonus (the paper: search and python)."""
    wrong_format: float = Field(default=-1.0, le=0)
    """The reward of a branch that breaks the protocol."""
    use: str = ""
    """Another reward instead: `judge`, `overlong`, `sum` of several ([rewards.md](rewards.md)), or your own by import
    path (`my_pkg.rewards:score`): `(task, transcript) -> float | Score`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments for `use`. Of `sum`: rewards by name, with a weight, or `{weight: 0.5, ...}` with options;
    `paper` is the rule of this group."""

    @model_validator(mode="after")
    def _fits(self) -> "RewardConfig":
        refuse_secrets(self.options)
        if self.bonus and not self.bonus_tools and not self.use:
            raise conflict("a bonus needs bonus_tools, for instance [search, python]", "bonus")
        if self.options and not self.use:
            raise conflict("options are for your own reward: set `use`", "options")
        return self


def build_reward(config: "RewardConfig | Callable[..., Any]") -> "Reward":
    """The reward of a recipe, or of a Python function. Raises ConfigError if it cannot be imported or called."""
    from arpo.rewards.boundary import as_reward

    if not isinstance(config, RewardConfig):
        _check_call(config, {}, "reward")
        return as_reward(config)
    if config.use == "sum":
        return as_reward(_several(config))
    return as_reward(_built(config.use, config.options, "reward")) if config.use else _paper(config)


def _paper(config: RewardConfig) -> "Reward":
    from arpo.rewards.measures import answer_measure
    from arpo.rewards.paper import PaperReward

    return PaperReward(
        answer_measure(config.answer),
        bonus=config.bonus,
        bonus_tools=config.bonus_tools,
        wrong_format=config.wrong_format,
    )


def _several(config: RewardConfig) -> "Several":
    from arpo.rewards.boundary import as_reward
    from arpo.rewards.several import Several

    rewards: dict[str, tuple[float, Reward]] = {}
    for name, value in config.options.items():
        where = f"reward.options.{name}"
        options = dict(value) if isinstance(value, Mapping) else {"weight": value}
        weight, use = options.pop("weight", 1.0), options.pop("use", name)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise ConfigError("should be a weight, or {weight: 0.5, ...} with options", where=where, value=value)
        if use == "paper" and options:
            raise ConfigError("paper is the rule of the group `reward`: its keys stand there", where=where)
        made = _paper(config) if use == "paper" else as_reward(_built(use, options, where))
        rewards[name.rpartition(":")[2]] = (float(weight), made)
    if len(rewards) < len(config.options) or not rewards:
        hint = "{paper: 1, overlong: 0.5}; `use` names a reward that stands there twice"
        raise ConfigError("needs rewards by different names", where="reward.options", value=config.options, hint=hint)
    return Several(rewards)


def _built(use: str, options: Mapping[str, Any], where: str) -> Any:
    """The reward that `use` names, with its options."""
    function: Any = load_function(use, where)
    at = f"{where}.options" if where == "reward" else where
    if not isinstance(function, type):
        _check_call(function, options, f"{where}.use")
        if not options:
            return function
        bound = partial(function, **options)
        bound.__name__ = getattr(function, "__name__", "reward")  # type: ignore[attr-defined]
        return bound
    from arpo.rewards.service import ServiceReward
    from arpo.tools.config import ToolConfig

    service = issubclass(function, ServiceReward)
    own = {key: value for key, value in options.items() if not (service and key in ("limits", "cache"))}
    try:
        reward = function(**own)  # a reward that is an object with `__call__`
        if service:
            settings = {key: value for key, value in options.items() if key not in own}
            reward.config = checked(ToolConfig, Located({"use": use, "options": own, **settings}))
            limits = reward.config.limits.over(reward.limits)
            reward.config, reward.where = reward.config.model_copy(update={"limits": limits}), at
    except ConfigError as error:
        raise ConfigError(error.message, where=f"{at}.{error.where}", value=error.value, hint=error.hint) from error
    except Exception as error:  # an __init__ runs the user's code
        message = f"the reward cannot be set up: {type(error).__name__}: {error}"
        raise ConfigError(message, where=at, value=dict(options)) from error
    _check_call(reward, {}, f"{where}.use")
    return reward


def _check_call(reward: Any, options: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError if `reward` does not take these arguments, before a cold start that nothing could score."""
    try:
        inspect.signature(reward).bind("task", "transcript", **options)
    except TypeError as error:
        name = getattr(reward, "__name__", type(reward).__name__)
        raise ConfigError(
            f"a reward takes (task, transcript) and its options: {error}", where=where, value=name
        ) from error
    except ValueError:  # some functions written in C have no signature
        pass


def load_function(use: str, where: str = "reward") -> Callable[..., Any]:
    if ":" not in use and use not in BUILT_IN:
        hint = nearest(use, [*BUILT_IN, "sum", "paper"]) + ", or module:function"
        raise ConfigError("no such reward", where=f"{where}.use", value=use, hint=hint)
    function = import_from_path(BUILT_IN.get(use, use), f"{where}.use")
    if not callable(function):
        raise ConfigError("is not a function", where=f"{where}.use", value=use)
    return function
