"""Calls that hold the interpreter: late ones are timeouts, they are named, and in a process of their own they hold up
nothing."""

import asyncio
import os
import time
from pathlib import Path

import pytest
from holding_tools import apart, end, here, later, which

from arpo.core.tree import Call, CallStatus
from arpo.errors import ConfigError
from arpo.tasks import Task
from arpo.tools import CallContext
from arpo.tools.function import tool
from arpo.tools.gateway import ToolGateway

CONTEXT = CallContext(
    task=Task(id="t", messages=({"role": "user", "content": "q"},), answers=()), deadline_s=60, seed=0
)
TOOLS = {each.name: each for each in (apart, end, here, later, which)}


async def test_a_call_that_held_the_interpreter_past_its_deadline_is_a_timeout_and_is_named() -> None:
    gateway, told = ToolGateway(), list[str]()
    gateway.tell = lambda text, level: told.append(text)
    outcome = await gateway.call(TOOLS, Call(name="here", arguments={"seconds": 2}), CONTEXT)
    assert outcome.status is CallStatus.TIMEOUT and outcome.fault == "deadline"
    assert "here held the interpreter for" in told[0] and "process=True" in told[0]


async def test_in_its_own_process_it_is_stopped_and_holds_up_nothing() -> None:
    apart.ready()
    gateway, longest, last = ToolGateway(), 0.0, time.monotonic()
    gateway.tell = lambda text, level: pytest.fail(text)
    call = asyncio.create_task(gateway.call(TOOLS, Call(name="apart", arguments={"seconds": 60}), CONTEXT))
    while not call.done():
        await asyncio.sleep(0.01)
        now = time.monotonic()
        longest, last = max(longest, now - last), now
    assert call.result().status is CallStatus.TIMEOUT and call.result().seconds < 30
    short = await gateway.call(TOOLS, Call(name="which", arguments={}), CONTEXT)
    assert short.status is CallStatus.OK and int(short.text) != os.getpid()


async def test_results_errors_and_ends_of_a_process_are_those_of_the_call() -> None:
    gateway = ToolGateway()
    outcomes = [
        await gateway.call(TOOLS, Call(name=name, arguments=arguments), CONTEXT)
        for name, arguments in [("which", {}), ("which", {}), ("which", {"fail": True}), ("later", {"text": "ab"})]
    ]
    assert outcomes[0].text == outcomes[1].text and outcomes[3].text == "abab"
    assert (outcomes[2].fault, outcomes[2].text) == ("raised KeyError", "KeyError: 'x'")
    ended = await gateway.call(TOOLS, Call(name="end", arguments={}), CONTEXT)
    assert ended.status is CallStatus.ERROR and "exit code 4" in ended.text


def test_a_function_that_no_process_finds_is_refused() -> None:
    with pytest.raises(ConfigError, match="function of a module"):

        @tool(process=True)
        def local() -> None:
            """Of no module."""


def test_the_processes_end_with_the_tool(tmp_path: Path) -> None:
    from arpo.worker_process import WorkerPool

    pool = WorkerPool("os:getpid")
    number = pool.call({}, 30)
    assert number == pool.call({}, 30) != os.getpid()
    pool.close()
    assert not Path(f"/proc/{number}/stat").exists()
