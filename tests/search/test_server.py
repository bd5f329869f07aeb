"""The retrieval server: Search-R1's API in a real process, and the web tool as its client finds what the local tool
finds."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from starlette.types import Message

from arpo.errors import ConfigError
from arpo.search.documents import read_documents
from arpo.search.index import Index, build_index
from arpo.search.server import application, free_port
from arpo.tasks import Task
from arpo.tools import CallContext
from arpo.tools.search import SearchTool
from arpo.tools.web import WebSearchTool

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src"), "OMP_NUM_THREADS": "1"}
CONTEXT = CallContext(
    task=Task(id="t", messages=({"role": "user", "content": "q"},), answers=()), deadline_s=10, seed=0
)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("served") / "atlas"
    build_index(read_documents("atlas"), folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "arpo", "serve-search", str(folder), "--port", str(port), "--workers", "2"]
    process = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                httpx.get(f"{url}/health", timeout=1)
                break
            except httpx.HTTPError:
                time.sleep(0.1)
        yield url, folder
    finally:
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=600)
    assert "5,713 passages, lexical" in told and "Traceback" not in told


def test_the_api_of_search_r1(served: tuple[str, Path]) -> None:
    url, folder = served
    body = {"queries": ["capital of Peru", "zebra unicorn"], "topk": 2, "return_scores": True}
    first, second = httpx.post(f"{url}/retrieve", json=body).json()["result"]
    expected = SearchTool(folder).index.find("capital of Peru", 2)
    assert [hit["score"] for hit in first] == pytest.approx([score for _, score in expected])
    document = first[0]["document"]
    assert (
        document["contents"] == f'"{document["title"]}"\n{document["text"]}' and document["text"] == expected[0][0].text
    )
    assert all(hit["score"] > 0 for hit in second)
    (bare,) = httpx.post(f"{url}/retrieve", json={"queries": ["capital"]}).json()["result"]
    assert len(bare) == 3 and "contents" in bare[0]
    assert httpx.get(f"{url}/health").json() == {"status": "ok", "passages": 5713, "mode": "lexical", "topk": 3}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"queries": "Lima"}',
        b'{"queries": [1]}',
        b'{"queries": ["a"], "topk": "x"}',
        b'{"queries": ["a"], "topk": 9999}',
        b"\xff",
        b"[" * 100_000,
        b'{"queries": ["' + b"word " * 700_000 + b'"]}',
    ],
)
def test_a_request_that_cannot_be_answered_says_what_would_be_right(served: tuple[str, Path], body: bytes) -> None:
    answer = httpx.post(f"{served[0]}/retrieve", content=body)
    assert answer.status_code == 400 and answer.json()["error"]


async def test_the_web_tool_finds_what_the_local_tool_finds(served: tuple[str, Path]) -> None:
    url, folder = served
    remote = WebSearchTool("retrieval", url=url, k=3, passage_chars=None)
    local = SearchTool(folder, k=3)
    for query in ("capital of Peru", "Which element was discovered in 1898?", "longest river"):
        assert (await remote({"query": query}, CONTEXT)).text == local.search(query).text


@pytest.mark.parametrize("workers", [1, 2])
def test_a_port_in_use_is_named_before_anything_is_served(served: tuple[str, Path], workers: int) -> None:
    url, folder = served
    port = url.rpartition(":")[2]
    command = [sys.executable, "-m", "arpo", "serve-search", str(folder), "--port", port, "--workers", str(workers)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 2 and f"cannot listen at 127.0.0.1:{port}" in done.stderr and "--port" in done.stderr
    assert "Traceback" not in done.stderr and "POST" not in done.stderr


def test_a_host_that_is_not_this_machines_is_named() -> None:
    assert free_port("127.0.0.1", 0) > 0
    with pytest.raises(ConfigError, match="--host"):
        free_port("192.0.2.1", 0)
    with pytest.raises(ConfigError, match="no such host"):
        free_port("no such host", 0)


async def test_a_client_that_goes_away_in_its_request_is_no_error_of_the_server(tmp_path: Path) -> None:
    build_index(read_documents([{"title": "a", "text": "b"}]), tmp_path / "index")
    app, sent = application(Index.open(tmp_path / "index")), list[Message]()
    messages = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> Message:
        return next(messages)

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/retrieve", "headers": [], "query_string": b""}
    await app(scope, receive, send)
    assert sent[0]["status"] == 499
