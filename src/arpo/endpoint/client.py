"""The client of a served model: chat completions and completions, with retries, limits and a budget.

    chat ─ budget? ─ Provider (rate, concurrency, retries, outage) ─ HttpClient (one request, keys hidden) ─ Reply ─
    Spent

Knows the two formats (https://platform.openai.com/docs/api-reference). Refuses to know what prompts and replies mean.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any

from arpo.endpoint.config import EndpointConfig
from arpo.errors import ConfigError, ProviderError, ToolsStoppedError
from arpo.http.exchange import KEY, HttpClient, HttpRequest, refused
from arpo.http.limits import Provider, Tell

MOST_NESTED, MOST_CALLS = 100, 1024  # of an answer, and of a message
MOST_TOKENS = 2**40  # that a usage may tell
LENGTH = "length"  # finish reason of an answer that was cut at its limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one answer as the endpoint counts them, and what they cost."""

    prompt_tokens: int = 0
    cached_tokens: int = 0  # among them
    completion_tokens: int = 0
    money: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One answer. `message` is the assistant's message of a chat completion, empty for a plain completion."""

    text: str
    finish: str  # "stop", "length", "tool_calls", "content_filter"
    matched: str | None = (
        None  # the stop string that ended it, where the endpoint says so; "" where it says that none did
    )
    message: Mapping[str, Any] = field(default_factory=dict)
    usage: Usage = Usage()


@dataclass(slots=True)
class Spent:
    """What an endpoint was used for so far. `attempts` exceeds `requests` where requests were retried."""

    requests: int = 0
    attempts: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    money: float = 0.0

    def add(self, usage: Usage) -> None:
        self.requests += 1
        self.prompt_tokens += usage.prompt_tokens
        self.cached_tokens += usage.cached_tokens
        self.completion_tokens += usage.completion_tokens
        self.money += usage.money

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        again = self.attempts - self.requests
        money = f", {self.money:.4g} in money" if self.money else ""
        retried = f" ({again:,} further attempts)" if again > 0 else ""
        return (
            f"{self.requests:,} requests{retried}, {self.prompt_tokens:,} tokens read, {self.completion_tokens:,} "
            f"written{money}"
        )


class Endpoint:
    """The client of one endpoint. `service` names it in errors; `tell(text, level)` is called when an outage begins and
    ends."""

    def __init__(
        self, config: EndpointConfig, service: str = "endpoint", *, tell: Tell = lambda text, level: None
    ) -> None:
        self.config, self.service = config, service
        self.spent = Spent()
        self._client = HttpClient(service, timeout_s=config.timeout_s, connections=max(64, config.concurrency))
        self._provider = Provider(
            service,
            rate=config.rate,
            concurrency=config.concurrency,
            retries=config.retries,
            patience_s=config.patience_s,
            tell=tell,
            hint="raise patience_s to wait longer, or start again when it is back",
        )

    def ready(self, where: str = "") -> None:
        """Raises ConfigError where the key is not in the environment; `where` is the section that names it."""
        if self.config.key_env and not os.environ.get(self.config.key_env):
            hint = f"Put it into the environment variable {self.config.key_env}"
            raise ConfigError(
                f"the {self.service} needs a key", where=f"{where}.key_env" if where else "key_env", hint=hint
            )

    async def chat(self, messages: Sequence[Mapping[str, Any]], *, max_tokens: int, **fields: Any) -> Reply:
        """A chat completion, with retries.

        Raises ProviderError where this request alone fails, ToolError where the endpoint refuses it, ToolsStoppedError
        where every request fails: a refused key, an exhausted account, the budget, an outage.
        """
        return await self._send("chat/completions", {"messages": list(messages), **self._common(max_tokens, fields)})

    async def complete(self, prompt: str | Sequence[int], *, max_tokens: int, **fields: Any) -> Reply:
        """A completion of `prompt` (text, or tokens of the served model's vocabulary). Raises as `chat`."""
        given = prompt if isinstance(prompt, str) else list(prompt)
        return await self._send("completions", {"prompt": given, **self._common(max_tokens, fields)})

    async def chat_once(self, messages: Sequence[Mapping[str, Any]], *, max_tokens: int, **fields: Any) -> Reply:
        """A chat completion in one attempt, for tools: the gateway retries. Raises ProviderError, ToolError."""
        body = {"messages": list(messages), **self._common(max_tokens, fields)}
        try:
            return await self._provider.limited(lambda: self._once("chat/completions", body))
        except ToolsStoppedError as error:  # a tool's error would be text for the model
            raise ProviderError(str(error), retriable=False, provider=self.service) from error

    async def close(self) -> None:
        await self._client.close()

    async def _send(self, path: str, body: Mapping[str, Any]) -> Reply:
        reply, _ = await self._provider.call(lambda: self._once(path, body))
        return reply

    def _common(self, max_tokens: int, fields: Mapping[str, Any]) -> dict[str, Any]:
        config = self.config
        length_key = "max_completion_tokens" if config.options.get("max_tokens", 0) is None else "max_tokens"
        body = {"model": config.model, length_key: max_tokens, **fields, **config.options}
        return {name: value for name, value in body.items() if value is not None}

    async def _once(self, path: str, body: Mapping[str, Any]) -> Reply:
        self._check_budget()
        config = self.config
        key = os.environ.get(config.key_env, "") if config.key_env else ""
        self.spent.attempts += 1
        answer = await self._client.send(
            HttpRequest(
                method="POST",
                url=f"{config.url.rstrip('/')}/{path}",
                body=_each_text(body, _encodable),
                secret_headers={"Authorization": f"Bearer {key}"} if key else {},
            )
        )
        if answer.status >= 300:
            refused(answer, self.service, config.key_env, key)
        try:
            # an endpoint may repeat the key, and what it says is recorded
            value = _each_text(answer.value, lambda text: text.replace(key, KEY) if key else text)
            reply = _reply(value, config)
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
            raise ProviderError(f"{self.service}: an answer that is no completion", provider=self.service) from None
        self.spent.add(reply.usage)
        return reply

    def _check_budget(self) -> None:
        budget = self.config.budget
        if budget is not None and self.spent.money >= budget:
            hint = "To go on, raise `budget` and start again: what was answered is kept"
            raise ToolsStoppedError(
                f"the budget of the {self.service} is used up: {self.spent.money:.4g} of {budget:g}. {hint}"
            )


