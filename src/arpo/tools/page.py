"""The `page` tool: opens a web page or PDF and shows what is nearest to the question, or a model's summary.

Knows what a page says about a question. Refuses to know connections (`arpo.tools.web.fetch`) and formats
(`arpo.search`).
"""

import codecs
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from arpo.core.tree import CallStatus
from arpo.errors import ConfigError, FormatError, ToolError
from arpo.options import custom
from arpo.search.extraction import MEMORY_BYTES, Extracted, reader
from arpo.search.lexical import Lexical
from arpo.search.passages import cut
from arpo.tools import CallContext, JsonSchema, ToolBase, ToolResult
from arpo.tools.cache_key import digest
from arpo.tools.web.fetch import Fetched, Fetcher
from arpo.tools.web.summary import Summariser, SummariserConfig
from arpo.worker_process import WorkerError

PAGES_KEPT, PAGES_S = 64, 600.0  # a page that several branches open is fetched once
PIECE_CHARS = 500  # what is ranked: a paragraph or two
HTML = ("text/html", "application/xhtml+xml", "")
TEXT = ("application/json", "application/xml", "application/ld+json", "application/javascript")
PDF = "application/pdf"
READ_S = 20.0  # that a page may take to be read
LONG_CHARS = 20_000  # of a page's text, from which on it is searched in a process of its own
TITLE_CHARS = 500
# what Python decodes and no page is written in; some take hours for what a page may weigh
NO_CHARSETS = ("idna", "punycode", "undefined", "unicode_escape", "raw_unicode_escape")


