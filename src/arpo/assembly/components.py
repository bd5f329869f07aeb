"""A run's components, built once from its configuration: model, engine, tools, chat, reward.

Chat, evaluation and training share them. Knows how each is built. Refuses to know what is done with them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from arpo.chat.config import build_chat
from arpo.engines import Weights
from arpo.engines.base import EngineBase, with_defaults
from arpo.engines.config import EngineConfig
from arpo.environments.config import build_environment
from arpo.environments.episodes import EnvironmentSource
from arpo.errors import ConfigError
from arpo.import_path import import_from_path
from arpo.learner import Learner
from arpo.learner.config import LossConfig, OptimConfig
from arpo.learner.lora import plain_model, published_state
from arpo.models.loading import dtype_here, end_tokens, learner_model, load_model, weights_folder
from arpo.recipe.run import RunConfig
from arpo.recipe.train import COLD_START_SEED
from arpo.rewards import Reward
from arpo.rewards.config import RewardConfig, build_reward
from arpo.rewards.environment import environment_reward
from arpo.rewards.service import ServiceReward, services_of, with_services
from arpo.rollout.agent import Agent, EvalAgent
from arpo.tasks import Task
from arpo.tasks.data import LoadReport, load_with_report
from arpo.tools import Tool, ToolBase, isolation_notes, isolation_of
from arpo.tools.config import ToolsConfig, build_entries
from arpo.tools.gateway import ToolGateway, build_gateway, recorded_offers

if TYPE_CHECKING:
    import torch

    from arpo.learner.rank import ModelSource
    from arpo.learner.ranks import Ranks
    from arpo.learner.sharding import Placement


F = TypeVar("F")  # a chat format or a dialogue


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a policy acts in: tools, and a reward for what it does with them."""

    tools: tuple[ToolBase, ...]
    """Those of the environment too."""
    reward: Reward
    tool_gateway: ToolGateway
    """Every call of a tool passes it."""
    environment: EnvironmentSource | None = None

    @property
    def isolation(self) -> dict[str, str]:
        """By the tool that runs code of the policy: what isolates that code from this machine."""
        return isolation_of(self.tools)

    def notes(self) -> list[str]:
        """Lines for the start of a run: how code is isolated, and which tools answer from where."""
        around = [self.environment.note()] if self.environment is not None else []
        return [*around, *isolation_notes(self.tools), *self.tool_gateway.notes()]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalComponents:
    """What evaluation and chat need of a run."""

    run: RunConfig
    agent: EvalAgent
    reward: Reward

    def save_tokenizer(self, folder: Path) -> None:
        """Keep what reads the tokens of recorded trajectories; those of a served model have none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Components(EvalComponents):
    """What training needs: a model in this process."""

    agent: Agent
    model: Any
    """A transformers or PEFT model."""
    tokenizer: Any
    dtype: "torch.dtype"
    """Of matrix products."""
    ranks: "Ranks | None" = None
    """Hold the model that is trained, in shards; `model` is then what it was at the start. None: `model` is trained."""
    note: str = ""
    """What a user should know of the chat format."""

    def save_tokenizer(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)

    def weights(self, version: int) -> Weights:
        """The model's weights as they are now, for an engine."""
        if self.ranks is None:
            return Weights(version, published_state(self.model))
        from arpo.learner.driver import weights_of

        return Weights(version, weights_of(self.ranks))

    def save_model(self, folder: Path) -> None:
        """Write the trained weights (with LoRA the adapters alone) as a Hugging Face folder."""
        if self.ranks is None:
            self.model.save_pretrained(folder)
        else:
            self.ranks.call("save_model", folder)


def read_tasks(run: RunConfig, split: str) -> tuple[list[Task], LoadReport | None]:
    """The recipe's tasks of a split (none where it names none), and a report of the rows that were skipped or mended.
    Raises ConfigError, which names the key (`data.train.source`), and FormatError."""
    config = getattr(run.data, split)
    try:
        return load_with_report(config) if config is not None else ([], None)
    except ConfigError as error:
        raise ConfigError(
            error.message, where=f"data.{split}.{error.where}", value=error.value, hint=error.hint
        ) from error


def model_folder(run: RunConfig, weights: Path | None = None) -> Path:
    """The folder of the run's model, fetched if it is not there; an endpoint's model needs none.

    Trained `weights` are a whole model, except with LoRA: a run that was moved needs no source.
    """
    from arpo.models.sources import fetch

    if run.engine.kind == "openai":
        return Path()
    return weights if weights is not None and run.model.lora is None else fetch(run.model.source)


