"""Whether a recipe fits on GPUs, by arithmetic: what each holds, the longest path, tokens a second, what to change.

Knows recipes, GPUs' sizes and the learner's arithmetic (`arpo.learner.memory`). Refuses to know weights: a model's
config is enough. Its figures have not been held against a GPU.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from arpo.engines.local import copied_bytes
from arpo.engines.vllm.config import VllmConfig
from arpo.errors import ConfigError
from arpo.learner.memory import PER_PASS, LearnerPlan, ModelShape, learner_bytes
from arpo.models.loading import LoraSettings
from arpo.recipe.run import RunConfig

GB = 10**9
CPU = "CPU"
"""The name of `Gpus` that are none: ranks of the learner on a CPU."""
USABLE = 0.925
"""Share of a GPU that tensors can take: CUDA's context, NCCL's buffers and holes between blocks take the rest."""
ASLEEP = 2 * GB
"""What a vLLM that sleeps keeps of its GPU."""
SPEEDS = {  # TFLOP/s of dense bfloat16 products, TB/s of memory, as the makers say
    "A100": (312, 2.0),
    "H100": (989, 3.35),
    "H200": (989, 4.8),
    "B200": (2250, 8.0),
    "L40S": (362, 0.86),
    "A6000": (155, 0.77),
    "RTX4090": (165, 1.01),
    "RTX3090": (71, 0.94),
}
_GPUS = re.compile(r"(?:(\d{1,6})x)?([A-Za-z][A-Za-z0-9]*)-(\d{1,6})")
_USE = 0.4
"""Of the makers' figures, what training and sampling are taken to reach."""


@dataclass(frozen=True, slots=True)
class Gpus:
    """`count` GPUs of `name`, each with `memory` bytes."""

    count: int
    name: str
    memory: float

    @property
    def is_main_memory(self) -> bool:
        """Whether ranks compute on a CPU: each has its share of main memory, and so has the engine."""
        return self.name == CPU

    @classmethod
    def parse(cls, text: str) -> "Gpus":
        """Of `8xH100-80` or `A6000-48`. Raises ConfigError."""
        match = _GPUS.fullmatch(text.strip())
        name = match[2].upper() if match else ""
        if match is None or not int(match[1] or 1) or not int(match[3]) or name not in SPEEDS:
            hint = f"COUNTxNAME-GB, such as 8xH100-80 or RTX4090-24; names: {', '.join(SPEEDS)}"
            raise ConfigError("is not a number of GPUs", where="--gpus", value=text, hint=hint)
        return cls(int(match[1] or 1), name, int(match[3]) * GB)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """What a recipe takes of each GPU that a rank of the learner has."""

    run: RunConfig
    gpus: Gpus
    shape: ModelShape
    learner: LearnerPlan
    ranks: int | None
    """As they were given; None: those of the learner follow from the GPUs."""
    engines: int
    """GPUs that vLLM has alone."""
    tokens: int
    """Of the longest pack."""
    parts: Mapping[str, float]
    engine: float
    """Bytes that the engine holds on a rank's GPU during an update."""

    @property
    def needed(self) -> float:
        return self.parts["total"] + self.engine

    @property
    def limit(self) -> float:
        return self.gpus.memory * (1 if self.gpus.is_main_memory else USABLE)

    @property
    def engine_fits(self) -> bool:
        """Whether the engine has room for its weights and a branch's keys and values."""
        keys = self.run.rollout.branch_tokens * self.shape.key_bytes(2)
        return 2 * self.shape.parameters / self._parallel + keys / self._parallel <= self.engine_room

    @property
    def awake(self) -> float:
        """Bytes of a rank's GPU while vLLM, which slept during the update, samples beside what the learner keeps."""
        if self.engine != ASLEEP:
            return 0.0
        return self.engine_room + sum(self.parts.get(name, 0.0) for name in ("weights", "moments", "reference"))

    @property
    def fits(self) -> bool:
        return self.needed <= self.limit and self.engine_fits and self.awake <= self.gpus.memory

    @property
    def _parallel(self) -> int:
        vllm = self.run.engine.vllm
        return int(vllm.options.get("tensor_parallel_size", 1)) if vllm else 1

    @property
    def engine_room(self) -> float:
        """Bytes of one GPU that the engine may take while it samples."""
        if self.run.engine.kind == "vllm" and not self.gpus.is_main_memory:
            share = self.run.engine.vllm.gpu_memory_utilization if self.run.engine.vllm else 0.4
            return share * self.gpus.memory
        return 2 * self.shape.parameters + self.run.engine.memory_gb * 2**30

    @property
    def longest_path(self) -> int:
        """Tokens of a pack that would fit."""
        left = self.limit - self.engine
        longer = bisect_right(range(10**7), left, key=lambda n: learner_bytes(self.shape, self.learner, n)["total"])
        return max(0, longer - 1)


