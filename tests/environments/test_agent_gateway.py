"""Outside agents trained through the gateway: what they ask becomes the turns of trajectories, token for token."""

import asyncio
import json
import math
import shlex
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import gateway_agents
import httpx
import pytest
from openai import APIStatusError, OpenAI
from test_environment_episodes import agent, config, grown
from test_shipped_environments import END, call, check_update
from typer.testing import CliRunner

from arpo.cli.commands import app
from arpo.core.record import decode, replay
from arpo.core.tree import StopReason
from arpo.engines.scripted import Script
from arpo.environments.config import build_environment
from arpo.environments.gateway_server import server_at
from arpo.errors import ConfigError
from arpo.options import UseWithOptions
from arpo.rollout.collect import Rollout
from arpo.runs.folder import RunFolder
from arpo.tasks import Task
from arpo.tools.gateway import ToolGateway

TASK = Task(id="one", messages=({"role": "user", "content": "Parity of 7"},), answers=("odd",), setup={"level": 1})
SIZES = {"turn_tokens": 80, "branch_tokens": 2000, "max_calls": 4, "leaves": 4, "roots": 2}


def says(text: str, draw: Random) -> str:
    """A call, sometimes with a word before it, sometimes of no tool that exists; then an answer."""
    if "tool_response" in text.partition("Parity of")[2]:
        return f"{draw.choice(['odd', 'even'])}{END}"
    name = draw.choice(["parity", "parity", "parity", "parrot"])
    return draw.choice(["", "I look. "]) + call(name, number=draw.choice([6, 7]))


async def reward(task: Task, transcript: Any) -> float:
    return float(transcript.answer in task.answers)


def rollout_of(tokenizer: Any, options: dict[str, Any], play: Callable[[str, Random], str] = says, **sizes: Any) -> Any:
    def script(prompt: Any, params: Any) -> Script:
        prompts.append(list(prompt))
        return Script(said=play(tokenizer.decode(list(prompt)), Random(f"{params.seed}/says")))

    prompts: list[list[int]] = []
    who = agent(tokenizer, UseWithOptions(use="gateway", options=options), script)
    rollout = grown(who, config(**{**SIZES, **sizes}), 5, reward, TASK)
    tree = rollout.grown.tree
    # every request was sampled after exactly the tokens that the tree holds
    assert sorted(prompts) == sorted(list(tree.context(place[:-1])) for place in tree.turns)
    assert all(len(place) == 1 or place[-1] == 0 for place in tree.turns), "a foreign process cannot be forked"
    return rollout


