"""A program: the resident memory that updates take at their peak, and the built-in engine beside the model, with what
arithmetic says, in bytes, a line of JSON a case. Every block that is freed goes back to the system, so that holes in
glibc's heap do not count."""

import asyncio
import ctypes
import gc
import json
from pathlib import Path
from typing import Any

import torch
import transformers

from arpo.assembly.memory_plan import engine_beside
from arpo.core.credit import CreditedTree
from arpo.engines.config import EngineConfig, has_fast_bf16
from arpo.engines.local import LocalEngine
from arpo.engines.network import has_half_weights
from arpo.learner.attention import layout_of
from arpo.learner.config import LossConfig, OptimConfig
from arpo.learner.local import LocalLearner
from arpo.learner.malloc_trim import keep_freed
from arpo.learner.memory import LearnerPlan, ModelShape, learner_bytes
from arpo.learner.rank import MiniBatch
from arpo.models.loading import LoraSettings, with_lora
from arpo.recipe.load import load_recipe
from random_trees import random_tree

SMALL = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096}
SIZES = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "vocab_size": 8192}
CASES: dict[str, tuple[Any, ...]] = {
    "checkpointing": ("Qwen3", True, "tree"),
    "no checkpointing": ("Qwen3", False, "tree"),
    "weights of attention recomputed": ("Qwen2", True, "path"),
    "adapters": ("Qwen3", True, "tree", torch.float32, True),
    "bfloat16": ("Qwen3", True, "tree", torch.bfloat16),
    "bfloat16, no checkpointing": ("Qwen3", False, "tree", torch.bfloat16),
}
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


ENGINES = {"an engine's float16 weights": "float16", "an engine's packed weights": "float32"}


def model_of(family: str, tied: bool = False, **sizes: Any) -> Any:
    config = getattr(transformers, f"{family}Config")(**SMALL, **sizes, head_dim=64, tie_word_embeddings=tied)
    return getattr(transformers, f"{family}ForCausalLM")(config)


def learner(family: str, checkpointing: bool, dtype: torch.dtype, lora: bool, **sizes: Any) -> LocalLearner:
    model = model_of(family, **sizes)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if lora:
        model.enable_input_require_grads()
        model = with_lora(model, LoraSettings())
    loss, optim = LossConfig(), OptimConfig()
    return LocalLearner(model.train(), loss=loss, optim=optim, num_updates=9, token_budget=4000, tree=True, dtype=dtype)


def update(rank: LocalLearner, *trees: CreditedTree) -> Any:
    """One update with a pack a tree. Returns the packs."""
    packs = [pack for tree in trees for pack in rank.packs([tree])]
    rank.rank.update([MiniBatch(packs, 1000.0, 1e-5)], None)
    return packs


def status(key: str) -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)]
    return int(line.split()[1]) * 1024


def measure(
    family: str, checkpointing: bool, kind: str, dtype: torch.dtype = torch.float32, lora: bool = False
) -> dict[str, Any]:
    few = random_tree(1, roots=2, leaves=3)
    if kind == "path":
        large = random_tree(3, roots=1, leaves=1, depth=1, prompt=60, turn=(2000, 2000))
    else:
        large = random_tree(3, roots=4, leaves=8, prompt=60, turn=(60, 100), observation=(40, 60))
    tiny = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 64}
    update(learner(family, checkpointing, dtype, lora, **tiny), few)
    base = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    trained = learner(family, checkpointing, dtype, lora, **SIZES)
    update(trained, few)  # from now on there are moments
    packs = update(trained, large, large)
    layout = layout_of(packs[0])
    shape, plan = (
        ModelShape.from_model(trained.policy.model),
        LearnerPlan(width=dtype.itemsize, checkpointing=checkpointing),
    )
    parts = learner_bytes(shape, plan, packs[0].num_unique, layout)
    return {"tokens": packs[0].num_unique, "measured": status("VmHWM") - base, **parts}


def measure_engine(dtype: Any) -> dict[str, Any]:
    """What the engine keeps while an update has the memory of its keys."""
    config = EngineConfig(dtype=dtype, slots=2, memory_gb=0.1)
    run = load_recipe("quickstart").model_copy(update={"engine": config})
    model = model_of("Qwen3", tied=True, **SIZES | {"vocab_size": 16_384})
    for _ in range(2):  # the first one loads what all need
        gc.collect()
        base = status("VmRSS")
        engine = LocalEngine.build(config, model, None)
        measured = status("VmRSS") - base
        asyncio.run(engine.close())
        del engine
    return {"measured": measured, "total": engine_beside(run, ModelShape.from_model(model), 4)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    keep_freed()  # what a rank would set later
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 2**16)
    libc.mallopt(M_TRIM_THRESHOLD, 2**17)
    for name, case in CASES.items():
        if "bfloat16" in name and not has_fast_bf16():  # emulated it computes in other ways
            continue
        print(json.dumps({"case": name, **measure(*case)}), flush=True)
    for name, dtype in ENGINES.items():
        if dtype == "float32" or has_half_weights(torch.device("cpu")):
            print(json.dumps({"case": name, **measure_engine(dtype)}), flush=True)