def shape_of(run: RunConfig, folder: Path) -> ModelShape:
    """Sizes of the model whose config lies in `folder`, with the adapters of `run`. Raises ConfigError."""
    model = meta_model(folder, trust=run.model.trust_remote_code)
    try:
        shape = ModelShape.from_model(model)
    except AttributeError as error:
        what = f"the memory of {type(model).__name__} cannot be told: {error}"
        raise ConfigError(what, where="model.source", value=run.model.source) from error
    return replace(shape, adapters=_adapters(model, run.model.lora)) if run.model.lora else shape


def meta_model(folder: Path, *, trust: bool = False) -> Any:
    """The model whose config lies in `folder`, without memory. Raises ConfigError."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    from arpo.models.loading import check_files, refuse_code

    try:
        check_files(folder)
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust)
        with init_empty_weights(include_buffers=True):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust)
            model.tie_weights()
            return model
    except (OSError, ValueError, AttributeError, KeyError) as error:
        if isinstance(error, ConfigError):
            raise
        refuse_code(error, str(folder))
        what = f"no causal language model's config can be read from {folder}: {error}"
        raise ConfigError(what, where="model.source") from error


def _adapters(model: Any, lora: LoraSettings) -> int:
    """Parameters of the adapters that PEFT would add to `model`, which takes it seconds."""
    targets, embedding, head = lora.targets, model.get_input_embeddings(), model.get_output_embeddings()
    numbers = 0
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if weight is None or weight.dim() != 2:
            continue
        every = targets == "all-linear" and module is not embedding and module is not head
        if every or (targets != "all-linear" and any(f".{name}".endswith(f".{target}") for target in targets)):
            numbers += lora.rank * sum(weight.shape)
    return numbers


def plan_memory(run: RunConfig, shape: ModelShape, gpus: Gpus, *, ranks: int | None = None) -> MemoryPlan:
    """`ranks`: None for a rank a GPU that vLLM's `replicas` do not name; with all named, one a GPU beside vLLM.
    Raises ConfigError where a replica names a GPU that is not there."""
    vllm = run.engine.vllm if run.engine.kind == "vllm" else None
    groups = () if vllm is None or isinstance(vllm.replicas, int) else vllm.replicas
    named = {device for group in groups for device in group.split(",")}
    first = {str(number) for number in range(ranks or gpus.count)}
    if ranks is not None:  # they take the first GPUs
        apart = set() if named & first else named
    elif strange := sorted(named - first):
        what = f"there are {gpus.count} GPUs, from 0 on"
        raise ConfigError(what, where="engine.vllm.replicas", value=", ".join(strange))
    else:
        apart = named if named < first else set()
    size = ranks or gpus.count - len(apart)
    learner = LearnerPlan(
        ranks=size,
        replicas=run.model.replicas if size % run.model.replicas == 0 else 1,
        width=4 if run.model.dtype == "float32" else 2,
        checkpointing=run.model.gradient_checkpointing,
        offload=run.model.offload and not gpus.is_main_memory,
        moments=2.1 if run.optim.moments == "int8" else 8,
        head_chunk=run.model.head_chunk,
        nf4=run.model.lora is not None and run.model.lora.base == "nf4",
        reference=run.loss.divergence is not None and run.model.lora is None,
    )
    tokens = max(run.train.token_budget, run.rollout.branch_tokens)  # a path is never cut
    if gpus.is_main_memory:
        engine = engine_beside(run, shape, learner.width) / size
    elif vllm is None:
        engine = 0.0 if run.engine.kind == "openai" else 2 * shape.parameters + run.engine.memory_gb * 2**30
    elif apart or vllm.urls:
        engine = 0.0
    else:
        engine = ASLEEP if vllm.sleep else vllm.gpu_memory_utilization * gpus.memory
    parts = learner_bytes(shape, learner, tokens)
    if gpus.is_main_memory:  # while a checkpoint is written, updates go on beside a copy of float32
        copy = 12 * (shape.adapters or shape.parameters) * learner.replicas / size
        parts |= {"copy for a checkpoint": copy, "total": parts["total"] + copy}
    return MemoryPlan(
        run=run,
        gpus=gpus,
        shape=shape,
        learner=learner,
        ranks=ranks,
        engines=len(apart),
        tokens=tokens,
        parts=parts,
        engine=engine,
    )


def engine_beside(run: RunConfig, shape: ModelShape, width: int) -> float:
    """Bytes of main memory that the engines take during an update. The built-in one gives its keys back for it."""
    if run.engine.kind == "vllm":
        vllm = run.engine.vllm or VllmConfig()
        servers = max(1, vllm.replicas if isinstance(vllm.replicas, int) else len(vllm.replicas))
        return 0 if vllm.urls else servers * (width * shape.parameters + run.engine.memory_gb * 2**30)
    if run.engine.kind != "local":
        return 0
    copied = partial(copied_bytes, run.engine, torch.device("cpu"))
    hidden = shape.hidden
    narrowing = sum(hidden * width * copied(width) for width in (shape.query_width, shape.mlp_width))
    others = shape.layer - hidden * (shape.query_width + shape.mlp_width)
    layer = others * copied(hidden) + narrowing
    return shape.layers * layer + shape.vocab * hidden * (copied(hidden) + copied())


def remedies(plan: MemoryPlan) -> list[str]:
    """The fewest changes of keys that make the recipe fit; empty where none of those known here does."""
    changes = [*_changes(plan)]
    for count in range(1, len(changes) + 1):
        for chosen in combinations(changes, count):
            run = plan.run
            for _, update in chosen:
                run = update(run)
            if run.model.offload and run.optim.moments == "int8":
                continue  # refused together
            if plan_memory(run, plan.shape, plan.gpus, ranks=plan.ranks).fits:
                return [text for text, _ in chosen]
    return []


def _changes(plan: MemoryPlan) -> Iterator[tuple[str, Any]]:
    run, gpus = plan.run, not plan.gpus.is_main_memory
    if not run.model.gradient_checkpointing:
        yield "model.gradient_checkpointing=true", lambda r: _with(r, "model", gradient_checkpointing=True)
    vllm = run.engine.vllm if run.engine.kind == "vllm" and gpus else None
    if vllm and plan.engine > ASLEEP and not vllm.urls and not run.train.max_staleness:
        yield "engine.vllm.sleep=true", lambda r: _with(r, "engine", vllm=vllm.model_copy(update={"sleep": True}))
    smaller = max(run.rollout.branch_tokens, 4096)
    if run.train.token_budget > smaller:
        budget = -(-smaller // 1024) * 1024
        yield f"train.token_budget={budget}", lambda r: _with(r, "train", token_budget=budget)
    if run.model.head_chunk > 128:
        yield "model.head_chunk=128", lambda r: _with(r, "model", head_chunk=128)
    lora = run.model.lora
    if gpus and lora and lora.base == "full" and plan.learner.ranks == 1:
        in_4_bits = lora.model_copy(update={"base": "nf4"})
        yield "model.lora.base=nf4", lambda r: _with(r, "model", lora=in_4_bits)
    if gpus and run.optim.moments != "int8" and not run.model.offload and not run.model.lora:
        yield "optim.moments=int8", lambda r: _with(r, "optim", moments="int8")
    if gpus and not run.model.offload and run.optim.moments != "int8" and plan.learner.ranks > 1:
        yield "model.offload=true", lambda r: _with(r, "model", offload=True)
    if gpus and run.engine.kind == "local" and run.engine.memory_gb > 8:
        yield "engine.memory_gb=8", lambda r: _with(r, "engine", memory_gb=8.0)


def _with(run: RunConfig, part: str, **values: Any) -> RunConfig:
    return run.model_copy(update={part: getattr(run, part).model_copy(update=values)})


def describe(plan: MemoryPlan) -> str:
    """The plan as text: bytes by part, longest path, speeds, what limits and what to change."""
    gpus, shape, learner = plan.gpus, plan.shape, plan.learner
    placed = f"{learner.ranks} ranks of the learner" if learner.ranks > 1 else "the learner on one GPU"
    beside = f", vLLM on {plan.engines} more" if plan.engines else ""
    lines = [
        f"{plan.run.name} on {gpus.count} x {gpus.name} of {gpus.memory / GB:.0f} GB: {placed}{beside}. "
        f"By arithmetic; packs of {plan.tokens:,} tokens.",
        f"{shape.parameters / 1e9:.2f} B parameters"
        + (f", {shape.adapters / 1e6:.0f} M of adapters trained" if shape.adapters else ", all trained"),
        "",
        "GB of each GPU of the learner, during an update",
    ]
    lines += [
        f"  {name:32}{size / GB:8.1f}" + ("  (of these the larger counts)" if name in PER_PASS else "")
        for name, size in plan.parts.items()
        if name != "total"
    ]
    lines += [
        f"  {'engine':32}{plan.engine / GB:8.1f}",
        f"  {'in all, of ' + format(plan.limit / GB, '.0f') + ' usable':32}{plan.needed / GB:8.1f}",
        "",
        f"longest path or pack that fits: {plan.longest_path:,} tokens; the recipe's longest path has "
        f"{plan.run.rollout.branch_tokens:,}",
        *_speeds(plan),
    ]
    return "\n".join(lines)


def _speeds(plan: MemoryPlan) -> list[str]:
    flops, bandwidth = SPEEDS[plan.gpus.name]
    shape, run = plan.shape, plan.run
    passes = (4 if shape.adapters else 6) + (2 if run.model.gradient_checkpointing else 0)
    train = plan.learner.ranks * flops * 1e12 * _USE / (passes * shape.parameters)
    weights, key = 2 * shape.parameters, shape.key_bytes(2)
    keys = max(plan.engine_room * 0.95 - weights, key * run.rollout.branch_tokens)
    live = max(1.0, min(float(run.engine.slots), keys / (key * run.rollout.branch_tokens / 2)))
    read = weights + live * key * run.rollout.branch_tokens / 2
    replicas = plan.engines or (plan.gpus.count if run.engine.kind == "vllm" else 1)
    sample = replicas * min(live * bandwidth * 1e12 * _USE / read, flops * 1e12 * _USE / (2 * shape.parameters))
    tokens = run.train.tasks_per_step * run.rollout.leaves * run.rollout.branch_tokens
    slower = "sampling" if tokens / sample > tokens / train else "the update"
    return [
        f"tokens a second: {train:,.0f} trained, {sample:,.0f} sampled "
        f"({live:.0f} turns at once on each of {replicas} engines)",
        f"a step has at most {tokens / 1e6:.1f} M tokens: {tokens / sample / 60:.0f} min sampling, "
        f"{tokens / train / 60:.0f} min update, if none were shared; what limits is {slower}",
    ]


def check_fits(plan: MemoryPlan) -> None:
    """Raises ConfigError where the recipe cannot fit, with the keys that would make it fit."""
    if plan.fits:
        return
    if not plan.engine_fits:
        where, needs = "engine.vllm.gpu_memory_utilization", 2 * plan.shape.parameters / GB
        what = f"the engine's {plan.engine_room / GB:.0f} GB hold no {needs:.0f} GB of weights and a branch's keys"
    elif plan.awake > plan.gpus.memory:
        where = "engine.vllm.gpu_memory_utilization"
        what = f"vLLM awake and what the learner keeps take {plan.awake / GB:.3g} GB of each GPU"
    else:
        where = "model"
        of = "main memory for each rank" if plan.gpus.is_main_memory else "each GPU"
        what = f"an update needs {plan.needed / GB:.3g} GB of {of}, and {plan.limit / GB:.3g} GB are usable"
    fitting = remedies(plan)
    more = "" if plan.gpus.is_main_memory else "more GPUs, "
    hint = f"It fits with {' '.join(fitting)}" if fitting else f"Use {more}LoRA (model.lora={{}}) or a smaller model"
    raise ConfigError(what, where=where, value=plan.run.model.source, hint=f"{hint}; --override goes on regardless")
