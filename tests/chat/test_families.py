"""Every family's calls, thoughts and results, held against its chat template: the template is the oracle."""

import copy
import json
from functools import cache
from typing import Any

import pytest
from chat_turns import lookup, outcome, python, search, step, task, turn
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError

from arpo.chat.config import ChatConfig, build_chat
from arpo.chat.dialect import KEYS, call_id
from arpo.chat.syntaxes.known import SYNTAXES
from arpo.core.tree import Call
from arpo.errors import ConfigError, FormatError
from arpo.tools.function import tool
from family_formats import FAMILIES, UNKNOWN, ends_of, tokenizer_of


@tool
def order(item: str, sizes: list[int], options: dict[str, Any], ratio: float, urgent: bool, note: str | None) -> str:
    """Takes values of every type."""
    return item


@tool
def now() -> str:
    """Takes nothing."""
    return ""


TOOLS = [search, python, lookup, order, now]
WRITTEN = [name for name, family in FAMILIES.items() if family.kind == "written"]
CALL = Call(name="search", arguments={"query": "Lima"})
quick = settings(deadline=None, max_examples=12, suppress_health_check=list(HealthCheck))
every = pytest.mark.parametrize("name", FAMILIES)

PARTS = ["a", "ü", "'", '"', "\n", "\\", " ", "</", "<", ">", "{", "}", "[", "]", ",", ":", "=", "(", ")", "3", "null"]
# what a syntax cannot carry: texts in which its own marks would end a value, and words that mean another type
CLOSING = {
    "qwen_xml": ["</parameter>", "null", "None"],
    "glm": ["</arg_value>", "null", "None"],
    "minimax": ["</parameter>", "null", "None"],
    "dsml": ["</｜DSML｜parameter>"],
    "gemma": ['<|"|>'],
    "lfm": ["'"],
}
TEXT = st.lists(st.sampled_from([*PARTS, "</parameter>", "</function>", "</arg_value>", "</think>", "</tool_call>"])
                | st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=3),
                max_size=8).map("".join)  # fmt: skip
KEY = st.from_regex(r"[a-z]{1,5}", fullmatch=True)
VALUE = st.recursive(st.none() | st.booleans() | st.integers(-9, 9**9) | st.sampled_from(["", "a'b", 'c"d', "e\nf"]),
                     lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEY, inner, max_size=2),
                     max_leaves=4)  # fmt: skip
ARGUMENTS = {
    "search": st.fixed_dictionaries({"query": TEXT}),
    "python": st.fixed_dictionaries({"code": TEXT}),
    "lookup": st.fixed_dictionaries({"place": TEXT, "year": st.integers()}),
    "now": st.just({}),
    "order": st.fixed_dictionaries({
        "item": TEXT, "sizes": st.lists(st.integers(), max_size=3), "options": st.dictionaries(KEY, VALUE, max_size=2),
        "ratio": st.floats(allow_nan=False, allow_infinity=False), "urgent": st.booleans(), "note": st.none() | TEXT,
    }),
}  # fmt: skip
MADE = st.sampled_from(sorted(ARGUMENTS)).flatmap(
    lambda name: ARGUMENTS[name].map(lambda arguments: Call(name=name, arguments=arguments))
)


@cache
def chat_of(name: str, **config: Any) -> Any:
    return build_chat(ChatConfig(format="template", **config), tokenizer_of(name), TOOLS, ends_of(name))


def meanings(calls: Any) -> list[tuple[Any, ...]]:
    return [(call.name, dict(call.arguments), call.error) for call in calls]


@every
def test_a_template_decides_on_the_syntax_and_on_the_ends_of_turns(name: str) -> None:
    chat, family = chat_of(name), FAMILIES[name]
    assert (chat.dialect.syntax.name, chat.dialect.form) == (family.syntax, family.kind)
    assert set(ends_of(name)) <= set(chat.stop_tokens)
    assert bool(chat.dialect.note) == (family.kind == "described"), "a foreign form is told"
    ends = {"gpt-oss": "<|return|>", "glm4.5": "<|user|>", "cohere": "<|END_OF_TURN_TOKEN|>", "phi4-mini": "<|end|>"}
    if name in ends:
        assert chat.text(chat.stop_tokens[:1]) == ends[name]
    if name == "gpt-oss":
        assert tokenizer_of(name).convert_tokens_to_ids("<|end|>") not in chat.stop_tokens


