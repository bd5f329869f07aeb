"""A run's parts, built once from its recipe: model, engine, tools, chat, reward. Chat, evaluation and training share them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from arpo.chat.config import build_chat
from arpo.engines import Engine
from arpo.engines.config import EngineConfig
from arpo.errors import ConfigError
from arpo.import_path import import_from_path
from arpo.learner.config import LossConfig, OptimConfig
from arpo.learner.lora import plain_model
from arpo.models.loading import compute_dtype, load_model
from arpo.recipe.run import RunConfig
from arpo.rewards import Reward
from arpo.rewards.config import build_reward
from arpo.rollout.agent import Agent, EvalAgent
from arpo.tasks import Task
from arpo.tasks.data import LoadReport, load_with_report
from arpo.tools import Tool, isolation_notes, isolation_of
from arpo.tools.config import build_entries
from arpo.tools.gateway import ToolGateway, build_gateway, recorded_offers

if TYPE_CHECKING:
    import torch

    from arpo.learner.local import Learner

F = TypeVar("F")  # a chat format


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a policy meets: tools, and a reward for what it did with them."""

    tools: tuple[Tool, ...]
    reward: Reward
    tool_gateway: ToolGateway  # what stands around their calls

    @property
    def isolation(self) -> dict[str, str]:
        """How code that the policy writes is kept apart from this machine, by the tool that runs it."""
        return isolation_of(self.tools)

    def notes(self) -> list[str]:
        """What is to be said at the start: what keeps code apart, and which tools answer from where."""
        return [*isolation_notes(self.tools), *self.tool_gateway.notes()]


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
    model: Any  # a transformers or PEFT model
    tokenizer: Any
    dtype: "torch.dtype"  # of matrix products

    def save_tokenizer(self, folder: Path) -> None:
        self.tokenizer.save_pretrained(folder)


def read_tasks(run: RunConfig, split: str) -> tuple[list[Task], LoadReport | None]:
    """The recipe's tasks of a split, and what was skipped or mended: nothing where the recipe names none. Raises ConfigError,
    which names the key (`data.train.source`), and FormatError."""
    config = getattr(run.data, split)
    try:
        return load_with_report(config) if config is not None else ([], None)
    except ConfigError as error:
        raise ConfigError(error.message, where=f"data.{split}.{error.where}", value=error.value, hint=error.hint) from error


def model_folder(run: RunConfig, weights: Path | None = None) -> Path:
    """The folder of the run's model, fetched if it is not there; none is needed for one that is served elsewhere.

    Trained `weights` are a whole model, but for those of LoRA: a run that was moved is used without its source.
    """
    from arpo.models.sources import fetch

    if run.engine.kind == "openai":
        return Path()
    return weights if weights is not None and run.model.lora is None else fetch(run.model.source)


def build_setting(run: RunConfig) -> Setting:
    """The tools and the reward of `run`. Raises ConfigError where one cannot be set up."""
    entries = build_entries(run.tools.offered, recorded_offers(run.tools))
    tools = tuple(tool for tools in entries for tool in tools)
    return Setting(tools=tools, reward=build_reward(run.reward), tool_gateway=build_gateway(run.tools, entries))


def build_components(run: RunConfig, source: Path, weights: Path | None = None, *, setting: Setting | None = None) -> Components:
    """Build every part of `run` on the model at `source`, or with the trained `weights` (a checkpoint's model folder; with LoRA it
    holds the adapters alone); `setting` is built too unless it is given. Raises ConfigError where a part cannot be set up.

    torch's own random numbers (new adapters, dropout) start from the seed of what comes first: the cold start's, else the run's.
    """
    import torch

    setting = setting or build_setting(run)
    torch.manual_seed(run.cold_start.seed if run.cold_start else run.seed)
    model, tokenizer = load_model(source, run.model, weights)
    format_for = formats(partial(build_chat, run.chat, tokenizer))
    format_for(setting.tools)  # a chat format that does not fit the model or the tools is reported now
    engine = build_engine(run.engine, model, tokenizer)
    _check_room(run, getattr(engine, "context", None))
    agent = Agent(
        engine=engine,
        tools=setting.tools,
        format=format_for,
        vocab_size=model.config.get_text_config().vocab_size,
        tool_gateway=setting.tool_gateway,
    )
    return Components(
        run=run,
        model=model,
        tokenizer=tokenizer,
        dtype=compute_dtype(run.model, model.device),
        agent=agent,
        reward=setting.reward,
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
            "branches could outgrow the engine", where="rollout.branch_tokens", value=run.rollout.branch_tokens, hint=hint
        )


def formats(build: Callable[[Sequence[Tool]], F]) -> Callable[[Sequence[Tool]], F]:
    """`build`, keeping the format of the set of tools that was asked for last (nearly always the agent's own)."""
    last: list[tuple[tuple[Tool, ...], F]] = []

    def of(tools: Sequence[Tool]) -> F:
        if not last or len(last[0][0]) != len(tools) or any(a is not b for a, b in zip(last[0][0], tools, strict=True)):
            last[:] = [(tuple(tools), build(tools))]
        return last[0][1]

    return of


def build_learner(
    components: Components,
    *,
    optim: OptimConfig,
    num_updates: int,
    tell: Callable[[str], None],
    loss: LossConfig | None = None,
    reference: Any = None,
) -> "Learner":
    """The learner of the job's model, for `num_updates` updates; `tell` hears why it trains flat where that was left open.
    `loss`: None for the recipe's; `reference`: what its divergence is measured from (None: the model as it is now)."""
    from arpo.learner.local import Learner
    from arpo.learner.parity import choose_packing

    tree, reason = choose_packing(components.model, components.run.train.packing)
    if reason:
        tell(f"training flat, every trajectory alone: {reason}")
    return Learner(
        components.model,
        loss=loss or components.run.loss,
        optim=optim,
        num_updates=num_updates,
        token_budget=components.run.train.token_budget,
        tree=tree,
        temperature=components.run.rollout.temperature,
        dtype=components.dtype,
        reference=reference,
    )


def build_engine(config: EngineConfig, model: Any, tokenizer: Any) -> Engine:
    """The engine that a recipe names, on the learner's model."""
    if config.kind == "local":
        from arpo.engines.local import LocalEngine

        return LocalEngine.build(config, plain_model(model), tokenizer)
    if config.kind == "vllm":
        from arpo.engines.vllm.engine import VllmEngine

        return VllmEngine.build(config, plain_model(model), tokenizer)
    engine: Engine = import_from_path(config.kind, "engine.kind")(config, plain_model(model), tokenizer)
    if missing := [name for name in ("sample", "load", "rest", "close") if not callable(getattr(engine, name, None))]:
        what = f"this engine has no {' and no '.join(missing)}"
        raise ConfigError(what, where="engine.kind", value=config.kind, hint="see arpo.engines.Engine")
    return engine
