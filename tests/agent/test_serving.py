"""An agent behind HTTP, asked by OpenAI's own client: as an agent, as a model whose client runs the tools, with limits,
and ended in the middle."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any

import httpx
import openai
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from agent_world import Gate, deployed, gated, serve_command, served, until
from arpo.agent.deployed import DeployedAgent
from arpo.agent.listening import GracefulServer, listen
from arpo.agent.server import AgentServer, ServeLimits
from arpo.agent.turns import TextSplitter
from arpo.chat.openai_wire import parse_request
from arpo.engines.scripted import Script
from arpo.errors import ConfigError
from arpo.http.serving import BadRequest
from arpo.tools import CallContext, ToolResult
from arpo.tools.config import ToolsConfig
from arpo.tools.gateway import build_gateway
from localhost import Asked, Reply, serving
from small_world import ANSWER, Search, results_in, search
from tiny_project import TinyProject

CAPITAL = {"role": "user", "content": "Capital of Peru?"}
SCHEMA = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}
TOOLS: Any = [{"type": "function", "function": {"name": "search", "description": "Finds facts.", "parameters": SCHEMA}}]
NATIVE = '<tool_call>\n{"name": "search", "arguments": {"query": "capital"}}\n</tool_call>'


def looks_up(tokenizer: Any, seen: list[list[int]] | None = None) -> Any:
    """Calls once, then answers; `seen` gets its prompts."""

    def play(prompt: Any, params: Any) -> Script:
        if seen is not None:
            seen.append(list(prompt))
        return Script(said="<think>Lima it is.</think>" + ANSWER) if results_in(tokenizer, prompt) else search()

    return play


def echoes(tokenizer: Any) -> Any:
    """Answers with the last word that a user wrote, and with how many users' messages there are."""

    def play(prompt: Any, params: Any) -> str:
        text = tokenizer.decode(list(prompt))
        words = re.findall(r"word-\d+", text)
        return f"<think>So.</think><answer>{words[-1]} of {len(words)}</answer>"

    return play


def sizes(*words: str) -> Any:
    return lambda prompt, params: f"<think>Hm, so.</think><answer>{Random(params.seed).choice(words)}</answer>"


# --- as an agent


def test_the_agent_answers_with_its_own_tools(tokenizer: Any) -> None:
    tool = Search()
    with served(deployed(tokenizer, looks_up(tokenizer), tool)) as running:
        client = running.client()
        assert [model.id for model in client.models.list()] == ["run", "run/model"]
        answer = client.chat.completions.create(model="run", messages=[CAPITAL])
        [choice] = answer.choices
        assert (choice.message.content, choice.finish_reason, tool.calls) == ("Lima", "stop", 1)
        assert answer.usage.prompt_tokens > 10 and answer.usage.completion_tokens > 10
        assert answer.model_extra["arpo"] == {"ending": "finished", "votes": {"Lima": 1}, "branches": 1, "leaf": "0.0"}
        several = client.chat.completions.create(model="run", messages=[CAPITAL], extra_body={"samples": 6})
        assert several.model_extra["arpo"]["votes"] == {"Lima": 6}


def test_its_tools_keep_the_limits_of_the_recipe_for_all_users_together(tokenizer: Any) -> None:
    at_once: list[int] = [0, 0]  # now, at most

    class Counting(Search):
        async def __call__(self, arguments: Any, context: CallContext) -> ToolResult:
            at_once[0] += 1
            at_once[1] = max(at_once)
            result = await super().__call__(arguments, context)
            at_once[0] -= 1
            return result

    tool = Counting(latency=lambda: 0.01)
    limited = build_gateway(ToolsConfig(offered=(tool,), limits={"concurrency": 2}), [(tool,)])
    with served(deployed(tokenizer, looks_up(tokenizer), tool, tool_gateway=limited)) as running:

        def ask(number: int) -> str | None:
            return running.client().chat.completions.create(model="run", messages=[CAPITAL]).choices[0].message.content

        with ThreadPoolExecutor(8) as users:
            assert set(users.map(ask, range(24))) == {"Lima"}
    assert tool.calls == 24 and at_once == [0, 2]


