"""One run as a value: all that decides what it does, checked. A recipe is its YAML form; in Python it is
`arpo.Run(...)`.

Composes the parts that live beside what they configure, and knows which of them cannot go together. Imports nothing
heavy.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, WrapValidator, model_validator

from arpo.chat.config import ChatConfig
from arpo.cluster.config import ClusterConfig
from arpo.config import Config, conflict
from arpo.core.credit import AdvantageConfig
from arpo.core.estimators import ESTIMATORS, MASKS
from arpo.engines.config import EngineConfig
from arpo.errors import ConfigError, nearest
from arpo.files import expanded
from arpo.import_path import import_folder, import_from_path, import_path
from arpo.learner.config import LossConfig, OptimConfig
from arpo.models.loading import ModelConfig
from arpo.options import UseWithOptions, check_options, custom
from arpo.recipe.evaluation import EvalConfig
from arpo.recipe.methods import with_method
from arpo.recipe.train import ColdStartConfig, TrainConfig
from arpo.rewards.config import RewardConfig
from arpo.rollout.config import RolloutConfig
from arpo.tasks.data import BENCHMARK, SUFFIXES, DataConfig
from arpo.tasks.in_memory import InMemoryTasks
from arpo.tools.config import ToolConfig, ToolsConfig


def _reward(given: Any, check: Callable[[Any], Any]) -> Any:
    """A reward of your own is also named by a word, `shop:score` for `{use: shop:score}`; from Python it may be an
    object."""
    return given if callable(given) else check({"use": given} if isinstance(given, str) else given)


def _environment(given: Any, check: Callable[[Any], Any]) -> Any:
    """A word stands for `{use: word}`."""
    return given if isinstance(given, type) else check({"use": given} if isinstance(given, str) else given)


def _advantage(given: Any, check: Callable[[Any], Any]) -> Any:
    """`estimator` and `mask` may also be functions, their import paths, or either (or a built-in name) with options:
    `{use: gigpo, options: {weight: 0.5}}`."""
    if not isinstance(given, Mapping):
        return check(given)
    own: dict[str, Any] = {}
    for key in ("estimator", "mask"):
        value = given.get(key)
        if isinstance(value, str) and ":" in value:
            value = {"use": value}
        if isinstance(value, Mapping):
            kind = CustomEstimator if key == "estimator" else CustomMask
            own[key] = custom(kind, value, f"advantage.{key}")
        elif callable(value) or isinstance(value, CustomEstimator):
            own[key] = value
    config = check({key: value for key, value in given.items() if key not in own})
    return replace(config, **own) if own else config


class CustomEstimator(UseWithOptions):
    """An estimator of credit with options: a built-in one by its name, or a function of your own by its import path."""

    _where: ClassVar[str] = "advantage.estimator"
    _names: ClassVar[Mapping[str, Callable[..., Any]]] = ESTIMATORS

    @cached_property
    def built(self) -> Callable[..., Any]:
        where = self._where
        if ":" in self.use:
            target = import_from_path(self.use, where)
        elif self.use in self._names:
            target = self._names[self.use]
        else:
            hint = nearest(self.use, self._names) or f"One of {', '.join(self._names)}, or module:function"
            raise ConfigError("takes no options, or is unknown", where=f"{where}.use", value=self.use, hint=hint)
        if not callable(target):
            raise ConfigError("is no function (trees, config, **options)", where=where, value=self.use)
        check_options(target, self.options, where)
        return partial(target, **self.options)

    @model_validator(mode="after")
    def _can_be_built(self) -> Self:
        _ = self.built
        return self


class CustomMask(CustomEstimator):
    """The same for a mask."""

    _where: ClassVar[str] = "advantage.mask"
    _names: ClassVar[Mapping[str, Callable[..., Any]]] = MASKS


class Splits(Config):
    """Tasks to train on, to watch while training, and to be judged by at the end. They cannot be the same."""

    train: DataConfig
    """Tasks to learn from."""
    validation: DataConfig | None = None
    """Tasks to watch: they choose the best checkpoint and stop early. Their `split` is `validation` unless it says
    otherwise."""
    test: DataConfig | None = None
    """Tasks that nothing is chosen by. Their `split` is `test` unless it says otherwise."""
    allow_test_questions: bool = False
    """Allow a public benchmark, or most questions of `test`, as validation tasks: what chooses a checkpoint no longer
    tests it."""

    @model_validator(mode="before")
    @classmethod
    def _own_split(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        named = {role: given[role] for role in ("validation", "test") if isinstance(given.get(role), Mapping)}
        return {**given, **{role: {"split": role, **data} for role, data in named.items()}}

    @model_validator(mode="after")
    def _apart(self) -> Self:
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        seen: dict[tuple[object, str, str], str] = {}
        for role, data in named.items():
            if data is None:
                continue
            split = "" if str(data.source).endswith(SUFFIXES) else data.split  # files have none
            tasks = (data.source, split, repr(data.options))
            if tasks in seen:
                raise ValueError(
                    f"{role} and {seen[tasks]} are the same tasks ({data.source} {split}): "
                    "give each its own split or file"
                )
            seen[tasks] = role
        if self.validation and str(self.validation.source).startswith(BENCHMARK) and not self.allow_test_questions:
            raise conflict(
                f"{self.validation.source} is a test set, and validation tasks choose the checkpoint: hold out "
                "training tasks, or set data.allow_test_questions",
                "validation",
                "allow_test_questions",
            )
        return self


class RunConfig(Config):
    """Everything that decides what a run does."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)] = "run"
    """Its name in folders, tables and trackers."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Keys all randomness."""
    out: Annotated[str, Field(min_length=1)] | None = None
    """The run's folder; null: `runs/NAME`."""
    code: Annotated[str, Field(min_length=1)] | None = None
    """A folder in which import paths (`tool:lookup`) are found first; a recipe file sets it to its own folder."""
    model: ModelConfig = ModelConfig()
    data: Splits
    chat: ChatConfig = ChatConfig()
    tools: ToolsConfig = ToolsConfig()
    environment: Annotated[UseWithOptions | None, WrapValidator(_environment)] = None
    """What the agent acts in beside its tools: `{use: "my_env:Game", options: {...}}`, a class derived from
    `arpo.Environment` (from Python also the class itself)."""
    reward: Annotated[RewardConfig, WrapValidator(_reward)] = RewardConfig()
    """What is wanted (from Python also any `Reward`). Where nothing is said and the environment rewards turns: their
    sum."""
    engine: EngineConfig = EngineConfig()
    rollout: RolloutConfig = RolloutConfig()
    advantage: Annotated[AdvantageConfig, WrapValidator(_advantage)] = AdvantageConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    cold_start: ColdStartConfig | None = None
    """Supervised fine-tuning before RL; null: the model is trained as it is."""
    evaluation: EvalConfig = EvalConfig()
    cluster: ClusterConfig = ClusterConfig()
    plan: Literal["auto", "made"] | None = None
    """`auto`: traces of the cold start, questions and steps are the most that is done; the run measures the machine in
    its first seconds and cuts them down to `train.minutes`, where these are given. The written recipe has the counts,
    and `made` here. Null: as they stand."""

    @model_validator(mode="before")
    @classmethod
    def _method(cls, given: Any) -> Any:
        return with_method(given) if isinstance(given, Mapping) and "method" in given else given

    @property
    def folder(self) -> Path:
        """Where the run is written."""
        return expanded(self.out or f"runs/{self.name}")

    @model_validator(mode="after")
    def _goes_together(self) -> Self:
        for wrong, where, message, hint in (*_rollout_conflicts(self), *_train_conflicts(self)):
            if wrong:
                raise ConfigError(message, where=where, hint=hint)
        return self


