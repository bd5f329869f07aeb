"""The server answers the person at this machine, who knows the token, and reads only."""

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from recorded import NASTY, snapshot
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from arpo.errors import ConfigError
from arpo.view.library import Library
from arpo.view.page import built_page
from arpo.view.server import POLICY, application, cookie_of, serve

TOKEN = "a-token"
KNOWN = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def client(library):
    with TestClient(application(library, TOKEN), base_url="http://127.0.0.1:8470") as made:
        yield made


def test_without_the_token_nothing_is_told(client):
    for path in ("/", "/api/runs", "/api/runs/tiny/trees", "/?token=", "/?token=wrong", "/api/runs?token=a-toke"):
        answer = client.get(path)
        assert answer.status_code == 401 and "tiny" not in answer.text
    assert client.get("/api/runs", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert client.get("/api/runs", headers=KNOWN).status_code == 200


def test_the_address_with_the_token_opens_the_page_and_its_cookie_the_rest(client):
    assert client.get(f"/api/runs?token={TOKEN}").status_code == 200
    page = client.get(f"/?token={TOKEN}")
    assert page.status_code == 200 and page.text == built_page().html
    cookie = page.headers["set-cookie"].lower()
    assert cookie.startswith(cookie_of(TOKEN)) and "httponly" in cookie and "samesite=strict" in cookie
    assert client.get("/api/runs").status_code == 200  # the client keeps cookies, as a browser does
    built = built_page()
    assert (
        client.get(f"/{built.script_at}").text == built.script and client.get(f"/{built.style_at}").text == built.style
    )


def test_a_websocket_is_closed(client):
    for path in ("/", "/api/runs"):
        with pytest.raises(WebSocketDisconnect), client.websocket_connect(path, headers=KNOWN):
            pass


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8470", "127.0.0.1.evil.example", "localhost.evil", "", "[::2]:1", "127.0.0.1:x"],
)
def test_other_hosts_are_refused_even_with_the_token(client, host):
    for path in ("/", "/api/runs", "/app.js"):
        assert client.get(path, headers={**KNOWN, "Host": host}).status_code == 403


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8470", "localhost:9999", "LOCALHOST", "[::1]:8470", "[::1]"])
def test_this_machines_own_names_are_served_at_any_port(client, host):
    assert client.get("/api/runs", headers={**KNOWN, "Host": host}).status_code == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_it_reads_only(client, method):
    for path in ("/", "/api/runs", "/api/runs/tiny"):
        assert client.request(method, path, headers=KNOWN).status_code == 405


def test_other_pages_cannot_ask(client):
    headers = {**KNOWN, "Origin": "http://evil.example", "Sec-Fetch-Site": "cross-site"}
    answer = client.get("/api/runs", headers=headers)
    assert answer.status_code == 403
    assert not [name for name in client.get("/api/runs", headers=KNOWN).headers if name.startswith("access-control")]


def test_every_answer_carries_the_policy(client):
    for path, headers in (("/", KNOWN), ("/api/runs", KNOWN), ("/api/runs", {}), ("/nowhere", KNOWN), ("/app.js", {})):
        found = client.get(path, headers=headers).headers
        assert found["content-security-policy"] == POLICY and found["x-content-type-options"] == "nosniff"
        assert found["referrer-policy"] == "no-referrer" and found["cache-control"] == "no-store"
    assert "unsafe" not in POLICY and "http:" not in POLICY and "*" not in POLICY and "default-src 'none'" in POLICY


@pytest.mark.parametrize(
    "path",
    [
        "/../recipe.yaml",
        "/..%2f..%2fetc/passwd",
        "/api/runs/tiny/../../../etc/passwd",
        "/api/runs/..%2f..%2fetc%2fpasswd",
        "/api/runs/%2e%2e/trees",
        "/static/app.js",
        "/recipe.yaml",
        "//etc/passwd",
        "/api/runs/tiny%00/trees",
        "/api/runs/tiny/evaluation?name=../summary",
        "/api/runs/tiny/evaluation?name=..%2fsummary",
        "/api/runs/tiny/evaluation?name=%2fetc%2fpasswd",
    ],
)
def test_no_path_leads_out_of_a_run(client, path):
    answer = client.get(path, headers=KNOWN)
    assert answer.status_code in (400, 404) and "root:" not in answer.text and set(answer.json()) == {"error"}


def test_mistakes_are_answered_in_words(client):
    answer = client.get("/api/runs/tiny/trees?limit=-1", headers=KNOWN)
    assert answer.status_code == 400 and "limit" in answer.json()["error"]
    assert client.get("/api/runs/no", headers=KNOWN).status_code == 404


def test_nasty_texts_are_json_and_nothing_else(nasty_run, tmp_path):
    library = Library([nasty_run], cache=tmp_path / "i")
    library.catch_up()
    with TestClient(application(library, TOKEN), base_url="http://127.0.0.1") as client:
        for number, text in enumerate(NASTY):
            answer = client.get("/api/runs/nasty/tree", params={"step": 1, "task": f"nasty/{number}"}, headers=KNOWN)
            assert answer.headers["content-type"] == "application/json"
            assert json.loads(answer.content)["nodes"][0]["text"] == text
        query = client.get("/api/runs/nasty/trees", params={"q": "<script>alert"}, headers=KNOWN)
        assert query.json()["total"] == 1
    library.close()


def test_a_port_that_is_taken_is_named(library):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="cannot listen"):
            serve(library, port=taken.getsockname()[1], browser=False)


def test_the_command_serves_prints_its_address_and_writes_nothing_into_the_run(tiny_run, tmp_path):
    before = snapshot(tiny_run)
    command = [sys.executable, "-m", "arpo", "view", str(tiny_run), "--no-open", "--port", "0"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server,
        socket.socket() as silent,
    ):
        try:
            line = server.stdout.readline()
            address = line.split()[-1]
            assert line.startswith("1 run: http://127.0.0.1:")
            base, _, token = address.partition("/?token=")
            for _ in range(200):
                try:
                    asked = urllib.request.Request(f"{base}/api/runs", headers={"Authorization": f"Bearer {token}"})
                    with urllib.request.urlopen(asked, timeout=10) as answer:
                        assert json.load(answer)["runs"][0]["name"] == "tiny"
                    break
                except OSError:
                    time.sleep(0.05)
            else:
                pytest.fail("the server never answered")
            silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            silent.connect(("127.0.0.1", int(base.rpartition(":")[2])))
            silent.sendall(f"GET /{built_page().script_at} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode() * 100)
            time.sleep(0.2)  # a client that never reads its answers holds up nothing
            server.send_signal(signal.SIGINT)
            server.wait(10)
            assert "Traceback" not in server.stderr.read()
        finally:
            server.kill()
    assert snapshot(tiny_run) == before
