"""The configuration of the reward, and the function that builds the reward from it."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from arpo.config import Config, conflict
from arpo.errors import ConfigError
from arpo.import_path import import_from_path

if TYPE_CHECKING:
    from arpo.rewards import Reward

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
    """Your own reward instead, by import path (`my_pkg.rewards:score`): `(task, transcript) -> float | Score`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments for `use`."""

    @model_validator(mode="after")
    def _fits(self) -> "RewardConfig":
        if self.bonus and not self.bonus_tools and not self.use:
            raise conflict("a bonus needs bonus_tools, for instance [search, python]", "bonus")
        if self.options and not self.use:
            raise conflict("options are for your own reward: set `use`", "options")
        return self


def build_reward(config: "RewardConfig | Callable[..., Any]") -> "Reward":
    """The reward of a recipe, or of a Python function. Raises ConfigError if it cannot be imported or called."""
    from arpo.rewards.boundary import as_reward
    from arpo.rewards.measures import answer_measure
    from arpo.rewards.paper import PaperReward

    if not isinstance(config, RewardConfig):
        _check_call(config, {}, "reward")
        return as_reward(config)
    if config.use:
        return as_reward(_with_options(load_function(config.use), config))
    return PaperReward(
        answer_measure(config.answer),
        bonus=config.bonus,
        bonus_tools=config.bonus_tools,
        wrong_format=config.wrong_format,
    )


def _with_options(function: Any, config: RewardConfig) -> Any:
    if isinstance(function, type):
        try:
            reward: Any = function(**config.options)  # a reward that is an object with `__call__`
        except Exception as error:  # an __init__ runs the user's code
            message = f"the reward cannot be set up: {type(error).__name__}: {error}"
            raise ConfigError(message, where="reward.options", value=config.options) from error
        _check_call(reward, {}, "reward.use")
        return reward
    _check_call(function, config.options, "reward.use")
    if not config.options:
        return function
    bound = partial(function, **config.options)
    bound.__name__ = getattr(function, "__name__", "reward")  # type: ignore[attr-defined]
    return bound


def _check_call(reward: Any, options: dict[str, Any], where: str) -> None:
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


def load_function(use: str) -> Callable[..., Any]:
    function = import_from_path(use, "reward.use")
    if not callable(function):
        raise ConfigError("is not a function", where="reward.use", value=use)
    return function
