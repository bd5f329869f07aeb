"""An MCP server on stdio that misbehaves as its first argument says: `python odd_mcp_server.py MODE [FILE]`.

It has two tools: `ok` answers, and `odd` does what the mode says with its argument `how`, where that is not "well".
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MODE, FILE = sys.argv[1], Path(sys.argv[2]) if len(sys.argv) > 2 else None
TEXT = {"type": "object", "properties": {"how": {"type": "string"}}}
TOOLS: dict[str, Any] = {
    "schemas": [
        {"name": "lists", "inputSchema": {"type": "object", "properties": {"n": {"type": ["integer", "null"]}}}},
        {
            "name": "recursive",
            "description": "\x1b]0;title\x07 <|im_end|>",
            "inputSchema": {
                "type": "object",
                "properties": {"node": {"$ref": "#/$defs/Node"}, "loop": {"$ref": "#/$defs/Loop"}},
                "required": ["node", "loop"],
                "$defs": {
                    "Node": {"type": "object", "properties": {"next": {"$ref": "#/$defs/Node"}}, "required": ["next"]},
                    "Loop": {"$ref": "#/$defs/Loop"},
                },
            },
        },
        {
            "name": "required",
            "annotations": {"readOnlyHint": True},
            "inputSchema": {
                "type": "object",
                "anyOf": [{"required": None}, {"required": 3}],
                "properties": {"inner": {"type": "object", "properties": {"a": {}}, "required": [["a"], "a"]}},
                "required": ["inner"],
            },
        },
        {"name": "booleans", "inputSchema": {"type": "object", "properties": {"any": True, "none": False}}},
        {
            "name": "choice",
            "annotations": {"readOnlyHint": True},
            "inputSchema": {
                "type": "object",
                "properties": {"c": {"anyOf": [{"$ref": "#/properties/c"}, {"type": "string"}]}},
                "required": ["c", "absent"],
            },
        },
    ],
    "output": [
        {
            "name": "odd",
            "inputSchema": TEXT,
            "outputSchema": {"type": "object", "properties": {"a": {"type": "string", "pattern": "^(a+)+$"}}},
        }
    ],
    "malformed": [
        {"name": "ok", "inputSchema": TEXT},
        {"name": "listed type", "inputSchema": {"type": ["object"], "properties": {}}},
        {"name": "no schema"},
        {"name": "odd text", "description": 3, "inputSchema": TEXT},
        {"name": "odd names", "inputSchema": {"type": "object", "required": "how"}},
        {"inputSchema": TEXT},
        7,
    ],
    "names": [{"name": "a\nb", "inputSchema": TEXT}],
}
tools = TOOLS.get(MODE, [{"name": name, "inputSchema": TEXT} for name in ("ok", "odd")])


def send(message: Any) -> None:
    print(message if isinstance(message, str) else json.dumps(message), flush=True)


def answer(number: int, text: str) -> None:
    send({"jsonrpc": "2.0", "id": number, "result": {"content": [{"type": "text", "text": text}]}})


def odd(number: int, arguments: dict[str, Any]) -> None:
    if FILE is not None and MODE == "write":
        FILE.write_text("called")
    if FILE is not None and MODE == "sleeps":
        FILE.write_text(str(os.getpid()))
        time.sleep(3600)
    if MODE == "dies":
        os._exit(3)
    half = f'{{"jsonrpc": "2.0", "id": {number}, "result": {{"content": ['
    malformed: dict[str, Any] = {
        "half": half,
        "no result": {"jsonrpc": "2.0", "id": number},
        "wrong content": {"jsonrpc": "2.0", "id": number, "result": {"content": "text"}},
        "wrong block": {"jsonrpc": "2.0", "id": number, "result": {"content": [{"type": "text", "text": 1}]}},
        "list": {"jsonrpc": "2.0", "id": number, "result": []},
        "deep": half + "[" * 100_000,
        "long": half + "x" * (5 << 20),
    }
    if MODE in malformed:
        send(malformed[MODE])
    elif MODE == "output":
        result = {"content": [{"type": "text", "text": "done"}], "structuredContent": {"a": "a" * 60 + "!"}}
        send({"jsonrpc": "2.0", "id": number, "result": result})
    else:
        answer(number, "done")


if MODE == "banner":
    send("Welcome to the odd server!\n{'level': 'info'}")
if MODE == "children" and FILE is not None:
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    children = [subprocess.Popen(sleep, start_new_session=away, stdin=subprocess.DEVNULL) for away in (False, True)]
    FILE.write_text(" ".join(str(child.pid) for child in children))
for message in map(json.loads, sys.stdin):
    method, number = message.get("method"), message.get("id")
    if number is None:
        continue
    if method == "initialize":
        hello = {"capabilities": {"tools": {}}, "serverInfo": {"name": "odd", "version": "1"}}
        version = message["params"]["protocolVersion"]
        send({"jsonrpc": "2.0", "id": number, "result": {"protocolVersion": version, **hello}})
    elif method == "tools/list":
        send({"jsonrpc": "2.0", "id": number, "result": {"tools": tools}})
    elif method == "tools/call":
        if MODE == "banner":
            send("a line between")
        arguments = message["params"].get("arguments") or {}
        if message["params"]["name"] == "odd" and arguments.get("how") != "well":
            odd(number, arguments)
        else:
            answer(number, "fine")
    else:
        send({"jsonrpc": "2.0", "id": number, "error": {"code": -32601, "message": "no such method"}})
if MODE == "meets" and FILE is not None:  # at its end it waits for two others that end
    own = FILE / str(os.getpid())
    own.touch()
    while len(list(FILE.glob("*[0-9]"))) < 3:
        time.sleep(0.01)
    own.with_suffix(".met").touch()
