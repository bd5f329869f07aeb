"""The model's own chat template, and tool calls as the model's makers write them.

    turn          …calls in the syntax of the model's template (any number) <end of turn>
    observation   the template's text from there to the assistant's next message: the results, and the next header

Rules: a turn ends with an end-of-turn token. If a turn lacks it (because it was cut off), the observation begins with
it. Glue comes from rendered placeholders, so sampled text is never rendered or tokenised again. What the template does
is found out by probes (`arpo.chat.dialect`).
"""

from __future__ import annotations  # `array[int]` cannot be subscripted before Python 3.12

import json
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from arpo.chat import ParsedTurn, TraceStep
from arpo.chat.config import NO_CALLS_LEFT
from arpo.chat.conversation import ASSISTANT, NO_TEMPLATE_HINT, USER, Conversation, Messages
from arpo.chat.dialect import (
    CALL_ID,
    KEYS,
    PROBE,
    PROBE_CALL,
    SPOKEN,
    Dialect,
    Shown,
    after_header,
    call_id,
    dialect_of,
    result_way,
    thought_marks,
    tool_schema,
)
from arpo.chat.syntaxes import Reading
from arpo.chat.syntaxes.known import foreign_opening
from arpo.chat.tags import checked_length, user_message, without_thought
from arpo.chat.token_text import Piece, TokenText
from arpo.core.tree import Call, CallStatus, ToolCallResult, Turn
from arpo.errors import CarryError, ConfigError
from arpo.final_answer import boxed, enclosed, final_answer
from arpo.tasks import Task
from arpo.tools import Tool

OWN_TAGS = ("tool_call", "tool_response", "tools", "think", "answer")
WRITTEN_TOOLS = (
    "You may call these tools:\n<tools>\n{tools}\n</tools>\nTo call one, write {example} and end your turn{results}."
)
_ID = re.compile(r"qzid(\d{5})")
_NUMBER = re.compile(r"\d{1,2}")  # an id that counts calls
_DIGITS = re.compile(r"\d+")


