"""What a token of vLLM's answers costs the process that reads it: as JSON, and as the arrays of arpo's own route.

    arpo bench wire                 32 turns of 512 tokens at a time, 5 rounds
    arpo bench wire -- --quick      one round of 8 turns

A server in another process sends turns as vLLM does (20 likely tokens a position) and as `arpo.engines.vllm.answers`
does (16 tokens a frame); both deliver a head of 10 first, and no model runs. Each side reads over HTTP, with
the code that a run reads with, from the request to an engine's chunks, stop strings looked for. Sides take turns, and
what counts is processor time, the least of all rounds.
"""

import argparse
import asyncio
import json
import os
import random
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, suppress

import numpy as np
from _figures import at_most, finish

from arpo.engines import SamplingParams
from arpo.engines.vllm import answers, plain_answers
from arpo.engines.vllm.chunk_assembler import ChunkAssembler
from arpo.engines.vllm.replica import Replica

TOKENS, HEAD, TOP_K, VOCAB = 512, 10, 20, 152_064
SHARE = 1 / 6  # of the time that JSON costs


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one round of 8 turns")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        return serve()
    costs, num_bytes = asyncio.run(measure(rounds=1 if options.quick else 5, turns=8 if options.quick else 32))
    share = costs["compact"] / costs["json"]
    for name, cost in costs.items():
        print(f"{name}: {cost:.1f} us a token, {num_bytes[name]:.0f} bytes")
    figures = {"us_a_token": costs, "bytes_a_token": num_bytes, "tokens_a_turn": TOKENS, "head": HEAD, "top_k": TOP_K}
    return finish("wire", figures, [at_most("processor time of arrays over that of JSON", SHARE, share)])


async def measure(rounds: int, turns: int) -> tuple[dict[str, float], dict[str, float]]:
    """Microseconds of this process and bytes of a body, a token, by form."""
    async with server() as url:
        replicas = {name: Replica(url, top_k=TOP_K, vocab_size=VOCAB) for name in ("json", "compact")}
        replicas["compact"].compact = True
        least = dict.fromkeys(replicas, float("inf"))
        for replica in replicas.values():
            await turn(replica)
        for _ in range(rounds):
            for name, replica in replicas.items():
                began = time.process_time()
                tokens = sum(await asyncio.gather(*(turn(replica) for _ in range(turns))))
                least[name] = min(least[name], (time.process_time() - began) / tokens * 1e6)
        for replica in replicas.values():
            await replica.close()
    sizes = {"json": sum(map(len, events())) / TOKENS, "compact": sum(map(len, frames())) / TOKENS}
    return least, sizes


async def turn(replica: Replica) -> int:
    params = SamplingParams(max_tokens=TOKENS, head=HEAD, stop=("</search>", "</answer>"))
    cutter = ChunkAssembler(params, lambda token: b"word")
    tokens = 0
    async for piece in replica.ask(range(2000), params):
        for chunk in cutter.feed(piece):
            tokens += len(chunk.tokens)
    assert tokens == TOKENS and cutter.finished
    return tokens


# --- the server


@asynccontextmanager
async def server() -> AsyncIterator[str]:
    """A server of both routes in a process of its own, until the block ends."""
    pipe = asyncio.subprocess.PIPE
    child = await asyncio.create_subprocess_exec(sys.executable, __file__, "--serve", stdin=pipe, stdout=pipe)
    try:
        assert child.stdout is not None
        yield f"http://127.0.0.1:{int(await child.stdout.readline())}"
    finally:
        child.kill()
        await child.communicate()


def serve() -> int:
    plain = [f"data: {event}\n\n".encode() for event in events()]
    bodies = {plain_answers.ROUTE: plain, answers.ROUTE: list(frames())}

    async def serve_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await answer(reader, writer)
        writer.close()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            fields = head.decode().lower().split("\r\n")
            size = next(int(field.split(":")[1]) for field in fields if field.startswith("content-length"))
            await reader.readexactly(size)
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
            for part in bodies[head.split()[1].decode()]:
                writer.write(b"%x\r\n%b\r\n" % (len(part), part))
                await writer.drain()
                await asyncio.sleep(0)  # an event of another turn comes between, as a step of vLLM's does
            writer.write(b"0\r\n\r\n")

    async def run() -> None:
        listening = await asyncio.start_server(serve_all, "127.0.0.1", 0)
        print(listening.sockets[0].getsockname()[1], flush=True)
        await asyncio.to_thread(os.read, 0, 1)

    asyncio.run(run())
    return 0


def events() -> Iterator[str]:
    """A turn as vLLM 0.32's /inference/v1/generate streams it."""
    random_ = random.Random(0)
    starts = [0, *range(1, TOKENS, plain_answers.interval(HEAD))]
    for start, end in zip(starts, [*starts[1:], TOKENS], strict=True):
        tokens = [random_.randrange(VOCAB) for _ in range(start, end)]
        content = []
        for token in tokens:
            tops = sorted((-random_.expovariate(0.4) for _ in range(TOP_K + 1)), reverse=True)
            named = [
                {"token_id": random_.randrange(VOCAB), "logprob": top, "rank": rank} for rank, top in enumerate(tops, 1)
            ]
            content.append({"token_id": token, "logprob": tops[0], "rank": 1, "top_logprobs": named})
        choice = {"index": 0, "logprobs": {"content": content}, "finish_reason": None, "stop_reason": None}
        if end == TOKENS:
            choice |= {"finish_reason": "length"}
        spans = [{"version": "run/1", "start": 0, "end": TOKENS}] if end == TOKENS else None
        choice |= {"token_ids": tokens, "routed_experts": None, "sampling_mask": None, "weight_versions": spans}
        yield json.dumps({"request_id": "generate-tokens-0123456789abcdef", "choices": [choice], "usage": None})
    usage = {"prompt_tokens": 2000, "completion_tokens": TOKENS, "prompt_tokens_details": {"cached_tokens": 0}}
    yield json.dumps({"request_id": "generate-tokens-0123456789abcdef", "choices": [], "usage": usage})


def frames() -> Iterator[bytes]:
    """The same as arrays."""
    starts = [0, *range(HEAD, TOKENS, answers.EVERY)]
    for start, end in zip(starts, [*starts[1:], TOKENS], strict=True):
        numbers = np.ones(end - start, dtype=np.float32)
        yield answers.frame(
            answers.Piece(
                tokens=np.arange(start, end, dtype=np.int32),
                logprobs=-numbers,
                low=numbers,
                high=numbers,
                version=1,
                finish="length" if end == TOKENS else None,
                cached=0 if start == 0 else None,
            )
        )


if __name__ == "__main__":
    raise SystemExit(main())
