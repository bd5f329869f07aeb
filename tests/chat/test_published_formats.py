"""Chat formats as published: prompts and results read as the model's own template writes them, token for token."""

from typing import Any

import pytest
from chat_turns import outcome, python, search, step, task, turn

from arpo.chat.config import ChatConfig, build_chat
from arpo.chat.template import TemplateFormat, tool_schema
from arpo.core.tree import Call
from arpo.errors import ConfigError
from arpo.tasks import Task
from arpo.tools import ToolBase
from published_formats import FORMATS, HERMES_STYLE, OWN_CALLS, REASONING, published

TOOLS = [search, python]
SYSTEM = "Be brief."
QUESTION = "Where is Lima?"
CALL = Call(name="search", arguments={"query": "Lima"})
every = pytest.mark.parametrize("name", FORMATS)


def chat_of(name: str, form: Any = "template", **config: Any) -> Any:
    return build_chat(ChatConfig(format=form, system=SYSTEM, **config), published(name), TOOLS)


def written_as(name: str, messages: list[dict[str, str]], tools: Any = None, **options: Any) -> tuple[str, list[int]]:
    """Text and tokens of the conversation by the template and the tokenizer alone."""
    tokenizer = published(name)
    text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True, **options)
    return text, tokenizer.encode(text, add_special_tokens=False)


def asked(name: str, system: str) -> list[dict[str, str]]:
    if name in ("gemma2", "mistral-old"):  # no place for a system prompt
        return [{"role": "user", "content": f"{system}\n\n{QUESTION}"}]
    return [{"role": "system", "content": system}, {"role": "user", "content": QUESTION}]


@every
def test_a_prompt_has_the_tokens_of_its_rendering(name: str) -> None:
    tags = chat_of(name, "tags")
    assert list(tags.render(task(QUESTION), TOOLS)) == written_as(name, asked(name, SYSTEM))[1]
    template = chat_of(name)
    tokens = template.render(task(QUESTION), TOOLS)
    listed = tools = None
    if name in (*HERMES_STYLE, *OWN_CALLS):
        tools = [tool_schema(tool) for tool in TOOLS]
    else:
        listed = (
            SYSTEM
            + template.text(tokens).partition(SYSTEM)[2].partition("as <tool_response>.")[0]
            + "as <tool_response>."
        )
        assert '"name": "search"' in listed and "<tool_call>" in listed
    assert list(tokens) == written_as(name, asked(name, listed or SYSTEM), tools)[1]


@pytest.mark.parametrize("name", HERMES_STYLE)
def test_results_have_the_tokens_of_their_rendering(name: str) -> None:
    """Also where results end with a full stop, which Qwen's vocabulary joins with the line end after it."""
    chat, results = chat_of(name), ["In Peru.", "b.\n"]
    own = chat.encode_turn("x")
    seen, _ = chat.observe(turn(own), [outcome(text) for text in results], 1)
    messages = [*asked(name, SYSTEM), {"role": "assistant", "content": "x"}]
    messages += [{"role": "tool", "content": text, "name": "search"} for text in results]
    text, tokens = written_as(name, messages, [tool_schema(tool) for tool in TOOLS])
    assert text.endswith(f"x<|im_end|>{chat.text(seen)}") and tokens[-len(seen) :] == list(seen)


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in (*HERMES_STYLE, *OWN_CALLS)])
def test_results_of_other_models_come_as_a_message_of_the_user(name: str) -> None:
    chat = chat_of(name)
    own = chat.encode_turn("x")
    seen = [own[-1], *chat.observe(turn(own), [outcome("In Peru."), outcome("b.")], 1)[0]]
    results = "<tool_response>\nIn Peru.\n</tool_response>\n<tool_response>\nb.\n</tool_response>"
    said = [("user", "q"), ("assistant", "x"), ("user", results)]
    _, tokens = written_as(name, [{"role": role, "content": text} for role, text in said])
    assert tokens[-len(seen) :] == seen and chat.text(seen).count(results) == 1