@contextmanager
def agents(work: Callable[[OpenAI, dict[str, Any]], Any], count: int = 3) -> Iterator[tuple[int, list[Any]]]:
    """A port, at which `count` threads take tasks for `work`, and what it has returned or raised. Work that has begun
    is waited for: its trajectory may end a moment before it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done: list[Any] = []
    begun: list[Any] = []
    over = threading.Event()

    def run() -> None:
        with httpx.Client(timeout=60) as http:
            while not over.is_set():
                try:
                    taken = http.post(f"http://127.0.0.1:{port}/v1/rollouts")
                except httpx.ConnectError:
                    over.wait(0.05)
                    continue
                if taken.status_code == 200:
                    given = taken.json()
                    begun.append(given)
                    with OpenAI(base_url=given["base_url"], api_key="none", max_retries=0) as client:
                        try:
                            done.append(work(client, given))
                        except Exception as error:  # noqa: BLE001
                            done.append(error)

    for _ in range(count):
        threading.Thread(target=run, daemon=True).start()
    try:
        yield port, done
        until = time.monotonic() + 60
        while len(done) < len(begun) and time.monotonic() < until:
            time.sleep(0.01)
    finally:
        over.set()


def end(given: dict[str, Any], **said: Any) -> None:
    assert httpx.post(f"{given['base_url']}/end", json=said).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_the_official_client_s_requests_are_turns(tokenizer: Any, stream: bool) -> None:
    def work(client: OpenAI, given: dict[str, Any]) -> list[Any]:
        assert given["task"] == {"id": "one", "messages": list(TASK.messages), "setup": {"level": 1}}
        messages = gateway_agents.plain(given["task"]["messages"][0]["content"], client, stream)
        end(given, result={"messages": messages})
        return messages

    with agents(work) as (port, done):
        rollout = rollout_of(tokenizer, {"port": port})
    assert len(done) == 4 and not rollout.grown.failures
    tree = rollout.grown.tree
    assert set(tree.endings.values()) == {StopReason.FINISHED}
    for leaf, said in rollout.transcripts.items():
        messages = said.states["gateway"].result["messages"]
        seen = [outcome.text for outcomes in said.outcomes for outcome in outcomes if outcome.answered]
        assert seen == [message["content"] for message in messages if message["role"] == "tool"]
        assert said.turns[-1].text == messages[-1]["content"]
        assert rollout.scored.scores[leaf].reward == float(messages[-1]["content"] == "odd")
        refused = [outcome for outcomes in said.outcomes for outcome in outcomes if not outcome.answered]
        assert all("there is no tool 'parrot'" in outcome.text for outcome in refused)
    assert "Parity of a number." in rollout.grown.prompt_text() and "Use the tool." in rollout.grown.prompt_text()


def test_the_tokens_are_what_the_template_renders(tokenizer: Any) -> None:
    """Words alone, several times: the last request, rendered by the template, is the trajectory."""

    def work(client: OpenAI, given: dict[str, Any]) -> list[Any]:
        messages: list[Any] = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "One?"}]
        for word in ("Two?", "Three?", ""):
            said = client.chat.completions.create(model="any", messages=messages).choices[0].message
            messages += [{"role": "assistant", "content": said.content}]
            messages += [{"role": "user", "content": word}] if word else []
        end(given, reward=0.5)
        return messages

    with agents(work) as (port, done):
        rollout = rollout_of(tokenizer, {"port": port}, lambda text, draw: f"{draw.randint(0, 99)}{END}")
    rendered = {tokenizer.apply_chat_template(messages, tokenize=False).rstrip() for messages in done}
    trees = {rollout.grown.prompt_text() + rollout.grown.text(leaf) for leaf in rollout.grown.tree.endings}
    assert trees == rendered and len(done) == 4
    assert all(said.rewards == (0.0, 0.0, 0.5) for said in rollout.transcripts.values())
    check = {score.reward for score in rollout.scored.scores.values()}
    assert check <= {0.0, 1.0}  # by the run's reward, not by what the agent reports


def _other(messages: list[Any]) -> list[Any]:
    return [{"role": "user", "content": "Something else"}]


def _edited(messages: list[Any]) -> list[Any]:
    return [*messages[:-1], {"role": "assistant", "content": "edited"}, {"role": "user", "content": "Go on"}]


def _repeated(messages: list[Any]) -> list[Any]:
    return messages[:-1]


def _called(messages: list[Any]) -> list[Any]:
    call = {"id": "a", "type": "function", "function": {"name": "parity", "arguments": "{}"}}
    result = {"role": "tool", "tool_call_id": "a", "content": "odd"}
    return [*messages, {"role": "user", "content": "Call."}, {"role": "assistant", "tool_calls": [call]}, result]


@pytest.mark.parametrize("change", [_other, _edited, _repeated, _called])
def test_another_history_begins_a_context(tokenizer: Any, change: Any) -> None:
    def work(client: OpenAI, given: dict[str, Any]) -> Any:
        messages: list[Any] = [{"role": "user", "content": "One?"}]
        for again in (True, False):
            said = client.chat.completions.create(model="any", messages=messages, tools=[TOOL]).choices[0].message
            messages += [{"role": "assistant", "content": said.content}]
            messages = change(messages) if again else messages
        end(given)
        return messages

    with agents(work, 4) as (port, done):
        rollout = rollout_of(tokenizer, {"port": port}, lambda text, draw: f"{draw.randint(0, 1)}{END}")
    tree, chat = rollout.grown.tree, rollout.grown.chat
    assert set(tree.endings.values()) == {StopReason.FINISHED} and all(len(leaf) == 2 for leaf in tree.leaves())
    assert len(done) == 4 and len(rollout.scored.scores) == len(tree.endings)
    for leaf in tree.leaves():
        seen = tree.observations[leaf[:1]]
        assert seen.new_context
        shown = [str(message.get("content", "")) for message in change([*done[0][:1], {"content": ""}])]
        assert all(text in chat.text(seen.tokens) for text in shown)
        if change is _called:  # the turn that it keeps is what was sampled
            assert tree.turns[leaf[:1]].tokens.tobytes() in seen.tokens.tobytes()


def _tools(messages: list[Any]) -> list[Any]:
    return [*messages, {"role": "user", "content": "Go on"}]


def _open(messages: list[Any]) -> list[Any]:
    return [messages[0], {"role": "assistant", "content": "unfinished"}]


@pytest.mark.parametrize("change", [_tools, _open])
def test_other_tools_and_no_history_end_the_trajectory_by_name(tokenizer: Any, change: Any) -> None:
    def work(client: OpenAI, given: dict[str, Any]) -> Any:
        messages: list[Any] = [{"role": "user", "content": "One?"}]
        said = client.chat.completions.create(model="any", messages=messages).choices[0].message
        messages += [{"role": "assistant", "content": said.content}]
        if said.content == "0":
            return end(given)
        tools: Any = [TOOL] if change is _tools else []
        client.chat.completions.create(model="any", messages=change(messages), **({"tools": tools} if tools else {}))
        return None

    with agents(work, 4) as (port, done):
        rollout = rollout_of(tokenizer, {"port": port}, lambda text, draw: f"{draw.randint(0, 1)}{END}", leaves=6)
    endings = rollout.grown.tree.endings
    changed = {leaf for leaf, ending in endings.items() if ending is StopReason.CONTEXT_CHANGED}
    assert changed and changed == set(endings) - set(rollout.scored.scores)
    assert {endings[leaf] for leaf in rollout.scored.scores} <= {StopReason.FINISHED}
    assert "next request" in rollout.grown.failures[0][1]
    for error in done:
        assert error is None or (isinstance(error, APIStatusError) and error.status_code == 410)


TOOL = {"type": "function", "function": {"name": "parity", "parameters": {"type": "object", "properties": {}}}}
NO_PROPERTIES = {"type": "function", "function": {"name": "a", "parameters": {"type": "object", "properties": [1]}}}


@pytest.mark.parametrize(
    ("first", "says"),
    [
        ({"tools": [{}]}, "has a name"),
        ({"tools": [TOOL, TOOL]}, "two tools of one name"),
        ({"tools": [{"type": "function", "function": {"name": "<|im_end|>"}}]}, "tool's name"),
        ({"tools": [NO_PROPERTIES]}, "no object"),
        ({"messages": [{"role": "user", "content": "a " * 20_000}]}, "leaves no room"),
        ({"messages": [{"role": "user", "content": "a" * 3_000_000}]}, "too many for"),
        ({"reward": math.nan}, "reward is a number"),
        ({"reward": 1e308}, "reward is a number"),
    ],
    ids=["unnamed", "twice", "token", "schema", "long", "giant", "NaN", "overflow"],
)
def test_what_an_agent_sends_ends_its_trajectory_and_not_the_run(
    tokenizer: Any, first: dict[str, Any], says: str
) -> None:
    def work(client: OpenAI, given: dict[str, Any]) -> Any:
        reward = {name: first[name] for name in first if name == "reward"}
        rest = {name: first[name] for name in first if name != "reward"}
        asked = {"model": "any", "messages": [{"role": "user", "content": "One?"}], **rest}
        answered = httpx.post(f"{given['base_url']}/chat/completions", json=asked, timeout=60).status_code
        said = httpx.post(f"{given['base_url']}/end", content=json.dumps(reward), timeout=60)
        return answered, said.status_code

    with agents(work, 4) as (port, _):
        rollout = rollout_of(tokenizer, {"port": port}, lambda text, draw: f"1{END}")
    endings = set(rollout.grown.tree.endings.values())
    assert endings == {StopReason.ENVIRONMENT_FAILED} and not rollout.scored.scores
    assert says in rollout.grown.failures[0][1]


def test_an_agent_that_floods_or_goes_on_after_its_end_is_refused() -> None:
    server = server_at("127.0.0.1", 0, "flood")
    http = httpx.Client(headers={"Authorization": "Bearer flood"}, timeout=60)
    trajectory = asyncio.run(server.run(server.begin(TASK, ())))
    asked = [{"model": "any", "messages": [{"role": "user", "content": "One?"}], "seed": n} for n in range(40)]
    with ThreadPoolExecutor(40) as pool:
        answers = [pool.submit(http.post, f"{trajectory.base_url}/chat/completions", json=body) for body in asked]
        while sum(answer.done() for answer in answers) < 32:
            time.sleep(0.01)
        ends = [b"[" * 99_999, b'{"reward": 1' + b"0" * 400 + b"}", b"", b"{}"]
        statuses = [http.post(f"{trajectory.base_url}/end", content=body).status_code for body in ends]
        after = http.post(f"{trajectory.base_url}/chat/completions", json=asked[0]).status_code
        server.close(trajectory)
    assert sorted(answer.result().status_code for answer in answers) == [410] * 8 + [429] * 32
    assert (statuses, after) == ([400, 400, 200, 410], 410)


def test_who_asks_for_a_task_and_leaves_takes_none() -> None:
    server = server_at("127.0.0.1", 0, "leave")
    http = httpx.Client(headers={"Authorization": "Bearer leave"})
    for _ in range(5):
        with pytest.raises(httpx.ReadTimeout):
            http.post(f"{server.url}/rollouts", timeout=0.1)
    trajectory = asyncio.run(server.run(server.begin(TASK, ())))
    assert http.post(f"{server.url}/rollouts", timeout=60).json()["id"] == trajectory.id
    server.close(trajectory)


def test_retries_streams_headers_and_errors(tokenizer: Any) -> None:
    """A repeated request gets the answer that the first one got; a bad one is answered in OpenAI's form."""

    def work(client: OpenAI, given: dict[str, Any]) -> Any:
        root = given["base_url"].partition("/rollouts")[0]
        named = OpenAI(base_url=root, api_key="x", max_retries=0, default_headers={"X-Arpo-Rollout": given["id"]})
        messages: list[Any] = [{"role": "user", "content": "One?"}]
        again = {"x-stainless-retry-count": "1"}
        first = named.chat.completions.create(model="any", messages=messages)
        repeated = client.chat.completions.create(model="any", messages=messages, extra_headers=again)
        assert first.choices == repeated.choices and client.models.list().data[0].id == "arpo"
        for path, body, status in [
            (f"{root}/chat/completions", {}, 404),
            (f"{root}/rollouts/none/chat/completions", {}, 410),
            (f"{given['base_url']}/chat/completions", {"messages": []}, 400),
            (f"{given['base_url']}/chat/completions", {"model": "any", "messages": messages, "n": 2}, 400),
            (f"{given['base_url']}/end", {"reward": "much"}, 400),
            (f"{root}/nothing", {}, 404),
        ]:
            answer = httpx.post(path, json=body)
            assert answer.status_code == status and answer.json()["error"]["message"], path
        assert httpx.get(given["base_url"]).json() == given["task"]
        for header in ({"Host": "evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            assert httpx.post(f"{root}/rollouts", headers=header).status_code == 403
        end(given)
        return True

    with agents(work) as (port, done):
        rollout = rollout_of(tokenizer, {"port": port}, lambda text, draw: f"{draw.randint(0, 99)}{END}")
    assert done == [True] * 4 and set(rollout.grown.tree.endings.values()) == {StopReason.FINISHED}


def test_a_key_is_asked_for(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATE_KEY", "secret of the gate")
    command = [sys.executable, "-c", KEYED]
    rollout = rollout_of(tokenizer, {"command": command, "key_env": "GATE_KEY"}, lambda text, draw: f"word{END}")
    assert set(rollout.grown.tree.endings.values()) == {StopReason.FINISHED}, rollout.grown.failures


KEYED = """
import json, os
from urllib.error import HTTPError
from urllib.request import Request, urlopen
def ask(key):
    body = json.dumps({"model": "any", "messages": [{"role": "user", "content": "One?"}]}).encode()
    urlopen(Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", body, {"Authorization": f"Bearer {key}"}))
try:
    ask("wrong")
except HTTPError as error:
    assert error.code == 401
else:
    raise SystemExit("a wrong key was taken")
ask(os.environ["OPENAI_API_KEY"])
"""


def test_silence_is_an_end_after_words_and_a_failure_after_a_call(tokenizer: Any) -> None:
    def work(client: OpenAI, given: dict[str, Any]) -> Any:
        question: list[Any] = [{"role": "user", "content": "Parity of"}]
        client.chat.completions.create(model="any", messages=question, tools=gateway_agents.TOOLS)

    def play(text: str, draw: Random) -> str:
        return draw.choice([f"odd{END}", call("parity", number=7)])

    with agents(work) as (port, _):
        rollout = rollout_of(tokenizer, {"port": port, "deadline_s": 1}, play, leaves=6)
    turns = rollout.grown.tree.turns
    for leaf, ending in rollout.grown.tree.endings.items():
        called = leaf not in turns or bool(turns[leaf].calls)  # a slow machine may be late with its first request
        assert ending is (StopReason.ENVIRONMENT_FAILED if called else StopReason.FINISHED)
    assert all("no request for 1 s" in why for _, why in rollout.grown.failures)


def test_a_command_that_breaks_down_is_named(tokenizer: Any) -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no such module: abc')"]
    rollout = rollout_of(tokenizer, {"command": command})
    assert set(rollout.grown.tree.endings.values()) == {StopReason.ENVIRONMENT_FAILED}
    assert all("code 1: no such module: abc" in why for _, why in rollout.grown.failures)


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({}, "need to know the port"),
        ({"command": "x", "host": "0.0.0.0"}, "set `key_env`"),
        ({"command": "x", "key_env": "NO_SUCH_KEY"}, "NO_SUCH_KEY"),
    ],
)
def test_mistakes_name_their_option(options: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigError, match=where):
        build_environment(UseWithOptions(use="gateway", options=options), ToolGateway())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "package"), [("plain", "openai"), ("docs", "langchain_openai"), ("pydantic_ai", "pydantic_ai")]
)
def test_agents_of_other_libraries_unchanged(tokenizer: Any, name: str, package: str) -> None:
    pytest.importorskip(package)
    command = [sys.executable, str(Path(gateway_agents.__file__)), name]
    if name == "docs":
        page = (Path(__file__).parents[2] / "docs" / "environments.md").read_text(encoding="utf-8")
        command = [sys.executable, "-c", page.partition("runs with LangChain -->\n```python\n")[2].partition("```")[0]]
    rollout: Rollout = rollout_of(tokenizer, {"command": command}, leaves=6)
    assert not rollout.grown.failures, rollout.grown.failures
    assert set(rollout.grown.tree.endings.values()) == {StopReason.FINISHED}
    tree = rollout.grown.tree
    made = [(tree.turns[place].calls[0], seen.outcomes[0]) for place, seen in tree.observations.items()]
    ran = [(call, seen) for call, seen in made if seen.answered]
    assert ran and all(seen.text == gateway_agents.parity(int(call.arguments["number"])) for call, seen in ran)  # type: ignore[call-overload]
    check_update(tokenizer, rollout)


