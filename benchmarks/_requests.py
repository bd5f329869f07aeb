"""The requests of a rollout: noted as they are made, and made again without the rollout.

A request is made when something happened in its tree: a turn's head came, or a turn ended. The replay waits for the
same event and for nothing else, and writes as many tokens; a prompt that contains an earlier turn contains what the
replay wrote for it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from arpo.engines import Chunk, SamplingParams
from arpo.engines.base import EngineBase, EngineWrapper

Moment = tuple[int, str]  # number of a request, and which moment of it: HEAD or END
HEAD, END = "head", "end"
Write = Callable[[Sequence[int], SamplingParams], AsyncIterator[Sequence[int]]]


@dataclass(slots=True)
class Asked:
    prompt: tuple[int, ...]
    params: SamplingParams
    after: int  # how many moments had been
    tokens: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Request:
    """`prompt`: its first `kept` tokens are those of `parent`'s prompt and turn. `trigger`: None for the start."""

    prompt: tuple[int, ...]
    params: SamplingParams  # with the number of tokens that were written, and no stops
    parent: int | None
    kept: int
    trigger: Moment | None


class Noting(EngineWrapper):
    """An engine that notes what it is asked for. Raises what `engine` raises."""

    def __init__(self, engine: EngineBase) -> None:
        super().__init__(engine)
        self.asked: list[Asked] = []
        self.moments: list[Moment] = []

    async def sample(self, prompt: Sequence[int], params: SamplingParams) -> AsyncIterator[Chunk]:
        number, request = len(self.asked), Asked(tuple(prompt), params, len(self.moments))
        self.asked.append(request)
        ended = False
        stream: Any = self.engine.sample(prompt, params)
        try:
            async with aclosing(stream):
                async for chunk in stream:
                    if not request.tokens:
                        self.moments.append((number, HEAD))
                    request.tokens += chunk.tokens
                    if chunk.finish is not None:
                        ended = True
                        self.moments.append((number, END))
                    yield chunk
        finally:
            if not ended:
                self.moments.append((number, END))

    def requests(self) -> list[Request]:
        """What was asked, with what each request waited for."""
        trees: list[int] = []  # of each request, the first of its tree
        made = []
        for number, asked in enumerate(self.asked):
            parent, kept = self._parent(number)
            same = next((n for n in range(number) if self.asked[n].prompt == asked.prompt), number)
            trees.append(trees[parent] if parent is not None else same)
            before = (moment for moment in reversed(self.moments[: asked.after]) if trees[moment[0]] == trees[number])
            params = SamplingParams(
                max_tokens=max(1, len(asked.tokens)),
                temperature=asked.params.temperature,
                top_p=asked.params.top_p,
                seed=asked.params.seed,
                head=asked.params.head,
            )
            made.append(Request(asked.prompt, params, parent, kept, next(before, None)))
        return made

    def _parent(self, number: int) -> tuple[int | None, int]:
        """The earlier request of whose prompt and turn the longest part begins the prompt of this one, and that
        length."""
        prompt, best, kept = self.asked[number].prompt, None, 0
        for earlier, one in enumerate(self.asked[:number]):
            length = len(one.prompt)
            if length < len(prompt) and prompt[:length] == one.prompt:
                for ours, theirs in zip(prompt[length:], one.tokens, strict=False):
                    if ours != theirs:
                        break
                    length += 1
                if length > max(kept, len(one.prompt)):
                    best, kept = earlier, length
        return best, kept


async def replay(requests: Sequence[Request], write: Write) -> int:
    """Make every request again by `write`. Returns the tokens written."""
    happened = {(number, kind): asyncio.Event() for number in range(len(requests)) for kind in (HEAD, END)}
    prompts: list[Sequence[int]] = [()] * len(requests)
    turns: list[list[int]] = [[] for _ in requests]

    async def one(number: int, request: Request) -> None:
        if request.trigger is not None:
            await happened[request.trigger].wait()
        prompts[number] = request.prompt
        if request.parent is not None:
            before = [*prompts[request.parent], *turns[request.parent]][: request.kept]
            prompts[number] = (*before, *request.prompt[len(before) :])
        async for tokens in write(prompts[number], request.params):
            turns[number] += tokens
            if len(turns[number]) >= request.params.head:
                happened[number, HEAD].set()
        happened[number, HEAD].set()
        happened[number, END].set()

    async with asyncio.TaskGroup() as group:
        for number, request in enumerate(requests):
            group.create_task(one(number, request))
    return sum(map(len, turns))


def unique_tokens(asked: Sequence[Asked]) -> int:
    """Tokens of a trie of all prompts that no turn wrote."""
    turns = {hash((*one.prompt, *one.tokens[:length])) for one in asked for length in range(1, len(one.tokens) + 1)}
    return len({hash(one.prompt[:length]) for one in asked for length in range(1, len(one.prompt) + 1)} - turns)