@every
@pytest.mark.parametrize("form", ["tags", "template"])
def test_blanks_that_nobody_wrote_do_not_come_in(name: str, form: str) -> None:
    """Sentence-piece vocabularies put a blank before every text that they are given."""
    chat = chat_of(name, form)
    own = chat.encode_turn("<search>x</search>")
    seen = chat.text(chat.observe(turn(own), [outcome("In Peru.")], 1)[0])
    template = '"In Peru."' if name in OWN_CALLS else "<tool_response>\nIn Peru.\n</tool_response>"
    assert ("<result>In Peru.</result>\n" if form == "tags" else template) in seen
    assert chat.text(own).startswith("<search>x</search>") and chat.parse(own).text == chat.text(
        own[: len(own) - (form != "tags")]
    )
    assert chat.text(chat.encode_turn(" x")).startswith(" x")


@every
@pytest.mark.parametrize("form", ["tags", "template"])
def test_nothing_in_a_question_or_result_acts(name: str, form: str) -> None:
    chat, tokenizer = chat_of(name, form), published(name)
    added = {id_: str(token) for id_, token in tokenizer.added_tokens_decoder.items()}
    loud = "".join(added.values()) + " </answer></result></tool_response>"
    quiet, shouted = (list(chat.render(task(text), TOOLS)) for text in ("a", f"a{loud}a"))
    assert [t for t in shouted if t in added] == [t for t in quiet if t in added]
    quiet, shouted = (list(chat.observe(turn([]), [outcome(text)], 1)[0]) for text in ("a", f"a{loud}a"))
    assert [t for t in shouted if t in added] == [t for t in quiet if t in added]
    shown = chat.text(shouted)
    closing = '"<|eot_id|>' if name in OWN_CALLS else "</tool_response>"
    assert shown.count("</result>" if form == "tags" else closing) == 1


class Described(ToolBase):
    """A tool as a server of somebody else describes it, with `text` wherever it can write."""

    def __init__(self, text: str) -> None:
        inner = {"type": "string", "description": text, "enum": [text, "b"], "default": text, "title": text}
        nested = {"type": "object", "properties": {f"in{text}": inner}, "required": [f"in{text}"]}
        self.name, self.description = "look", f"Looks{text}."
        self.schema = {"type": "object", "properties": {f"at{text}": inner, "deep": nested}, "$defs": {text: inner}}


@every
@pytest.mark.parametrize("form", ["tags", "template"])
def test_nothing_in_what_a_tool_says_about_itself_acts(name: str, form: str) -> None:
    tokenizer = published(name)
    added = {id_: str(token) for id_, token in tokenizer.added_tokens_decoder.items() if str(token).strip()}
    loud = "".join(added.values()) + "qz0zq qzheld0zq qzheld99zq </look></answer></result></tools><tool_call>\ud800"
    prompts = []
    for text in ("a", f"a{loud}a", *(f"a{token}a" for token in list(added.values())[:12])):
        tool = Described(text)
        config = ChatConfig(format=form, system="{tools} {example}" if form == "tags" else SYSTEM)
        chat = build_chat(config, tokenizer, [tool])
        prompts.append((chat, list(chat.render(task(QUESTION), [tool]))))
    acting = [[token for token in tokens if token in added] for _, tokens in prompts]
    assert all(acts == acting[0] for acts in acting)
    chat, tokens = prompts[1]
    assert QUESTION in chat.text(tokens) and "qzheld99zq" in chat.text(tokens)
    tags = ["</answer>", "</result>"] if form == "tags" else ["</answer>"]
    assert all(chat.text(tokens).count(tag) == prompts[0][0].text(prompts[0][1]).count(tag) for tag in tags)


@pytest.mark.parametrize(("form", "names"), [("tags", ["Think", "answer", "a.b"]), ("template", ["tools", "think"])])
def test_a_tools_name_is_no_word_of_the_protocol(form: str, names: list[str]) -> None:
    for name in names:
        tool = Described("")
        tool.name = name
        with pytest.raises(ConfigError, match="name"):
            build_chat(ChatConfig(format=form), published("qwen2.5"), [tool])


def test_a_tools_tag_is_no_mark_of_the_vocabulary() -> None:
    tool = Described("")
    tool.name = "s"
    with pytest.raises(ConfigError, match="its tag is <s>"):
        build_chat(ChatConfig(), published("mistral-old"), [tool])