Conflict = tuple[bool, str, str, str]
"""What cannot go together across the parts of a run: (is it so?, key, why not, what would be right)."""


def _rollout_conflicts(run: RunConfig) -> list[Conflict]:
    rollout, prompt = run.rollout, run.chat.prompt_tokens or 0
    return [
        (
            rollout.leaves < 2,
            "rollout.leaves",
            "a group of one leaf has nothing to be compared with, so it teaches nothing",
            "At least 2",
        ),
        (
            run.advantage.weighting == "tree" and rollout.roots == 1,
            "advantage.weighting",
            "a tree with a single root has no other root to be compared with",
            "Raise rollout.roots, or weight by leaves",
        ),
        (
            run.advantage.weighting == "tree"
            and run.advantage.estimator == "rloo"
            and not isinstance(rollout.roots, int),
            "rollout.roots",
            "a pilot may plan a single root, which leave-one-out by root (advantage) has nothing to compare with",
            "Give a number of roots, weight by leaves, or use another estimator",
        ),
        (
            prompt + rollout.turn_tokens > rollout.branch_tokens,
            "rollout.branch_tokens",
            f"a prompt ({prompt}, chat.prompt_tokens) and a turn ({rollout.turn_tokens}) exceed "
            f"{rollout.branch_tokens}",
            f"At least {prompt + rollout.turn_tokens}: it counts the prompt and tool text too",
        ),
    ]


