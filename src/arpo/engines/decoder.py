"""Continuous batching without concurrency: `step` advances every live request by one token.

A step admits what fits, runs one forward pass over one token of every decoding request and a bounded number of prompt
tokens, samples, and says what is ready. It is called from one thread at a time; asyncio, queues and cancellation are
the caller's.
"""

from __future__ import annotations  # `array[int]` cannot be subscripted before Python 3.12

from array import array
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from arpo.core.tree import FinishReason
from arpo.engines import Chunk, SamplingParams, Weights
from arpo.engines.attention import Layout, Span
from arpo.engines.base import check_request
from arpo.engines.network import Network
from arpo.engines.sampling import Pick, sample
from arpo.engines.slots import CachedTip, Match, Slots
from arpo.engines.stats import EngineStats
from arpo.engines.stops import Pieces, StopFinder
from arpo.errors import EngineError

_EVERY = 16  # tokens between chunks once the head is delivered
_PATIENCE = 16  # tokens of a prefix that another request is just computing that are worth a step's wait


@dataclass(eq=False, slots=True)
class DecodeRequest:
    """A turn on its way. `row` is its slot, -1 while it waits."""

    prompt: np.ndarray  # int32 [n]
    params: SamplingParams
    stop: StopFinder
    row: int = -1
    written: int = 0  # tokens sampled
    last: int = -1  # the newest token, whose key is not computed yet
    due: int = 0  # deliver when so many tokens are written
    tokens: array[int] = field(default_factory=lambda: array("i"))  # not delivered yet
    logprobs: array[float] = field(default_factory=lambda: array("f"))
    entropies: array[float] = field(default_factory=lambda: array("f"))

    def chunk(self, version: int, finish: FinishReason | None) -> Chunk:
        """Everything not delivered yet."""
        made = Chunk(
            tokens=self.tokens, logprobs=self.logprobs, entropies=self.entropies, version=version, finish=finish
        )
        self.tokens, self.logprobs, self.entropies = array("i"), array("f"), array("f")
        return made


@dataclass(frozen=True, slots=True)
class DecodeReply:
    """Something for the owner of `request`: a chunk, or why there will be none."""

    request: DecodeRequest
    chunk: Chunk | None = None
    error: str = ""


@dataclass(slots=True)
class _Plan:
    """The flat rows of one forward pass, and which requests are sampled from which of them."""

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    writes: list[tuple[int, int, int]] = field(default_factory=list)  # flat row, slot, position
    spans: list[Span] = field(default_factory=list)
    decoding: list[DecodeRequest] = field(default_factory=list)
    heads: list[tuple[DecodeRequest, int]] = field(default_factory=list)  # request and the flat row of its logits


