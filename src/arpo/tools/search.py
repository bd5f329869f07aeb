"""The `search` tool: the best few passages of documents on this machine, as one line each.

Knows how a result looks. Refuses to know how passages are found (`arpo.search`) and the web (`arpo.tools.web`).
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arpo.core.tree import CallStatus
from arpo.errors import ConfigError
from arpo.search.documents import read_documents
from arpo.search.index import Index, is_index
from arpo.search.passages import Passage, from_mappings
from arpo.search.snippet import snippet
from arpo.tasks import Task
from arpo.threads import run_off_loop
from arpo.tools import CallContext, JsonSchema, ToolBase, ToolResult
from arpo.tools.cache_key import digest

SMALL = 20_000  # passages that are searched in about a millisecond: no thread needed
TASK_INDEXES = 64


class SearchTool(ToolBase):
    """Searches `documents` (an index built by `arpo index`, or what read_documents takes), or those that a task brings.

    `k` passages a result, each on a line `Title: text`; `passage_chars` shortens each to the part around the hit.
    `mode` of an index with vectors: lexical, dense or hybrid (the default there); `encoder`: where its embedding model
    lies, if it moved. Nothing found is a result too: "No results." with CallStatus.OK.
    """

    read_only = True

    def __init__(
        self,
        documents: object = (),
        *,
        k: int = 3,
        passage_chars: int | None = None,
        mode: str = "",
        encoder: str = "",
        name: str = "search",
        description: str = "Finds facts.",
    ) -> None:
        if k < 1:
            raise ConfigError("at least one passage a result", where="k", value=k)
        if passage_chars is not None and passage_chars < 20:
            raise ConfigError(
                "a passage of less than 20 characters says nothing", where="passage_chars", value=passage_chars
            )
        self.name, self.description, self.k, self.passage_chars = name, description, k, passage_chars
        self.schema: JsonSchema = {
            "type": "object",
            "properties": {"query": {"type": "string", "description": "What to look for, in a few words."}},
            "required": ["query"],
        }
        if isinstance(documents, (str, Path)) and is_index(Path(documents).expanduser()):
            self.index = Index.open(documents, mode, encoder)
        else:
            self.index = Index(read_documents(documents), mode=mode or "lexical")
        self._of_tasks: OrderedDict[str, tuple[Sequence[Mapping[str, str]], Index]] = OrderedDict()

    def ready(self) -> None:
        """Raises ConfigError where an index's embedding model is not to be had. A run asks before its start."""
        self.index.ready()

    def complete(self, arguments: Mapping[str, Any], context: CallContext) -> Mapping[str, Any]:
        """A task's own documents are part of the question: another task's have other answers."""
        documents = context.task.documents
        return {**arguments, "documents": digest("documents", {"of": documents})} if documents else arguments

    def normalise(self, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Space around a query says nothing."""
        return {**arguments, "query": arguments["query"].strip()}

    async def __call__(self, arguments: Mapping[str, Any], context: CallContext) -> ToolResult:
        query = arguments.get("query")
        if not isinstance(query, str) or not query.strip():
            return ToolResult(text=f"{self.name} needs 'query', a text", status=CallStatus.REFUSED)
        documents = context.task.documents
        quick = (
            len(documents) <= SMALL if documents else len(self.index.passages) <= SMALL and self.index.mode == "lexical"
        )
        if quick:
            return self.search(query, context.task)
        return await run_off_loop(self.search, query, context.task)

    def search(self, query: str, task: Task | None = None) -> ToolResult:
        """The result for `query`, at once. `metadata` has the `titles` and `sources` of the passages shown."""
        index = self._index(task) if task is not None and task.documents else self.index
        found = [passage for passage, _ in index.find(query, self.k)]
        lines = "\n".join(passage_line(passage, query, self.passage_chars) for passage in found)
        shown = {"titles": [passage.title for passage in found]}
        if any(passage.source for passage in found):
            shown["sources"] = [passage.source for passage in found]
        return ToolResult(text=lines or NOTHING, empty=not found, metadata=shown)

    def _index(self, task: Task) -> Index:
        documents, index = self._of_tasks.get(task.id, ((), None))
        if index is None or documents is not task.documents:
            index = Index(from_mappings(task.documents, f"task {task.id}: documents"))
            self._of_tasks[task.id] = (task.documents, index)
            while len(self._of_tasks) > TASK_INDEXES:
                self._of_tasks.popitem(last=False)
        self._of_tasks.move_to_end(task.id)
        return index


NOTHING = "No results."


def passage_line(passage: Passage, query: str, chars: int | None) -> str:
    """`Title: text` on one line; without the title where the text begins with it. At most `chars`, around the words of
    `query`."""
    titled = not passage.title or passage.text.casefold().startswith(passage.title.casefold())
    head = "" if titled else f"{passage.title}: "
    if chars is None or len(head) + len(passage.text) <= chars:
        return head + passage.text
    if len(head) > chars // 2:
        head = ""
    return head + snippet(passage.text, query, chars - len(head))
