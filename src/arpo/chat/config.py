"""The configuration of the chat format, and the function that builds the format from it."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from arpo.config import Config
from arpo.tools import Tool

if TYPE_CHECKING:
    from arpo.chat import ChatFormat

NO_CALLS_LEFT = "(No calls left: answer now.)"


class ChatConfig(Config):
    """How tasks become prompts and how turns are read."""

    format: Literal["tags", "template", "native"] = "tags"
    """`tags`: the paper's protocol in one message. `template`: the model's chat template, with tool calls as the
    model's makers write them. `native`: the tool calls of a chat endpoint (only with engine.kind openai)."""
    syntax: str | None = None
    """With `template`: how calls are written, for instance `hermes` or `qwen_xml`. None: as the chat template writes
    them; one that writes none gets those of `hermes`, described in the system prompt, and one with unknown calls is an
    error."""
    system: str | None = None
    """The system prompt; `paper` is a longer one in the style of the paper. With `tags`, `{tools}` stands for the list
    of tools and `{example}` for the tag of the first one; double all other braces. None: the format's short text.
    Empty: none."""
    result_tokens: int = Field(default=512, ge=8)
    """Maximum number of tokens of one tool result that the model sees."""
    prompt_tokens: int | None = Field(default=None, ge=1)
    """Maximum length of a prompt; a task with a longer prompt is an error. None: no limit."""
    require: tuple[Literal["think", "boxed"], ...] | None = None
    r"""What a well-formed turn must hold: `think`, a thought at its beginning; `boxed`, a `\boxed{}` in an answer.
    Null: `[think]` with `tags`, `[]` with `template`."""
    template_options: dict[str, Any] = Field(default_factory=dict)
    """Passed to the chat template, for instance `{enable_thinking: false}`."""


def build_chat(config: ChatConfig, tokenizer: Any, tools: Sequence[Tool], ends: Sequence[int] = ()) -> "ChatFormat":
    """The chat format of a recipe that writes tokens. `ends`: the end-of-turn tokens of the model's
    generation_config.json. Raises ConfigError if the model or the tools do not fit it."""
    from arpo.chat.syntaxes.known import SYNTAXES
    from arpo.chat.tags import PAPER_SYSTEM, SYSTEM, TagFormat
    from arpo.chat.template import TemplateFormat
    from arpo.errors import ConfigError, nearest

    if config.format == "native":
        raise ConfigError("an endpoint's own tool calls are no format of tokens", where="chat.format", value="native")
    tags = config.format == "tags"
    system = {None: SYSTEM if tags else "", "paper": PAPER_SYSTEM if tags else ""}.get(config.system, config.system)
    if config.system == "paper" and not tags:
        raise ConfigError(
            "the paper's system prompt is written for the tag protocol", where="chat.system", value="paper"
        )
    names = [syntax.name for syntax in SYNTAXES]
    if config.syntax is not None and config.syntax not in names:
        hint = nearest(config.syntax, names)
        raise ConfigError("there is no such syntax of calls", where="chat.syntax", value=config.syntax, hint=hint)
    if tags and config.syntax:
        raise ConfigError(
            "only `chat.format: template` has a syntax of calls", where="chat.syntax", value=config.syntax
        )
    build: Any = TagFormat if tags else partial(TemplateFormat, syntax=config.syntax)
    try:
        return build(  # type: ignore[no-any-return]
            tokenizer,
            tools,
            system=system or "",
            result_tokens=config.result_tokens,
            prompt_tokens=config.prompt_tokens,
            require_think=tags if config.require is None else "think" in config.require,
            require_boxed="boxed" in (config.require or ()),
            template_options=config.template_options,
            ends=ends,
        )
    except (KeyError, IndexError, ValueError) as error:
        raise ConfigError(
            f"the system prompt cannot be filled in: {error!r}", where="chat.system", hint="double literal braces"
        ) from error
