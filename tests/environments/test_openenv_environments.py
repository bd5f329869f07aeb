"""Environments of OpenEnv behind its own server. The package is no dependency of the tests, since it brings gradio:
`pip install 'openenv-core==0.3.*'` runs them."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
from test_shipped_environments import END, call, check_update, rollout_of, task

pytest.importorskip("openenv.core")

pytestmark = pytest.mark.slow  # a server takes seconds to import


@contextmanager
def server(name: str) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = Path(__file__).with_name("openenv_servers.py")
    process = subprocess.Popen([sys.executable, str(script), name, str(port)])
    try:
        while True:
            assert process.poll() is None, "the server ended"
            try:
                httpx.get(f"http://127.0.0.1:{port}/health")
                break
            except httpx.TransportError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def test_a_server_with_actions_of_its_own(tokenizer: Any) -> None:
    def says(text: str, draw: Random) -> str:
        known = text.partition("A number from")[2]
        return (
            f"I give up.{END}"
            if draw.random() < 0.1
            else call("act", number=draw.randint(0, 4 if "less" in known else 9))
        )

    with server("guessing") as url:
        options = {"url": url}
        rollout = rollout_of(tokenizer, "openenv", options, says, task("Guess.", setup={"most": 3}), max_calls=8)
    assert "Guess.\n\nA number from 0 to 3." in rollout.grown.prompt_text()
    assert "Guess the number." in rollout.grown.prompt_text()
    assert any(len(place) > 1 and place[-1] > 0 for place in rollout.grown.tree.turns), "no branch"
    assert rollout.grown.states.episodes.count["replayed_turns"] > 0
    check_update(tokenizer, rollout)
    for leaf, said in rollout.transcripts.items():
        made = [outcome.text for seen in said.outcomes for outcome in seen]
        right = "right" in made
        assert rollout.scored.scores[leaf].reward == pytest.approx(1 / len(made) if right else 0.0)


def test_a_server_with_tools(tokenizer: Any) -> None:
    def says(text: str, draw: Random) -> str:
        return call("add", text=draw.choice("abc")) if draw.random() < 0.8 else f"done{END}"

    with server("notes") as url:
        rollout = rollout_of(tokenizer, "openenv", {"url": url}, says, task("Keep notes."), max_calls=4)
    assert "Adds a note." in rollout.grown.prompt_text()
    for said in rollout.transcripts.values():
        notes = [turn.calls[0].arguments["text"] for turn in said.turns if turn.calls]
        made = [outcome.text for seen in said.outcomes for outcome in seen]
        assert made == [f"{n} notes: {', '.join(map(str, notes[:n]))}" for n in range(1, len(made) + 1)]
