"""What works on this machine's GPU: FlexAttention, a training step, vLLM's new weights by CUDA IPC and NCCL, and its
sleep.

    arpo bench gpu-check                            FlexAttention and the step
    .venv-vllm/bin/arpo bench gpu-check             all of it (make vllm)
    arpo bench gpu-check -- --only flex --shape tiny

Weights are random; nothing is fetched. Every check runs in a process of its own, so that one that fails leaves the
others. A check whose GPU or package is missing is skipped and says so: it counts neither as held nor as missed. NCCL
needs two GPUs, since vLLM's has to be another than the learner's.
"""

import argparse
import asyncio
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import torch
from _figures import Goal, at_least, at_most, finish
from _grown import Lengths, grow
from _shapes import SHAPES, model_of

from arpo.core.credit import AdvantageConfig, CreditedTree, credit
from arpo.engines import SamplingParams, Weights
from arpo.engines.config import EngineConfig
from arpo.learner.attention import attend_dense, attend_tree, layout_of
from arpo.learner.config import LossConfig, OptimConfig
from arpo.learner.local import LocalLearner
from arpo.learner.packing import pack

LENGTHS = Lengths(prompt=range(100, 300), turn=range(30, 120), observation=range(50, 200), calls=3, vocab_size=512)
LIMIT_S = 900.0  # of one check: vLLM compiles when it starts
GIB = 2**30
Checked = tuple[dict[str, Any], list[Goal]]


def trees(count: int) -> list[CreditedTree]:
    return credit([grow(seed, LENGTHS, leaves=8, roots=3).scored for seed in range(count)], AdvantageConfig())


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).float().norm() / other.float().norm())


def flex(_shape: str) -> Checked:
    """Output and gradients of FlexAttention against a dense mask, on one pack in float32."""
    [batch] = pack(trees(2), 1 << 20)
    batch, sides = batch.to(torch.device("cuda")), []
    for attend in (attend_tree, attend_dense):
        torch.manual_seed(0)
        heads = [torch.randn(1, n, batch.num_unique, 64, device="cuda", requires_grad=True) for n in (8, 2, 2)]
        out, _ = attend(torch.nn.Module(), *heads, None, tree_layout=layout_of(batch))
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


def vllm_engine(model: Any, **settings: Any) -> Any:
    from arpo.engines.vllm.engine import VllmEngine

    vllm = {"gpu_memory_utilization": 0.3, "options": {"enforce_eager": True}, **settings}
    return VllmEngine.build(EngineConfig(kind="vllm", dtype="bfloat16", slots=8, vllm=vllm), model, None)


async def turn(engine: Any) -> tuple[list[int], list[float]]:
    """A greedy turn of 32 tokens and their log-probabilities."""
    chunks = [chunk async for chunk in engine.sample([5, 6, 7, 8], SamplingParams(max_tokens=32, temperature=0.0))]
    return [t for chunk in chunks for t in chunk.tokens], [x for chunk in chunks for x in chunk.logprobs]


async def new_weights(shape: str, device: str, backend: str) -> Checked:
    """Weights that the engine got while it was up, held against the learner's own log-probabilities under them."""
    model = model_of(shape, device=device, dtype=torch.bfloat16).eval()
    engine = vllm_engine(model, weights=backend)
    try:
        await turn(engine)  # starts it with the first weights
        started = engine.form.llm
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        began = time.perf_counter()
        await engine.update_weights(Weights(1, model.state_dict()))
        seconds = time.perf_counter() - began
        tokens, logprobs = await turn(engine)
        sent = engine.form.llm is started  # else the transfer failed, and vLLM started again with a file
    finally:
        await engine.close()
    with torch.no_grad():
        logits = model(torch.tensor([[5, 6, 7, 8, *tokens]], device=device)).logits[0, 3:-1].float().cpu()
    expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
    off = float((expected - torch.tensor(logprobs)).abs().max())
    return {"seconds": seconds, "nats": off}, [
        at_least(f"new weights went by {backend} (else by a file)", 1, float(sent)),
        at_most("log-probabilities under the new weights, nats from the learner's", 0.2, off),
    ]


def ipc(shape: str) -> Checked:
    """CUDA IPC: learner and vLLM on one GPU."""
    return asyncio.run(new_weights(shape, "cuda:0", "ipc"))


def nccl(shape: str) -> Checked:
    """NCCL: vLLM on the first GPU, the learner on the second."""
    return asyncio.run(new_weights(shape, "cuda:1", "nccl"))


def sleep(shape: str) -> Checked:
    """Memory that vLLM gives back while it sleeps; afterwards it writes the same greedy turn."""

    async def measure() -> Checked:
        engine = vllm_engine(model_of(shape, device="cuda", dtype=torch.bfloat16).eval(), sleep=True)
        try:
            before, _ = await turn(engine)
            awake, total = torch.cuda.mem_get_info()
            await engine.sleep()
            asleep, _ = torch.cuda.mem_get_info()
            after, _ = await turn(engine)
        finally:
            await engine.close()
        freed = (asleep - awake) / (0.3 * total)
        return {"freed GiB": (asleep - awake) / GIB, "of vLLM's share": freed}, [
            at_least("memory given back, as a share of what vLLM was lent", 0.5, freed),
            at_least("the greedy turn is the same after sleep", 1, float(before == after)),
        ]

    return asyncio.run(measure())


CHECKS: dict[str, Callable[[str], Checked]] = {"flex": flex, "step": step, "ipc": ipc, "nccl": nccl, "sleep": sleep}


def missing(name: str) -> str | None:
    """Why a check cannot run here."""
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
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.here:
        figures, goals = CHECKS[options.only](options.shape)
        print(json.dumps([figures, [asdict(goal) for goal in goals]]))
        return 0
    all_figures: dict[str, Any] = {}
    all_goals: list[Goal] = []
    for name in [options.only] if options.only else CHECKS:
        if why := missing(name):
            print(f"skipped {name}: {why}")
            all_figures[name] = {"skipped": why}
            continue
        all_figures[name], goals = in_a_process(name, "tiny" if options.quick else options.shape)
        all_goals += goals
    return finish("gpu_check", all_figures, all_goals)


if __name__ == "__main__":
    raise SystemExit(main())
