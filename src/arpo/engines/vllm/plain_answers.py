"""The answers of a vLLM server without arpo's route (`arpo.engines.vllm.answers`): JSON with every likely token
by name, from which entropies are bounded here. Slower by far, for this process and for the server.

Knows the route /inference/v1/generate. Which weights wrote a token, the server says at the end alone.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from arpo.engines.vllm.answers import EVERY, AnswerError, Piece, by_version, intervals

ROUTE = "/inference/v1/generate"
LEAST = 4  # tokens an event: fewer events for a server to write and us to read; a shorter head comes so much late


def request_of(
    prompt: Sequence[int], sampling: Mapping[str, Any], *, top_k: int, head: int, adapter: str | None
) -> dict[str, Any]:
    """What the route is asked. adapter: the name under which it was loaded."""
    # cut to so many with the sampled token first, which may be none of the likeliest
    asked = {**sampling, "logprobs": top_k + 1, "stream_interval": interval(head)}
    model = {"model": adapter} if adapter else {}
    options = {"stream": True, "stream_options": {"include_usage": True}}
    return {"token_ids": list(prompt), "sampling_params": asked, **options, **model}


def interval(head: int) -> int:
    """Tokens an event after the first, which has one token: an event ends with the head."""
    return max(LEAST, head - 1) if head else EVERY


async def read_events(
    lines: AsyncIterable[str],
    version: Callable[[], int | None],
    *,
    top_k: int,
    vocab_size: int,
    adapter: str | None = None,
) -> AsyncGenerator[Piece, None]:
    """The pieces of a stream of events. version: of the weights, None once they may have changed since the request was
    made. adapter: what the request is written with from start to end. Raises AnswerError."""
    num_tokens, held, last = 0, list[Piece](), None
    spans: Sequence[tuple[str, int]] = ()
    async for line in lines:
        if not line.startswith("data: ") or line == "data: [DONE]":
            continue
        event = json.loads(line[6:])
        if "error" in event:
            raise AnswerError(str(event["error"].get("message", event["error"])))
        for choice in event["choices"]:
            piece = _piece(choice, top_k, vocab_size)
            now = version()
            if piece.finish is not None:
                last = piece
                written = choice.get("weight_versions") or ()
                spans = [(adapter, 0)] if adapter else [(span["version"], int(span["start"])) for span in written]
            elif now is not None:  # the server waits with new weights until they have their name here
                num_tokens += len(piece)
                yield replace(piece, version=now)
            else:  # which weights wrote these, the server says at the end
                held.append(piece)
        if last is not None and event.get("usage"):
            cached = (event["usage"].get("prompt_tokens_details") or {}).get("cached_tokens", 0)
            for piece in (*held, replace(last, cached=cached)):
                for part in by_version(piece, num_tokens, spans):
                    yield part
                num_tokens += len(piece)
            return


def _piece(choice: Mapping[str, Any], top_k: int, vocab_size: int) -> Piece:
    if choice["finish_reason"] not in (None, "stop", "length"):
        raise AnswerError(f"the server ended the request: {choice['finish_reason']}")
    content = (choice["logprobs"] or {}).get("content") or []
    rows = [sorted((top["logprob"] for top in entry["top_logprobs"]), reverse=True)[:top_k] for entry in content]
    low, high = intervals(np.array(rows).reshape(len(rows), -1) if rows else np.empty((0, 1)), vocab_size)
    return Piece(
        tokens=np.array(choice["token_ids"], dtype=np.int32),
        logprobs=np.array([entry["logprob"] for entry in content], dtype=np.float32),
        low=low.astype(np.float32),
        high=high.astype(np.float32),
        version=0,
        finish=choice["finish_reason"],
    )
