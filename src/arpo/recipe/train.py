"""What a recipe says about the course of training and of the cold start. Imports nothing heavy."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from arpo.config import Config, conflict

DEFAULT_STEPS = 100


class TrackerConfig(Config):
    """A tracker of metrics. Its name alone is short for a group with `use`."""

    use: Literal["tensorboard", "wandb", "trackio", "mlflow"]
    """Which one. TensorBoard's files are always written."""
    project: Annotated[str, Field(min_length=1)] = "arpo"
    """The project that the run appears in (MLflow: the experiment)."""
    group: Annotated[str, Field(min_length=1)] | None = None
    """What the run is shown with, such as the seeds of one setting (MLflow: the tag `group`)."""
    tags: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Words to find the run by (MLflow: tags whose value is `true`; trackio has none)."""

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, given: Any) -> Any:
        return {"use": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _has_them(self) -> Self:
        lacks = {"tensorboard": ("project", "group", "tags"), "trackio": ("tags",)}.get(self.use, ())
        for name in lacks:
            if name in self.model_fields_set and getattr(self, name) != type(self).model_fields[name].default:
                raise conflict(f"{self.use} has no {name}: leave it out", name)
        return self


class DynamicSampling(Config):
    """DAPO's dynamic sampling: groups whose leaves all have the same reward teach nothing and are replaced by further
    tasks."""

    max_batches: Annotated[int, Field(ge=1)] = 3
    """At most this many times `tasks_per_step` tasks are tried for one step; then it goes on with what it has."""


class EarlyStop(Config):
    """End when the validation accuracy no longer rises."""

    patience: Annotated[int, Field(ge=1)] = 3
    """Evaluations in a row without a new best."""
    min_gain: Annotated[float, Field(ge=0)] = 0.0
    """A new best is better than the last one by more than this (accuracy, 0 to 1)."""


class GateThresholds(Config):
    """The least that the first collected step must show before training on it makes sense (shares from 0 to 1)."""

    format: float = 0.9
    """Leaves in the right format."""
    tool_use: float = 0.9
    """Leaves with at least one tool call that ran."""
    mixed_groups: float = 0.5
    """Groups whose leaves do not all have the same reward: the others teach nothing."""
    rise_positive: float = 0.2
    """Tips where the entropy is higher after the tool result than in the first turn."""


class TrainConfig(Config):
    """How long, in which portions, and what is kept."""

    steps: Annotated[int, Field(ge=1)] | None = None
    """Training steps. Give this or `epochs`; with neither, 100."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the training tasks. Those that dynamic sampling tries besides are not counted."""
    tasks_per_step: Annotated[int, Field(ge=1)] = 8
    """Tasks (trees) a step."""
    updates_per_step: Annotated[int, Field(ge=1)] = 1
    """Optimizer updates a step, on disjoint mini-batches of whole tasks: each token is trained once."""
    max_staleness: Annotated[int, Field(ge=0)] = 0
    """Steps that sampling may run ahead of training. 0: strictly on-policy. N: the next steps are sampled while the
    learner works, by weights at most N versions older than those that are trained; `loss.tis_cap` corrects for it."""
    token_budget: Annotated[int, Field(ge=64)] = 8192
    """Most tokens in one forward pass (a micro-batch). Larger trees are split into groups of leaves, each with its
    trunk."""
    packing: Literal["auto", "tree", "flat"] = "auto"
    """`tree` computes shared tokens once, `flat` every trajectory alone; `auto`: tree where the model allows it."""
    dynamic_sampling: DynamicSampling | None = None
    """Null: every group stays in the batch."""
    eval_every: Annotated[int, Field(ge=1)] | None = None
    """Steps between evaluations on the validation split; null: none while training."""
    eval_limit: Annotated[int, Field(ge=1)] | None = 100
    """Questions of such an evaluation; null: the whole split."""
    save_every: Annotated[int, Field(ge=1)] | None = 10
    """Steps between checkpoints; the last step always saves one. Null: only that one."""
    keep_last: Annotated[int, Field(ge=1)] = 2
    """Checkpoints kept besides the best one."""
    early_stop: EarlyStop | None = None
    """Null: all steps are done."""
    minutes: Annotated[float, Field(gt=0)] | None = None
    """Wall-clock time for all, cold start and evaluations too: fewer steps are done rather than overrun. Null: no
    limit."""
    gates: GateThresholds | None = None
    """What the first collected step must show before anything is trained on it. Null: not checked, only reported."""
    show_every: Annotated[int, Field(ge=1)] | None = None
    """Steps between prints of the best and the worst branch of a step; null: none (`arpo show` and `arpo view` show any
    later)."""
    trackers: tuple[TrackerConfig, ...] = (TrackerConfig(use="tensorboard"),)
    """Where metrics go besides metrics.jsonl: names, or groups such as `{use: wandb, project: mine, tags: [first]}`."""

    @model_validator(mode="before")
    @classmethod
    def _some_length(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("steps") is None and given.get("epochs") is None:
            return {**given, "steps": DEFAULT_STEPS}
        return given

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise conflict("give steps or epochs, not both (null takes one back)", "steps", "epochs")
        if self.updates_per_step > self.tasks_per_step:
            raise conflict(
                f"updates_per_step ({self.updates_per_step}) cannot exceed tasks_per_step ({self.tasks_per_step}): "
                "each update needs a task of its own",
                "updates_per_step",
                "tasks_per_step",
            )
        if self.early_stop and self.eval_every is None:
            raise conflict("early_stop looks at the validation accuracy: set eval_every", "early_stop", "eval_every")
        return self

    def num_steps(self, num_tasks: int) -> int:
        """Training steps on so many tasks."""
        return self.steps or max(1, round((self.epochs or 1.0) * num_tasks / self.tasks_per_step))


class ColdStartConfig(Config):
    """Supervised fine-tuning on traces before RL, tool results masked."""

    traces: Annotated[str, Field(min_length=1)] = "atlas"
    """`atlas`: written by the atlas' own oracle; else a file of traces."""
    num_traces: Annotated[int, Field(ge=1)] | None = 64
    """Traces used, in a seeded order; null: all."""
    batch: Annotated[int, Field(ge=1)] = 8
    """Traces an update."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Updates. Give this or `epochs`; with neither, one epoch."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the traces."""
    lr: Annotated[float, Field(gt=0)] = 1e-4
    """Peak learning rate (AdamW; betas, decay and clipping as in `optim`)."""
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    """What the rate does after warm-up: stay, or fall to 0."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the updates over which the rate rises from 0."""
    bundled: bool = True
    """Take the cold start that comes with arpo where one was made by just these settings (that of the quickstart);
    false: train it here."""
    seed: int = 0
    """Keys the choice and order of traces, apart from the run's seed: runs that differ in that alone share their cold
    start."""

    @model_validator(mode="before")
    @classmethod
    def _some_length(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("steps") is None and given.get("epochs") is None:
            return {**given, "epochs": 1.0}
        return given

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise conflict("give steps or epochs, not both (null takes one back)", "steps", "epochs")
        return self

    def num_updates(self, num_traces: int) -> int:
        """Updates where there are so many traces."""
        used = min(num_traces, self.num_traces or num_traces)
        return self.steps or max(1, math.ceil((self.epochs or 1.0) * used / self.batch))


class PlanConfig(Config):
    """Speeds of the machine that a run was planned for, in tokens a second."""

    trained_tokens_per_s: Annotated[float, Field(gt=0)]
    """Through forward and backward of the learner."""
    sampled_tokens_per_s: Annotated[float, Field(gt=0)]
    """Through the engine, those of prompts and of turns together."""
