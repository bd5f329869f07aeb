"""One request of OpenAI's chat completions while it is answered: its time, its stream, and what a failure is called.

Knows HTTP. `arpo.agent.server` knows who may ask, and where.
"""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from arpo.agent.admission import RefusedError
from arpo.agent.pick import AgentAnswer
from arpo.agent.protocol import event_json
from arpo.agent.turns import TurnDelta, WrittenTurn, WrittenTurns
from arpo.chat.openai_wire import (
    ChatRequest,
    Json,
    calls_json,
    choice_json,
    chunk_json,
    completion_json,
    error_json,
    message_json,
    new_id,
    sse,
    usage_json,
)
from arpo.core.credit import ScoredTree
from arpo.core.place import show
from arpo.core.tree import StopReason
from arpo.errors import ArpoError, ConfigError, EngineError, FormatError, ToolsStoppedError
from arpo.http.serving import BadRequest
from arpo.rollout.collect import Rollout, record_of
from arpo.rollout.task_rollout import TaskRollout, TreeRollout
from arpo.rollout.watching import ResultsRead, RolloutEvent, TextWritten
from arpo.view.trees import tree_answer

if TYPE_CHECKING:
    from arpo.agent.server import AgentServer

PING_S = 15.0  # between signs of life in a stream that has nothing to say
Event = RolloutEvent | AgentAnswer | TurnDelta | WrittenTurns
Events = AsyncGenerator[Any, None]