class TemplateFormat:
    """The model's own format for one tokenizer and one set of tools. Raises ConfigError for a model without a chat
    template, and for one whose template writes calls in an unknown syntax.

    `syntax`: the name of one, or None for the template's own. `ends`: end-of-turn tokens from the model's
    generation_config.json. `dialect` says what was found out, with a note for the user.
    """

    stop: tuple[str, ...] = ()

    def __init__(
        self,
        tokenizer: Any,
        tools: Sequence[Tool] = (),
        *,
        system: str = "",
        result_tokens: int = 512,
        prompt_tokens: int | None = None,
        require_think: bool = False,
        require_boxed: bool = False,
        template_options: Mapping[str, Any] | None = None,
        syntax: str | None = None,
        ends: Sequence[int] = (),
    ) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise ConfigError(
                "this model has no chat template", where="chat.format", value="template", hint=NO_TEMPLATE_HINT
            )
        self._text = TokenText(tokenizer, OWN_TAGS)
        self._conversation = Conversation(self._text, template_options)
        self.system, self.result_tokens, self.prompt_tokens = system, result_tokens, prompt_tokens
        self.require_think, self.require_boxed = require_think, require_boxed
        for tool in tools:
            if tool.name in OWN_TAGS or self._text.spells_token(tool.name):
                wrong = "a tool's name can be no word of the protocol, and no token that the vocabulary adds"
                raise ConfigError(wrong, where="tools", value=tool.name, hint="set its `name`")
        self._tools = {tool.name: tool for tool in tools}
        self._schemas = self._text.held_out([tool_schema(tool) for tool in tools], [])
        self.dialect: Dialect = dialect_of(self._conversation, self._text, syntax)
        self._thought = thought_marks(self._conversation, self._text, self.dialect)
        self._opens_thought = self._conversation.header.rstrip().endswith(self._thought.marks[0])
        self._glue: dict[tuple[tuple[str, ...], int, bool], list[str]] = {}
        answer_ends = self._conversation.ends(ends)
        # a template that cannot show results is refused here
        first = self._between([ToolCallResult(tool="", status=CallStatus.OK, text="")])[0]
        self._after_calls = self._first_acting(first)
        self.stop_tokens = tuple(dict.fromkeys([*answer_ends, self._after_calls]))
        self._shown: Shown = self._way()
        self._set_marks()

    @property
    def note(self) -> str:
        """What a user should know of a form that is not the model's own; "" otherwise."""
        return self.dialect.note

    @property
    def about(self) -> str:
        """How calls are written and turns end, in a sentence."""
        how = {
            "written": "as the model's chat template writes them",
            "shown": "which the model's chat template asks for",
            "described": "which the system prompt describes: the model's chat template does not",
        }
        ends = ", ".join(self._text.decode([token]) for token in self.stop_tokens)
        return f"Tool calls are {self.dialect.syntax.name}, {how[self.dialect.form]}. A turn ends with {ends}."

    def _first_acting(self, glue: str) -> int:
        token = self._text.trusted(glue)[:1]
        if not token or not self._text.acts(token[0]):
            raise ConfigError(
                "the chat template writes no end-of-turn token after an assistant's message", where="model"
            )
        return token[0]

    def _way(self) -> Shown:
        """What the template does with a result's text."""
        if self.dialect.form == "described":
            return str
        call = [self.dialect.message([Call(name="unknown", id=CALL_ID)])] if self.dialect.form == "written" else []
        result = {"role": "tool", "name": "unknown", "tool_call_id": CALL_ID}
        return result_way(self._conversation, [USER, *(call or [ASSISTANT]), result], self._schemas)

    def _set_marks(self) -> None:
        """Tell the encoder which tags of results it must disarm, and which added tokens a trace's turns may hold."""
        results = "".join(self._between([ToolCallResult(tool="", status=CallStatus.OK, text="")]))
        tags = [*OWN_TAGS, *re.findall(r"</?([\w:-]+)>", results)]
        turn = self._thought.opening + self._thought.closing
        self._frame = ("", "")
        call = replace(PROBE_CALL, id=CALL_ID)
        try:
            if self.dialect.form == "written":
                turn += after_header(self._conversation, [self.dialect.message([call])], [PROBE])
            answer = self._rendered({"role": "assistant", "content": SPOKEN})
            self._frame = self._frame_of(answer)
            turn += answer
        except ConfigError:
            pass
        turn += self.dialect.syntax.write([call])
        acting = {token for token in self._text.trusted(turn) if self._text.acts(token)} - set(self.stop_tokens)
        self._text.set_tags(tags, [self._text.decode([token]) for token in acting])

    def _frame_of(self, answer: str) -> tuple[str, str]:
        """The marks that the template writes around an answer, inside of the turn."""
        before, _, after = answer.partition(SPOKEN)
        inside = after.rpartition(self._text.decode([self.stop_tokens[0]]))[0]
        return before.rpartition(self._thought.marks[1])[2].strip(), inside.strip()

    def _rendered(self, message: Mapping[str, Any], *, exactly: bool = False, past: Messages = ()) -> str:
        return after_header(self._conversation, [message], list(self._tools.values()), exactly=exactly, past=past)

    def _past(self, earlier: int) -> Messages:
        """A message with as many calls and their results, for a template that numbers calls through a conversation
        (Cohere, Kimi); none for others."""
        calls = [replace(PROBE_CALL, id=call_id(number)) for number in range(earlier)]
        past = [self.dialect.message(calls), *(answer | {"content": ""} for answer in _answers(calls))]
        try:
            later, first = (self._rendered(self.dialect.message(calls[:1]), past=before) for before in (past, ()))
        except ConfigError:
            return ()
        numbered = later != first and _DIGITS.sub("", later) == _DIGITS.sub("", first)
        return past if numbered else ()

    def render(self, task: Task, tools: Sequence[Tool]) -> array[int]:
        """Prompt tokens. Raises FormatError for a prompt that is too long."""
        schemas = [tool_schema(tool) for tool in tools]
        system = [(self.system, self._text.written(self.system))] if self.system else []
        listed = schemas if self.dialect.lists_tools else []
        if schemas and not listed:
            held: list[str] = []
            shown = "\n".join(json.dumps(self._text.held_out(each, held), ensure_ascii=False) for each in schemas)
            results = "; what it returns comes back as <tool_response>" if self.dialect.form == "described" else ""
            text = WRITTEN_TOOLS.format(tools=shown, example=self._example(), results=results)
            system += self._text.pieces(f"\n\n{text}" if system else text, held, self._text.written)
        return checked_length(self._conversation.prompt(system, task.messages, listed), task, self.prompt_tokens)

    def _example(self) -> str:
        """How a call is written."""
        if self.dialect.syntax.name == "hermes":
            return '<tool_call>\n{"name": "its name", "arguments": {…}}\n</tool_call>'
        return self.dialect.syntax.write([Call(name="its_name", arguments={"argument": "value"})])

    def parse(self, tokens: Sequence[int]) -> ParsedTurn:
        """All calls of a turn, or its answer: the content of answer tags or a box, else the whole text after the
        thought. A turn that holds the mark of a call, of whatever family, is no answer."""
        ended = bool(tokens) and tokens[-1] in self.stop_tokens
        return self._parsed(self._text.decode(tokens[:-1] if ended else tokens), ended)

    def _parsed(self, text: str, ended: bool) -> ParsedTurn:
        closed, thinks, reading = self._read(text)
        calls, rest = reading.calls, reading.rest
        if rest and not any(call.error for call in calls) and (mark := foreign_opening(rest, self.dialect.syntax)):
            error = f"{mark[:40]} begins a call of other models: write {self._example()}"
            calls += (Call(name="", error=error),)
        thought_fits = closed or not (thinks or self.require_think)
        well_formed = ended and thought_fits and not any(call.error for call in calls)
        if calls:
            stray = rest is not None and "tool_call>" in rest
            content = (rest or "").strip()
            return ParsedTurn(text=text, calls=calls, well_formed=well_formed and not stray, content=content)
        if rest is None:
            return ParsedTurn(text=text, well_formed=False, content=text)
        content = rest.strip()
        if not ended or (thinks and not closed):
            return ParsedTurn(text=text, answer=_tagged_answer(rest), well_formed=False, content=content)
        answer = final_answer(rest)
        well_formed = well_formed and "tool_call>" not in rest
        well_formed = well_formed and answer is not None and (boxed(rest) is not None or not self.require_boxed)
        return ParsedTurn(text=text, answer=answer, well_formed=well_formed, content=content)

    def _read(self, text: str) -> tuple[bool, bool, Reading]:
        """Whether a thought is closed, whether one was opened, and what stands behind it. A thought's mark inside the
        argument of a call is text."""
        opening, closing = self._thought.marks
        leads = self._opens_thought or text.lstrip().startswith(opening)
        closed, content = leads and closing in text, text
        if closed:
            content = text.partition(closing)[2]
        reading = self.dialect.syntax.read(content, self._tools)
        if closing in (reading.rest or ""):
            closed, content = True, content.rpartition(closing)[2]
            reading = self.dialect.syntax.read(content, self._tools)
        thinks = leads or opening in (reading.rest or "")
        return closed or reading.thought, thinks, replace(reading, rest=self._without_frame(reading.rest))

    def _without_frame(self, rest: str | None) -> str | None:
        """`rest` without the marks that the template writes around an answer."""
        before, after = self._frame
        if rest is None or not (before or after):
            return rest
        return rest.strip().removeprefix(before).removesuffix(after)

    def observe(
        self, turn: Turn, outcomes: Sequence[ToolCallResult], calls_left: int | None, message: str | None = None
    ) -> tuple[array[int], tuple[ToolCallResult, ...]]:
        """The end of the turn (if the policy did not write it), the results in the template's form, the user's message,
        and the next header."""
        ended = bool(turn.tokens) and turn.tokens[-1] in self.stop_tokens
        if message is not None and not outcomes:
            said = user_message(self._conversation, self._text, message, self.result_tokens, ended=ended)
            return array("i", said), ()
        ids = [call.id for call in turn.calls] if len(turn.calls) == len(outcomes) else []
        glue = self._between(outcomes, int(ids[0]) if ids and _NUMBER.fullmatch(ids[0]) else 0, message is not None)
        pieces, results = self._pieces(glue[0], ids), []
        for number, outcome in enumerate(outcomes):
            result, cut = self._text.tool_text(self._shown(outcome.text), self.result_tokens)
            last = number == len(outcomes) - 1 and calls_left is not None and calls_left <= 0
            notice = self._shown(f"\n{NO_CALLS_LEFT}") if last else ""
            pieces += [(self._text.decode(result), result), (notice, self._text.trusted(notice))]
            pieces += self._pieces(glue[number + 1], ids)
            results.append(replace(outcome, cut=outcome.cut or cut))
        if message is not None:
            shown = self._text.tool_text(message, self.result_tokens)[0]
            pieces += [(self._text.decode(shown), shown), *self._pieces(glue[-1], ids)]
        return array("i", self._text.joined(pieces)[int(ended) :]), tuple(results)

    def _pieces(self, glue: str, ids: Sequence[str]) -> list[Piece]:
        """Glue as pieces, with the ids that the policy gave its calls."""
        pieces = []
        for number, part in enumerate(_ID.split(glue)):
            if number % 2:
                id_ = ids[int(part)] if int(part) < len(ids) and ids[int(part)] else call_id(int(part))
                pieces.append((id_, self._text.untrusted(id_)))
            else:
                pieces.append((part, self._text.trusted(part)))
        return pieces

    def _between(self, outcomes: Sequence[ToolCallResult], earlier: int = 0, message: bool = False) -> list[str]:
        """The glue around the results, with placeholders for ids. It begins with the end-of-turn token. `earlier`: how
        many calls came before these, which matters to templates that number them (Cohere). `message`: a user's message
        follows them."""
        names = tuple(outcome.tool if outcome.tool in self._tools else "" for outcome in outcomes)
        key = (names, earlier, message)
        if key not in self._glue:
            self._glue[key] = self._new_glue(names, earlier, [USER] if message else [])
        return self._glue[key]

    def _new_glue(self, names: Sequence[str], earlier: int, then: Sequence[Mapping[str, str]]) -> list[str]:
        if self.dialect.form == "described":
            first, last = self._conversation.glue([USER, ASSISTANT, USER])[2:]
            inside = ["\n</tool_response>\n<tool_response>\n"] * (len(names) - 1)
            closing = ["\n</tool_response>\n\n", last] if then else ["\n</tool_response>" + last]
            return [first.lstrip() + "<tool_response>\n", *inside, *closing]
        if self.dialect.form == "shown":
            results = [{"role": "tool", **({"name": name} if name else {})} for name in names]
            first, *others = self._conversation.glue([USER, ASSISTANT, *results, *then], tools=self._schemas)[2:]
            return [first.lstrip(), *others]
        calls = [Call(name=name or "unknown", id=f"qzid{number:05d}") for number, name in enumerate(names)]
        past = [Call(name="unknown", id=call_id(number)) for number in range(earlier)]
        results, answered = _answers(calls), [self.dialect.message(past), *_answers(past)] if past else []
        for made in (calls, calls[:1]):  # some templates know one call a turn
            try:
                messages = [USER, *answered, self.dialect.message(made), *results, *then]
                first, *others = self._conversation.glue(messages, tools=self._schemas)[1 + earlier :]
            except ConfigError as error:
                refused = error
                continue
            end = self.dialect.syntax.read(first, self._tools).end
            return [first[end:].lstrip(), *others]
        raise refused

    def write(self, step: TraceStep, earlier: int = 0) -> str:
        """The text of a turn as the template writes it; where the template leaves out the thought or the text, these
        are written before the calls. Calls are numbered after the `earlier` ones where the template or the syntax
        numbers them. Raises CarryError for a step that the syntax cannot carry."""
        said = step.text if step.calls else step.answer or ""
        said = f"\\boxed{{{said}}}" if self.require_boxed and not step.calls else said
        calls = [replace(call, id=call.id or call_id(number)) for number, call in enumerate(step.calls)]
        for text in self._ways_to_write(step.thought, said, calls, earlier if calls else 0):
            parsed = self._parsed(text, True)
            if _same(parsed.calls, calls) and (bool(calls) or self._answers(parsed, said)):
                return text
        listed = ", ".join(f"{call.name}({dict(call.arguments)})" for call in calls) or repr(said)
        raise CarryError(f"the syntax {self.dialect.syntax.name} cannot carry {listed[:200]}: it reads back otherwise")

    def _answers(self, parsed: ParsedTurn, said: str) -> bool:
        return not parsed.calls and (parsed.answer == final_answer(said) or not said)

    def _ways_to_write(self, thought: str, said: str, calls: Sequence[Call], earlier: int) -> Iterator[str]:
        """Texts of a turn, the most faithful first: by the template as a whole; by the template, with the thought in
        the content; put together."""
        written = bool(calls) and self.dialect.form == "written"
        past = self._past(earlier) if written and earlier else ()
        message: dict[str, Any] = {"role": "assistant", "content": said}
        if written:
            message = self.dialect.message(calls, said)
        elif calls:
            message["content"] = "\n".join(part for part in (said, self.dialect.syntax.write(calls, earlier)) if part)
        needs = bool(thought) or self.require_think or self._opens_thought
        whole = message | dict.fromkeys(KEYS, thought) if needs else message
        text = self._turn(whole, calls, past)
        if text is not None and thought in text and said.strip() in text and (not needs or self._read(text)[0]):
            yield text
        opened = "" if self._opens_thought else self._thought.opening
        block = f"{opened}{thought}{self._thought.closed(bool(calls))}" if needs else ""
        content = str(message["content"] or "")
        if written:
            content = "\n".join(part for part in (said, self._calls(calls, earlier, past)) if part)
        yield self._conversation.lead + block + content

    def _calls(self, calls: Sequence[Call], earlier: int, past: Messages) -> str:
        """The calls alone, as the template writes them, if it takes so many."""
        try:
            text = self._rendered(self.dialect.message(calls), past=past)
        except ConfigError:
            return self.dialect.syntax.write(calls, earlier)
        read = self.dialect.syntax.read(text, self._tools)
        same = _same(read.calls, calls)
        return text[read.start : read.end] if same else self.dialect.syntax.write(calls, earlier)

    def _turn(self, message: Mapping[str, Any], calls: Sequence[Call], past: Messages) -> str | None:
        """What the template writes for a message, without the end of the turn; None where it refuses the message."""
        try:
            text = self._rendered(message, exactly=True, past=past)
        except ConfigError:
            return None
        end = self._text.decode([self._after_calls if calls else self.stop_tokens[0]])
        before, found, _ = text.rpartition(end)
        return before if found else text

    def without_thought(self, text: str) -> str:
        opening, closing = self._thought.marks
        thinks = self._opens_thought or text.lstrip().startswith(opening)
        return without_thought(text, opening, closing) if thinks else text

    def encode_turn(self, text: str) -> array[int]:
        """Tokens of the text and the end-of-turn token."""
        end = self.stop_tokens[0]
        if self._after_calls != end and self._read(text)[2].calls:
            end = self._after_calls
        return array("i", [*self._text.written(text), end])

    def text(self, tokens: Sequence[int]) -> str:
        return self._text.decode(tokens)


def _answers(calls: Sequence[Call]) -> list[dict[str, str]]:
    """The messages of the results of `calls`, without contents."""
    return [{"role": "tool", "name": call.name, "tool_call_id": call.id} for call in calls]


def _tagged_answer(text: str) -> str | None:
    return final_answer(text) if enclosed(text, "answer")[0] or boxed(text) is not None else None


def _same(one: Sequence[Call], other: Sequence[Call]) -> bool:
    return [(c.name, dict(c.arguments), c.error) for c in one] == [(c.name, dict(c.arguments), "") for c in other]
