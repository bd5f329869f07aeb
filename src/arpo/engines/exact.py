"""The deterministic decoder: a turn depends on its prompt, its seed and nothing else, bit for bit.

One request a forward pass, always of the same shape: prompt tokens in pieces aligned to absolute positions (a token
always stands in the same row of its piece), sampled tokens one by one. So a key has the same bits whoever computed it
and whenever, and copying it or computing it again makes no difference. What the model wrote itself always has its keys
from decoding, the last token too. Slow by design. Two prompts that agree in tokens, of which one was written by the
model and the other not, are the one case that it cannot tell apart.
"""

from torch import Tensor

from arpo.engines.attention import Layout, Span
from arpo.engines.decoder import Decoder, DecodeReply, DecodeRequest
from arpo.engines.slots import CachedTip

_PIECE = 64  # prompt tokens a forward pass; divides the slots' block


class ExactDecoder(Decoder):
    """A Decoder whose passes hold one request each."""

    def _forward(self, requests: list[DecodeRequest]) -> list[tuple[DecodeRequest, Tensor]]:
        heads: list[tuple[DecodeRequest, Tensor]] = []
        budget = self.prefill
        for request in requests:
            if request.written:
                with self.stats.clock("forward_s"):
                    heads.append((request, self._decode(request, request.last)))
            elif budget > 0:
                with self.stats.clock("forward_s"):
                    logits, done = self._read_prompt(request, budget)
                budget -= done
                if logits is not None:
                    self.slots.rows[request.row].tip = CachedTip(len(request.prompt), logits)
                    heads.append((request, logits))
        return heads

    def _read_prompt(self, request: DecodeRequest, budget: int) -> tuple[Tensor | None, int]:
        """Compute keys of prompt tokens, about `budget` of them. Logits [vocabulary] once the prompt is complete."""
        slot, done = self.slots.rows[request.row], 0
        logits = None
        while slot.known < len(request.prompt) and done < budget:
            start = slot.known
            if self.slots.sampled[request.row, start]:
                logits = self._decode(request, int(request.prompt[start]))
                stop = start + 1
            else:
                stop = min(len(request.prompt), (start // _PIECE + 1) * _PIECE)
                written = self.slots.sampled[request.row, start:stop]
                stop = start + int(written.argmax()) if written.any() else stop
                logits = self._piece(request, start, stop)
            done += stop - start
        self.stats.prefill_tokens += done
        return (logits if slot.known == len(request.prompt) else None), done

    def _piece(self, request: DecodeRequest, start: int, stop: int) -> Tensor:
        """Prompt tokens [start, stop) of one aligned piece; the piece's other rows are padding that stores nothing."""
        base = start // _PIECE * _PIECE
        tokens = [0] * _PIECE
        tokens[start - base : stop - base] = request.prompt[start:stop].tolist()
        rows = range(start - base, stop - base)
        layout = Layout(
            self.slots.store,
            spans=[Span(request.row, base, _PIECE, 0, base + _PIECE)],
            heads_per_key=self.network.shape.heads // self.network.shape.kv_heads,
            write=(rows, [request.row] * len(rows), range(start, stop)),
        )
        logits = self.network.forward(tokens, range(base, base + _PIECE), layout, [stop - base - 1])
        self.slots.rows[request.row].known = stop
        return logits[0]

    def _decode(self, request: DecodeRequest, token: int) -> Tensor:
        """The key of one token by a pass of its own, and the logits [vocabulary] after it."""
        slot = self.slots.rows[request.row]
        position = slot.known
        self._enter(request, position, token)
        layout = Layout(
            self.slots.store,
            reach=[position + 1],
            pages=self.slots.pages([request.row], [position + 1]),
            heads_per_key=self.network.shape.heads // self.network.shape.kv_heads,
            write=([0], [request.row], [position]),
        )
        logits = self.network.forward([token], [position], layout, [0])
        slot.known = position + 1
        slot.planned = max(slot.planned, slot.known)
        return logits[0]

    def _sample(self, rows: list[tuple[DecodeRequest, Tensor]]) -> list[DecodeReply]:
        """Row by row: a sum over a batch may be split over threads in another way than a sum over one row."""
        return [reply for row in rows for reply in super(ExactDecoder, self)._sample([row])]

    def _leave(self, request: DecodeRequest) -> None:
        """The last token's key is computed too, so that it never comes from a later prompt."""
        if request.written and self.slots.rows[request.row].known < len(request.prompt) + request.written:
            self._decode(request, request.last)
        super()._leave(request)
