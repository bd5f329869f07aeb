"""The `search` tool: BM25 over passages, the best few as one line each.

Knows words, scores and how a result looks. Ties go to the passage that comes first, so results depend on nothing but the
documents and the query.
"""

import re
import unicodedata
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from arpo.core.tree import Status
from arpo.errors import ConfigError
from arpo.tasks import Task
from arpo.tools import CallContext, JsonSchema, ToolResult
from arpo.tools.off_loop import run_off_loop
from arpo.tools.passages import Passage, from_mappings, read_documents

WORD = re.compile(r"\w+(?:[.,]\d+)*")
GLUE = """a an and are as at be by did do does for from had has have how in is it its of on or that the their this to
was were what when where which who whom whose why with"""
STOPWORDS = frozenset(GLUE.split())  # in short passages they only add noise
SMALL = 20_000  # passages that are searched in about a millisecond: no thread needed
TASK_INDEXES = 64


def words(text: str) -> list[str]:
    """Words for matching: folded case, accents off, numbers whole, plural s off, without words that carry no meaning."""
    folded = unicodedata.normalize("NFD", text.casefold())
    plain = "".join(character for character in folded if not "\u0300" <= character <= "\u036f")
    return [_singular(word) for word in WORD.findall(plain) if word not in STOPWORDS]


def _singular(word: str) -> str:
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")) else word


class Index:
    """A lexical index. A title counts twice, since it names what the passage is about."""

    def __init__(self, passages: Sequence[Passage]) -> None:
        import bm25s

        self.passages = tuple(passages)
        texts = [words(f"{passage.title} {passage.title} {passage.text}") for passage in self.passages]
        self._bm25: Any = None
        if any(texts):
            self._bm25 = bm25s.BM25(backend="numpy")
            self._bm25.index(texts, show_progress=False)

    def find(self, query: str, k: int) -> list[tuple[Passage, float]]:
        """At most `k` passages that share a word with `query`, best first, with their scores."""
        known = [] if self._bm25 is None else [word for word in words(query) if word in self._bm25.vocab_dict]
        if not known:
            return []
        scores = self._bm25.get_scores(known)
        k = min(k, len(scores))
        floor = np.partition(scores, -k)[-k]
        able = np.flatnonzero((scores >= floor) & (scores > 0))
        best = able[np.lexsort((able, -scores[able]))][:k]
        return [(self.passages[number], float(scores[number])) for number in best]


class SearchTool:
    """Searches `documents` (see read_documents), or those of a task that brings its own.

    `k` passages a result, each on a line `Title: text`; `passage_chars` cuts each at a word. Nothing found is a result too:
    "No results." with Status.OK.
    """

    def __init__(
        self,
        documents: object = (),
        *,
        k: int = 3,
        passage_chars: int | None = None,
        name: str = "search",
        description: str = "Finds facts.",
    ) -> None:
        if k < 1:
            raise ConfigError("at least one passage a result", where="k", value=k)
        self.name, self.description, self.k, self.passage_chars = name, description, k, passage_chars
        self.schema: JsonSchema = {
            "type": "object",
            "properties": {"query": {"type": "string", "description": "What to look for, in a few words."}},
            "required": ["query"],
        }
        self.index = Index(read_documents(documents))
        self._of_tasks: OrderedDict[str, tuple[Sequence[Mapping[str, str]], Index]] = OrderedDict()

    async def __call__(self, arguments: Mapping[str, Any], context: CallContext) -> ToolResult:
        query = arguments.get("query")
        if not isinstance(query, str) or not query.strip():
            return ToolResult(text=f"{self.name} needs 'query', a text", status=Status.REFUSED)
        documents = context.task.documents
        size = len(documents) if documents else len(self.index.passages)
        if size <= SMALL:
            return self.search(query, context.task)
        return await run_off_loop(self.search, query, context.task)

    def search(self, query: str, task: Task | None = None) -> ToolResult:
        """The result for `query`, at once. `metadata["titles"]` lists the passages shown."""
        index = self._index(task) if task is not None and task.documents else self.index
        found = [passage for passage, _ in index.find(query, self.k)]
        text = "\n".join(map(self._line, found)) or "No results."
        return ToolResult(text=text, metadata={"titles": [passage.title for passage in found]})

    def _index(self, task: Task) -> Index:
        documents, index = self._of_tasks.get(task.id, ((), None))
        if index is None or documents is not task.documents:
            index = Index(from_mappings(task.documents, f"task {task.id}: documents"))
            self._of_tasks[task.id] = (task.documents, index)
            while len(self._of_tasks) > TASK_INDEXES:
                self._of_tasks.popitem(last=False)
        self._of_tasks.move_to_end(task.id)
        return index

    def _line(self, passage: Passage) -> str:
        titled = not passage.title or passage.text.casefold().startswith(passage.title.casefold())
        line = passage.text if titled else f"{passage.title}: {passage.text}"
        if self.passage_chars is not None and len(line) > self.passage_chars:
            line = line[: self.passage_chars].rsplit(" ", 1)[0] + "…"
        return line