@pytest.mark.slow
def test_a_run_trained_through_the_gateway(tiny_run: Path, tmp_path: Path) -> None:
    """A trained tiny model goes on learning from an agent in a process of its own, by GRPO: two steps, and what they
    record."""
    folder, words = tmp_path / "run", [sys.executable, str(Path(gateway_agents.__file__)), "bare"]
    settings = ["rollout.leaves=4", "rollout.roots=4", "evaluation.limit=2", "evaluation.greedy_limit=2"]
    options = ["--command", shlex.join(words), "--port", "0", "--out", str(folder)]
    done = CliRunner().invoke(app, ["gateway", str(tiny_run), *settings, *options])
    assert done.exit_code == 0, done.output
    run = RunFolder(folder).recipe_values()
    assert run["model"]["source"].startswith(str(tiny_run / "checkpoints")) and run["cold_start"] is None
    assert run["environment"] == {"use": "gateway", "options": {"command": shlex.join(words), "port": 0}}
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [step for step in steps if "train/loss" in step]
    assert len(steps) == 2 and all(math.isfinite(step["train/loss"]) for step in steps)
    assert any(step["train/grad_norm"] > 0 for step in steps)
    turns = []
    for file in sorted((folder / "events").glob("*.frames")):
        for record in decode(file.read_bytes()):
            assert replay(record) == record.tree
            turns += record.tree.turns.values()
            for place, observation in record.tree.observations.items():
                calls = record.tree.turns[place].calls
                for call_, seen in zip(calls, observation.outcomes, strict=True):
                    if seen.answered:
                        assert seen.text == gateway_agents.parity(int(call_.arguments["number"]))  # type: ignore[call-overload]
    assert any(turn.calls for turn in turns)
