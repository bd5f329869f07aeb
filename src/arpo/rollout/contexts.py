"""Contexts that are rewritten between turns, so that a branch may be longer than what a model reads at once.

A policy gets the messages that the model has before it and returns those that it will have. What it keeps of turns and
results keeps its tokens; the new prompt is recorded as it was read (`Observation.new_context`). Knows messages. Refuses
to know how trees grow.
"""

from __future__ import annotations  # `array[int]` cannot be subscripted before Python 3.12

import inspect
import re
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from arpo.chat import ChatFormat, ParsedTurn
from arpo.chat.config import NO_CALLS_LEFT
from arpo.chat.json_text import read_arguments
from arpo.chat.token_text import check_size
from arpo.core.place import Place
from arpo.core.tree import Call, CallStatus, Role, RolloutTree, ToolCallResult, Turn
from arpo.endpoint.client import Endpoint, text_of
from arpo.endpoint.config import EndpointConfig
from arpo.errors import ConfigError, FormatError
from arpo.tasks import Task
from arpo.tasks.traces import RecordedStep
from arpo.tools import Tool

Message = Mapping[str, Any]
Messages = Sequence[Message]
"""`{role, content}`: the task's messages, then for each turn one of the `assistant` with the turn's text, one of a
`tool` (with its `name`) for each result, and the `user`'s where an environment spoke. A message of the user whose
`name` is `memory` stands for what was dropped."""