@every
@quick
@given(data=st.data())
def test_calls_as_the_template_writes_them_are_read_back(name: str, data: st.DataObject) -> None:
    """Types come from the tool's schema. What a syntax cannot carry is refused when it is written."""
    chat, family = chat_of(name), FAMILIES[name]
    calls = data.draw(st.lists(MADE, min_size=1, max_size=family.calls))
    thought = data.draw(st.sampled_from(["", "I look it up."]))
    said = step(thought, tuple(calls))
    said.text = data.draw(st.sampled_from(["", "Let me see."])) if name != "gpt-oss" else ""
    try:
        written = chat.write(said)
    except FormatError:
        texts = json.dumps([call.arguments for call in calls], ensure_ascii=False)
        hard = [json.dumps(text, ensure_ascii=False)[1:-1] for text in CLOSING.get(family.syntax, [])]
        assert any(text in texts for text in hard), "everything else can be carried"
        return
    own = chat.encode_turn(written)
    parsed = chat.parse(own)
    assert meanings(parsed.calls) == meanings(calls) and parsed.well_formed and thought in written
    if family.kind == "written" and (rendered := by_template(name, said)) is not None:
        parsed = chat.parse(tokenizer_of(name).encode(rendered, add_special_tokens=False))
        assert meanings(parsed.calls) == meanings(calls) and not parsed.answer


def by_template(name: str, said: Any) -> str | None:
    """A turn as the template writes it; None where it refuses it or writes another header."""
    chat, tokenizer = chat_of(name), tokenizer_of(name)
    message = chat.dialect.message(said.calls, said.text) | (dict.fromkeys(KEYS, said.thought) if said.thought else {})
    messages = [{"role": "user", "content": "q"}, message]
    try:
        whole = tokenizer.apply_chat_template(messages, tools=chat._schemas, tokenize=False)
    except TemplateError:
        return None
    header = tokenizer.apply_chat_template(
        messages[:1], tools=chat._schemas, tokenize=False, add_generation_prompt=True
    )
    return whole[len(header) :] if whole.startswith(header) else None


@pytest.mark.parametrize("name", [name for name in WRITTEN if FAMILIES[name].thinks])
def test_a_turn_is_written_as_the_template_writes_it(name: str) -> None:
    """Token for token, thoughts included, but for the end that a template leaves to the next message."""
    chat = chat_of(name)
    said = step("I look it up.", (CALL,))
    rendered = by_template(name, said)
    assert rendered is not None
    own = list(chat.encode_turn(chat.write(said)))
    tokens = tokenizer_of(name).encode(rendered, add_special_tokens=False)
    assert own[: len(tokens)] == tokens[: len(own)] and len(own) - len(tokens) <= 1
    answer = chat.parse(chat.encode_turn(chat.write(step("So it is.", answer="Lima"))))
    assert answer.well_formed and answer.answer == "Lima" and "So it is." in answer.text


@pytest.mark.parametrize("name", WRITTEN)
@quick
@given(data=st.data())
def test_results_have_the_tokens_that_the_template_adds(name: str, data: st.DataObject) -> None:
    """Parallel results, with the ids that the model gave its calls."""
    chat, tokenizer, family = chat_of(name), tokenizer_of(name), FAMILIES[name]
    most = 1 if name == "llama3.1" else family.calls
    texts = data.draw(st.lists(st.sampled_from(["In Peru.", 'a "b"\n', " x ", "\\n", "ü."]), min_size=1, max_size=most))
    calls = [Call(name=("search", "now")[n % 2], arguments={"query": "x"} if n % 2 == 0 else {},
                  id=f"id{n:07d}" if name.startswith("mistral") else f"functions.x:{n}" if name == "kimi-k2" else "")
             for n in range(len(texts))]  # fmt: skip
    own = chat.encode_turn(chat.write(step("", tuple(calls))))
    parsed = chat.parse(own).calls
    if name.startswith("mistral"):
        assert [call.id for call in parsed] == [call.id for call in calls]
    made = turn(own, parsed)
    seen, _ = chat.observe(made, [outcome(text, call.name) for text, call in zip(texts, calls, strict=True)], 3)
    results = [
        {"role": "tool", "content": text, "name": call.name, "tool_call_id": call.id or call_id(number)}
        for number, (text, call) in enumerate(zip(texts, parsed, strict=True))
    ]
    messages = [{"role": "user", "content": "q"}, chat.dialect.message(parsed), *results]
    whole = tokenizer.apply_chat_template(messages, tools=chat._schemas, tokenize=False, add_generation_prompt=True)
    tokens = tokenizer.encode(whole, add_special_tokens=False)
    seen = [own[-1], *seen]
    assert tokens[-len(seen) :] == list(seen)


