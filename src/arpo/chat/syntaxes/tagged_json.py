"""Calls as JSON objects between two marks: one object a pair, or a list of them.

    hermes      <tool_call>\\n{"name": …, "arguments": {…}}\\n</tool_call>          Qwen 2.5 and 3, Hermes, SmolLM3
    phi         <|tool_call|>{"name": …, "arguments": {…}}<|/tool_call|>            Phi-4-mini
    cohere      <|START_ACTION|>[{"tool_call_id": "0", "tool_name": …, "parameters": {…}}]<|END_ACTION|>
    nemotron    <TOOLCALL>[{"name": …, "arguments": {…}}]</TOOLCALL>                Nemotron Nano v2
    apriel      <tool_calls>[{"name": …, "arguments": {…}, "id": …}]</tool_calls>

Inside a JSON string a closing mark is text: JSON says where the object ends.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from arpo.chat.json_text import JsonError, call_of, read_value
from arpo.chat.syntaxes import Reading, Tools, openings, reading, spaced
from arpo.core.tree import Call


@dataclass(frozen=True, slots=True)
class TaggedJson:
    name: str
    mark: str
    closing: str
    keys: tuple[str, str] = ("name", "arguments")
    listed: bool = False  # one pair of marks holds all calls
    numbered: str = ""  # the key of each call's number
    hint: str = ""

    @property
    def hints(self) -> tuple[str, ...]:
        return (self.mark, self.hint or self.keys[1])

    def opening(self, text: str) -> str:
        return self.mark if self.mark in text else ""

    def read(self, text: str, tools: Tools) -> Reading:
        calls: list[Call] = []
        spans: list[tuple[int, int]] = []
        for start in openings(text, self.mark, calls, spans):
            inside = start + len(self.mark)
            close = text.find(self.closing, inside)
            try:
                read = read_value(text, inside, close if close >= 0 else None)
                end = spaced(text, read.end)
                closed = text.startswith(self.closing, end)
                reason = "" if closed else self._unread(text[inside:close] if close >= 0 else "")
            except JsonError as error:
                read, closed, end = None, False, close
                reason = self._unread(text[inside:close] if close >= 0 else "", str(error))
            if read is not None and closed:
                calls += self._calls(read.value, read.mended)
            elif close < 0:
                detail = f": {reason}" if read is None and text[inside:].strip() else ""
                calls.append(Call(name="", error=f"a {self.mark} is not closed{detail}"))
                spans.append((start, len(text)))
                break
            else:
                calls.append(Call(name="", error=reason))
                end = close
            spans.append((start, end + len(self.closing)))
        return reading(text, calls, spans)

    def _unread(self, body: str, reason: str = "") -> str:
        if self.mark in body:
            return f"a {self.mark} stands inside of another: close each before the next"
        what = f'a tool call is a JSON object with "{self.keys[0]}" and "{self.keys[1]}"'
        return f"{what}: {reason}" if reason and body.strip() else what

    def _calls(self, value: object, mended: str) -> list[Call]:
        values = value if isinstance(value, list) and self.listed else [value]
        return [call_of(one, mended) or Call(name="", error=self._unread("")) for one in values]

    def write(self, calls: Sequence[Call], earlier: int = 0) -> str:
        bodies = [
            ({self.numbered: str(number)} if self.numbered else {})
            | {self.keys[0]: call.name, self.keys[1]: dict(call.arguments)}
            for number, call in enumerate(calls, earlier)
        ]
        if self.listed:
            return f"{self.mark}{json.dumps(bodies, ensure_ascii=False)}{self.closing}"
        return "\n".join(f"{self.mark}\n{json.dumps(body, ensure_ascii=False)}\n{self.closing}" for body in bodies)


HERMES = TaggedJson("hermes", "<tool_call>", "</tool_call>", hint='arguments"')
PHI = TaggedJson("phi", "<|tool_call|>", "<|/tool_call|>", listed=True, hint="<|/tool_call|>")
COHERE = TaggedJson(
    "cohere",
    "<|START_ACTION|>",
    "<|END_ACTION|>",
    keys=("tool_name", "parameters"),
    listed=True,
    numbered="tool_call_id",
)
NEMOTRON = TaggedJson("nemotron", "<TOOLCALL>", "</TOOLCALL>", listed=True)
APRIEL = TaggedJson("apriel", "<tool_calls>", "</tool_calls>", listed=True)