class Answering:
    """One request while it is answered."""

    def __init__(self, server: "AgentServer", asked: ChatRequest, kind: str, stack: AsyncExitStack) -> None:
        self.server, self.asked, self.kind, self.stack = server, asked, kind, stack
        self.id, self.loop = new_id(), asyncio.get_running_loop()
        self.began = self.loop.time()
        self.deadline = self.began + server.limits.timeout_s
        self.sent = defaultdict[int, tuple[int, int]](lambda: (0, 0))  # by choice: characters of thought and content

    async def response(self, request: Request) -> Response:
        """The answer, or the beginning of a stream. Whatever fails until then has a status of its own."""
        try:
            async with asyncio.timeout_at(self.deadline):
                await self._unless_gone(request, self.stack.enter_async_context(self.server.admission.place()))
                events = self.server.events(self.asked, self.kind)
                self.stack.push_async_callback(events.aclose)
                first = await self._unless_gone(request, anext(events))
                if not self.asked.stream:
                    answer = await self._unless_gone(request, self._last(first, events))
        except TimeoutError:
            raise TimeoutError(f"no answer within {self.server.limits.timeout_s:g} s") from None
        if self.asked.stream:
            return _Stream(self._chunks(first, events), self.stack, self.deadline + PING_S)
        self._counted(answer)
        await self.stack.aclose()
        return JSONResponse(self._whole(answer))

    async def _unless_gone(self, request: Request, work: Any) -> Any:
        """The result of `work`, which ends where the client hangs up. Raises ClientDisconnect."""
        working = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(_hung_up(request))
        try:
            await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise ClientDisconnect
            return working.result()
        finally:
            for task in (working, gone):
                task.cancel()
            await asyncio.gather(working, gone, return_exceptions=True)

    async def _last(self, first: Any, events: Events) -> Any:
        event = first
        self._watch(event)
        async for event in events:
            self._watch(event)
        if isinstance(event, AgentAnswer) and event.ending.aborted:
            raise EngineError(f"{event.ending.replace('_', ' ')}: {event.why}")
        return event

    def _watch(self, event: Event) -> None:
        if isinstance(event, ResultsRead):
            self.server.figures.count_calls(event)

    def _counted(self, answer: AgentAnswer | WrittenTurns) -> None:
        self.server.figures.seconds.labels(self.kind).observe(self.loop.time() - self.began)
        self.server.figures.count_tokens(*_usage(answer))
        self.server.count(self.kind, "ok")

    # --- shapes

    def _whole(self, answer: AgentAnswer | WrittenTurns) -> Json:
        usage = usage_json(*_usage(answer))
        if isinstance(answer, AgentAnswer):
            choice = choice_json(0, _finish(answer), message=message_json(answer.text))
            return completion_json(
                self.id, self.asked.model, [choice], usage, arpo=answer_json(answer, tree=self.asked.tree)
            )
        choices = []
        for turn in answer.choices:
            content = turn.content if turn.content or not turn.calls else None
            message = message_json(content, turn.reasoning, calls_json(turn.calls, turn.ids))
            choices.append(choice_json(turn.index, turn.finish, message=message))
        return completion_json(self.id, self.asked.model, choices, usage)

    def _chunk(self, *choices: Json, **more: Any) -> bytes:
        return sse(chunk_json(self.id, self.asked.model, choices, **more))

    async def _chunks(self, first: Any, events: Events) -> AsyncGenerator[bytes, None]:
        """The stream of server-sent events. An error within it is an event, too."""
        outcome = "cancelled"
        try:
            for index in range(self.asked.n):
                yield self._chunk(choice_json(index, None, delta={"role": "assistant", "content": ""}))
            async with aclosing(self._alive(first, events)) as alive:
                async for event in alive:
                    for chunk in self._event_chunks(event):
                        yield chunk
            yield sse("[DONE]")
            outcome = "ok"
        except (ArpoError, TimeoutError) as error:
            outcome, response = refusal_of(error)
            assert response is not None
            yield sse(bytes(response.body).decode())
        finally:
            if outcome != "ok":
                self.server.count(self.kind, outcome)

    async def _alive(self, first: Any, events: Events) -> AsyncGenerator[Any, None]:
        """`events` from `first` on, and None where nothing happened for a while. Raises TimeoutError."""
        yield first
        while True:
            pending = asyncio.ensure_future(anext(events, None))
            try:
                while True:
                    left = self.deadline - self.loop.time()
                    done, _ = await asyncio.wait({pending}, timeout=max(0.0, min(PING_S, left)))
                    if done:
                        break
                    if left <= PING_S:
                        raise TimeoutError(f"no answer within {self.server.limits.timeout_s:g} s")
                    yield None
            finally:
                pending.cancel()
                await asyncio.gather(pending, return_exceptions=True)
            if (event := pending.result()) is None:
                return
            yield event

    def _event_chunks(self, event: Event | None) -> list[bytes]:
        if event is None:
            return [b": still answering\n\n"]
        self._watch(event)
        if isinstance(event, AgentAnswer):
            if event.ending.aborted:
                raise EngineError(f"{event.ending.replace('_', ' ')}: {event.why}")
            self._counted(event)
            last = choice_json(0, _finish(event), delta={"content": event.text})
            told = answer_json(event, tree=self.asked.tree)
            return [self._chunk(last, arpo=told), *self._usage_chunk(event)]
        if isinstance(event, WrittenTurns):
            self._counted(event)
            return [*map(self._last_chunk, event.choices), *self._usage_chunk(event)]
        if isinstance(event, TurnDelta):
            sent = self.sent[event.index]
            self.sent[event.index] = (sent[0] + len(event.reasoning), sent[1] + len(event.content))
            return [self._chunk(choice_json(event.index, None, delta=_delta(event.reasoning, event.content)))]
        delta = {}
        if isinstance(event, TextWritten) and self.asked.samples == 1:
            delta = {"reasoning_content": event.text}  # clients that know no events show it
        return [self._chunk(choice_json(0, None, delta=delta), event=event_json(event))]

    def _last_chunk(self, turn: WrittenTurn) -> bytes:
        """What of a turn was not yet sent."""
        thought, content = self.sent[turn.index]
        delta = _delta(turn.reasoning[thought:], turn.content[content:])
        if turn.calls:
            calls = calls_json(turn.calls, turn.ids)
            delta["tool_calls"] = [{"index": number, **call} for number, call in enumerate(calls)]
        return self._chunk(choice_json(turn.index, turn.finish, delta=delta))

    def _usage_chunk(self, answer: AgentAnswer | WrittenTurns) -> list[bytes]:
        return [self._chunk(usage=usage_json(*_usage(answer)))] if self.asked.include_usage else []