class Decoder:
    """live: requests with a slot; waiting: those without. `slots` bounds the live ones, `prefill` the prompt tokens of
    a step."""

    def __init__(
        self, network: Network, slots: Slots, pieces: Pieces | None, *, live: int, prefill: int, stats: EngineStats
    ) -> None:
        self.network, self.slots, self.stats = network, slots, stats
        self.pieces, self.most, self.prefill = pieces, live, prefill
        self.version = 0
        self.live: list[DecodeRequest] = []
        self.waiting: deque[DecodeRequest] = deque()

    @property
    def busy(self) -> bool:
        return bool(self.live or self.waiting)

    def request(self, prompt: Sequence[int], params: SamplingParams) -> DecodeRequest:
        """A request for `step`. Raises EngineError where it can never be answered."""
        check_request(prompt, params, self.network.limit)
        tokens = np.asarray(prompt, dtype=np.int64)
        if tokens.min() < 0 or tokens.max() >= self.network.vocabulary:
            raise EngineError(f"the prompt holds a token outside [0, {self.network.vocabulary})")
        total, longest = len(tokens) + params.max_tokens, self.slots.longest()
        if total > longest:
            raise EngineError(f"{total} tokens do not fit into the engine's memory, which holds {longest} in one slot")
        if params.stop and self.pieces is None:
            raise EngineError("stop strings need a tokenizer, and the engine has none")
        stop = StopFinder(self.pieces or (lambda _: b""), params.stop, params.stop_tokens)
        return DecodeRequest(tokens.astype(np.int32), params, stop, due=params.head or _EVERY)

    def step(self, arrivals: Iterable[DecodeRequest] = (), closed: Iterable[DecodeRequest] = ()) -> list[DecodeReply]:
        """Advance by one token. `closed` requests are dropped first."""
        self._drop(closed)
        self.waiting.extend(arrivals)
        with self.stats.clock("copy_s"):
            ready, replies = self._admit()
        known = {request for request, _ in ready}
        others = [r for r in self.live if r not in known]
        rows = ready + (self._forward(others) if others else [])
        with self.stats.clock("sampling_s"):
            replies += self._sample(rows)
        self.stats.steps += 1
        return replies

    def load(self, weights: Weights) -> None:
        """Give the network other weights. No step may be under way, of this decoder or another one of the same
        network."""
        with self.stats.clock("load_s"):
            self.network.load(weights.state, copies=weights.changing)

    def loaded(self, version: int) -> list[DecodeReply]:
        """The network has the weights of `version`. What is written so far is delivered under the old version."""
        replies = [DecodeReply(r, r.chunk(self.version, None)) for r in self.live if r.tokens]
        self.version = version
        self.slots.forget()
        return replies

    def reset(self) -> list[DecodeRequest]:
        """Drop every request and every key, after a failure. Returns the requests."""
        lost = [*self.live, *self.waiting]
        self.live.clear()
        self.waiting.clear()
        self.slots.clear()
        return lost

    # -- admission
    # --------------------------------------------------------------------------------------------------------

    def _drop(self, closed: Iterable[DecodeRequest]) -> None:
        for request in closed:
            if request in self.waiting:
                self.waiting.remove(request)
                self.stats.cancelled += 1
            elif request in self.live:
                self._leave(request)
                self.stats.cancelled += 1

    def _leave(self, request: DecodeRequest) -> None:
        self.live.remove(request)
        self.slots.leave(request.row)
        request.row = -1

    def _admit(self) -> tuple[list[tuple[DecodeRequest, Tensor]], list[DecodeReply]]:
        """Give slots to waiting requests. Returns those whose first token needs no forward, with their logits
        [vocabulary]."""
        ready: list[tuple[DecodeRequest, Tensor]] = []
        replies: list[DecodeReply] = []
        later: list[DecodeRequest] = []
        budget = self.prefill
        while self.waiting and len(self.live) < self.most:
            request = self.waiting.popleft()
            full = len(request.prompt)
            match = self.slots.match(request.prompt)
            reuse = 0 if match is None else match.count if match.tip is not None else min(match.count, full - 1)
            if match is not None and min(match.coming, full) - reuse >= _PATIENCE:
                later.append(request)  # another request computes this prefix right now
                continue
            budget -= full - reuse
            row = self._take(request, match, reuse)
            if row is None:
                self.waiting.appendleft(request)
                break
            if match is not None and match.tip is not None:
                ready.append((request, match.tip))
            if budget <= 0:
                break
        self.waiting.extendleft(reversed(later))
        if self.waiting and not self.live:
            request = self.waiting.popleft()
            replies.append(DecodeReply(request, error=self._no_room(request)))
        return ready, replies

    def _take(self, request: DecodeRequest, match: Match | None, reuse: int) -> int | None:
        before = self.slots.copied
        row = self.slots.take(request, request.prompt, len(request.prompt) + request.params.max_tokens, match, reuse)
        self.stats.copied_tokens += self.slots.copied - before
        if row is not None:
            self.live.append(request)
            self.stats.requests += 1
            self.stats.reused_tokens += reuse
        return row

    def _no_room(self, request: DecodeRequest) -> str:
        need = len(request.prompt) + request.params.max_tokens
        return (
            f"no memory for a slot of {need} tokens: {self.slots.memory / 2**30:.2f} GiB hold {len(self.slots.rows)} "
            f"slots of {self.slots.length}"
            + ("" if self.slots.evicts else ", and a deterministic engine evicts no prefix")
        )

    # -- forward
    # ----------------------------------------------------------------------------------------------------------

    def _forward(self, requests: list[DecodeRequest]) -> list[tuple[DecodeRequest, Tensor]]:
        """One pass over all `requests`: logits for those that are ready to be sampled."""
        plan = self._plan(requests)
        with self.stats.clock("forward_s"):
            logits = self._run(plan)
        for _, row, position in plan.writes:
            self.slots.rows[row].known = max(self.slots.rows[row].known, position + 1)
        for request in plan.decoding:
            slot = self.slots.rows[request.row]
            slot.planned = slot.known
        heads = [(request, logits[i]) for i, (request, _) in enumerate(plan.heads)]
        for request, row_logits in heads:
            if not request.written:
                self.slots.rows[request.row].tip = CachedTip(len(request.prompt), row_logits.clone())
        return heads

    def _plan(self, requests: list[DecodeRequest]) -> _Plan:
        """Decoding requests first, one flat row each in the order of their slots; then prompt tokens up to the
        bound."""
        plan = _Plan()
        budget = self.prefill
        for request in sorted((r for r in requests if r.written), key=lambda r: r.row):
            position = self.slots.rows[request.row].known
            self._enter(request, position, request.last)
            plan.heads.append((request, len(plan.tokens)))
            plan.writes.append((len(plan.tokens), request.row, position))
            plan.tokens.append(request.last)
            plan.positions.append(position)
            plan.decoding.append(request)
        for request in requests:
            if request.written or budget <= 0:
                continue
            start = self.slots.rows[request.row].known
            stop = min(len(request.prompt), start + budget)
            budget -= stop - start
            first = len(plan.tokens)
            plan.spans.append(Span(request.row, start, stop - start, first, stop))
            plan.writes += [(first + i, request.row, start + i) for i in range(stop - start)]
            plan.tokens += request.prompt[start:stop].tolist()
            plan.positions += range(start, stop)
            self.stats.prefill_tokens += stop - start
            if stop == len(request.prompt):
                plan.heads.append((request, len(plan.tokens) - 1))
        return plan

    def _enter(self, request: DecodeRequest, position: int, token: int) -> None:
        self.slots.tokens[request.row, position] = token
        self.slots.sampled[request.row, position] = True

    def _run(self, plan: _Plan) -> Tensor:
        """Logits [len(plan.heads), vocabulary]."""
        reach = [self.slots.rows[r.row].known + 1 for r in plan.decoding]
        layout = Layout(
            self.slots.store,
            reach=reach,
            pages=self.slots.pages([r.row for r in plan.decoding], reach),
            spans=plan.spans,
            heads_per_key=self.network.shape.heads // self.network.shape.kv_heads,
            write=tuple(zip(*plan.writes, strict=True)),  # type: ignore[arg-type]
        )
        spare = _spare(len(plan.tokens)) if self.network.pads else 0
        tokens, positions = plan.tokens + [0] * spare, plan.positions + [0] * spare
        return self.network.forward(tokens, positions, layout, [row for _, row in plan.heads])

    # -- sampling
    # ---------------------------------------------------------------------------------------------------------

    def _sample(self, rows: list[tuple[DecodeRequest, Tensor]]) -> list[DecodeReply]:
        if not rows:
            return []
        picks = [
            Pick(temperature=r.params.temperature, top_p=r.params.top_p, seed=r.params.seed, index=r.written)
            for r, _ in rows
        ]
        picked = sample(torch.stack([logits for _, logits in rows]), picks)
        self.stats.decode_tokens += len(rows)
        return [
            reply
            for (request, _), token, logprob, entropy in zip(
                rows, picked.tokens, picked.logprobs, picked.entropies, strict=True
            )
            if (reply := self._write(request, token, logprob, entropy)) is not None
        ]

    def _write(self, request: DecodeRequest, token: int, logprob: float, entropy: float) -> DecodeReply | None:
        """Append a sampled token. Returns what is due now."""
        request.tokens.append(token)
        request.logprobs.append(logprob)
        request.entropies.append(entropy)
        request.written += 1
        request.last = token
        finish = None
        if request.stop.feed(token):
            finish = FinishReason.STOP
        elif request.written >= request.params.max_tokens:
            finish = FinishReason.LENGTH
        if finish is not None:
            self._leave(request)
        elif request.written < request.due:
            return None
        request.due = request.written + _EVERY
        return DecodeReply(request, request.chunk(self.version, finish))


def _spare(rows: int) -> int:
    """Rows of padding that leave few different numbers of rows."""
    return -rows % (8 if rows <= 128 else 32)