DROPPED = "(dropped)"
HEADING = "What you have noted so far (write <note>…</note> to note more; all else is dropped):"
SUMMARY = "What happened so far, in your words:"
ASK = (
    "Your context is full, and all of it but the task will be dropped. Write down what you need to go on: what you "
    "have found out, and what is left to do."
)
TOO_MANY = 2**31  # tokens that a text has which was not tokenised
_NOTE = re.compile(r"<note>(.*?)</note>", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContextBudget:
    """How long a new context may be: `tokens`, as `count(messages)` counts them. `without_thought(text)` is a turn's
    text without its thought."""

    tokens: int
    count: Callable[[Messages], int]
    without_thought: Callable[[str], str]


def drop_results(messages: Messages, budget: ContextBudget, *, keep: int = 1, text: str = DROPPED) -> Messages:
    """All but the last `keep` turns with results have theirs replaced by `text`; where that is not enough, the oldest
    turns go."""
    head, exchanges = _parts(messages)
    short = [_with_results(each, text) for each in _older(exchanges, keep)]
    return _fitting(head, [*short, *exchanges[len(short) :]], budget)


def strip_thoughts(messages: Messages, budget: ContextBudget, *, keep: int = 1) -> Messages:
    """All but the last `keep` turns lose their thoughts, as families' chat templates drop those of earlier turns;
    where that is not enough, the oldest turns go."""
    head, exchanges = _parts(messages)
    short = [
        [{**said, "content": budget.without_thought(said["content"])}, *results]
        for said, *results in _older(exchanges, keep)
    ]
    return _fitting(head, [*short, *exchanges[len(short) :]], budget)


def recompose(messages: Messages, budget: ContextBudget, *, keep: int = 1, heading: str = HEADING) -> Messages:
    """The task, what the model noted between <note> and </note>, and the last `keep` turns with their results; where
    that is not enough, the oldest notes go."""
    head, exchanges = _parts(messages)
    notes = [note for message in head for note in message.get("notes", ())]
    for said, *_ in exchanges:
        notes += [note.strip() for note in _NOTE.findall(said["content"])]
    notes = [*dict.fromkeys(filter(None, notes))]
    task, last = [m for m in head if m.get("name") != "memory"], exchanges[len(_older(exchanges, keep)) :]

    def composed() -> list[Message]:
        content = "\n".join([heading, *notes])
        memory = [{"role": "user", "name": "memory", "content": content, "notes": tuple(notes)}] if notes else []
        return [*task, *memory, *(message for exchange in last for message in exchange)]

    while notes and budget.count(composed()) > budget.tokens:
        del notes[: max(1, len(notes) // 8)]
    return composed()


async def summarise(
    messages: Messages, budget: ContextBudget, *, endpoint: Mapping[str, Any], ask: str = ASK
) -> Messages:
    """The task, and a summary of the rest by the model at `endpoint`. Without an endpoint the policy writes it itself,
    in a turn that is trained (`ContextConfig.by_policy`)."""
    head, exchanges = _parts(messages)
    shown = [f"{m['role']}: {m['content']}" for m in (*head, *(m for exchange in exchanges for m in exchange))]
    client = Endpoint(EndpointConfig(**endpoint), "rollout.context")
    try:
        asked = [{"role": "user", "content": "\n\n".join([*shown, ask])}]
        reply = await client.chat_once(asked, max_tokens=budget.tokens)
    finally:
        await client.close()
    return summarised(messages, text_of(reply.message.get("content")).rpartition("</think>")[2].strip())


def summarised(messages: Messages, summary: str) -> list[Message]:
    """The task and `summary` in place of everything else."""
    task = [m for m in _parts(messages)[0] if m.get("name") != "memory"]
    return [*task, {"role": "user", "name": "memory", "content": f"{SUMMARY}\n{summary}"}]


POLICIES: Mapping[str, Callable[..., Any]] = {
    "recompose": recompose,
    "drop_results": drop_results,
    "strip_thoughts": strip_thoughts,
    "summarise": summarise,
}


def _parts(messages: Messages) -> tuple[list[Message], list[list[Message]]]:
    """What stands before the first turn, and each turn with what came back for it."""
    head = [*takewhile(lambda message: message["role"] != "assistant", messages)]
    exchanges: list[list[Message]] = []
    for message in messages[len(head) :]:
        if message["role"] == "assistant":
            exchanges.append([])
        exchanges[-1].append(message)
    return head, exchanges


def _older(exchanges: Sequence[Sequence[Message]], keep: int) -> Sequence[Sequence[Message]]:
    """All but the last `keep`."""
    return exchanges[: max(0, len(exchanges) - keep)]


def _with_results(exchange: Sequence[Message], text: str) -> list[Message]:
    return [{**message, "content": text} if message["role"] == "tool" else message for message in exchange]


def _fitting(head: Messages, exchanges: Sequence[Messages], budget: ContextBudget) -> list[Message]:
    """All of it, without as many of the oldest exchanges as must go; the last one stays."""

    def without(oldest: int) -> list[Message]:
        return [*head, *(message for exchange in exchanges[oldest:] for message in exchange)]

    fits = lambda oldest: budget.count(without(oldest)) <= budget.tokens  # noqa: E731
    return without(bisect_left(range(max(0, len(exchanges) - 1)), True, key=fits))


@dataclass(frozen=True, slots=True)
class Exchange:
    """What came back for a turn, as it was given to the chat format."""

    results: tuple[ToolCallResult, ...]
    message: str | None
    calls_left: int | None


class Contexts:
    """The messages in every context of one tree, and the tokens of new ones. `parsed`: the tree's turns as they were
    read."""

    def __init__(
        self, tree: RolloutTree, parsed: Mapping[Place, ParsedTurn], chat: ChatFormat, task: Task, tools: Sequence[Tool]
    ) -> None:
        self.tree, self.parsed, self.chat, self.task, self.tools = tree, parsed, chat, task, tools
        self.exchanges: dict[Place, Exchange] = {}
        self.later: set[Place] = set()  # turns whose results follow the policy's summary
        self.opened: dict[Place, Messages] = {(): [dict(message) for message in task.messages]}  # by start

    def messages(self, place: Place) -> list[Message]:
        """What a turn after the one at `place` would read, whose exchange is known."""
        start = self.tree.contexts(place)[-1][0]
        messages = [*self.opened[start]]
        for at in (place[:depth] for depth in range(len(start) + 1, len(place) + 1)):
            messages.append({"role": "assistant", "content": self.parsed[at].text})
            exchange = self.exchanges[at]
            messages += [{"role": "tool", "name": r.tool, "content": r.text} for r in exchange.results]
            if exchange.message is not None:
                messages.append({"role": "user", "content": exchange.message})
        return messages

    async def rewritten(self, place: Place, policy: Callable[..., Any], tokens: int, most: int) -> array[int]:
        """The prompt with which the branch goes on after the turn at `place`, by `policy`, which may take so many
        tokens; a context holds at most `most`. Raises ConfigError for what is no conversation, and FormatError for one
        that no context can hold, which is not tokenised: a service may write megabytes."""
        before, calls_left = self.messages(place), self.exchanges[place].calls_left
        known = self._known(place)

        def check(messages: Any) -> None:
            check_size((str(message["content"]) for message in _checked(messages)), most)

        def count(messages: Messages) -> int:
            try:
                check(messages)
            except FormatError:
                return TOO_MANY
            return len(self.tokens(messages, calls_left, known))

        after = policy(before, ContextBudget(tokens=tokens, count=count, without_thought=self.chat.without_thought))
        after = await after if inspect.isawaitable(after) else after
        check(after)
        return self.open(place, after, calls_left)

    def summed_up(self, place: Place, summary: str) -> array[int]:
        """The prompt with which the branch goes on after the turn at `place`, which wrote `summary`."""
        tip = place[:-1]
        before = self.messages(tip)
        kept = _parts(before)[1][-1] if tip in self.later else []
        return self.open(place, [*summarised(before, summary), *kept], self.exchanges[tip].calls_left)

    def open(self, place: Place, messages: Any, calls_left: int | None) -> array[int]:
        """The prompt of a context of `messages`, which starts after the turn at `place`."""
        self.opened[place] = messages
        return self.tokens(messages, calls_left, self._known(place))

    def _known(self, place: Place) -> dict[str, Turn]:
        """The turns on the path to `place` by their text: what is kept of them keeps its tokens."""
        path = (place[:depth] for depth in range(1, len(place) + 1))
        return {self.parsed[at].text: self.tree.turns[at] for at in path}

    def tokens(self, messages: Any, calls_left: int | None, known: Mapping[str, Turn]) -> array[int]:
        """The prompt that shows `messages`. `calls_left`: as in `ChatFormat.observe`, for the last turn."""
        head, exchanges = _parts(_checked(messages))
        if not exchanges and calls_left is not None and calls_left <= 0:
            head = [*head, {"role": "user", "content": NO_CALLS_LEFT}]
        tokens = array("i", self.chat.render(replace(self.task, messages=tuple(_joined(head))), self.tools))
        for number, (said, *back) in enumerate(exchanges, 1):
            turn = known.get(said["content"]) or self._written(said)
            names = iter([call.name for call in turn.calls])
            results = [
                ToolCallResult(tool=str(m.get("name") or next(names, "")), status=CallStatus.OK, text=str(m["content"]))
                for m in back
                if m["role"] == "tool"
            ]
            words = [str(m["content"]) for m in back if m["role"] != "tool"]
            left = calls_left if number == len(exchanges) else None
            tokens.extend(turn.tokens)
            tokens.extend(self.chat.observe(turn, results, left, "\n\n".join(words) if words else None)[0])
        return tokens

    def _written(self, message: Message) -> Turn:
        """A turn that nobody sampled; its calls may stand beside its text, as chat APIs have them."""
        made = [call["function"] for call in message.get("tool_calls") or ()]
        calls = tuple(Call(name=each["name"], arguments=read_arguments(each["arguments"])[0] or {}) for each in made)
        text = message["content"] or ""
        tokens = self.chat.encode_turn(self.chat.write(RecordedStep(calls=calls, text=text)) if calls else text)
        nothing = array("f")
        calls = self.chat.parse(tokens).calls
        return Turn(place=(0,), role=Role.ROOT, tokens=tokens, logprobs=nothing, entropies=nothing, calls=calls)


def _checked(messages: Any) -> Messages:
    """Raises ConfigError for what a policy of a user's own cannot return."""
    wrong = ""
    if not isinstance(messages, Sequence) or not all(isinstance(m, Mapping) and "content" in m for m in messages):
        wrong = f"returns {messages!r:.80}"
    elif roles := {str(m.get("role")) for m in messages} - {"system", "user", "assistant", "tool"}:
        wrong = f"returns messages of {', '.join(sorted(roles))}"
    elif odd := [m for m in messages if not _is_said(m)]:
        wrong = f"returns the message {odd[0]!r:.80}"
    elif not messages or messages[0]["role"] in ("assistant", "tool") or messages[-1]["role"] == "assistant":
        wrong = f"returns a conversation of {' '.join(str(m['role']) for m in messages) or 'nothing'}"
    if wrong:
        hint = "messages {role, content}: the task's first, then turns of the assistant, each with its results"
        raise ConfigError(wrong, where="rollout.context", hint=hint)
    return messages  # type: ignore[no-any-return]


def _is_said(message: Message) -> bool:
    """Whether a message's content is text, or what it says are calls as chat APIs have them."""
    calls, content = message.get("tool_calls") or [], message["content"]
    if not isinstance(calls, list) or not (isinstance(content, str) or (content is None and calls)):
        return False
    functions = [call.get("function") if isinstance(call, Mapping) else None for call in calls]
    return all(
        isinstance(made, Mapping)
        and isinstance(made.get("name"), str)
        and isinstance(made.get("arguments"), str | Mapping)
        for made in functions
    )


def _joined(head: Messages) -> Iterator[dict[str, str]]:
    """Messages as a chat template takes them: those of one role that follow each other are one."""
    parts: list[dict[str, str]] = []
    for message in head:
        if parts and parts[-1]["role"] == message["role"]:
            parts[-1]["content"] += f"\n\n{message['content']}"
        else:
            parts.append({"role": str(message["role"]), "content": str(message["content"])})
    return iter(parts)
