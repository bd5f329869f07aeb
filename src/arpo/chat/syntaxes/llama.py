"""Llama 3's calls: a bare object `{"name": "search", "parameters": {"query": "Lima"}}`, several with `;` between them,
or behind `<|python_tag|>`, which also announces a built-in tool (`search.call(query="Lima")`) or code for the
interpreter.

Code goes to the tool `python`, `code_interpreter` or `ipython`, if there is one with a single argument.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from arpo.chat.body import text_argument
from arpo.chat.json_text import JsonError, call_of, read_value
from arpo.chat.syntaxes import Reading, Tools, given_up, without
from arpo.chat.syntaxes.pythonic import read_calls
from arpo.core.tree import Call

TAG, NAME = "<|python_tag|>", '"name"'
INTERPRETERS = ("python", "code_interpreter", "ipython")
_OBJECT = re.compile(
    r'(?:<\|python_tag\|>\s*)?(\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*"[^"\n]*"\s*,\s*"(?:parameters|arguments)"\s*:)'
)
_BUILT_IN = re.compile(r"\s*[A-Za-z_]\w*\.call\(")


@dataclass(frozen=True, slots=True)
class Llama:
    name: str = "llama"

    @property
    def hints(self) -> tuple[str, ...]:
        return (TAG, '"parameters"')

    def opening(self, text: str) -> str:
        if TAG in text:
            return TAG
        match = _OBJECT.search(text) if NAME in text else None  # most texts hold none, and looking is slow
        return match[1] if match else ""

    def read(self, text: str, tools: Tools) -> Reading:
        calls: list[Call] = []
        spans: list[tuple[int, int]] = []
        at = 0
        while NAME in text and (match := _OBJECT.search(text, at)) is not None and not given_up(calls):
            try:
                read = read_value(text, match.start(1))
                at = read.end
                calls.append(call_of(read.value, read.mended) or Call(name="", error='a call needs a "name"'))
            except JsonError as error:
                at = len(text)
                calls.append(Call(name="", error=f"a tool call is a JSON object: {error}"))
            while at < len(text) and text[at] in "; \n":
                at += 1
            spans.append((match.start(), at))
        rest = without(text, spans)
        before, tag, code = rest.partition(TAG)
        if tag:
            calls += self._tagged(code.strip(), tools)
            spans, rest = [(0, len(text))], before
        return Reading(calls=tuple(calls), rest=rest, end=spans[-1][1] if spans else 0)

    def _tagged(self, code: str, tools: Tools) -> list[Call]:
        if _BUILT_IN.match(code):
            calls, error = read_calls(code, tools)
            named = [Call(name=call.name.removesuffix(".call"), arguments=call.arguments) for call in calls]
            return [*named, Call(name="", error=error)] if error else named
        for tool in (tools[name] for name in INTERPRETERS if name in tools):
            if code and (argument := text_argument(tool.schema)):
                return [Call(name=tool.name, arguments={argument: code})]
        return [Call(name="", error=f"{TAG} holds no call that a tool here can take")]

    def write(self, calls: Sequence[Call], earlier: int = 0) -> str:
        return "; ".join(
            json.dumps({"name": call.name, "parameters": dict(call.arguments)}, ensure_ascii=False) for call in calls
        )


LLAMA = Llama()
