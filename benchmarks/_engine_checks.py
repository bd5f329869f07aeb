"""The checks of `gpu_check.py` that sample: the local engine, and vLLM's new weights by CUDA IPC and NCCL and its
sleep."""

import asyncio
import time
from typing import Any

import torch
from _figures import Checked, at_least, at_most
from _shapes import model_of

from arpo.engines import SamplingParams, Weights
from arpo.engines.config import EngineConfig

GIB = 2**30


def local_engine(model: Any) -> Checked:
    """The local engine: 64 turns of 128 tokens at once, and a greedy turn's log-probabilities against the model's. On a
    CPU 4 turns of 8."""
    from arpo.engines.local import LocalEngine

    count, length = (64, 128) if model.device.type == "cuda" else (4, 8)
    config = EngineConfig(slots=count, dtype="bfloat16" if model.device.type == "cuda" else "float32")
    made = LocalEngine.build(config, model.eval(), None)

    async def sample() -> tuple[list[int], list[float], float]:
        async def one(seed: int) -> int:
            params = SamplingParams(max_tokens=length, seed=seed)
            return sum([len(chunk.tokens) async for chunk in made.sample([5, 6, 7, 8 + seed % 100], params)])

        tokens, logprobs = await turn(made)
        began = time.perf_counter()
        written = sum(await asyncio.gather(*map(one, range(count))))
        speed = written / (time.perf_counter() - began)
        await made.close()
        return tokens, logprobs, speed

    tokens, logprobs, speed = asyncio.run(sample())
    off = _off(model, tokens, logprobs)
    return {"tokens a second": speed, "nats": off}, [
        at_most("the engine's log-probabilities, nats from the model's", 0.1, off),
        at_least("tokens a second", 1, speed),
    ]


def _off(model: Any, tokens: list[int], logprobs: list[float]) -> float:
    """Nats between a turn's log-probabilities and the model's own, at most."""
    with torch.no_grad():
        ids = torch.tensor([[5, 6, 7, 8, *tokens]], device=model.device)
        logits = model(ids).logits[0, 3:-1].float().cpu()
    expected = torch.log_softmax(logits, -1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
    return float((expected - torch.tensor(logprobs)).abs().max())


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
    off = _off(model, tokens, logprobs)
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