def _each_text(value: Any, change: Callable[[str], str], depth: int = 0) -> Any:
    """`value` (JSON) with every text in it changed, and null for numbers that JSON has not. Raises ValueError where it
    is nested too deeply to be sent again."""
    if depth > MOST_NESTED:
        raise ValueError("it is nested too deeply")
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(name): _each_text(item, change, depth + 1) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_each_text(item, change, depth + 1) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _encodable(text: str) -> str:
    """`text` with lone surrogates replaced: a model may write them, and no UTF-8 can hold them."""
    return text.encode("utf-8", "replace").decode()


def _reply(value: Any, config: EndpointConfig) -> Reply:
    """Raises LookupError, TypeError, ValueError, AttributeError or OverflowError for anything that is no completion."""
    choice = value["choices"][0]
    message = choice.get("message") or {}
    said = text_of(message.get("content"))
    text = choice.get("text", said)
    if "text" not in choice and not message:
        raise ValueError("neither text nor message")
    if len(message.get("tool_calls") or ()) > MOST_CALLS:
        raise ValueError("more calls than a message can have")
    return Reply(
        text=text_of(text),
        finish=str(choice.get("finish_reason") or "stop"),
        matched=_matched(choice),
        message=message,
        usage=_usage(value.get("usage") or {}, config),
    )


def text_of(content: Any) -> str:
    """The text of a message's content: text, or a list of parts, of which those of other types (thoughts, pictures) are
    left out. Raises TypeError for anything else."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list) or not all(isinstance(part, Mapping) for part in content):
        raise TypeError("content is no text")
    return "".join(part["text"] for part in content if isinstance(part.get("text"), str))


def _matched(choice: Mapping[str, Any]) -> str | None:
    """vLLM says `stop_reason`, SGLang `matched_stop`: a string, or for the end-of-turn token its id or nothing."""
    for name in ("stop_reason", "matched_stop"):
        if name in choice:
            return choice[name] if isinstance(choice[name], str) else ""
    return None


def _usage(given: Mapping[str, Any], config: EndpointConfig) -> Usage:
    read, written = _tokens(given.get("prompt_tokens")), _tokens(given.get("completion_tokens"))
    cached = min(read, _tokens((given.get("prompt_tokens_details") or {}).get("cached_tokens")))
    price, dear = config.prices.get("prompt", 0.0), config.prices.get("completion", 0.0)
    money = ((read - cached) * price + cached * config.prices.get("cached", price) + written * dear) / 1e6
    return Usage(prompt_tokens=read, cached_tokens=cached, completion_tokens=written, money=money)


def _tokens(count: Any) -> int:
    """A number of tokens; one below 0 would give money back to the budget. Raises ValueError, TypeError or
    OverflowError."""
    if (tokens := int(count or 0)) > MOST_TOKENS:
        raise ValueError("more tokens than an answer can have")
    return max(0, tokens)