def _train_conflicts(run: RunConfig) -> list[Conflict]:
    train = run.train
    return [
        (
            run.chat.format == "native" and run.engine.kind != "openai",
            "chat.format",
            f"native tool calls are those of a chat endpoint, and the engine is {run.engine.kind}",
            "Use template or tags, or set engine.kind to openai",
        ),
        (
            train.max_staleness > 0 and run.engine.deterministic,
            "train.max_staleness",
            "where sampling runs ahead, timing decides which weights write a token, and engine.deterministic asks "
            "that it does not",
            "Set one of them back",
        ),
        (
            train.max_staleness > 0 and run.engine.vllm is not None and run.engine.vllm.sleep,
            "engine.vllm.sleep",
            "where sampling runs ahead (train.max_staleness), the engine does not sleep while the learner works",
            "Set it to false and share the memory by engine.vllm.gpu_memory_utilization, or sample in turn",
        ),
        (
            run.optim.moments == "int8" and run.model.offload,
            "optim.moments",
            "torchao's 8-bit moments cannot be offloaded (model.offload)",
            "Set one of them back",
        ),
        (
            train.eval_every is not None and run.data.validation is None,
            "train.eval_every",
            "there are no validation tasks",
            "Add data.validation, or set this to null",
        ),
    ]


def plain(value: Any) -> Any:
    """A configuration as plain values for YAML; an object that a recipe could name becomes its import path."""
    if isinstance(value, RunConfig):
        value = _with_paths(value)
    if isinstance(value, Config):
        return {name: plain(getattr(value, name)) for name in type(value).model_fields}
    if _is_plain(value):  # the core's dataclasses
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, InMemoryTasks):
        return str(value)  # for people to read: the recipe of a run names the file in which it keeps them
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return import_path(_named(value))


def _with_paths(run: RunConfig) -> RunConfig:
    """`run` with tools and reward of its own named by import path, and `code` the folder in which they, the rule and
    the surrogate are found."""
    credit = (run.advantage.estimator, run.advantage.mask or "")
    parts: tuple[Any, ...] = (
        *run.tools.offered,
        run.environment,
        run.reward,
        run.rollout.rule,
        run.loss.surrogate,
        *credit,
    )
    own = [_named(part) for part in parts if not (part is None or _is_plain(part) or isinstance(part, str))]
    code = run.code or next((str(folder) for folder in map(import_folder, own) if folder), None)
    offered = tuple(
        tool if _is_plain(tool) else ToolConfig(use=import_path(_named(tool))) for tool in run.tools.offered
    )
    tools = run.tools.model_copy(update={"offered": offered})
    reward = run.reward if _is_plain(run.reward) else RewardConfig(use=import_path(_named(run.reward)))
    return run.model_copy(update={"code": code, "tools": tools, "reward": reward})


def _is_plain(part: Any) -> bool:
    return isinstance(part, Config) or hasattr(part, "__pydantic_config__")


def _named(value: Any) -> Any:
    """A decorated tool is named by its function, which the decorator left in its place."""
    return getattr(value, "function", value)
