"""An index over HTTP, for many trainers: the retrieval API that Search-R1 made common. Needs the extra `serve`.

    POST /retrieve  {"queries": [text, ...], "topk": 3, "return_scores": true}
    -> {"result": [[{"document": {"id", "title", "text", "contents", "source"}, "score": 12.3}, ...], ...]}

Without `return_scores` each result is a document alone, as there. `contents` is `"Title"` and the text on the next line, the form
in which Search-R1's corpora and clients hold a passage. GET /health says what is served. A request that cannot be answered gets
400 with {"error": what would be right}.
"""

import errno
import json
import os
import socket
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from arpo.errors import ConfigError
from arpo.search.index import Index

MOST_QUERIES = 1_024  # a request
MOST_RESULTS = 1_000  # a query
MOST_BYTES = 4 << 20  # of a request
SMALL = 20_000  # passages that are searched at once: a thread would take longer to start
INDEX, MODE, TOPK, ENCODER = "ARPO_SERVE_INDEX", "ARPO_SERVE_MODE", "ARPO_SERVE_TOPK", "ARPO_SERVE_ENCODER"


class BadRequest(ValueError):
    """The client's mistake, in words."""


def application(index: Index, topk: int = 3) -> Starlette:
    """The web application that serves `index`; `topk` passages a query where the request does not say."""
    quick = len(index.passages) <= SMALL and index.mode == "lexical"

    async def retrieve(request: Request) -> JSONResponse:
        try:
            queries, wanted, scored = _asked(await _body(request), topk)
        except BadRequest as error:
            return JSONResponse({"error": str(error)}, status_code=400)
        if quick and len(queries) == 1:
            return JSONResponse({"result": _answers(index, queries, wanted, scored)})
        return JSONResponse({"result": await run_in_threadpool(_answers, index, queries, wanted, scored)})

    async def health(request: Request) -> JSONResponse:
        return JSONResponse({"status": "ok", "passages": len(index.passages), "mode": index.mode, "topk": topk})

    return Starlette(routes=[Route("/retrieve", retrieve, methods=["POST"]), Route("/health", health)])


def free_port(host: str, port: int) -> int:
    """`port`, or any free one for 0, tried by listening there. Raises ConfigError where that cannot be."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise ConfigError(f"this machine knows no such host ({error.strerror})", where="--host", value=host) from error
    with socket.socket(family, kind, protocol) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(address)
            listening.listen()
        except OSError as error:
            said = f"{host}:{port} cannot be listened at ({error.strerror})"
            if error.errno == errno.EADDRNOTAVAIL:
                hint = "127.0.0.1, or 0.0.0.0 for other machines"
                raise ConfigError(said, where="--host", value=host, hint=hint) from error
            raise ConfigError(said, where="--port", value=port, hint="Another one, or 0 for any that is free") from error
        return int(listening.getsockname()[1])


def serve(folder: Path, *, host: str, port: int, workers: int, mode: str, topk: int, encoder: str = "") -> None:
    """Serve until interrupted. Several workers are processes that share the memory-mapped index and the port."""
    import uvicorn

    given = {INDEX: str(folder.resolve()), MODE: mode, TOPK: str(topk), ENCODER: encoder}
    os.environ |= given  # workers are started anew and read it there
    uvicorn.run(f"{__name__}:from_environment", factory=True, host=host, port=port, workers=workers, log_level="warning")


def from_environment() -> Starlette:
    """The application that `serve` asked for, in a worker process."""
    index = Index.open(os.environ[INDEX], os.environ[MODE], os.environ[ENCODER])
    return application(index, int(os.environ[TOPK]))


async def _body(request: Request) -> Any:
    content = b""
    async for chunk in request.stream():
        content += chunk
        if len(content) > MOST_BYTES:
            raise BadRequest(f"a request has at most {MOST_BYTES:,} bytes")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"not JSON: {error}") from error


def _asked(body: Any, topk: int) -> tuple[list[str], int, bool]:
    if not isinstance(body, dict):
        raise BadRequest('a request is {"queries": [text, ...], "topk": 3, "return_scores": true}')
    queries, wanted, scored = body.get("queries"), body.get("topk") or topk, body.get("return_scores", False)
    if not isinstance(queries, list) or not all(isinstance(query, str) for query in queries) or len(queries) > MOST_QUERIES:
        raise BadRequest(f"`queries` is a list of at most {MOST_QUERIES:,} texts")
    if not isinstance(wanted, int) or isinstance(wanted, bool) or not 1 <= wanted <= MOST_RESULTS:
        raise BadRequest(f"`topk` is a number from 1 to {MOST_RESULTS:,}")
    return queries, wanted, bool(scored)


def _answers(index: Index, queries: list[str], k: int, scored: bool) -> list[list[Any]]:
    answers = []
    for query in queries:
        found = [(_document(index, number), score) for number, score in index.rank(query, k)]
        answers.append([{"document": document, "score": score} if scored else document for document, score in found])
    return answers


def _document(index: Index, number: int) -> dict[str, Any]:
    passage = index.passages[number]
    contents = f'"{passage.title}"\n{passage.text}'
    return {"id": number, "title": passage.title, "text": passage.text, "contents": contents, "source": passage.source}
