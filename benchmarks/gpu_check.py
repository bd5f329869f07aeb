"""What works on this GPU, and how fast: FlexAttention on trees, updates of 1.5B and 7B shapes, offloading, new weights,
the local engine; and vLLM's new weights by CUDA IPC and NCCL, and its sleep.

    arpo bench gpu-check                            all but vLLM's, in about 10 minutes
    .venv-vllm/bin/arpo bench gpu-check             all of it (make vllm)
    arpo bench gpu-check -- --only flex --shape tiny
    arpo bench gpu-check -- --tiny                  tiny shapes on a CPU, to see that the checks themselves work

Weights are random; nothing is fetched. A line of JSON a check, and all of it on the last line. Every check runs in a
process of its own, so that one that fails leaves the others. A check whose GPU or package is missing is skipped and
says so: it counts neither as held nor as missed. NCCL needs two GPUs, since vLLM's has to be another than the
learner's.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from _engine_checks import ipc, local_engine, nccl, sleep
from _figures import Checked, Goal, at_least, at_most, finish
from _grown import Lengths, grow
from _shapes import SHAPES, model_of

from arpo.assembly.memory_plan import SPEEDS
from arpo.core.credit import AdvantageConfig, CreditedTree, credit
from arpo.learner.attention import TreeLayout, attend_dense, attend_tree, layout_of
from arpo.learner.config import LossConfig, OptimConfig
from arpo.learner.driver import LearnerDriver
from arpo.learner.local import LocalLearner
from arpo.learner.memory import LearnerPlan, ModelShape, learner_bytes
from arpo.learner.packing import pack
from arpo.learner.rank import ModelSource, Rank, RankSettings
from arpo.learner.ranks import OneRank
from arpo.learner.sharding import Placement, mesh_of

LENGTHS = Lengths(prompt=range(100, 300), turn=range(30, 120), observation=range(50, 200), calls=3, vocab_size=512)
LONG = Lengths(prompt=range(300, 900), turn=range(150, 500), observation=range(100, 400), calls=3, vocab_size=512)
SHORT = Lengths(prompt=range(20, 40), turn=range(5, 20), observation=range(5, 20), calls=3, vocab_size=512)
PACK = 16_384  # tokens of the packs that are timed
LIMIT_S = 900.0  # of one check: vLLM compiles when it starts
GIB = 2**30
DEVICE = "cuda"  # "cpu" with --tiny


def trees(count: int) -> list[CreditedTree]:
    lengths = LENGTHS if DEVICE == "cuda" else SHORT
    return credit([grow(seed, lengths, leaves=8, roots=3).scored for seed in range(count)], AdvantageConfig())


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).float().norm() / other.float().norm())


def flex(_shape: str) -> Checked:
    """Output and gradients of FlexAttention against a dense mask, on one pack in float32."""
    [batch] = pack(trees(2), 1 << 20)
    batch, sides = batch.to(torch.device(DEVICE)), []
    for attend in (attend_tree, attend_dense):
        torch.manual_seed(0)
        heads = [torch.randn(1, n, batch.num_unique, 64, device=DEVICE, requires_grad=True) for n in (8, 2, 2)]
        query, key, value = heads
        out, _ = attend(torch.nn.Module(), query, key, value, None, tree_layout=layout_of(batch))
        out.square().sum().backward()
        sides.append([out.detach(), *(head.grad for head in heads)])
    names = ("output", "query's gradient", "key's gradient", "value's gradient")
    distances = {name: relative(one, other) for name, one, other in zip(names, *sides, strict=True)}
    figures = {"tokens": batch.num_unique, "relative distance": distances}
    return figures, [
        at_most("FlexAttention from dense attention, worst relative distance", 1e-2, max(distances.values()))
    ]


def step(shape: str) -> Checked:
    """One update of a whole model in bfloat16: its memory and seconds, and that every trained weight stays finite and
    one moves."""
    model = model_of(shape, device="cuda")
    loss, optim = LossConfig(tis_cap=None), OptimConfig(lr=1e-4)
    learner = LocalLearner(
        model, loss=loss, optim=optim, num_updates=2, token_budget=8192, tree=True, dtype=torch.bfloat16
    )
    weight = model.get_input_embeddings().weight
    before, batch = weight.detach().clone(), trees(8)
    learner.update(batch)  # compiles
    torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    metrics = learner.update(batch).metrics
    seconds = time.perf_counter() - began
    peak, total = torch.cuda.max_memory_allocated(), torch.cuda.get_device_properties(0).total_memory
    figures = {"seconds": seconds, "tokens": metrics["tokens_trained"], "peak GiB": peak / GIB}
    return figures, [
        at_most("trained weights that are not finite after two updates", 0, float(learner.healthy() is not None)),
        at_least("relative distance that two updates move the embeddings", 1e-6, relative(weight.detach(), before)),
        at_most("the update's peak memory, as a share of the GPU's", 1.0, peak / total),
    ]


def build(shape: str, **more: Any) -> Any:
    return model_of(shape, **(more if DEVICE == "cuda" else {"vocab_size": 512} | more))


def filling(tokens: int) -> list[CreditedTree]:
    """Trees of 16 leaves with about so many unique tokens."""
    made: list[CreditedTree] = []
    lengths = LONG if DEVICE == "cuda" else SHORT
    while not made or sum(p.num_unique for p in pack(made, 1 << 20)) < tokens:
        made += credit([grow(len(made), lengths, leaves=16, roots=8).scored], AdvantageConfig())
    return made[:-1] or made


def mask(_shape: str) -> Checked:
    """The block mask of FlexAttention, as the learner makes it from the subtrees' ends, and as torch makes it from the
    whole mask, eagerly and compiled: seconds and memory."""
    from torch.nn.attention.flex_attention import create_block_mask

    figures: dict[str, Any] = {}
    for tokens in (PACK, 2 * PACK) if DEVICE == "cuda" else (1024,):
        layout = layout_of(pack(filling(tokens), 1 << 20)[0].to(torch.device(DEVICE)))
        made = layout.flex()
        size = made.shape[-1]
        whole = partial(create_block_mask, made.mask_mod, None, None, size, size, device=DEVICE)
        ways: dict[str, Callable[[], Any]] = {"of ends": partial(_mask_anew, layout), "eager": whole}
        if DEVICE == "cuda":
            ways["compiled"] = partial(torch.compile(create_block_mask), *whole.args, device=DEVICE)
        for name, make in ways.items():
            make()
            before = _reset_peak()
            figures[f"{name}, {size} tokens"] = {"seconds": _timed(make), "GB": (_peak() - before) / 1e9}
    slowest = max(figure["seconds"] for name, figure in figures.items() if name.startswith("of ends"))
    return figures, [at_most("seconds of a block mask", 0.1, slowest)]


def _mask_anew(layout: TreeLayout) -> Any:
    return replace(layout, _made={}).flex()


def train(shape: str, share: float = 0.4) -> Checked:
    """Updates of a whole model in bfloat16 with checkpointing: their peak against the arithmetic of `arpo plan`, and
    the share of the GPU's peak speed that they reach. Layers that do not fit are left out."""
    total = torch.cuda.get_device_properties(0).total_memory if DEVICE == "cuda" else 1e12
    plan, budget = LearnerPlan(checkpointing=True), PACK if DEVICE == "cuda" else 1024
    sizes = ModelShape.from_model(build(shape, device="meta"))
    layers = next(
        n for n in range(sizes.layers, 0, -1) if learner_bytes(_cut(sizes, n), plan, budget)["total"] < 0.92 * total
    )
    model = build(shape, layers=layers, device=DEVICE)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    optim, batch = OptimConfig(lr=1e-6), filling(2 * budget)
    learner = LocalLearner(
        model, loss=LossConfig(), optim=optim, num_updates=9, token_budget=budget, tree=True, dtype=torch.bfloat16
    )
    longest = max(p.num_unique for p in learner.deal(batch)[0])
    learner.update(batch)  # compiles
    _reset_peak()
    began = time.perf_counter()
    tokens = learner.update(batch).metrics["tokens_trained"]
    seconds = time.perf_counter() - began
    expected, parameters = learner_bytes(_cut(sizes, layers), plan, longest)["total"], _cut(sizes, layers).parameters
    figures = {"layers": layers, "of": sizes.layers, "parameters": parameters, "tokens": tokens, "seconds": seconds}
    figures |= {"tokens a second": tokens / seconds, "TFLOP/s": 8 * parameters * tokens / seconds / 1e12}
    figures |= {"arithmetic GB": expected / 1e9, "measured GB": _peak() / 1e9}
    if DEVICE == "cpu":  # tests/learner/test_memory.py holds resident memory against the arithmetic
        return figures, [at_least("tokens a second", 1, figures["tokens a second"])]
    goals = [at_most("peak memory off the arithmetic, relative", 0.15, abs(_peak() / expected - 1))]
    name = torch.cuda.get_device_name().upper().replace(" ", "")
    speed = next((flops for gpu, (flops, _) in SPEEDS.items() if gpu in name), None)
    if speed:
        goals.append(at_least("share of the GPU's peak speed", share, figures["TFLOP/s"] / speed))
    return figures, goals


