"""A program: the resident memory that updates take at their peak beside what `learner_bytes` says, in bytes, a line of
JSON a case. Every block that is freed goes back to the system, so that holes in glibc's heap do not count."""

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

from arpo.core.credit import CreditedTree
from arpo.learner.attention import layout_of
from arpo.learner.config import LossConfig, OptimConfig
from arpo.learner.local import LocalLearner
from arpo.learner.malloc_trim import keep_freed
from arpo.learner.memory import LearnerPlan, ModelShape, learner_bytes
from arpo.learner.rank import MiniBatch
from random_trees import random_tree

SMALL = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096}
SIZES = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "vocab_size": 8192}
CASES = {
    "checkpointing": ("Qwen3", True, "tree"),
    "no checkpointing": ("Qwen3", False, "tree"),
    "weights of attention recomputed": ("Qwen2", True, "path"),
}
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def learner(family: str, checkpointing: bool, **sizes: Any) -> LocalLearner:
    config = getattr(transformers, f"{family}Config")(**SMALL, **sizes, head_dim=64, tie_word_embeddings=False)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return LocalLearner(
        model.train(), loss=LossConfig(), optim=OptimConfig(), num_updates=9, token_budget=4000, tree=True
    )


def update(rank: LocalLearner, *trees: CreditedTree) -> Any:
    """One update with a pack a tree. Returns the packs."""
    packs = [pack for tree in trees for pack in rank.packs([tree])]
    rank.rank.update([MiniBatch(packs, 1000.0, 1e-5)], None)
    return packs


def status(key: str) -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)]
    return int(line.split()[1]) * 1024


def measure(family: str, checkpointing: bool, kind: str) -> dict[str, Any]:
    few = random_tree(1, roots=2, leaves=3)
    if kind == "path":
        large = random_tree(3, roots=1, leaves=1, depth=1, prompt=60, turn=(2000, 2000))
    else:
        large = random_tree(3, roots=4, leaves=8, prompt=60, turn=(60, 100), observation=(40, 60))
    update(
        learner(family, checkpointing, hidden_size=64, intermediate_size=64, num_hidden_layers=1, vocab_size=64), few
    )
    base = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
    trained = learner(family, checkpointing, **SIZES)
    update(trained, few)  # from now on there are moments
    packs = update(trained, large, large)
    layout = layout_of(packs[0])
    shape, plan = ModelShape.from_model(trained.policy.model), LearnerPlan(width=4, checkpointing=checkpointing)
    parts = learner_bytes(shape, plan, packs[0].num_unique, layout)
    return {"tokens": packs[0].num_unique, "measured": status("VmHWM") - base, **parts}


if __name__ == "__main__":
    torch.set_num_threads(1)
    keep_freed()  # what a rank would set later
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 2**16)
    libc.mallopt(M_TRIM_THRESHOLD, 2**17)
    for name in sys.argv[1:] or CASES:
        print(json.dumps({"case": name, **measure(*CASES[name])}), flush=True)