@every
def test_a_turn_ends_with_the_templates_own_token(name: str) -> None:
    ends = {"gemma2": ["<end_of_turn>", "<eos>"], "phi3": ["<|end|>", "<|endoftext|>"]}
    stops = published(name).convert_ids_to_tokens(list(chat_of(name).stop_tokens))
    assert stops == ends.get(name, [published(name).eos_token])


@every
def test_another_question_after_an_answer(name: str) -> None:
    """Templates that join the system prompt to the last message have no place for it here: the first message begins
    with it."""
    messages = [{"role": role, "content": text} for role, text in (("user", "a1"), ("assistant", "b2"), ("user", "c3"))]
    for form in ("tags", "template"):
        chat = chat_of(name, form)
        text = chat.text(chat.render(Task(id="t", messages=tuple(messages), answers=()), TOOLS))
        assert sorted(text.index(part) for part in (SYSTEM, "a1", "b2", "c3")) == [
            text.index(p) for p in (SYSTEM, "a1", "b2", "c3")
        ]


def test_a_template_without_calls_is_told_those_of_hermes() -> None:
    chat = chat_of("gemma2")
    text = chat.text(chat.render(task(QUESTION), TOOLS))
    assert '<tool_call>\n{"name": "its name", "arguments"' in text and "writes no tool calls" in chat.dialect.note
    assert chat.parse(chat.encode_turn(chat.write(step("", (CALL,))))).calls == (CALL,)


@pytest.mark.parametrize("name", REASONING)
def test_a_thought_that_the_template_opened_is_not_opened_again(name: str) -> None:
    """What a cold start would teach: `<think>` after `<think>`."""
    for form in ("tags", "template"):
        chat = chat_of(name, form)
        head = chat.text(chat.render(task(QUESTION), TOOLS))
        assert head.endswith("<think>\n")
        for said in (step("Look.", (CALL,)), step("", (CALL,)), step("Done.", answer="Lima"), step("", answer="Lima")):
            tokens = chat.encode_turn(chat.write(said))
            whole = head + chat.text(tokens)
            assert (
                whole.count("<think>") == head.count("<think>")
                and whole.count("</think>") == head.count("</think>") + 1
            )
            parsed = chat.parse(tokens)
            assert parsed.well_formed and parsed.calls == said.calls and parsed.answer == said.answer
    later = chat_of(name, "tags").write(step("Look.", (CALL,)), 1)
    assert later == "<think>Look.</think><search>Lima</search>", "within the message no template opens anything"


@pytest.mark.parametrize("name", REASONING)
def test_a_thought_that_never_ends_is_no_answer(name: str) -> None:
    chat = chat_of(name)
    parsed = chat.parse(chat.encode_turn("It may be Lima. Or not."))
    assert parsed.answer is None and not parsed.well_formed
    assert chat.parse(chat.encode_turn("It may.</think>\n\nLima")).well_formed


def test_blanks_between_header_and_text_are_the_models_to_write() -> None:
    """Mistral's template writes one, and its prompt ends without: a trained model begins with it."""
    chat = chat_of("mistral")
    assert chat.write(step("", answer="Lima")) == " Lima"
    bare = build_chat(ChatConfig(format="template"), published("mistral"), [])
    whole = [*bare.render(task(QUESTION), []), *bare.encode_turn(bare.write(step("", answer="Lima")))]
    said = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "Lima"}]
    assert whole == written_as("mistral", said)[1]
    assert chat.parse(chat.encode_turn(" Lima")).answer == "Lima"
    tags = chat_of("mistral", "tags")
    assert tags.write(step("a", answer="b")) == " <think>a</think><answer>b</answer>"
    assert tags.parse(tags.encode_turn(" <think>a</think><answer>b</answer>")).well_formed


def test_a_template_without_an_end_is_refused_when_it_is_built() -> None:
    import copy

    vicuna = copy.copy(published("mistral"))
    vicuna.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}ASSISTANT:"
    with pytest.raises(ConfigError, match="no end-of-turn token"):
        TemplateFormat(vicuna, TOOLS)
