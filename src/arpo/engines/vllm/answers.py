"""Runs where vLLM runs: a request's answer as arrays, some tokens at a time, and the route of a server that sends them.

Entropies are bounded here, where the likeliest tokens are, so that a token takes 16 bytes on its way to the learner.
Knows vLLM's asynchronous engine. Standard library and numpy at import: a server finds a copy of this file, since arpo
need not be installed there.
"""

import asyncio
import base64
import json
import struct
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

EVERY = 16  # tokens from one delivery to the next, once the head is delivered
ROUTE = "/inference/v1/arpo/answers"  # below what vLLM's own key guards
FORM = 2  # of requests and frames: a server with another one is asked as if it had none

Floats = NDArray[np.float64]
Finish = Literal["stop", "length"]
Messages = Callable[[], Awaitable[Any]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What vLLM wrote next: n tokens (int32), their log-probabilities, and the lowest and highest entropy of each
    position, nats (float32)."""

    tokens: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    version: int  # of the weights that wrote them
    finish: Finish | None = None
    cached: int | None = None  # prompt tokens whose keys were known; said once a request

    def __len__(self) -> int:
        return len(self.tokens)

    def part(self, start: int, end: int, version: int) -> "Piece":
        """Tokens [start, end), which `version` wrote."""
        return Piece(
            tokens=self.tokens[start:end],
            logprobs=self.logprobs[start:end],
            low=self.low[start:end],
            high=self.high[start:end],
            version=version,
            finish=self.finish if end == len(self) else None,
            cached=self.cached if start == 0 else None,
        )


class AnswerError(Exception):
    """vLLM ended a request before its end."""


def intervals(logprobs_NK: NDArray[np.floating], vocab_size: int) -> tuple[Floats, Floats]:
    """Lowest and highest entropy, nats, [N] each, of distributions over `vocab_size` tokens with these K highest
    log-probabilities (docs/method.md). A token that cannot come is -inf. K >= 1.

    The fast twin of `arpo.core.entropy:bounds_from_top_k`, which explains the bounds.
    """
    values = np.asarray(logprobs_NK, dtype=np.float64)
    num_known = values.shape[1]
    probabilities = np.exp(values)
    finite = np.where(probabilities > 0, values, 0.0)
    known = np.maximum(0.0, -(probabilities * finite).sum(1))
    tail = 1.0 - probabilities.sum(1)
    least = values.min(1)
    open_ended = (tail > 0) & (least > -np.inf) & (vocab_size > num_known)
    tail = np.where(open_ended, tail, 1.0)
    high = tail * np.log((vocab_size - num_known) / tail) if vocab_size > num_known else np.zeros_like(tail)
    low = np.minimum(tail * -np.where(open_ended, least, 0.0), high)
    return tuple(known + np.where(open_ended, np.maximum(0.0, extra), 0.0) for extra in (low, high))  # type: ignore[return-value]


def by_version(piece: Piece, start: int, spans: Sequence[tuple[str, int]]) -> Iterator[Piece]:
    """`piece`, whose first token is number `start` of its turn, cut where the weights changed. spans: labels with the
    first token that they wrote, in order; the version is the number that a label ends in (`WeightSnapshot`)."""
    end = start + len(piece)
    marks = sorted({start, end, *(first for _, first in spans if start < first < end)})
    for low, high in pairwise(marks) if len(marks) > 1 else [(start, end)]:
        label = next((label for label, first in reversed(spans) if first <= low), "").rpartition("/")[2]
        yield piece.part(low - start, high - start, int(label) if label.isdigit() else piece.version)


async def pieces(
    llm: Any, prompt: Sequence[int], sampling: Mapping[str, Any], *, top_k: int, head: int, adapter: Any = None
) -> AsyncGenerator[Piece, None]:
    """Sample after `prompt` with vLLM's `sampling` parameters: the first piece ends at token `head` (at token 3 for a
    head of 2), later ones bring `EVERY` tokens or more. adapter: vLLM's LoRARequest. Raises AnswerError and whatever
    vLLM raises."""
    # vLLM sends the first token at once. With an interval of 1 it does not count what it sent, and a longer one later
    # would begin with the same tokens again.
    asked = sampling_params(sampling, top_k, max(2, head - 1) if head > 1 else EVERY)
    request, vocab_size = uuid.uuid4().hex, llm.model_config.get_vocab_size()
    state, held, count = None, list[Piece](), 0
    generating = llm.generate({"prompt_token_ids": prompt}, asked, request, lora_request=adapter)
    async with aclosing(generating) as outputs:
        async for output in outputs:
            written = output.outputs[0]
            if written.finish_reason not in (None, "stop", "length"):
                raise AnswerError(f"vLLM ended the request: {written.finish_reason}")
            first = count == 0 and not held
            held.append(_piece(written, top_k, vocab_size, output.num_cached_tokens if first else None))
            so_far = count + sum(map(len, held))
            if state is None:
                state = _state(llm, request)
            if state is not None and so_far >= head:
                state.stream_interval = EVERY
            if so_far < head and written.finish_reason is None:
                continue
            for piece in by_version(_joined(held), count, _spans(written, state, adapter)):
                yield piece
            held, count = [], so_far


def sampling_params(sampling: Mapping[str, Any], top_k: int, interval: int) -> Any:
    """vLLM's parameters. `interval`: tokens from its first output to the next."""
    import vllm
    from vllm.sampling_params import RequestOutputKind

    return vllm.SamplingParams(
        **sampling,
        logprobs=top_k,
        flat_logprobs=True,
        stream_interval=interval,
        output_kind=RequestOutputKind.DELTA,
    )