def build_setting(run: RunConfig) -> Setting:
    """The tools and the reward of `run`. Raises ConfigError where one cannot be set up."""
    entries = build_entries(run.tools.offered, recorded_offers(run.tools))
    tools = tuple(tool for tools in entries for tool in tools)
    reward = build_reward(run.reward)
    tool_gateway = _gateway(run.tools, entries, services_of(reward))
    if run.environment is None:
        return Setting(tools=tools, reward=reward, tool_gateway=tool_gateway)
    environment = build_environment(run.environment, tool_gateway, taken=[tool.name for tool in tools])
    own = environment.rewards and run.reward == RewardConfig()
    return Setting(
        tools=(*tools, *environment.tools),
        reward=environment_reward if own else reward,
        tool_gateway=tool_gateway,
        environment=environment,
    )


def _gateway(config: ToolsConfig, entries: list[list[ToolBase]], asking: Sequence[ServiceReward]) -> ToolGateway:
    """The gateway of tools and of what rewards ask. Raises ConfigError."""
    taken = [tool.name for tools in entries for tool in tools]
    try:
        tool_gateway = build_gateway(
            with_services(config, asking, taken), [*entries, *(list(reward.services) for reward in asking)]
        )
    except ConfigError as error:
        entry, _, key = error.where.removeprefix("tools.offered.").partition(".")
        if not entry.isdecimal() or int(entry) < len(entries):
            raise
        place = asking[int(entry) - len(entries)].where
        key = f"{place}.{key.removeprefix('options.')}" if key else place
        raise ConfigError(error.message, where=key, value=error.value, hint=error.hint) from error
    for reward in asking:
        reward.gateway = tool_gateway
    return tool_gateway


def build_components(
    run: RunConfig,
    source: Path,
    weights: Path | None = None,
    *,
    setting: Setting | None = None,
    ranks: "Ranks | None" = None,
) -> Components:
    """Build every component of `run` on the model at `source`, or with the trained `weights` (a checkpoint's model
    folder; with LoRA it holds the adapters alone). `setting`: None to build it as well. `ranks`: take up the model,
    too, to train it in shards. Raises ConfigError where a component cannot be set up.

    torch's global generator starts from `first_seed`.
    """
    import torch

    setting = setting or build_setting(run)
    torch.manual_seed(first_seed(run))
    # An engine in this process needs the model here; else no process of several ever holds it whole.
    model, tokenizer = load_model(source, run.model, weights, empty=ranks is not None and run.engine.kind != "local")
    dtype = dtype_here(run.model) if ranks is None or ranks.here else ranks.call("apply", dtype_here, run.model)[0]
    if ranks is not None:
        hold_model(ranks, run, source, weights, dtype)
    ends = end_tokens(getattr(model, "generation_config", None))
    format_for = formats(partial(build_chat, run.chat, tokenizer, ends=ends))
    chat = format_for(setting.tools)  # one that does not fit the model or the tools is reported now
    engine = build_engine(run.engine, model, tokenizer, getattr(ranks, "servers", None))
    _check_room(run, engine.context)
    agent = Agent(
        engine=engine,
        tools=setting.tools,
        format=format_for,
        vocab_size=model.config.get_text_config().vocab_size,
        tool_gateway=setting.tool_gateway,
        environment=setting.environment,
    )
    return Components(
        run=run,
        model=model,
        tokenizer=tokenizer,
        dtype=dtype,
        agent=agent,
        reward=setting.reward,
        ranks=ranks,
        note=getattr(chat, "note", ""),
    )


def build_eval_components(
    run: RunConfig, source: Path, weights: Path | None = None, *, setting: Setting | None = None
) -> EvalComponents:
    """What evaluation and chat need of `run`, whose model may be served elsewhere (engine.kind openai)."""
    if run.engine.kind == "openai":
        from arpo.assembly.served import served_components

        return served_components(run, setting or build_setting(run))
    return build_components(run, source, weights, setting=setting)


def _check_room(run: RunConfig, context: int | None) -> None:
    """Refuse branches that could outgrow the engine, which would lose the longest of them, one by one."""
    if context is not None and run.rollout.branch_tokens > context:
        hint = f"At most {context}: that is what the model, engine.max_tokens_per_slot and engine.memory_gb allow"
        raise ConfigError(
            "branches could outgrow the engine",
            where="rollout.branch_tokens",
            value=run.rollout.branch_tokens,
            hint=hint,
        )