@pytest.mark.parametrize("name", ["cohere", "kimi-k2"])
def test_calls_and_results_are_numbered_through_a_conversation(name: str) -> None:
    """As these templates number them: in a cold-start trace of two turns that call, and in what the model sees."""
    chat, tokenizer = chat_of(name), tokenizer_of(name)
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Where?"}]
    tokens, earlier = list(chat.render(task("Where?"), TOOLS)), 0
    for made in ([CALL], [CALL, Call(name="now")]):
        own = chat.encode_turn(chat.write(step("Look.", tuple(made)), earlier))
        calls = chat.parse(own).calls
        assert [call.id[-1] for call in calls] == [str(earlier + n) for n in range(len(made))]
        seen, _ = chat.observe(turn(own, calls), [outcome("a", call.name) for call in calls], 3)
        tokens += [*own, *seen]
        thought = "<think>\nLook.\n</think>\n\n" if name == "kimi-k2" else ""
        messages += [chat.dialect.message(calls, thought) | dict.fromkeys(KEYS, "Look.")]
        messages += [{"role": "tool", "content": "a", "name": c.name, "tool_call_id": c.id} for c in calls]
        earlier += len(calls)
    whole = tokenizer.apply_chat_template(messages, tools=chat._schemas, tokenize=False, add_generation_prompt=True)
    assert chat.text(tokens) == whole and tokens == tokenizer.encode(whole, add_special_tokens=False)


@every
def test_a_prompt_is_what_the_template_writes(name: str) -> None:
    chat, tokenizer = chat_of(name), tokenizer_of(name)
    prompt = chat.text(chat.render(task("Where?"), TOOLS))
    assert "search" in prompt and prompt.count("Where?") == 1
    if chat.dialect.lists_tools and name != "smollm3":
        messages = [{"role": "user", "content": "Where?"}]
        assert prompt == tokenizer.apply_chat_template(
            messages, tools=chat._schemas, tokenize=False, add_generation_prompt=True
        )
    else:
        assert chat.dialect.syntax.opening(prompt), "the prompt shows how to call"


@every
def test_a_call_of_any_family_is_no_answer(name: str) -> None:
    """Whatever a model takes over from another family, it is told how its own calls are written."""
    chat = chat_of(name)
    for syntax in SYNTAXES:
        text = syntax.write([CALL])
        if "▁" in text and "pieces" in FAMILIES[name].form:
            continue  # this vocabulary writes a blank for it
        if chat._opens_thought:
            text = f"So.{chat._thought.closing}{text}"
        parsed = chat.parse(chat.encode_turn(text))
        own = syntax.name == chat.dialect.syntax.name
        assert parsed.answer is None and (own or not parsed.well_formed), syntax.name
    tags = build_chat(ChatConfig(), tokenizer_of(name), TOOLS)
    text = f"<think>a</think><answer>{SYNTAXES[0].write([CALL])}</answer>"
    assert not tags.parse(tags.encode_turn(text)).well_formed