def _cut(sizes: ModelShape, layers: int) -> ModelShape:
    gone = sizes.layers - layers
    return replace(sizes, layers=layers, parameters=sizes.parameters - gone * sizes.layer)


def offload(shape: str) -> Checked:
    """A world of one rank: an update with weights, gradients and moments in main memory against one without, the copy
    that a checkpoint waits for, and the weights written to files."""
    folder = Path(tempfile.mkdtemp(dir="/dev/shm" if DEVICE == "cuda" else None))
    kinds = "cpu:gloo,cuda:nccl" if DEVICE == "cuda" else "gloo"
    dist.init_process_group(kinds, init_method=f"file://{folder}/meet", rank=0, world_size=1)
    figures, batch = dict[str, Any](), filling(PACK if DEVICE == "cuda" else 1024)
    settings = RankSettings(loss=LossConfig(), optim=OptimConfig(), tree=True, dtype=torch.bfloat16)
    for name, away in (("on the device", False), ("offloaded", True)):
        rank = Rank(mesh_of(torch.device(DEVICE)))
        source = ModelSource(partial(_checkpointing, shape, "cpu" if away else DEVICE))
        rank.hold(source, 0, Placement(dtype=torch.bfloat16, offload=away))
        rank.start(settings)
        learner = LearnerDriver(OneRank(rank), settings, num_updates=9, token_budget=1 << 20)
        learner.update(batch)
        _reset_peak()
        figures[name] = {"seconds": _timed(partial(learner.update, batch)), "GB": _peak() / 1e9}
        if not away:
            figures["copy for a checkpoint, seconds"] = _timed(partial(rank.copy, 0))
            rank.weights()
            seconds = _timed(partial(rank.write_weights, folder, torch.bfloat16, False))
            written = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
            figures["weights written, GB/s"] = written / 1e9 / seconds
        del rank, learner
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
    dist.destroy_process_group()
    for file in folder.iterdir():
        file.unlink()
    slower = figures["offloaded"]["seconds"] / figures["on the device"]["seconds"]
    return figures, [at_most("an offloaded update, times one on the device", 1.3, slower)]


