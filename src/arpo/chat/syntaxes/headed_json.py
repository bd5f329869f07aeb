"""Calls as a head that names the tool, then its arguments as a JSON object.

mistral    [TOOL_CALLS]search[CALL_ID]a1b2c3d4e[ARGS]{…}       Mistral Small 3.2, Devstral, Ministral 3
           [TOOL_CALLS][{"name": …, "arguments": {…}, "id": …}]    Mistral 7B v0.3, Nemo
deepseek   <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>search<｜tool▁sep｜>{…}<｜tool▁call▁end｜><｜tool▁calls▁end｜>
           (V3.1); V3 and R1 write `function<｜tool▁sep｜>search` and the object in a fence of ```json
kimi       <|tool_calls_section_begin|><|tool_call_begin|>functions.search:0<|tool_call_argument_begin|>{…}
           <|tool_call_end|><|tool_calls_section_end|>         Kimi K2
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from arpo.chat.json_text import JsonError, call_of, identifier, read_arguments, read_value
from arpo.chat.syntaxes import Reading, Tools, first_mark, known_name, openings, reading, spaced, widened, without
from arpo.core.tree import Call


@dataclass(frozen=True, slots=True)
class HeadedJson:
    name: str
    mark: str  # opens a call
    head: re.Pattern[str]  # what follows it, up to the arguments: groups `name`, perhaps `id`
    written: str  # how a call is written; `{name}`, `{number}`, `{arguments}`
    tail: tuple[str, ...] = ()  # marks that close a call, in order; each may be missing
    around: tuple[str, str] = ("", "")  # marks around all calls of a turn
    lists: bool = False  # after the mark a list of objects may stand instead

    @property
    def hints(self) -> tuple[str, ...]:
        return (self.mark,)

    def opening(self, text: str) -> str:
        return first_mark(text, [mark for mark in (self.mark, self.around[0]) if mark])

    def read(self, text: str, tools: Tools) -> Reading:
        calls: list[Call] = []
        spans: list[tuple[int, int]] = []
        for start in openings(text, self.mark, calls, spans):
            inside = start + len(self.mark)
            following = text.find(self.mark, inside)
            limit = following if following >= 0 else len(text)
            made, end = self._call(text, inside, limit, tools)
            calls += made
            opening, closing = self.around
            span = widened(text, (start, end), [opening] if opening else [], [closing] if closing else [])
            spans.append(span)
        rest = without(text, spans)
        if self.around[0] and self.around[0] in rest:
            calls.append(Call(name="", error=f"a {self.around[0]} holds no {self.mark}"))
        return reading(text, calls, spans)

    def _call(self, text: str, at: int, limit: int, tools: Tools) -> tuple[list[Call], int]:
        """The calls after a mark, and where they end."""
        if self.lists and text.startswith(("[", "{"), spaced(text, at)):
            return self._list(text, at, limit)
        head = self.head.match(text, at)
        if head is None:
            shape = self.written.format(name="its name", number=0, arguments="{…}")
            return [Call(name="", error=f"a call is written as {shape}")], self._closed(text, at, limit)
        name, id_ = known_name(head["name"].strip(), tools), identifier(head.groupdict().get("id"))
        try:
            read = read_value(text, head.end(), limit)
        except JsonError as error:
            wrong = f"the arguments are no JSON object: {error}"
            return [Call(name=name, error=wrong, id=id_)], self._closed(text, at, limit)
        arguments, mended, wrong = read_arguments(read.value)
        call = Call(name=name, arguments=arguments, error=wrong, id=id_, mended=read.mended or mended)
        return [call], self._closed(text, read.end, limit, only_next=True)

    def _list(self, text: str, at: int, limit: int) -> tuple[list[Call], int]:
        what = 'a tool call is a JSON object with "name" and "arguments"'
        try:
            read = read_value(text, at, limit)
        except JsonError as error:
            return [Call(name="", error=f"{what}: {error}")], self._closed(text, at, limit)
        values = read.value if isinstance(read.value, list) else [read.value]
        return [call_of(value, read.mended) or Call(name="", error=what) for value in values], read.end

    def _closed(self, text: str, at: int, limit: int, *, only_next: bool = False) -> int:
        """Where a call ends: after the marks that close it."""
        if not self.tail:
            return at if only_next else limit
        if not only_next:
            close = text.find(self.tail[-1], at, limit)
            return limit if close < 0 else close + len(self.tail[-1])
        for mark in self.tail:
            after = spaced(text, at)
            at = after + len(mark) if text.startswith(mark, after) else at
        return at

    def write(self, calls: Sequence[Call], earlier: int = 0) -> str:
        written = "".join(
            self.written.format(
                name=call.name, number=number, arguments=json.dumps(dict(call.arguments), ensure_ascii=False)
            )
            for number, call in enumerate(calls, earlier)
        )
        return self.around[0] + written + self.around[1]


MISTRAL = HeadedJson(
    "mistral",
    "[TOOL_CALLS]",
    re.compile(r"\s*(?P<name>[^\[\]{}\n]+)(?:\[CALL_ID\](?P<id>[^\[\]{}\s]+))?\s*(?:\[ARGS\])?"),
    "[TOOL_CALLS]{name}[ARGS]{arguments}",
    lists=True,
)
DEEPSEEK = HeadedJson(
    "deepseek",
    "<｜tool▁call▁begin｜>",
    re.compile(r"\s*(?:function<｜tool▁sep｜>)?(?P<name>[^\n<{]+)(?:\n```(?:json)?|<｜tool▁sep｜>)\s*"),
    "<｜tool▁call▁begin｜>{name}<｜tool▁sep｜>{arguments}<｜tool▁call▁end｜>",
    tail=("```", "<｜tool▁call▁end｜>"),
    around=("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
)
KIMI = HeadedJson(
    "kimi",
    "<|tool_call_begin|>",
    re.compile(r"\s*(?P<id>(?:functions[.:])?(?P<name>[^\n<]+?)(?::\d+)?)\s*<\|tool_call_argument_begin\|>"),
    "<|tool_call_begin|>functions.{name}:{number}<|tool_call_argument_begin|>{arguments}<|tool_call_end|>",
    tail=("<|tool_call_end|>",),
    around=("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
)