def _state(llm: Any, request: str) -> Any:
    """What vLLM's output processor keeps of a request; None of one that has ended."""
    processor = llm.output_processor
    internal = processor.external_req_ids.get(request)
    state = processor.request_states.get(internal[0]) if internal else None
    if state is not None:
        state.logprobs_processor.tokenizer = None  # else it spells the likeliest tokens of every position
    return state


def _spans(written: Any, state: Any, adapter: Any) -> Sequence[tuple[str, int]]:
    """Which weights wrote what: their labels with the first token of each."""
    if adapter is not None:
        return [(adapter.lora_name, 0)]  # a request keeps the adapter that it began with
    if written.weight_versions is not None:
        return [(span.version, span.start) for span in written.weight_versions]
    return [] if state is None else state.weight_version_starts  # type: ignore[no-any-return]


def _piece(written: Any, top_k: int, vocab_size: int, cached: int | None) -> Piece:
    num_tokens = len(written.token_ids)
    sampled, top_NK = _columns(written.logprobs, num_tokens, top_k) if num_tokens else (np.empty(0), np.empty((0, 1)))
    low, high = intervals(top_NK, vocab_size)
    return Piece(
        tokens=np.asarray(written.token_ids, dtype=np.int32),
        logprobs=sampled.astype(np.float32),
        low=low.astype(np.float32),
        high=high.astype(np.float32),
        version=0,
        finish=written.finish_reason,
        cached=cached,
    )


def _columns(flat: Any, num_tokens: int, top_k: int) -> tuple[Floats, Floats]:
    """Log-probabilities of the sampled tokens [N], and the K highest of each position [N, K], of vLLM's flat list: each
    position's sampled token, then the K highest. Where vLLM joined several outputs, a sampled token that is one of
    those stands there once."""
    values = np.asarray(flat.logprobs, dtype=np.float64)
    if len(values) == num_tokens * (top_k + 1):
        rows = values.reshape(num_tokens, top_k + 1)
        return rows[:, 0], rows[:, 1:]
    parts = [values[start:end] for start, end in zip(flat.start_indices, flat.end_indices, strict=True)]
    tops = [part[1:] if len(part) > top_k else np.sort(part)[::-1] for part in parts]
    return np.array([part[0] for part in parts]), np.stack(tops)


def _joined(held: Sequence[Piece]) -> Piece:
    if len(held) == 1:
        return held[0]
    tokens, logprobs, low, high = (
        np.concatenate([getattr(piece, name) for piece in held]) for name in ("tokens", "logprobs", "low", "high")
    )
    last = replace(held[-1], cached=held[0].cached)
    return replace(last, tokens=tokens, logprobs=logprobs, low=low, high=high)


# --- over HTTP: frames, one a piece

HEADER = struct.Struct("<iiii")  # tokens (or bytes of an error's text), cached or -1, version, what ends here
FINISHES: tuple[Finish | None, ...] = (None, "stop", "length")
FAILED = len(FINISHES)


def frame(piece: Piece) -> bytes:
    """Little-endian: the header, then n int32 and three times n float32."""
    cached = -1 if piece.cached is None else piece.cached
    header = HEADER.pack(len(piece), cached, piece.version, FINISHES.index(piece.finish))
    return b"".join(
        (header, piece.tokens.tobytes(), piece.logprobs.tobytes(), piece.low.tobytes(), piece.high.tobytes())
    )