def test_its_steps_are_streamed_as_events(tokenizer: Any) -> None:
    with served(deployed(tokenizer, looks_up(tokenizer))) as running:
        create = running.client().chat.completions.create
        options: Any = {"include_usage": True}
        chunks = list(create(model="run", messages=[CAPITAL], stream=True, stream_options=options))
    events = [chunk.model_extra["event"] for chunk in chunks if "event" in (chunk.model_extra or {})]
    kinds = [event["type"] for event in events]
    assert [kind for kind in kinds if kind != "text"] == ["turn", "results", "turn", "end"]
    told = {
        place: "".join(e["text"] for e in events if e["type"] == "text" and e["place"] == place)
        for place in ("0", "0.0")
    }
    assert told == {e["place"]: e["text"] for e in events if e["type"] == "turn"}
    [results] = [event for event in events if event["type"] == "results"]
    assert results["results"][0]["text"] == "Peru: capital is Lima." and results["place"] == "0"
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert "".join(choice.delta.content or "" for choice in choices) == "Lima"
    assert choices[-1].finish_reason == "stop" and chunks[-1].usage.completion_tokens > 10
    assert "".join((choice.delta.model_extra or {}).get("reasoning_content", "") for choice in choices) == (
        told["0"] + told["0.0"]
    )


# --- as a model


@pytest.mark.parametrize("form", ["tags", "template"])
def test_the_client_runs_its_tools_and_the_model_reads_what_the_agent_would(tokenizer: Any, form: str) -> None:
    """The contexts of a loop of single turns are, token by token, those of a rollout with the same tool."""
    from arpo.chat.tags import TagFormat
    from arpo.chat.template import TemplateFormat

    seen: list[list[int]] = []

    def play(prompt: Any, params: Any) -> str:
        seen.append(list(prompt))
        text = tokenizer.decode(list(prompt))
        done = text.count("is Lima") > 0
        if form == "tags":
            return (
                "<think>So.</think><answer>Lima</answer>" if done else "<think>I look.</think><search>capital</search>"
            )
        return "<think>So.</think>Lima<|im_end|>" if done else f"<think>I look.</think>{NATIVE}<|im_end|>"

    recipe = {"chat": {"format": form}}
    chat_format = TagFormat if form == "tags" else TemplateFormat
    with served(deployed(tokenizer, play, Search(), run=recipe, form=chat_format)) as running:
        create = running.client().chat.completions.create
        whole = create(model="run", messages=[CAPITAL])
        by_agent, seen[:] = list(seen), []
        messages: list[Any] = [CAPITAL]
        first = create(model="run", messages=messages, tools=TOOLS).choices[0]
        assert first.finish_reason == "tool_calls" and first.message.content is None
        assert first.message.model_extra["reasoning_content"] == "I look."
        [call] = first.message.tool_calls
        assert (call.function.name, json.loads(call.function.arguments)) == ("search", {"query": "capital"})
        result = {"role": "tool", "tool_call_id": call.id, "content": "Peru: capital is Lima."}
        messages += [first.message.model_dump(exclude_none=True), result]
        last = create(model="run", messages=messages, tools=TOOLS).choices[0]
        assert last.message.content == whole.choices[0].message.content == "Lima" and last.finish_reason == "stop"
        assert seen == by_agent and len(seen) == 2
        unknown = [CAPITAL, {**messages[1], "tool_calls": [{**messages[1]["tool_calls"][0], "id": "other"}]}]
        create(model="run", messages=[*unknown, {**result, "tool_call_id": "other"}], tools=TOOLS)
        answered = [*messages, {"role": "assistant", "content": "Lima"}, {"role": "user", "content": "And of Chile?"}]
        assert create(model="run", messages=answered, tools=TOOLS).choices[0].message.content == "Lima"
    text = tokenizer.decode(seen[-2])  # a turn of another server is written as a trace is
    assert text.count("capital is Lima.") == 1 and ("<search>capital</search>" in text or '"query": "capital"' in text)
    assert "And of Chile?" in tokenizer.decode(seen[-1])