class PageTool(ToolBase):
    """Opens `url` and shows at most `chars` of it: the pieces that share most with `question`, in the page's order.

    `question` is the call's, else the task's. `summariser` ({url, model, key_env}) asks a model, which is told the
    question. `robots: false` opens what robots.txt closes to programs; `allow_private` lists addresses or networks that
    may be reached though they are not public. See arpo.tools.web.fetch for what is refused.
    """

    cacheable = True
    provider = "page"

    def __init__(
        self,
        *,
        chars: int = 1_500,
        summariser: Mapping[str, Any] | None = None,
        timeout_s: float = 15.0,
        most_mb: float = 5.0,
        redirects: int = 5,
        robots: bool = True,
        allow_private: Sequence[str] = (),
        name: str = "page",
        description: str = "Opens a web page.",
    ) -> None:
        if chars < 100:
            raise ConfigError("at least 100 characters of a page", where="chars", value=chars)
        self.name, self.description, self.chars = name, description, chars
        self.schema: JsonSchema = {
            "type": "object",
            "properties": {
                "url": {"type": "string", "description": "Address of a web page or PDF."},
                "question": {"type": "string", "description": "What to look for on it."},
            },
            "required": ["url"],
        }
        limits = {"most_bytes": int(most_mb * 2**20), "timeout_s": timeout_s, "redirects": redirects, "robots": robots}
        self._fetcher = Fetcher(**limits, allow_private=allow_private)  # type: ignore[arg-type]
        self._summariser = Summariser(custom(SummariserConfig, summariser, "summariser")) if summariser else None
        self.version = (
            f"{chars}-{digest('page', _told_by(self._summariser.config))}" if self._summariser else f"{chars}"
        )
        self.deadline_s = timeout_s + 5.0 + (self._summariser.config.timeout_s if self._summariser else 0.0)
        self._kept: OrderedDict[str, tuple[float, str, Extracted]] = OrderedDict()

    def ready(self) -> None:
        """Raises ConfigError where the summariser's key is not there. A run asks before its start, a replay does
        not."""
        if self._summariser:
            self._summariser.ready()
        reader("html_to_text").start()

    def complete(self, arguments: Mapping[str, Any], context: CallContext) -> Mapping[str, Any]:
        """`arguments` with the task's question where the call has none: what a result depends on."""
        return arguments if arguments.get("question") else {**arguments, "question": context.task.question}

    def normalise(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Space around an address or a question says nothing."""
        return {name: value.strip() if isinstance(value, str) else value for name, value in arguments.items()}

    async def __call__(self, arguments: Mapping[str, Any], context: CallContext) -> ToolResult:
        url, question = (self.complete(arguments, context).get(name) for name in ("url", "question"))
        if not isinstance(url, str) or not url.strip():
            return ToolResult(text=f"{self.name} needs 'url', an address", status=CallStatus.REFUSED)
        address, page = await self._open(url.strip())
        title = (page.title or address)[:TITLE_CHARS]
        chars = self._summariser.config.page_chars if self._summariser else self.chars
        chosen: dict[str, Any] = {"text": page.text, "question": str(question), "chars": chars}
        # short ones, which are most, need no other process
        shown = nearest(**chosen) if len(page.text) <= LONG_CHARS else await _read(f"{__name__}:nearest", chosen)
        cost = 0.0
        if self._summariser and shown:
            shown, cost = await self._summariser(str(question), title, shown)
        text = f"{title}\n{shown}" if shown else f"{title}\n(nothing that can be read)"
        return ToolResult(text=text, empty=not shown, cost=cost, metadata={"url": address})

    async def _open(self, url: str) -> tuple[str, Extracted]:
        opened, address, page = self._kept.get(url, (0.0, "", Extracted("", ())))
        if not opened or time.monotonic() - opened > PAGES_S:
            fetched = await self._fetcher.fetch(url)
            address, page = fetched.url, await extract(fetched)
            self._kept[url] = (time.monotonic(), address, page)
            while len(self._kept) > PAGES_KEPT:
                self._kept.popitem(last=False)
        return address, page


async def extract(fetched: Fetched) -> Extracted:
    """The text of what was fetched. Raises ToolError for what has none: pictures, archives, damaged files, and what
    takes too much to be read."""
    kind, content = fetched.kind, fetched.content
    if kind == PDF or content.startswith(b"%PDF-"):
        page: Extracted = await _read("pdf_to_text", {"content": content})
        return page
    if kind in HTML:
        page = await _read("html_to_text", {"content": _decoded(fetched) if fetched.charset else content})
        return page if page.text else Extracted(page.title, ())
    if kind.startswith("text/") or kind in TEXT:
        return Extracted("", (_decoded(fetched),))
    raise ToolError(f"not a page that can be read: {kind}")


async def _read(function: str, arguments: Mapping[str, Any]) -> Any:
    """What `function` of `reader` returns. Raises ToolError."""
    try:
        return await reader(function).run(arguments, READ_S)
    except FormatError as error:
        raise ToolError(str(error)) from None
    except (TimeoutError, MemoryError, WorkerError):
        raise ToolError(f"the page takes more than {READ_S:g} s or {MEMORY_BYTES >> 20} MiB to be read") from None


def nearest(text: str, question: str, chars: int) -> str:
    """At most `chars` of `text`: the pieces nearest to `question` (BM25) in their order, `…` for what is left out
    between them.

    A text that fits is given whole; without a word in common it is the beginning.
    """
    whole = " ".join(text.split())
    if len(whole) <= chars:
        return whole
    pieces = cut(text, "\n", min(PIECE_CHARS, chars // 2))
    ranked = [number for number, _ in Lexical.build(pieces).find(question, len(pieces))]
    chosen: list[int] = []
    room = chars
    for number in ranked or range(len(pieces)):
        if len(pieces[number]) + 3 > room:
            break
        chosen.append(number)
        room -= len(pieces[number]) + 3
    chosen.sort()
    shown = ""
    for before, number in zip([-1, *chosen], chosen, strict=False):
        gap = "… " if number != before + 1 else ""
        shown += f"{' ' if shown else ''}{gap}{pieces[number]}"
    return (shown or pieces[ranked[0] if ranked else 0])[:chars]


def _decoded(fetched: Fetched) -> str:
    try:
        charset = codecs.lookup(fetched.charset or "utf-8").name.replace("-", "_")
        if charset not in NO_CHARSETS:
            return fetched.content.decode(charset, "replace")
    except (LookupError, ValueError):  # a charset that nobody knows
        pass
    return fetched.content.decode("utf-8", "replace")


def _told_by(config: SummariserConfig) -> dict[str, Any]:
    """What decides what a summary says."""
    return config.model_dump(include={"url", "model", "words", "page_chars"})
