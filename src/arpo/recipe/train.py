"""What a recipe says about the course of training and of the cold start. Imports nothing heavy."""

import math
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from arpo.config import Config, conflict, without_password

DEFAULT_STEPS = 100
COLD_START_SEED = 0
"""Keys the choice and order of traces, apart from the run's seed: runs that differ in that alone share their cold
start."""


TrackerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]
TRACKER_OPTIONS: dict[str, tuple[str, ...]] = {
    "tensorboard": (),
    "wandb": ("project", "group", "tags"),
    "trackio": ("project", "group"),
    "mlflow": ("project", "group", "tags"),
}
"""What each tracker may be told."""
BudgetName = Literal["leaves", "tokens_generated", "tokens_trained", "calls", "seconds"]
BUDGETS: dict[BudgetName, str] = {
    "leaves": "leaves/all",
    "tokens_generated": "tokens/generated",
    "tokens_trained": "train/tokens_trained",
    "calls": "calls/executed",
    "seconds": "seconds/step",
}
"""The metric of a step that each budget of training counts."""
GateName = Literal["format", "tool_use", "mixed_groups", "rise_positive"]
GATES: dict[GateName, float] = {"format": 0.9, "tool_use": 0.9, "mixed_groups": 0.5, "rise_positive": 0.2}
"""The least that the first step must show, unless a recipe says otherwise: shares of leaves in the right format, of
leaves with a tool call that ran, of groups with mixed rewards, and of tips where the entropy rose."""


def _trackers(trackers: Any) -> Any:
    """`[wandb]` is short for `{wandb: {}}`."""
    if isinstance(trackers, list | tuple):
        if not all(isinstance(name, str) for name in trackers):
            raise ValueError("a list holds names alone; options stand under a name: {wandb: {project: mine}}")
        if len(set(trackers)) < len(trackers):
            raise ValueError("names a tracker twice")
        trackers = {name: {} for name in trackers}
    return {name: options or {} for name, options in trackers.items()} if isinstance(trackers, dict) else trackers


def _gates(gates: Any) -> Any:
    """The thresholds with those that are not given."""
    return {**GATES, **gates} if isinstance(gates, dict) else gates


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
    dynamic_sampling: Annotated[int, Field(ge=1)] | None = None
    """DAPO's dynamic sampling: groups whose leaves all have the same reward are replaced by further tasks. At most this
    many times `tasks_per_step` tasks are tried for one step (DAPO: 3); then it trains on what it has. Null: every group
    stays in the batch."""
    eval_every: Annotated[int, Field(ge=1)] | None = None
    """Steps between evaluations on the validation split; null: none while training."""
    eval_limit: Annotated[int, Field(ge=1)] | None = 100
    """Questions of such an evaluation; null: the whole split."""
    save_every: Annotated[int, Field(ge=1)] | None = 10
    """Steps between checkpoints; the last step always saves one. Null: only that one."""
    keep_last: Annotated[int, Field(ge=1)] = 2
    """Checkpoints kept besides the best one."""
    copy_to: Annotated[str, Field(pattern=r"^[a-z][a-z0-9+.-]*://"), AfterValidator(without_password)] | None = None
    """A URL that fsspec knows (`s3://bucket/runs`; you install its package, here s3fs): the run is copied to URL/NAME
    with each checkpoint and at its end, and `arpo train --resume URL/NAME` goes on with the copy on another machine."""
    early_stop: Annotated[int, Field(ge=1)] | None = None
    """End after this many evaluations in a row without a better validation accuracy. Null: all steps are done."""
    minutes: Annotated[float, Field(gt=0)] | None = None
    """Wall-clock time for all, cold start and evaluations too: fewer steps are done rather than overrun. Null: no
    limit."""
    budget: dict[BudgetName, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """What training steps may spend in all, so that runs can be compared at equal cost: `leaves`, `tokens_generated`,
    `tokens_trained`, executed tool `calls`, `seconds`. Training ends after the step that reaches one of them."""
    gates: Annotated[dict[GateName, float], BeforeValidator(_gates)] | None = None
    """The least that the first collected step must show before anything is trained on it, as shares from 0 to 1: leaves
    in the right `format` (0.9), leaves with a tool call that ran (`tool_use`, 0.9), groups whose leaves do not all have
    the same reward (`mixed_groups`, 0.5), tips where the entropy is higher after the tool result than in the first turn
    (`rise_positive`, 0.2). `{}`: these. Null: not checked, only reported."""
    show_every: Annotated[int, Field(ge=1)] | None = None
    """Steps between prints of the best and the worst branch of a step; null: none (`arpo show` and `arpo view` show any
    later)."""
    trackers: Annotated[dict[TrackerName, dict[str, Any]], BeforeValidator(_trackers)] = Field(
        default={"tensorboard": {}}
    )
    """Where metrics go besides metrics.jsonl: a list of names, or names with options, such as `{wandb: {project: mine,
    group: paper-rule, tags: [first]}}`. `project` (MLflow: the experiment), `group` (runs to be shown together) and
    `tags` are for `wandb`, `mlflow` and, but for tags, `trackio`. TensorBoard's files are always written."""

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
        for tracker, options in self.trackers.items():
            for name, value in options.items():
                where = f"trackers.{tracker}.{name}"
                if name not in TRACKER_OPTIONS[tracker]:
                    raise conflict(f"{tracker} has no {name}: leave it out", where)
                texts = value if name == "tags" and isinstance(value, list | tuple) else [value]
                if not all(isinstance(text, str) and text for text in texts):
                    raise conflict("should be a list of text" if name == "tags" else "should be text", where)
        if self.early_stop and self.eval_every is None:
            raise conflict("early_stop looks at the validation accuracy: set eval_every", "early_stop", "eval_every")
        return self

    def num_steps(self, num_tasks: int) -> int:
        """Training steps on so many tasks."""
        return self.steps or max(1, round((self.epochs or 1.0) * num_tasks / self.tasks_per_step))


class ColdStartConfig(Config):
    """Supervised fine-tuning on traces before RL, tool results masked."""

    traces: Annotated[str, Field(min_length=1)] = "atlas"
    """`atlas`: written by the atlas' own oracle; else a file of traces, or an import path pkg.mod:function, which is
    called with `limit`, `seed` and the options of the training data and returns traces (`arpo.tasks.traces`)."""
    num_traces: Annotated[int, Field(ge=1)] | None = 64
    """Traces used, in a seeded order; null: all."""
    batch: Annotated[int, Field(ge=1)] = 8
    """Traces an update."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Updates. Give this or `epochs`; with neither, one epoch."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the traces."""
    lr: Annotated[float, Field(gt=0)] = 1e-4
    """Peak learning rate: it rises over the first tenth of the updates and falls to 0 as a cosine (AdamW; betas, decay
    and clipping as in `optim`)."""
    bundled: bool = True
    """Take the cold start that comes with arpo where one was made by just these settings (that of the quickstart);
    false: train it here."""

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
