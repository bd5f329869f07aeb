"""Calls with a pair of tags around each argument. Values are bare text: the tool's schema says which type they have.

    qwen_xml    <tool_call>\\n<function=search>\\n<parameter=query>\\nLima\\n</parameter>\\n</function>\\n</tool_call>
                Qwen3-Coder, Qwen3.5 and 3.6, Nemotron 3, Step 3.5
    seed        the same within <seed:tool_call>, values without line ends around them            Seed-OSS
    glm         <tool_call>search\\n<arg_key>query</arg_key>\\n<arg_value>Lima</arg_value>\\n</tool_call>   GLM-4.5 to 5
    minimax     <minimax:tool_call>\\n<invoke name="search">\\n<parameter name="query">Lima</parameter>\\n</invoke>…
    dsml        <｜DSML｜function_calls>\\n<｜DSML｜invoke name="search">\\n<｜DSML｜parameter name="query"
                string="true">Lima</｜DSML｜parameter>…                                      DeepSeek V3.2 and V4

A value may hold its closing tag, except where the tag of another argument, or of the call's end, follows that.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arpo.chat.body import arguments_of, typer
from arpo.chat.json_text import JsonError, read_value
from arpo.chat.syntaxes import Reading, Tools, first_mark, given_up, known_name, reading, spaced, widened, without
from arpo.core.tree import Call


class _Types:
    """How the arguments of tools are read, found out once a turn."""

    def __init__(self, tools: Tools) -> None:
        self.tools = tools
        self._known: dict[tuple[str, str], Callable[[str], object]] = {}

    def of(self, name: str, key: str) -> Callable[[str], object]:
        if (name, key) not in self._known:
            whole: Mapping[str, Any] = self.tools[name].schema if name in self.tools else {}
            self._known[name, key] = typer(arguments_of(whole)[0].get(key, {}), whole)
        return self._known[name, key]


@dataclass(frozen=True, slots=True)
class TaggedValues:
    name: str
    call: re.Pattern[str]  # opens a call: group `name`
    argument: re.Pattern[str]  # opens a value: group `key`, perhaps `string` (true: the value is text)
    value_end: str
    call_end: str
    shape: tuple[str, str, str]  # how a call is written: its begin, an argument, its end; {name}, {key}, {value}
    marks: tuple[str, ...]  # the first opens a call
    around: tuple[tuple[str, str], ...] = ()  # marks around all calls of a turn
    padded: bool = False  # a line end before and after a value is no part of it

    @property
    def hints(self) -> tuple[str, ...]:
        return self.marks[:1]

    def opening(self, text: str) -> str:
        return first_mark(text, [*self.marks, *(opening for opening, _ in self.around)])

    def read(self, text: str, tools: Tools) -> Reading:
        calls: list[Call] = []
        spans: list[tuple[int, int]] = []
        at, types = 0, _Types(tools)
        while (begin := self.call.search(text, at)) is not None:
            if given_up(calls):
                spans.append((begin.start(), len(text)))
                break
            call, end = self._call(text, begin, types)
            openings, closings = [o for o, _ in self.around], [c for _, c in self.around]
            start, end = widened(text, (begin.start(), end), openings, closings)
            calls.append(call)
            spans.append((max(start, at), end))
            at = end
        rest = without(text, spans)
        if mark := first_mark(rest, [self.marks[0], *(opening for opening, _ in self.around)]):
            calls.append(Call(name="", error=f"a {mark} holds no call: write {self._example()}"))
        return reading(text, calls, spans)

    def _example(self) -> str:
        begin, argument, end = self.shape
        return begin.format(name="its name") + argument.format(key="argument", value="value", string="true") + end

    def _call(self, text: str, begin: "re.Match[str]", types: "_Types") -> tuple[Call, int]:
        name = known_name(begin["name"].strip(), types.tools)
        arguments: dict[str, object] = {}
        mended, at = "", begin.end()
        while (argument := self.argument.match(text, spaced(text, at))) is not None:
            key, start = argument["key"].strip(), argument.end()
            end = self._value_end(text, start)
            if end < 0:
                error = f"the value of {key!r} is not closed with {self.value_end}"
                return Call(name=name, error=error), self._after_fault(text, start)
            value = text[start:end]
            if self.padded:
                value = value.removeprefix("\n").removesuffix("\n")
            arguments[key], slip = self._typed(value, argument, types.of(name, key))
            mended = mended or slip
            at = end + len(self.value_end)
        close = spaced(text, at)
        if not text.startswith(self.call_end, close):
            shown = text[close : close + 20].split("\n")[0]
            where = f", where {shown!r} stands" if shown else ""
            error = f"the call of {name!r} is not closed with {self.call_end}{where}"
            return Call(name=name, error=error), self._after_fault(text, at)
        return Call(name=name, arguments=arguments, mended=mended), close + len(self.call_end)

    def _value_end(self, text: str, start: int) -> int:
        """Where a value ends: at its closing tag, behind which another argument begins or the call ends."""
        at = first = text.find(self.value_end, start)
        while at >= 0:
            after = spaced(text, at + len(self.value_end))
            if text.startswith(self.call_end, after) or self.argument.match(text, after):
                return at
            following = text.find(self.value_end, at + 1)
            if following < 0 or self.call.search(text, at, following):
                return first
            at = following
        return first

    def _after_fault(self, text: str, at: int) -> int:
        """Where reading goes on after a malformed call: behind its end, or where the next one begins."""
        close, following = text.find(self.call_end, at), self.call.search(text, at)
        limit = following.start() if following else len(text)
        return close + len(self.call_end) if 0 <= close < limit else limit

    def _typed(self, value: str, argument: "re.Match[str]", as_typed: Callable[[str], object]) -> tuple[object, str]:
        says = argument.groupdict().get("string")
        if says == "true":
            return value, ""
        if says == "false":
            try:
                read = read_value(value)
            except JsonError:
                return value, ""  # the check of the arguments reports it
            return (read.value, read.mended) if not value[read.end :].strip() else (value, "")
        return as_typed(value), ""

    def write(self, calls: Sequence[Call], earlier: int = 0) -> str:
        begin, argument, end = self.shape
        written = [
            begin.format(name=call.name)
            + "".join(
                argument.format(key=key, value=_text(value), string=str(isinstance(value, str)).lower())
                for key, value in call.arguments.items()
            )
            + end
            for call in calls
        ]
        opening, closing = self.around[0] if self.around else ("", "")
        if self.around and self.name in ("minimax", "dsml"):
            return f"{opening}\n{''.join(written)}{closing}"
        return "\n".join(f"{opening}\n{one}{closing}" if opening else one for one in written)


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


_FUNCTION, _PARAMETER = re.compile(r"<function=(?P<name>[^>\n]+)>"), re.compile(r"<parameter=(?P<key>[^>\n]+)>")
QWEN_XML = TaggedValues(
    "qwen_xml",
    _FUNCTION,
    _PARAMETER,
    "</parameter>",
    "</function>",
    ("<function={name}>\n", "<parameter={key}>\n{value}\n</parameter>\n", "</function>\n"),
    ("<function=",),
    around=(("<tool_call>", "</tool_call>"),),
    padded=True,
)
SEED = TaggedValues(
    "seed",
    _FUNCTION,
    _PARAMETER,
    "</parameter>",
    "</function>",
    ("<function={name}>\n", "<parameter={key}>{value}</parameter>\n", "</function>\n"),
    ("<function=",),
    around=(("<seed:tool_call>", "</seed:tool_call>"),),
)
GLM = TaggedValues(
    "glm",
    re.compile(r"<tool_call>\s*(?P<name>[^<\n{]+)"),
    re.compile(r"<arg_key>(?P<key>[^<\n]+)</arg_key>\s*<arg_value>"),
    "</arg_value>",
    "</tool_call>",
    ("<tool_call>{name}\n", "<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n", "</tool_call>"),
    ("<arg_key>", "<tool_call>"),
)
MINIMAX = TaggedValues(
    "minimax",
    re.compile(r'<invoke name="(?P<name>[^"\n]+)">'),
    re.compile(r'<parameter name="(?P<key>[^"\n]+)">'),
    "</parameter>",
    "</invoke>",
    ('<invoke name="{name}">\n', '<parameter name="{key}">{value}</parameter>\n', "</invoke>\n"),
    ("<invoke name=",),
    around=(("<minimax:tool_call>", "</minimax:tool_call>"),),
)
DSML = TaggedValues(
    "dsml",
    re.compile(r'<｜DSML｜invoke name="(?P<name>[^"\n]+)">'),
    re.compile(r'<｜DSML｜parameter name="(?P<key>[^"\n]+)"(?: string="(?P<string>true|false)")?>'),
    "</｜DSML｜parameter>",
    "</｜DSML｜invoke>",
    (
        '<｜DSML｜invoke name="{name}">\n',
        '<｜DSML｜parameter name="{key}" string="{string}">{value}</｜DSML｜parameter>\n',
        "</｜DSML｜invoke>\n",
    ),
    ("<｜DSML｜invoke",),
    around=(
        ("<｜DSML｜function_calls>", "</｜DSML｜function_calls>"),
        ("<｜DSML｜tool_calls>", "</｜DSML｜tool_calls>"),
    ),
)
