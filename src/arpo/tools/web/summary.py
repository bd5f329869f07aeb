"""A summary of a page with respect to a question, by a model behind an OpenAI-compatible endpoint.

Knows the prompt. Refuses to know pages and HTTP; it does not retry (the gateway does).
"""

from pydantic import Field

from arpo.endpoint.client import Endpoint
from arpo.endpoint.config import EndpointConfig

PROMPT = (
    "You are given a question and the text of a web page. Write down what the page says that helps to answer the "
    "question: names, numbers, dates, in its own terms, in at most {words} words. Use nothing that is not on the "
    "page. If nothing on it helps, write exactly: Nothing helpful."
)


class SummariserConfig(EndpointConfig):
    """Which model summarises."""

    words: int = Field(default=120, ge=1)
    """About how long a summary is."""
    page_chars: int = Field(default=20_000, ge=100)
    """How much of the page the model reads: the passages nearest to the question."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Seconds for an answer."""


class Summariser:
    """Asks the model."""

    def __init__(self, config: SummariserConfig) -> None:
        self.config = config
        self.endpoint = Endpoint(config, "summariser")

    def ready(self) -> None:
        """Raises ConfigError where its key is not there."""
        self.endpoint.ready("summariser")

    async def __call__(self, question: str, title: str, text: str) -> tuple[str, float]:
        """What `text` says about `question` ("" where it says nothing), and the money that it cost. Raises
        ProviderError where the model does not answer."""
        config = self.config
        asked = f"Question: {question}\n\nPage: {title}\n\n{text[: config.page_chars]}"
        messages = [
            {"role": "system", "content": PROMPT.format(words=config.words)},
            {"role": "user", "content": asked},
        ]
        reply = await self.endpoint.chat_once(messages, max_tokens=4 * config.words, temperature=0)
        told = reply.text.strip()
        return "" if told.casefold().startswith("nothing helpful") else told, reply.usage.money