def _checkpointing(shape: str, device: str) -> Any:
    model = build(shape, device=device)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def engine(shape: str) -> Checked:
    return local_engine(build(shape, device=DEVICE, dtype=torch.bfloat16 if DEVICE == "cuda" else torch.float32))


def _timed(work: Callable[[], Any]) -> float:
    """Seconds, after what the GPU still had to do."""
    began = time.perf_counter()
    work()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def _reset_peak() -> int:
    if DEVICE != "cuda":
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _peak() -> int:
    return torch.cuda.max_memory_allocated() if DEVICE == "cuda" else 0


CHECKS: dict[str, Callable[[str], Checked]] = {
    "flex": flex,
    "mask": mask,
    "step": step,
    "train-1.5b": lambda shape: train("tiny" if shape == "tiny" else "Qwen2.5-1.5B"),
    "train-7b": lambda shape: train("tiny" if shape == "tiny" else "Qwen2.5-7B"),
    "offload": lambda shape: offload("tiny" if shape == "tiny" else "Qwen2.5-1.5B"),
    "engine": engine,
    "ipc": ipc,
    "nccl": nccl,
    "sleep": sleep,
}


def missing(name: str) -> str | None:
    """Why a check cannot run here."""
    if DEVICE == "cpu" and name not in ("step", "ipc", "nccl", "sleep"):
        return None
    if not torch.cuda.is_available():
        return "torch sees no GPU"
    if name in ("ipc", "nccl", "sleep") and importlib.util.find_spec("vllm") is None:
        return "vLLM is not installed here (make vllm)"
    if name == "nccl" and torch.cuda.device_count() < 2:
        return "needs two GPUs"
    return None


def in_a_process(name: str, shape: str) -> Checked:
    """The check, or a goal without a measurement where its process fails."""
    command = [sys.executable, __file__, "--only", name, "--shape", shape, "--here"]
    if DEVICE == "cpu":  # nothing there ends a process
        return CHECKS[name](shape)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        output = error.stderr if isinstance(error.stderr, str) else (error.stderr or b"").decode(errors="replace")
        print(output[-4000:], file=sys.stderr)
        last = output.strip().splitlines()[-1:] or [str(error)]
        return {"failed": last[0]}, [Goal(f"{name} runs to its end", ">= 1", None, holds=False)]
    figures, goals = json.loads(done.stdout.splitlines()[-1])
    return figures, [Goal(**goal) for goal in goals]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="arpo bench gpu-check --", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shape", choices=SHAPES, default="SmolLM2-135M")
    parser.add_argument("--only", choices=CHECKS, help="this check alone")
    parser.add_argument("--quick", action="store_true", help="the shape `tiny`")
    parser.add_argument("--tiny", action="store_true", help="the shape `tiny` on a CPU")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.tiny:
        global DEVICE
        DEVICE, options.quick = "cpu", True
    if options.here:
        figures, goals = CHECKS[options.only](options.shape)
        print(json.dumps([figures, [asdict(goal) for goal in goals]]))
        return 0
    all_figures: dict[str, Any] = {}
    all_goals: list[Goal] = []
    for name in [options.only] if options.only else CHECKS:
        if why := missing(name):
            all_figures[name], goals = {"skipped": why}, []
        else:
            all_figures[name], goals = in_a_process(name, "tiny" if options.quick else options.shape)
        all_goals += goals
        print(json.dumps({"check": name, **all_figures[name]}), flush=True)
    return finish("gpu_check", all_figures, all_goals)


if __name__ == "__main__":
    raise SystemExit(main())
