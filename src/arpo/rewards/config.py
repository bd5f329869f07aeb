"""What a recipe says about rewards, and the reward built from it."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import Field, model_validator

from arpo.config import Config, conflict
from arpo.errors import ConfigError
from arpo.import_path import import_from_path

if TYPE_CHECKING:
    from arpo.rewards import Reward
    from arpo.rewards.paper import Accuracy
    from arpo.tasks import Task

Measure = Literal["auto", "exact", "f1", "contains", "maths", "numeric", "choice", "short", "gaia"]


class RewardConfig(Config):
    """The reward: the paper's rule over an answer measure, or a function of your own."""

    answer: Measure = "auto"
    r"""How an answer is compared with the golds: `exact`, `f1`, `contains` (tokens, numbers whole), `maths` (equivalence),
    `numeric` (units, tolerance), `choice` (a letter), `short` (a number, date or phrase), `gaia` (its authors' rule), or `auto`:
    the verifier or measure that a task brings, else maths for golds that are numbers or hold LaTeX, else f1."""
    bonus: float = Field(default=0.0, ge=0)
    """Added to a right answer where all `bonus_tools` really ran (the paper: 0.1)."""
    bonus_tools: tuple[str, ...] = ()
    """Tools that must have run for the bonus (the paper: search and python)."""
    wrong_format: float = Field(default=-1.0, le=0)
    """The reward of a branch that breaks the protocol."""
    use: str = ""
    """A reward of your own instead, by import path (`my_pkg.rewards:score`): `(task, transcript) -> float | Score`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments for `use`."""
    maths_s: float = Field(default=2.0, gt=0)
    """Processor seconds that comparing one pair of formulas may take before it counts as not equal."""

    @model_validator(mode="after")
    def _fits(self) -> "RewardConfig":
        if self.bonus and not self.bonus_tools and not self.use:
            raise conflict("a bonus needs bonus_tools, for instance [search, python]", "bonus")
        if self.options and not self.use:
            raise conflict("options are for a reward of your own: set `use`", "options")
        return self


def build_reward(config: "RewardConfig | Callable[..., Any]") -> "Reward":
    """The reward of a recipe, or of a function given in Python. Raises ConfigError where it cannot be imported."""
    from arpo.rewards.boundary import as_reward
    from arpo.rewards.paper import PaperReward

    if not isinstance(config, RewardConfig):
        _check_call(config, {}, "reward")
        return as_reward(config)
    if config.use:
        return as_reward(_with_options(_function(config.use), config))
    return PaperReward(
        answer_measure(config.answer, config.maths_s),
        bonus=config.bonus,
        bonus_tools=config.bonus_tools,
        wrong_format=config.wrong_format,
    )


def answer_measure(measure: Measure, maths_s: float = 2.0) -> "Accuracy":
    """`(answer, task) -> accuracy`: the best over the task's golds."""
    from arpo.rewards.maths import MathsVerifier, compare_quickly
    from arpo.rewards.measures import BY_TEXT
    from arpo.rewards.numbers import read_number
    from arpo.threads import run_off_loop

    verifier = MathsVerifier(maths_s)

    async def maths(answer: str, gold: str) -> float:
        quick = compare_quickly(answer, gold)
        return float(await run_off_loop(verifier.equal_by_worker, answer, gold) if quick is None else quick)

    async def one(wanted: str, answer: str, gold: str) -> float:
        if wanted == "auto":
            wanted = "maths" if "\\" in gold or read_number(gold) is not None else "f1"
        if wanted == "maths" or (wanted == "short" and "\\" in gold):
            return await maths(answer, gold)
        return BY_TEXT[wanted](answer, gold)

    async def accuracy(answer: str, task: "Task") -> float:
        verify, brought = task.metadata.get("verify"), task.metadata.get("measure")
        if measure == "auto" and verify:
            return float(await run_off_loop(_function(str(verify)), task, answer))
        wanted = str(brought) if measure == "auto" and brought in get_args(Measure) else measure
        return max([0.0, *[await one(wanted, answer, gold) for gold in task.answers]])

    return accuracy


def _with_options(function: Any, config: RewardConfig) -> Any:
    if isinstance(function, type):
        try:
            made: Any = function(**config.options)  # a reward that is an object with `__call__`
        except Exception as error:  # an __init__ runs whatever stands in the user's file
            wrong = f"the reward cannot be set up: {type(error).__name__}: {error}"
            raise ConfigError(wrong, where="reward.options", value=config.options) from error
        _check_call(made, {}, "reward.use")
        return made
    _check_call(function, config.options, "reward.use")
    if not config.options:
        return function
    bound = partial(function, **config.options)
    bound.__name__ = getattr(function, "__name__", "reward")  # type: ignore[attr-defined]
    return bound


def _check_call(reward: Any, options: dict[str, Any], where: str) -> None:
    """Raise ConfigError where `reward` cannot be called, before a cold start that nothing could score."""
    try:
        inspect.signature(reward).bind("task", "transcript", **options)
    except TypeError as error:
        called = getattr(reward, "__name__", type(reward).__name__)
        raise ConfigError(
            f"a reward is called with (task, transcript) and its options: {error}", where=where, value=called
        ) from error
    except ValueError:  # no signature, as some functions written in C
        pass


def _function(use: str) -> Callable[..., Any]:
    found = import_from_path(use, "reward.use")
    if not callable(found):
        raise ConfigError("names no function", where="reward.use", value=use)
    return found