def formats(build: Callable[[Sequence[Tool]], F]) -> Callable[[Sequence[Tool]], F]:
    """`build` with a cache of one: the format of the last set of tools, which nearly always is the agent's."""
    last: list[tuple[tuple[Tool, ...], F]] = []

    def of(tools: Sequence[Tool]) -> F:
        if not last or len(last[0][0]) != len(tools) or any(a is not b for a, b in zip(last[0][0], tools, strict=True)):
            last[:] = [(tuple(tools), build(tools))]
        return last[0][1]

    return of


def placement(run: RunConfig, dtype: "torch.dtype") -> "Placement":
    """Where the ranks of a learner keep the weights of `run`."""
    from arpo.learner.sharding import Placement

    return Placement(dtype=dtype, offload=run.model.offload, replicas=run.model.replicas)


def first_seed(run: RunConfig) -> int:
    """Of torch's global generator (new adapters, dropout): the cold start's, else the run's."""
    return COLD_START_SEED if run.cold_start else run.seed


def hold_model(ranks: "Ranks", run: RunConfig, source: Path, weights: Path | None, dtype: "torch.dtype") -> None:
    """Let the `ranks` hold the model of `run` with the trained `weights` (None: as its source has it)."""
    held = model_source(run, source, weights, shared=ranks.size > 1)
    ranks.call("hold", held, first_seed(run), placement(run, dtype))


def model_source(run: RunConfig, source: Path, weights: Path | None, *, shared: bool = True) -> "ModelSource":
    """The model of `run` with the trained `weights`, for a learner: ranks among which it is `shared` each read their
    own rows."""
    from arpo.learner.rank import ModelSource

    # elsewhere the working folder may be another
    source, weights = source.absolute(), weights.absolute() if weights is not None else None
    build = partial(learner_model, source, run.model, weights, empty=shared)
    return ModelSource(build, weights_folder(source, run.model, weights) if shared else None)


def build_learner(
    components: Components,
    *,
    optim: OptimConfig,
    num_updates: int,
    tell: Callable[[str], None],
    loss: LossConfig | None = None,
    reference: "ModelSource | None" = None,
) -> Learner:
    """The learner of the components' model, for `num_updates` updates. `loss`: None for the recipe's; `reference`:
    the model that its divergence is measured from (None: this one as it is now). `tell` is called with the reason
    where `train.packing` is `auto` and the learner trains flat."""
    from arpo.learner.driver import LearnerDriver
    from arpo.learner.local import LocalLearner
    from arpo.learner.policy import choose_packing
    from arpo.learner.rank import RankSettings

    tree, reason = choose_packing(components.model, components.run.train.packing)
    if reason:
        tell(f"training flat, every trajectory alone: {reason}")
    settings = RankSettings(
        loss=loss or components.run.loss,
        optim=optim,
        tree=tree,
        temperature=components.run.rollout.temperature,
        dtype=components.dtype,
        head_chunk=components.run.model.head_chunk,
    )
    token_budget = components.run.train.token_budget
    if components.ranks is not None:
        components.ranks.call("start", settings, reference)
        return LearnerDriver(components.ranks, settings, num_updates=num_updates, token_budget=token_budget)
    return LocalLearner(
        components.model,
        loss=settings.loss,
        optim=optim,
        num_updates=num_updates,
        token_budget=token_budget,
        tree=tree,
        temperature=settings.temperature,
        dtype=settings.dtype,
        head_chunk=settings.head_chunk,
        reference=reference and reference.build(),
    )


def build_engine(config: EngineConfig, model: Any, tokenizer: Any, launch: Any = None) -> EngineBase:
    """The engine that a recipe names, built on `model` (LoRA merged). The local engine shares its parameters where it
    can use them as they are, so that a run with one device holds the model once. `launch`: starts vLLM's servers on a
    cluster; None: on this machine."""
    if config.kind == "local":
        from arpo.engines.local import LocalEngine

        return LocalEngine.build(config, plain_model(model), tokenizer)
    if config.kind == "vllm":
        from arpo.engines.vllm.engine import VllmEngine

        return VllmEngine.build(config, model, tokenizer, published_state(model), launch)
    engine = import_from_path(config.kind, "engine.kind")(config, plain_model(model), tokenizer)
    if missing := [
        name for name in ("sample", "update_weights", "sleep", "close") if not callable(getattr(engine, name, None))
    ]:
        what = f"this engine has no {' and no '.join(missing)}"
        raise ConfigError(what, where="engine.kind", value=config.kind, hint="see arpo.engines.Engine")
    return with_defaults(engine)