def test_a_model_without_tools_streams_its_thought_and_its_content(tokenizer: Any) -> None:
    said = (
        "<think>The question is simple, and so is the answer.</think><answer>It is Lima, on the coast of Peru.</answer>"
    )
    with served(deployed(tokenizer, lambda prompt, params: said)) as running:
        create = running.client().chat.completions.create
        whole = create(model="run/model", messages=[CAPITAL], seed=1).choices[0].message
        assert whole.content == "It is Lima, on the coast of Peru."
        choices = [
            c
            for chunk in create(model="run/model", messages=[CAPITAL], seed=1, n=2, stream=True)
            for c in chunk.choices
        ]
        for index in (0, 1):
            deltas = [choice.delta for choice in choices if choice.index == index]
            assert "".join(delta.content or "" for delta in deltas) == whole.content
            thought = "".join((delta.model_extra or {}).get("reasoning_content", "") for delta in deltas)
            assert thought == whole.model_extra["reasoning_content"] and sum(bool(d.content) for d in deltas) > 1
        cut = create(model="run/model", messages=[CAPITAL], max_tokens=30)
        assert cut.choices[0].finish_reason == "length" and cut.usage.completion_tokens == 30
        stopped = create(model="run/model", messages=[CAPITAL], stop=" coast")
        assert stopped.choices[0].message.content == "It is Lima, on the" and stopped.choices[0].finish_reason == "stop"


def test_a_streamed_call_comes_whole(tokenizer: Any) -> None:
    with served(deployed(tokenizer, looks_up(tokenizer))) as running:
        stream = running.client().chat.completions.create(model="run", messages=[CAPITAL], tools=TOOLS, stream=True)
        deltas = [choice.delta for chunk in stream for choice in chunk.choices]
    [call] = [call for delta in deltas for call in delta.tool_calls or ()]
    assert json.loads(call.function.arguments) == {"query": "capital"} and not any(d.content for d in deltas)


@given(
    st.lists(
        st.sampled_from(["<think>", "</think>", "<answer>", "</answer>", "<thi", "ank", "a b", " ", "\n", "<", "</"])
    ),
    st.booleans(),
    st.lists(st.integers(1, 7), min_size=1),
)
@example(["<answer>", "<thi", "</answer>"], False, [1])  # a mark begins where another may have begun
def test_streamed_text_adds_up_to_the_whole(parts: list[str], in_thought: bool, steps: list[int]) -> None:
    text = "".join(parts)
    split, pieces, at = TextSplitter(in_thought=in_thought), [("", "")], 0
    while at < len(text):
        at += steps[at % len(steps)]
        pieces.append(split.grown(text[:at], False))
    pieces.append(split.grown(text, True))
    whole = TextSplitter(in_thought=in_thought)
    whole.grown(text, True)
    assert ("".join(p[0] for p in pieces), "".join(p[1] for p in pieces)) == (whole.reasoning, whole.content)


# --- what is refused


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ({"model": "other"}, 404, "no model 'other'"),
        ({"messages": []}, 400, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, 400, "text"),
        ({"messages": [CAPITAL, {"role": "assistant", "content": "Lima"}]}, 400, "last message is the user's"),
        ({"messages": [CAPITAL, {"role": "tool", "content": "x", "tool_call_id": "1"}]}, 400, "own tools"),
        ({"tools": TOOLS, "messages": [CAPITAL, {"role": "tool", "content": "x", "tool_call_id": "1"}]}, 400, "user's"),
        ({"tools": [{"type": "function", "function": {"name": "a b c!"}}]}, 400, "name"),
        ({"tools": TOOLS * 2}, 400, "two tools"),
        ({"tools": TOOLS * 2000}, 400, "at most 1024"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": "object"}}]}, 400, "parameters"),
        ({"messages": [CAPITAL] * 20_000}, 400, "at most 10000"),
        ({"stop": [f"x{number}" for number in range(9999)]}, 400, "stop"),
        ({"stop": "x" * 9999}, 400, "stop"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format"),
        ({"tool_choice": "required", "tools": TOOLS}, 400, "tool_choice"),
        ({"temperature": -1}, 400, "temperature"),
        ({"n": 2}, 400, "samples"),
        ({"pick": "judge"}, 400, "evaluation.judge"),
        ({"messages": [{"role": "user", "content": "why " * 4000}]}, 400, "no room"),
        ({"model": "run/model", "messages": [{"role": "user", "content": "why " * 4000}]}, 400, "tokens of at most"),
    ],
)
def test_a_mistake_has_a_status_and_says_what_would_be_right(tokenizer: Any, body: Any, status: int, says: str) -> None:
    with served(deployed(tokenizer, sizes("a"))) as running:
        whole = {"model": "run", "messages": [CAPITAL], **body}
        for stream in (False, True):
            got = httpx.post(f"{running.url}/v1/chat/completions", json={**whole, "stream": stream})
            assert got.status_code == status and says in got.json()["error"]["message"], got.text
        assert running.server.admission.idle


