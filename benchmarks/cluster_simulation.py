"""Clusters of up to 1,000 GPUs in virtual time: how much of them works, and what limits them first.

    arpo bench cluster-simulation                        7B and 32B: the curve, and each limit at 1,000 GPUs
    arpo bench cluster-simulation -- --plot FILE.png     the curve as a picture
    arpo bench cluster-simulation -- --quick             few GPUs, a step

No GPU is involved. Durations are arithmetic from published figures (SOURCES) and what this project measured on CPUs;
`_simulated.py` has the rules. Processor time on this machine does not matter: the same seed gives the same figures.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from _figures import at_least, finish
from _simulated import Figures, Run, Setting

SOURCES = {
    "H100 SXM, 3.35 TB/s and 989 TFLOP/s in bf16": "NVIDIA's data sheet; 70 % and 40 % of them reached: assumed",
    "search 0.64 s in the median, 1.35 s at 95 %": "a load test of Serper (IDAgents, 2025); 50 calls/s: a paid plan",
    "a failure per 8,090 GPU hours": "1,024 GPUs fail after 7.9 hours (arXiv 2410.21680); Llama 3: 50,700",
    "driver 0.85 ms a turn, 10 us a token": "measured, docs/performance.md (wire) and the scripted engine",
    "storage 20 GB/s in all, 5 GB/s a node; NCCL 40 GB/s": "assumed",
}
BANDWIDTH, FLOPS = 0.7 * 3.35e12, 0.4 * 989e12
NODE_GPUS, NODE_BYTES_S, STORAGE_BYTES_S, NCCL_BYTES_S = 8, 5e9, 20e9, 40e9
SIZES = (8, 32, 64, 128, 256, 512, 1000)
MOST_TASKS = 1024


@dataclass(frozen=True, slots=True)
class Model:
    parameters: float
    key_bytes: float
    """Of a token's keys and values."""
    server_gpus: int
    least_ranks: int
    reduce_s: float
    """Of a step of decoding: what tensor parallelism adds."""


MODELS = {
    "7B": Model(7.6e9, 57_344, 1, 4, 0.0),
    "32B": Model(32.8e9, 262_144, 4, 16, 64 * 2 * 15e-6),
}