@every
@quick
@given(data=st.data())
def test_reading_never_raises(name: str, data: st.DataObject) -> None:
    chat = chat_of(name)
    marks = [mark for syntax in SYNTAXES for mark in syntax.hints]
    pieces = [
        *PARTS,
        *marks,
        "</tool_call>",
        "</function>",
        "<|message|>",
        "<|start|>",
        "name",
        "query",
        "<｜tool▁sep｜>",
    ]
    pieces += [chat.dialect.syntax.write([CALL])[:cut] for cut in (5, 20, 40, 60, 200)]
    text = "".join(data.draw(st.lists(st.sampled_from(pieces), max_size=20)))
    for tokens in (chat.encode_turn(text), tokenizer_of(name).encode(text, add_special_tokens=False)):
        parsed = chat.parse(tokens)
        chat.observe(
            turn(tokens, parsed.calls), [outcome("x", call.name) for call in parsed.calls] or [outcome("x")], 1
        )


def test_a_model_whose_calls_are_not_known_is_told_before_the_run() -> None:
    tokenizer = tokenizer_of("qwen2.5", UNKNOWN)
    with pytest.raises(ConfigError, match=r"'@@qztool@@.*tried: seed, qwen_xml.*chat.syntax: hermes"):
        build_chat(ChatConfig(format="template"), tokenizer, TOOLS)
    chat: Any = build_chat(ChatConfig(format="template", syntax="hermes"), tokenizer, TOOLS)
    prompt = chat.text(chat.render(task("Where?"), TOOLS))
    assert chat.dialect.form == "described" and "To call one, write <tool_call>" in prompt
    with pytest.raises(ConfigError, match="does not show this syntax"):
        build_chat(ChatConfig(format="template", syntax="harmony"), tokenizer, TOOLS)
    with pytest.raises(ConfigError, match="did you mean 'hermes'"):
        build_chat(ChatConfig(format="template", syntax="hermess"), tokenizer, TOOLS)


def test_a_named_syntax_that_the_template_writes_is_its_own() -> None:
    assert chat_of("qwen3.5", syntax="qwen_xml").dialect == chat_of("qwen3.5").dialect


def test_harmony_reads_what_the_models_themselves_write() -> None:
    """The recipient behind the channel, and a constraint on the content."""
    chat = chat_of("gpt-oss")
    text = (
        "<|channel|>analysis<|message|>Look.<|end|><|start|>assistant<|channel|>commentary to=functions.search "
        '<|constrain|>json<|message|>{"query": "Lima"}'
    )
    parsed = chat.parse([*tokenizer_of("gpt-oss").encode(text), chat._after_calls])
    assert parsed.calls == (CALL,) and parsed.well_formed
    only_thought = "<|channel|>analysis<|message|>It is Lima."
    parsed = chat.parse([*tokenizer_of("gpt-oss").encode(only_thought), chat.stop_tokens[0]])
    assert parsed.answer is None and not parsed.well_formed


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('<|python_tag|>search.call(query="Lima")', [("search", {"query": "Lima"})]),
        ("<|python_tag|>print(1)", [("python", {"code": "print(1)"})]),
        ('{"type": "function", "name": "search", "parameters": {"query": "Lima"}}', [("search", {"query": "Lima"})]),
        ('<|python_tag|>{"name": "search", "parameters": {"query": "Lima"}}', [("search", {"query": "Lima"})]),
    ],
)
def test_llamas_other_forms(text: str, calls: Any) -> None:
    chat = chat_of("llama3.1")
    end = tokenizer_of("llama3.1").convert_tokens_to_ids("<|eom_id|>")
    parsed = chat.parse([*tokenizer_of("llama3.1").encode(text, add_special_tokens=False), end])
    assert [(call.name, call.arguments) for call in parsed.calls] == calls and parsed.well_formed


SLIPS = [
    ('{"query": "a", }', "the comma before the closing } is one too many"),
    ('{"query": ["a"}', "a closing ] is missing before the } at character"),
    ('{"query": "a"', "a closing } is missing"),
    ('{"query": "a"]', "a closing } is missing before the ]"),
    ("{query: 1}", "Expecting property name enclosed in double quotes at character"),
]


@pytest.mark.parametrize(("arguments", "reason"), SLIPS)
@pytest.mark.parametrize("name", ["qwen3", "mistral-v11", "kimi-k2", "gpt-oss", "deepseek-v3.1", "llama3.1"])
def test_a_slip_is_explained_by_its_character(name: str, arguments: str, reason: str) -> None:
    chat = chat_of(name)
    right = chat.write(step("", (Call(name="search", arguments={"query": "qz"}),)))
    text = right.replace('{"query": "qz"}', arguments)
    (call,) = chat.parse(chat.encode_turn(text)).calls
    assert reason in call.error, call.error


