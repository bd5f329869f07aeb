"""What a CPU makes of its cores: sampling in lanes against all threads in one batch, updates that keep freed memory
against updates that give it back, LoRA against every weight and against PEFT's own layers.

    arpo bench cpu                 a model of the quickstart's shape with random weights: nothing is fetched
    arpo bench cpu -- --quick      2 of 30 layers

Every side runs in processes of its own, by turns. Training counts tokens through forward, backward and optimizer;
sampling counts tokens of prompts and of turns, 64 turns of 24 tokens at once in 8 trees. An update's operations are
counted by torch, and compared with the fastest product of matrices of the model's sizes, in the same process, with the
same precision and threads, between the same updates.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from _figures import at_least, finish, median
from torch.utils.flop_counter import FlopCounterMode

from arpo.cli import prepare_process
from arpo.cli.forecast import quickstart_model
from arpo.core.credit import CreditedTree
from arpo.engines import SamplingParams
from arpo.engines.local import LocalEngine
from arpo.learner import malloc_trim
from arpo.learner.local import LocalLearner
from arpo.models.loading import compute_dtype, device_of
from arpo.recipe.load import load_recipe
from arpo.training.planning import path_of_tokens

SIDES = ("lanes", "threads", "kept", "given back", "every weight", "peft's layers")
LORA = ("kept", "given back", "peft's layers")
TREES, TURNS, PROMPT, LENGTH = 8, 64, 128, 24
TRACES, TOKENS, UPDATES = 8, 176, 4


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="arpo bench cpu --", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="2 of 30 layers: to see that it works, not what it says")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.side:
        print(json.dumps(measure(options.side, 2 if options.quick else 30)))
        return 0
    order = SIDES if options.quick else (*SIDES, *reversed(SIDES))
    runs = [(side, _in_a_process(side, options.quick)) for side in order]
    rates = {side: max(found["tokens_per_s"] for name, found in runs if name == side) for side in SIDES}
    faults = {side: median([found["faults"] for name, found in runs if name == side]) for side in SIDES}
    shares = {side: max(found.get("share", 0.0) for name, found in runs if name == side) for side in SIDES}
    for side, rate in rates.items():
        peak = f"   {shares[side]:.0%} of the products' speed" if shares[side] else ""
        print(f"{side:14} {rate:8.1f} tokens/s   {faults[side]:10,.0f} page faults{peak}")
    goals = [
        at_least("sampling in lanes over one batch on all threads", 1.3, rates["lanes"] / rates["threads"]),
        at_least(
            "updates that keep freed memory over updates that give it back", 1.0, rates["kept"] / rates["given back"]
        ),
        at_least("LoRA's updates over those of every weight", 1.2, rates["kept"] / rates["every weight"]),
        at_least("LoRA's updates over those of PEFT's own layers", 1.0, rates["kept"] / rates["peft's layers"]),
        at_least("tokens/s trained", 200, rates["kept"]),
    ]
    return finish("cpu", {"tokens_per_s": rates, "page_faults": faults, "share_of_peak": shares, "runs": runs}, goals)


def _in_a_process(side: str, quick: bool) -> dict[str, Any]:
    command = [sys.executable, __file__, "--side", side, *(["--quick"] if quick else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(side: str, layers: int) -> dict[str, Any]:
    half = f"optim.last_layers={layers // 2}"
    run = load_recipe("quickstart", [half] if side in LORA else ["optim.last_layers=null", "model.lora=null"])
    model = quickstart_model(run, layers=layers)
    if side == "peft's layers":
        for layer in model.modules():
            getattr(layer, "lora_variant", {}).clear()
    dtype = compute_dtype(run.model, device_of(run.model))
    if side in ("lanes", "threads"):
        found = asyncio.run(_sample(model, lanes=None if side == "lanes" else 1))
    else:
        learner = LocalLearner(
            model, loss=run.loss, optim=run.optim, num_updates=UPDATES, token_budget=2048, tree=True, dtype=dtype
        )
        if side == "given back":
            malloc_trim._available = lambda: 0.0
        found = _train(learner, dtype)
    return {**found, "dtype": str(dtype).removeprefix("torch.")}


async def _sample(model: Any, lanes: int | None) -> dict[str, float]:
    engine = LocalEngine(model, lanes=lanes)
    random = Random(0)
    prompts = [[random.randrange(3, 40_000) for _ in range(PROMPT)] for _ in range(TREES)]

    async def turn(number: int, seed: int) -> None:
        tree = number % TREES
        async for _ in engine.sample(prompts[tree], SamplingParams(max_tokens=LENGTH, seed=seed, tree=str(tree))):
            pass

    rates = []
    for one in range(3):
        before, computed = _faults(), engine.stats.prefill_tokens
        began = time.perf_counter()
        await asyncio.gather(*(turn(number, 100 * one + number) for number in range(TURNS)))
        seconds = time.perf_counter() - began
        rates.append((TURNS * LENGTH + engine.stats.prefill_tokens - computed) / seconds)
        faults = _faults() - before
        await engine.sleep()
        await engine.forget()
    await engine.close()
    return {"tokens_per_s": max(rates), "faults": faults}


def _train(learner: LocalLearner, dtype: torch.dtype) -> dict[str, float]:
    random, rates, peaks = Random(0), [], []

    def trees() -> list[CreditedTree]:
        return [path_of_tokens([random.randrange(3, 40_000) for _ in range(TOKENS)]) for _ in range(TRACES)]

    with FlopCounterMode(display=False) as counter:  # of a first update, which also allocates memory
        learner.sft_step(trees())
    for _ in range(UPDATES):
        batch, before, began = trees(), _faults(), time.perf_counter()
        learner.sft_step(batch)
        rates.append(TRACES * TOKENS / (time.perf_counter() - began))
        faults = _faults() - before
        peaks.append(_product_speed(dtype))
    speed = counter.get_total_flops() / (TRACES * TOKENS) * max(rates)
    return {"tokens_per_s": max(rates), "faults": faults, "gflops": speed / 1e9, "share": speed / max(peaks)}


def _product_speed(dtype: torch.dtype) -> float:
    """Operations a second of the update's largest product but the head: the best of ten."""
    left, right = torch.randn(TRACES * TOKENS, 576).to(dtype), torch.randn(1536, 576).to(dtype)
    seconds = []
    for _ in range(10):
        began = time.perf_counter()
        torch.mm(left, right.T)
        seconds.append(time.perf_counter() - began)
    return 2 * left.numel() * len(right) / min(seconds)


def _faults() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


if __name__ == "__main__":
    prepare_process()
    sys.path.insert(0, str(Path(__file__).parent))
    raise SystemExit(main())