def test_what_is_no_request_is_refused(tokenizer: Any) -> None:
    with served(deployed(tokenizer, sizes("a"))) as running:
        url = f"{running.url}/v1/chat/completions"
        assert httpx.post(url, content=b"{", headers={"content-type": "application/json"}).status_code == 400
        assert httpx.post(url, json={"model": "x" * (5 << 20)}).status_code == 400
        simple = httpx.post(url, content=json.dumps({"model": "run", "messages": [CAPITAL]}))
        assert simple.status_code == 415, "what a web page may send without asking"
        elsewhere = {"host": "evil.example", "content-type": "application/json"}
        assert httpx.post(url, content=b"{}", headers=elsewhere).status_code == 403
    with pytest.raises(BadRequest, match=r"messages\.0\.role"):
        parse_request({"model": "m", "messages": [{"role": "nobody", "content": "x"}]})


def test_a_key_is_asked_for(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="ARPO_TEST_KEY"):
        deployed_with_key = deployed(tokenizer, sizes("a"))
        with served(deployed_with_key, key_env="ARPO_TEST_KEY"):
            pass
    monkeypatch.setenv("ARPO_TEST_KEY", "the-key")
    with served(deployed(tokenizer, sizes("a")), key_env="ARPO_TEST_KEY") as running:
        with pytest.raises(openai.AuthenticationError):
            running.client(api_key="another").chat.completions.create(model="run", messages=[CAPITAL])
        assert running.client(api_key="the-key").chat.completions.create(model="run", messages=[CAPITAL])
        assert httpx.get(f"{running.url}/metrics").status_code == 401
        assert httpx.get(f"{running.url}/health").status_code == 200
    with pytest.raises(ConfigError, match="key"):
        listen("0.0.0.0", 0, has_key=False)


# --- many at a time


def test_64_users_talk_at_once_and_none_gets_the_answer_of_another(tokenizer: Any) -> None:
    agent = deployed(tokenizer, echoes(tokenizer), delay=lambda: (0.002, 0.0))

    async def user(client: Any, number: int) -> list[str]:
        messages: list[Any] = []
        for turn in range(3):
            messages.append({"role": "user", "content": f"Say word-{number * 10 + turn}"})
            stream = await client.chat.completions.create(model="run", messages=messages, stream=turn == 1)
            if turn == 1:
                said = "".join([c.delta.content or "" async for chunk in stream for c in chunk.choices])
            else:
                said = stream.choices[0].message.content
            messages.append({"role": "assistant", "content": said.partition(" ")[2]})
        return [message["content"] for message in messages]

    async def everybody(url: str) -> list[list[str]]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=120, max_retries=0) as client:
            return await asyncio.gather(*(user(client, number) for number in range(64)))

    with served(agent, running=16, waiting=64) as running:
        most: list[int] = []
        inner = running.server.admission.place

        def place() -> Any:
            most.append(running.server.admission.running)
            return inner()

        running.server.admission.place = place  # type: ignore[method-assign]
        said = asyncio.run(everybody(running.url))
        figures = httpx.get(f"{running.url}/metrics").text
    for number, lines in enumerate(said):
        assert lines[0::2] == [f"Say word-{number * 10 + turn}" for turn in range(3)]
        assert [line.partition("of ")[2] for line in lines[1::2]] == ["1", "2", "3"]
    assert max(most) <= 16 and running.server.admission.idle
    values = {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(figures)
        for sample in family.samples
    }
    assert values["arpo_requests_total", "agent", "ok"] == 192 == values["arpo_answer_seconds_count", "agent"]
    assert values["arpo_requests_running",] == 0 and values["arpo_tokens_total", "written"] > 192


