"""The arithmetic of memory against the resident memory of real updates and engines."""

import ctypes
import gc
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peak_memory import M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, SIZES, model_of, status

from arpo.core.credit import CreditedTree
from arpo.engines.config import has_fast_bf16
from arpo.learner.attention import layout_of
from arpo.learner.config import LossConfig, OptimConfig
from arpo.learner.memory import LearnerPlan, ModelShape, learner_bytes
from arpo.learner.packing import pack
from arpo.learner.rank import MiniBatch, ModelSource, Rank, RankSettings
from arpo.learner.ranks import Ranks
from arpo.learner.sharding import Placement
from random_trees import random_tree
from rank_processes import on_ranks


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator, and the peak of resident memory in /proc")
def test_updates_take_the_memory_that_arithmetic_says() -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    environment["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] = "0"  # in bfloat16 its programs take 30 MB, whatever the model
    program = Path(__file__).with_name("peak_memory.py")
    done = subprocess.run([sys.executable, program], env=environment, stdout=subprocess.PIPE, text=True, check=True)
    cases = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(cases) >= 5
    for case in cases:
        assert case["measured"] == pytest.approx(case["total"], rel=0.15), case


class MeasuredRank(Rank):
    """Its process gives every freed block back to the system. `peak`: its resident memory since `begin`."""

    def begin(self) -> None:
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 2**16)
        libc.mallopt(M_TRIM_THRESHOLD, 2**17)
        gc.collect()
        self._before = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        return status("VmHWM") - self._before


def checkpointing(**sizes: int) -> Any:
    model = model_of("Qwen3", **sizes)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def measured(ranks: Ranks, dtype: torch.dtype) -> tuple[list[int], float]:
    """What each rank takes for some updates at most, and by arithmetic."""

    def update(*trees: CreditedTree) -> Any:
        packs = [one for tree in trees for one in pack([tree], 4000)]
        ranks.call("update", None, each=[([MiniBatch(packs, 1000.0, 1e-5)],)] * ranks.size)
        return packs

    few = random_tree(1, roots=2, leaves=3)
    large = random_tree(3, roots=4, leaves=8, prompt=60, turn=(60, 100), observation=(40, 60))
    tiny = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 64}
    for sizes in (tiny, SIZES):  # the first one loads what all need
        ranks.call("begin")
        ranks.call("hold", ModelSource(partial(checkpointing, **sizes)), 0, Placement(dtype=dtype))
        ranks.call("start", RankSettings(loss=LossConfig(), optim=OptimConfig(), tree=True, dtype=dtype), None)
        update(few)
    packs = update(large, large)
    plan = LearnerPlan(ranks=ranks.size, width=dtype.itemsize, checkpointing=True)
    shape = ModelShape.from_model(checkpointing(**SIZES))
    return ranks.call("peak"), learner_bytes(shape, plan, packs[0].num_unique, layout_of(packs[0]))["total"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator, and the peak of resident memory in /proc")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_two_ranks_take_the_memory_that_arithmetic_says(dtype: torch.dtype, tmp_path: Path) -> None:
    if dtype is torch.bfloat16 and not has_fast_bf16():
        pytest.skip("emulated it computes in other ways")
    peaks, total = on_ranks(2, partial(measured, dtype=dtype), tmp_path, rank=MeasuredRank)
    for peak in peaks:
        assert peak == pytest.approx(total, rel=0.15), [peak / total for peak in peaks]