@pytest.mark.parametrize("name", ["qwen3", "mistral-v3", "mistral-v11", "kimi-k2", "gpt-oss", "llama3.1", "phi4-mini"])
def test_control_characters_are_mended_and_reported(name: str) -> None:
    chat = chat_of(name)
    right = chat.write(step("", (Call(name="python", arguments={"code": "a\nb\tc"}),)))
    parsed = chat.parse(chat.encode_turn(right.replace("\\n", "\n").replace("\\t", "\t")))
    assert [call.arguments for call in parsed.calls] == [{"code": "a\nb\tc"}] and parsed.well_formed
    assert parsed.calls[0].mended == "control characters inside a string"


@pytest.mark.parametrize("nothing", ["null", '""', "{}", '" "'])
@pytest.mark.parametrize("name", ["qwen3", "mistral-v3", "llama3.1", "phi4-mini", "cohere"])
def test_no_arguments_are_the_same_in_every_syntax(name: str, nothing: str) -> None:
    chat = chat_of(name)
    right = chat.write(step("", (Call(name="now"),)))
    head, _, tail = right.rpartition("{}")
    parsed = chat.parse(chat.encode_turn(head + nothing + tail))
    assert meanings(parsed.calls) == [("now", {}, "")]


JSON_MESSAGE = {"open": "<tool_call>", "close": "</tool_call>", "repeats": True, "content": "json"}
RESPONSES = {  # what transformers reads with, for a family and the form of its calls
    "qwen3": {**JSON_MESSAGE, "transform": {"type": "function", "function": "{content}"}},
    "phi4-mini": {**JSON_MESSAGE, "open": "<|tool_call|>", "close": "<|/tool_call|>",
                  "transform": {"type": "function", "function": "{content}"}},
    "kimi-k2": {**JSON_MESSAGE, "close": "<|tool_call_end|>",
                "open_pattern": r"<\|tool_call_begin\|>functions\.(?P<name>\w+):\d+<\|tool_call_argument_begin\|>",
                "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}}},
    "qwen3-coder": {"open_pattern": r"<tool_call>\s*<function=(?P<name>\w+)>", "close": "</tool_call>", "repeats": True,
                    "content": "xml-inline", "content_args": {
                        "tag_pattern": r"<parameter=(?P<key>\w+)>\n(?P<value>.*?)\n</parameter>",
                        "value_parser": {"name": "json", "args": {"allow_non_json": True}}},
                    "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}}},
}  # fmt: skip


def is_json(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("name", RESPONSES)
@quick
@given(calls=st.lists(MADE, min_size=1, max_size=3))
def test_transformers_reads_the_same_calls(name: str, calls: list[Call]) -> None:
    """Where its `response_template` can describe a family, and no text looks like a mark."""
    chat = chat_of(name)
    fields = {
        "tool_calls": {key: value for key, value in RESPONSES[name].items() if key != "open" or name != "kimi-k2"}
    }
    own = chat.encode_turn(chat.write(step("", tuple(calls))))
    texts = [text for call in calls for text in call.arguments.values() if isinstance(text, str)]
    if "<" in repr([call.arguments for call in calls]) or any(text != text.strip() for text in texts):
        return  # it takes marks inside of texts for marks, and strips bare texts
    if name == "qwen3-coder" and any(is_json(text) for text in texts):
        return  # it reads a bare text that is JSON as JSON, whatever the tool's schema says
    tokenizer = copy.copy(tokenizer_of(name))
    tokenizer.response_template = {
        "defaults": {"role": "assistant"},
        "start_anchor": "qz",
        "fields": {**fields, "content": {"close_pattern": "$", "content": "text"}},
    }
    read = tokenizer.parse_response(chat.text(own[:-1]), prefix="qz", tools=chat._schemas)["tool_calls"]
    theirs = [(call["function"]["name"], call["function"]["arguments"], "") for call in read]
    assert theirs == meanings(chat.parse(own).calls)