def test_who_comes_when_too_many_wait_is_told_when_to_come_again(tokenizer: Any) -> None:
    agent = deployed(tokenizer, sizes("a"))
    gate = gated(agent)
    with served(agent, running=2, waiting=1) as running, ThreadPoolExecutor(4) as pool:
        create = running.client().chat.completions.create
        asked = [pool.submit(create, model="run", messages=[CAPITAL]) for _ in range(3)]
        until(lambda: gate.started == 2 and running.server.admission.waiting == 1)
        with pytest.raises(openai.RateLimitError) as refused:
            create(model="run", messages=[CAPITAL])
        assert int(refused.value.response.headers["retry-after"]) >= 1
        gate.open.set()
        assert [future.result().choices[0].message.content for future in asked] == ["a"] * 3


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["run", "run/model"])
def test_an_answer_that_takes_too_long_is_stopped(tokenizer: Any, stream: bool, model: str) -> None:
    slow = deployed(tokenizer, lambda prompt, params: Script(said="<think>a b c d e f g", token_s=1.0))
    with served(slow, timeout_s=0.5) as running:
        with pytest.raises(openai.APIError, match=r"within 0\.5 s"):
            got = running.client().chat.completions.create(model=model, messages=[CAPITAL], stream=stream)
            list(got)
        until(lambda: running.server.admission.idle)
        assert slow.components.agent.engine.live == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_frees_its_place(tokenizer: Any, stream: bool) -> None:
    agent = deployed(tokenizer, looks_up(tokenizer))
    gate = gated(agent)
    with served(agent, running=1, waiting=0) as running:
        with pytest.raises(openai.APITimeoutError):
            impatient = running.client(timeout=0.5)
            impatient.chat.completions.create(model="run", messages=[CAPITAL], stream=stream)
        until(lambda: gate.cancelled == 1 and running.server.admission.idle)
        gate.open.set()
        assert running.client().chat.completions.create(model="run", messages=[CAPITAL]).choices[0].message.content


def test_a_failed_engine_is_an_error_and_no_answer(tokenizer: Any) -> None:
    broken = deployed(tokenizer, lambda prompt, params: Script(said=ANSWER, fails_after=0))
    with served(broken) as running:
        for model in ("run", "run/model"):
            create = running.client().chat.completions.create
            with pytest.raises(openai.InternalServerError, match="fails after 0"):
                create(model=model, messages=[CAPITAL])
        with pytest.raises(openai.APIError, match="fails after 0"):
            list(create(model="run", messages=[CAPITAL], stream=True))


def test_an_agent_whose_model_is_behind_an_endpoint_is_served_with_its_tools(tmp_path: Path) -> None:
    def model(asked: Asked) -> Reply:
        call = {"id": "c", "type": "function", "function": {"name": "search", "arguments": '{"query": "Peru"}'}}
        done = asked.json["messages"][-1]["role"] == "tool"
        message = {"content": "Lima"} if done else {"content": None, "tool_calls": [call]}
        return Reply({"choices": [{"message": {"role": "assistant", **message}, "finish_reason": "stop"}]})

    with serving(model) as site:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(
            f"name: far\nengine: {{kind: openai, endpoint: {{url: '{site.url}/v1', model: m}}}}\n"
            "chat: {format: native}\ntools: [search]\ndata: {train: {source: atlas}}\n"
        )
        with served(DeployedAgent.load(recipe)) as running:
            create = running.client().chat.completions.create
            answer = create(model="far", messages=[CAPITAL])
            assert answer.choices[0].message.content == "Lima" and len(site.asked) == 2
            chunks = list(create(model="far", messages=[CAPITAL], stream=True, extra_body={"tree": True}))
            tree = chunks[-1].model_extra["arpo"]["tree"]
            assert [node["kind"] for node in tree["nodes"]] == ["prompt", "turn", "observation", "turn"]
            with pytest.raises(openai.BadRequestError, match="behind an endpoint"):
                create(model="far", messages=[CAPITAL], tools=TOOLS)