def setting(model: Model, gpus: int, tasks: int, **changes: Any) -> Setting:
    """The recipe `arpo-reasoning-7b` (8 mini-batches, packs of 16,384) on `gpus` GPUs: half of them ranks, but no more
    than a mini-batch has packs, the others servers."""
    packs = int(tasks / 8 * 23_500 / 16_384)  # 23,500 tokens: what a tree of the default setting has
    ranks = max(model.least_ranks, min(gpus // 2, packs))
    servers = (gpus - ranks) // model.server_gpus
    weights, bandwidth = 2 * model.parameters, BANDWIDTH * model.server_gpus
    nodes = math.ceil(servers * model.server_gpus / NODE_GPUS)
    made = Setting(
        servers=servers,
        server_gpus=model.server_gpus,
        ranks=ranks,
        tasks=tasks,
        step_s=weights / bandwidth + model.reduce_s,
        request_s=2048 * model.key_bytes / bandwidth + 2 * model.parameters / (FLOPS * model.server_gpus),
        tool_s=0.64 * math.exp(0.455**2 / 2),
        tool_spread=0.455,
        tool_rate=50.0,
        tool_failures=0.01,
        driver_turn_s=0.85e-3,
        driver_token_s=10e-6,
        pack_s=8 * model.parameters * 16_384 / FLOPS,
        write_s=weights / NODE_BYTES_S,
        load_s=weights / min(NODE_BYTES_S, STORAGE_BYTES_S / nodes),
        gpu_hours=8_090.0,
    )
    return replace(made, **changes)


def relieved(base: Setting, weights: float) -> Setting:
    """With 8 drivers, ten times the calls a second, and `weights` bytes sent by NCCL instead of through files."""
    return replace(base, drivers=8, tool_rate=500.0, write_s=0.0, load_s=weights / NCCL_BYTES_S)


def variants(base: Setting, better: Setting) -> dict[str, Setting]:
    """`better`, the `relieved` base, with each of its limits back, and without each of those that it still has."""
    return {
        "1 driver": replace(better, drivers=1),
        "50 calls/s": replace(better, tool_rate=base.tool_rate),
        "weights through files": replace(better, write_s=base.write_s, load_s=base.load_s),
        "tools at once": replace(better, tool_rate=math.inf, tool_s=0.0, tool_failures=0.0),
        "no stragglers": replace(better, turn_spread=0.0, tool_spread=0.0, tool_failures=0.0),
        "no failures": replace(better, gpu_hours=math.inf),
        "failures x 100": replace(better, gpu_hours=better.gpu_hours / 100),
        "learner at once": replace(better, pack_s=0.0),
        "staleness 0": replace(better, staleness=0),
        "staleness 3": replace(better, staleness=3),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="arpo bench cluster-simulation --", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--quick", action="store_true", help="16 GPUs, a step: to see that it works")
    options = parser.parse_args(arguments)
    steps = 1 if options.quick else options.steps
    curves: dict[str, dict[int, float]] = {}
    found: dict[str, dict[str, float]] = {}

    def simulate(name: str, made: Setting) -> Figures:
        figures = Run(made, options.seed).measure(steps)
        found[name] = asdict(figures)
        print(
            f"{name}: {made.ranks} ranks, {made.servers} servers: GPUs {figures.gpus:.0%}, "
            f"step {figures.step_s:.0f} s, {figures.tokens_per_s:.0f} tokens/s, "
            f"driver {figures.driver:.0%}, limiter {figures.limiter:.0%}, loading {figures.loading:.0%}, "
            f"ranks {figures.ranks:.0%}, servers {figures.servers:.0%} with {figures.requests:.1f}, "
            f"staleness {figures.staleness:.2f}, {figures.failures} failures",
            flush=True,
        )
        return figures

    for name, model in MODELS.items():
        least = 2 * max(model.least_ranks, model.server_gpus)
        sizes = (least if least > 16 else 16,) if options.quick else [size for size in SIZES if size >= least]
        for gpus in sizes:
            tasks = 16 if options.quick else min(MOST_TASKS, 16 * gpus)
            base = setting(model, gpus, tasks)
            better = relieved(base, 2 * model.parameters)
            for curve, made in {
                "128 tasks a step": setting(model, gpus, 16 if options.quick else 128),
                "16 tasks a GPU, at most 1,024": base,
                "and 8 drivers, 500 calls/s, NCCL": better,
            }.items():
                curves.setdefault(f"{name}, {curve}", {})[gpus] = simulate(f"{name}, {gpus} GPUs, {curve}", made).gpus
        if not options.quick:
            for what, made in variants(base, better).items():
                simulate(f"{name}, {gpus} GPUs, {what}", made)
    if options.plot:
        plot(curves, options.plot)
    most = max(curve[max(curve)] for curve in curves.values())
    return finish("cluster_simulation", found, [at_least("share of the most GPUs that works", 0.5, most)])


def plot(curves: dict[str, dict[int, float]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 3.4), layout="constrained")
    axes: Any = figure.subplots(1, 2, sharey=True)
    for name, curve in curves.items():
        model, _, what = name.partition(", ")
        side = axes[list(MODELS).index(model)]
        side.plot(list(curve), [100 * share for share in curve.values()], marker="o", markersize=3, label=what)
        side.set(title=model, xscale="log", xlabel="GPUs", ylim=(0, 100))
        side.set_xticks([8, 32, 128, 512], ["8", "32", "128", "512"])
        side.minorticks_off()
    axes[0].set_ylabel("GPUs with work, %")
    axes[1].legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    raise SystemExit(main())
