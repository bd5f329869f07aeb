"""Serves an index over HTTP to many trainers, with Search-R1's retrieval API.

    POST /retrieve  {"queries": [text, ...], "topk": 3, "return_scores": true}
    -> {"result": [[{"document": {"id", "title", "text", "contents", "source"}, "score": 12.3}, ...], ...]}

Without `return_scores` a result is only the document, as in Search-R1. `contents` is `"Title"` with the text on the
next line, the form of a passage in Search-R1's corpora and clients. GET /health describes the index. An invalid request
gets status 400 with {"error": what would be right}.
"""

import os
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from arpo.http.serving import BadRequest, json_body, listening_at
from arpo.search.index import Index

MAX_QUERIES = 1_024  # per request
MAX_CHARS = 20_000  # of a query
MAX_RESULTS = 1_000  # per query
MAX_BYTES = 4 << 20  # per request
SMALL = 20_000  # number of passages up to which a search is faster than starting a thread
INDEX, MODE, TOPK, ENCODER = "ARPO_SERVE_INDEX", "ARPO_SERVE_MODE", "ARPO_SERVE_TOPK", "ARPO_SERVE_ENCODER"


def application(index: Index, topk: int = 3) -> Starlette:
    """The web application that serves `index`. `topk` is the default number of passages per query."""
    quick = len(index.passages) <= SMALL and index.mode == "lexical"

    async def retrieve(request: Request) -> JSONResponse:
        try:
            queries, k, scored = _parse(await json_body(request, MAX_BYTES), topk)
        except BadRequest as error:
            return JSONResponse({"error": str(error)}, status_code=400)
        except ClientDisconnect:  # nobody reads the answer
            return JSONResponse({"error": "the client went away"}, status_code=499)
        if quick and len(queries) == 1:
            return JSONResponse({"result": _results(index, queries, k, scored)})
        return JSONResponse({"result": await run_in_threadpool(_results, index, queries, k, scored)})

    async def health(request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok", "passages": len(index.passages), "mode": index.mode, "topk": topk})

    return Starlette(routes=[Route("/retrieve", retrieve, methods=["POST"]), Route("/health", health)])


def free_port(host: str, port: int) -> int:
    """`port`, or a free port for 0, after listening there once. Raises ConfigError if that fails."""
    with listening_at(host, port) as listening:
        return int(listening.getsockname()[1])


def serve(folder: Path, *, host: str, port: int, workers: int, mode: str, topk: int, encoder: str = "") -> None:
    """Serve until interrupted. Several workers are processes that share the memory-mapped index and the port."""
    import uvicorn

    # new worker processes read their configuration from the environment
    os.environ |= {INDEX: str(folder.resolve()), MODE: mode, TOPK: str(topk), ENCODER: encoder}
    uvicorn.run(
        f"{__name__}:from_environment", factory=True, host=host, port=port, workers=workers, log_level="warning"
    )


def from_environment() -> Starlette:
    """The application in a worker process of `serve`."""
    index = Index.open(os.environ[INDEX], os.environ[MODE], os.environ[ENCODER])
    return application(index, int(os.environ[TOPK]))


def _parse(body: Any, topk: int) -> tuple[list[str], int, bool]:
    """(queries, results per query, whether to return scores)."""
    if not isinstance(body, dict):
        raise BadRequest('a request must be {"queries": [text, ...], "topk": 3, "return_scores": true}')
    queries, k, scored = body.get("queries"), body.get("topk") or topk, body.get("return_scores", False)
    if (
        not isinstance(queries, list)
        or not all(isinstance(query, str) and len(query) <= MAX_CHARS for query in queries)
        or len(queries) > MAX_QUERIES
    ):
        raise BadRequest(f"`queries` must be a list of at most {MAX_QUERIES:,} texts of up to {MAX_CHARS:,} characters")
    if not isinstance(k, int) or isinstance(k, bool) or not 1 <= k <= MAX_RESULTS:
        raise BadRequest(f"`topk` must be a number from 1 to {MAX_RESULTS:,}")
    return queries, k, bool(scored)


def _results(index: Index, queries: list[str], k: int, scored: bool) -> list[list[Any]]:
    results = []
    for query in queries:
        ranked = [(_document(index, number), score) for number, score in index.rank(query, k)]
        results.append([{"document": document, "score": score} if scored else document for document, score in ranked])
    return results


def _document(index: Index, number: int) -> dict[str, Any]:
    passage = index.passages[number]
    contents = f'"{passage.title}"\n{passage.text}'
    return {"id": number, "title": passage.title, "text": passage.text, "contents": contents, "source": passage.source}