class _Stream(Response):
    """A stream that gives back what it holds, however it ends: whole, broken off by the client, not even begun, or,
    on the loop's clock, at `ends_at`: a client that does not read what it gets keeps no place."""

    def __init__(self, chunks: AsyncGenerator[bytes, None], stack: AsyncExitStack, ends_at: float) -> None:
        self.chunks, self.stack, self.ends_at = chunks, stack, ends_at

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        try:
            stream = StreamingResponse(self.chunks, media_type="text/event-stream", headers=headers)
            async with asyncio.timeout_at(self.ends_at):
                await stream(scope, receive, send)
        except TimeoutError:
            pass
        finally:
            await self.chunks.aclose()
            await self.stack.aclose()


def _delta(reasoning: str, content: str) -> Json:
    return {**({"reasoning_content": reasoning} if reasoning else {}), **({"content": content} if content else {})}


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _finish(answer: AgentAnswer) -> str:
    return "stop" if answer.ending is StopReason.FINISHED else "length"


def _usage(answer: AgentAnswer | WrittenTurns) -> tuple[int, int]:
    """Tokens of the prompt, and tokens written in all branches."""
    if isinstance(answer, WrittenTurns):
        return answer.num_read, sum(turn.num_tokens for turn in answer.choices)
    rollout = answer.rollout
    first = min(rollout.tree.turns, default=None)
    return rollout.num_read(first) if first else 0, sum(map(rollout.num_written, rollout.tree.turns))


def answer_json(answer: AgentAnswer, *, tree: bool) -> Json:
    """What only an agent's answer has. `tree`: with the whole tree, as the viewer draws it."""
    told = {
        "ending": answer.ending.value,
        "votes": dict(answer.votes),
        "branches": len(answer.rollout.tree.endings),
        "leaf": show(answer.leaf),
    }
    return {**told, "tree": _tree_json(answer.rollout)} if tree else told


def _tree_json(rollout: TaskRollout) -> Json:
    record = record_of(Rollout(grown=rollout, scored=ScoredTree(rollout.tree, {}), transcripts={}))
    said = {show(leaf): rollout.parsed[leaf].answer for leaf in rollout.tree.endings if leaf in rollout.parsed}
    record = replace(record, notes={**record.notes, "answers": said})
    shown = tree_answer(record, rollout.chat if isinstance(rollout, TreeRollout) else None)
    leaves = [{**leaf, "unscored": True} for leaf in shown["leaves"]]
    return {**shown, "leaves": leaves, "tokenizer": False}  # the page shows text: it has nobody to ask for tokens


def error_response(status: int, message: str, code: str, **headers: str) -> Response:
    kind = "rate_limit_error" if status == 429 else "server_error" if status >= 500 else "invalid_request_error"
    return JSONResponse(error_json(message, kind, code), status_code=status, headers=headers)


def refusal_of(error: BaseException) -> tuple[str, Response | None]:
    """How a failed request counts, and the answer to it; None for a bug and for a client that is gone."""
    text = str(error)
    match error:
        case RefusedError():
            code = "overloaded" if error.status == 429 else "ending"
            return "refused", error_response(error.status, text, code, **{"retry-after": str(error.retry_after_s)})
        case BadRequest() | ConfigError() | FormatError():
            return "refused", error_response(400, text, "invalid_request_error")
        case TimeoutError():
            return "timeout", error_response(504, text, "timeout")
        case EngineError() | ToolsStoppedError():
            return "failed", error_response(503, text, "unavailable", **{"retry-after": "5"})
        case ArpoError():
            return "failed", error_response(500, text, "failed")
        case ClientDisconnect():
            return "cancelled", Response(status_code=499)
        case asyncio.CancelledError():
            return "cancelled", None
    return "failed", None