async def read_frames(stream: AsyncIterable[bytes]) -> AsyncGenerator[Piece, None]:
    """The pieces of a body, however it is cut. Raises AnswerError where the server says that it failed."""
    data, at = b"", 0
    async for received in stream:
        data, at = data[at:] + received, 0
        while len(data) - at >= HEADER.size:
            size, cached, version, finish = HEADER.unpack_from(data, at)
            end = at + HEADER.size + (size if finish == FAILED else 16 * size)
            if len(data) < end:
                break
            start, at = at + HEADER.size, end
            if finish == FAILED:
                raise AnswerError(data[start:end].decode(errors="replace"))
            numbers = np.frombuffer(data, np.float32, 3 * size, start + 4 * size)
            yield Piece(
                tokens=np.frombuffer(data, np.int32, size, start),
                logprobs=numbers[:size],
                low=numbers[size : 2 * size],
                high=numbers[2 * size :],
                version=version,
                finish=FINISHES[finish],
                cached=None if cached < 0 else cached,
            )


def request_body(
    prompt: Sequence[int], sampling: Mapping[str, Any], *, top_k: int, head: int, adapter: str | None
) -> bytes:
    """What `Answers` is asked. adapter: the name under which it was loaded."""
    tokens = base64.b64encode(np.asarray(prompt, dtype=np.int32).tobytes()).decode()
    asked = {"prompt": tokens, "sampling": dict(sampling), "top_k": top_k, "head": head, "adapter": adapter}
    return json.dumps(asked).encode()


class CompactAnswers:
    """ASGI middleware that adds ROUTE to vLLM's server."""

    def __init__(self, app: Callable[[dict[str, Any], Messages, Send], Awaitable[None]]) -> None:
        self._app, self._added = app, False

    async def __call__(self, scope: dict[str, Any], receive: Messages, send: Send) -> None:
        if not self._added:
            from starlette.routing import Route

            self._added = True
            scope["app"].router.routes.append(Route(ROUTE, Answers(), methods=["GET", "POST"]))
        await self._app(scope, receive, send)


class Answers:
    """ASGI endpoint: GET says which FORM this is, POST samples (`request_body`) and answers with frames."""

    async def __call__(self, scope: dict[str, Any], receive: Messages, send: Send) -> None:
        if scope["method"] == "GET":
            await _reply(send, 200, json.dumps({"form": FORM}).encode())
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        work = asyncio.ensure_future(self._answer(scope["app"].state, body, send))
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            work.cancel()
            gone.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _answer(self, state: Any, body: bytes, send: Send) -> None:
        begun = False
        try:
            async with aclosing(_asked(state, json.loads(body))) as stream:
                async for piece in stream:
                    if not begun:
                        begun = True
                        await send(_start(200, b"application/octet-stream"))
                    await send({"type": "http.response.body", "body": frame(piece), "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except Exception as error:  # noqa: BLE001 - vLLM raises whatever its parts raise, and who asked should know
            text = f"{type(error).__name__}: {error}".encode()
            if not begun:
                await _reply(send, 400 if _is_askers(error) else 500, text)
                return
            with suppress(OSError):  # who asked may be gone
                failed = HEADER.pack(len(text), -1, 0, FAILED) + text
                await send({"type": "http.response.body", "body": failed})


def _is_askers(error: Exception) -> bool:
    """Whether the request was wrong, and not the server."""
    from vllm.exceptions import VLLMClientError

    return isinstance(error, ValueError | TypeError | KeyError | VLLMClientError)


def _asked(state: Any, request: Mapping[str, Any]) -> AsyncGenerator[Piece, None]:
    adapter = None
    if name := request["adapter"]:
        adapter = state.openai_serving_models.lora_requests.get(name)
        if adapter is None:
            raise LookupError(f"no adapter {name} is loaded")
    prompt = np.frombuffer(base64.b64decode(request["prompt"]), np.int32).tolist()
    return pieces(
        state.engine_client,
        prompt,
        request["sampling"],
        top_k=request["top_k"],
        head=request["head"],
        adapter=adapter,
    )


async def _disconnected(receive: Messages) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _start(status: int, kind: bytes) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]}


async def _reply(send: Send, status: int, body: bytes) -> None:
    await send(_start(status, b"application/json" if status == 200 else b"text/plain"))
    await send({"type": "http.response.body", "body": body})