# --- the end


def test_running_answers_end_and_new_ones_are_refused(tokenizer: Any) -> None:
    agent = deployed(tokenizer, looks_up(tokenizer))
    gate = gated(agent)
    with served(agent) as running, ThreadPoolExecutor(2) as pool:
        create = running.client().chat.completions.create
        asked = pool.submit(lambda: list(create(model="run", messages=[CAPITAL], stream=True)))
        until(lambda: gate.started == 1)
        running.end()
        with pytest.raises(openai.InternalServerError) as refused:
            create(model="run", messages=[CAPITAL])
        assert refused.value.status_code == 503 and refused.value.response.headers["retry-after"]
        assert httpx.get(f"{running.url}/health").json()["status"] == "ending"
        gate.open.set()
        assert "".join(c.delta.content or "" for chunk in asked.result() for c in chunk.choices) == "Lima"
        running.thread.join(30)
        assert not running.thread.is_alive()
    assert agent.components.agent.engine.engine._closed  # type: ignore[attr-defined]


def test_an_answer_that_outlasts_the_drain_is_cut(tokenizer: Any) -> None:
    agent = deployed(tokenizer, looks_up(tokenizer))
    gate = gated(agent)
    with served(agent, drain_s=0.3) as running, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(running.client().chat.completions.create, model="run", messages=[CAPITAL])
        until(lambda: gate.started == 1)
        running.listening.config.timeout_graceful_shutdown = 1
        running.end()
        running.thread.join(30)
        assert not running.thread.is_alive()
        with pytest.raises(openai.APIError):
            asked.result()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_server_whose_engine_is_still_starting(number: signal.Signals, tokenizer: Any) -> None:
    class Starting(Gate):
        async def start(self) -> None:
            asyncio.get_running_loop().call_soon(os.kill, os.getpid(), number)
            await asyncio.Event().wait()

        async def close(self) -> None:
            closed.append(True)

    closed: list[bool] = []
    agent = deployed(tokenizer, echoes(tokenizer))
    gated(agent, kind=Starting)
    server = AgentServer(agent, ServeLimits())
    with pytest.raises(KeyboardInterrupt):
        GracefulServer(server.app, server.admission, 60, server.start).run(sockets=[])
    assert closed == [True]


@pytest.mark.slow
def test_ctrl_c_ends_mcp_on_stdio_whose_client_keeps_stdin_open(tiny_project: TinyProject) -> None:
    command = [sys.executable, "-m", "arpo", "serve", str(tiny_project.recipe), "--mcp"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any(line.startswith("model:") for line in iter(process.stderr.readline, ""))
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130 and "stopped" in process.stderr.read()


@pytest.mark.slow
def test_the_command_serves_ends_on_sigterm_and_comes_again_after_sigkill(tiny_project: TinyProject) -> None:
    """A real model, with streams in flight at both signals."""

    def start(port: int) -> tuple[subprocess.Popen[str], str]:
        return serve_command(str(tiny_project.recipe), "rollout.turn_tokens=100", "--port", str(port))

    def client(url: str) -> Any:
        return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=120)

    process, url = start(0)
    stream = client(url).chat.completions.create(model="tiny", messages=[CAPITAL], stream=True)
    next(stream)
    process.send_signal(signal.SIGTERM)
    assert [chunk.model_extra.get("arpo") for chunk in stream][-1]["branches"] == 1
    assert process.wait(60) == 0
    process, url = start(int(url.rpartition(":")[2]))
    stream = client(url).chat.completions.create(
        model="tiny", messages=[CAPITAL], stream=True, extra_body={"samples": 64}
    )
    next(stream)
    process.kill()
    with pytest.raises((openai.APIError, httpx.HTTPError)):
        list(stream)
    assert process.wait(60) == -signal.SIGKILL
    process, url = start(int(url.rpartition(":")[2]))
    assert client(url).chat.completions.create(model="tiny", messages=[CAPITAL]).choices
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
