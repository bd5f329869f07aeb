"""harmony, the messages of gpt-oss. A turn is several messages, and the last one has an end of its own:

    <|channel|>analysis<|message|>a thought<|end|>
    <|start|>assistant to=functions.search<|channel|>commentary json<|message|>{"query": "Lima"}<|call|>
    <|start|>assistant<|channel|>final<|message|>the answer<|return|>

The recipient may stand before or behind the channel (templates and models differ). A message in the commentary channel
without a recipient is a preamble for people.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from arpo.chat.json_text import JsonError, read_arguments, read_value
from arpo.chat.syntaxes import Reading, Tools, first_mark, known_name
from arpo.core.tree import Call

START, MESSAGE = "<|start|>", "<|message|>"
_ENDS = re.compile(r"<\|(?:end|call|return)\|>")
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")


@dataclass(frozen=True, slots=True)
class Harmony:
    name: str = "harmony"

    @property
    def hints(self) -> tuple[str, ...]:
        return ("<|channel|>", "<|message|>")

    def opening(self, text: str) -> str:
        return first_mark(text, ("<|channel|>", "to=functions."))

    def read(self, text: str, tools: Tools) -> Reading:
        calls: list[Call] = []
        said: list[str] = []
        answer: str | None = None
        thought, end, at = False, 0, 0
        parts = text.split(START)
        for number, part in enumerate(parts):
            header, opened, body = part.partition(MESSAGE)
            start, at = at + len(header) + len(opened), at + len(part) + len(START)
            recipient, channel = _RECIPIENT.search(header), _CHANNEL.search(header)
            close = _ENDS.search(body)
            content = body[: close.start()] if close else body
            to = recipient[1] if recipient else "assistant"
            if to != "assistant":
                call, length = _call(known_name(to, tools), content if opened else "", bool(opened))
                if number < len(parts) - 1 and not call.error:
                    call = Call(name=call.name, error="a call ends the turn, with <|call|>: make one a turn")
                calls.append(call)
                end = start + length
            elif not opened:
                said.append(header)  # text outside of any message
            elif channel is None or channel[1] == "final":
                answer = content
            elif channel[1] == "analysis":
                thought = thought or close is not None
            else:
                said.append(content)
        rest = answer if answer is not None else None if not calls else "".join(said)
        return Reading(calls=tuple(calls), rest=rest, end=end, thought=thought)

    def write(self, calls: Sequence[Call], earlier: int = 0) -> str:
        return f"{START}assistant".join(
            f" to=functions.{call.name}<|channel|>commentary json{MESSAGE}"
            + json.dumps(dict(call.arguments), ensure_ascii=False)
            for call in calls
        )


def _call(name: str, body: str, opened: bool) -> tuple[Call, int]:
    """The call, and how much of its body is the arguments."""
    if not opened:
        return Call(name=name, error=f"the call of {name!r} has no {MESSAGE}"), 0
    if not body.strip():
        return Call(name=name), len(body)
    try:
        read = read_value(body)
    except JsonError as error:
        return Call(name=name, error=f"the arguments are no JSON object: {error}"), len(body)
    arguments, mended, wrong = read_arguments(read.value)
    if not wrong and body[read.end :].strip():
        wrong = f"{body[read.end :].strip()[:20]!r} stands behind the arguments"
    return Call(name=name, arguments=arguments, error=wrong, mended=read.mended or mended), len(body)


HARMONY = Harmony()
