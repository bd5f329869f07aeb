"""What stands around calls: limited, paid, counted, and stopped where it must be."""

import asyncio
import multiprocessing
import os
import signal
from itertools import pairwise
from pathlib import Path

import pytest
from gateway_world import CONTEXT, Gated, Search, live

from arpo.core.tree import Call, CallStatus
from arpo.endpoint.config import EndpointConfig
from arpo.errors import ConfigError, ProviderError, ToolError, ToolsStoppedError
from arpo.recipe.load import load_recipe
from arpo.tools import ToolResult
from arpo.tools.config import ToolConfig, ToolsConfig
from arpo.tools.gateway import ToolGateway, build_gateway
from arpo.tools.usage import in_words, read_usage, usage_of
from virtual_time import run as in_virtual_time

# --- providers


def test_rate_and_concurrency_hold_for_all_tools_of_a_provider():
    async def main():
        one, two = Search(seconds=1.0), Search(seconds=1.0, name="other")
        one.cacheable = two.cacheable = False
        both = build_gateway(ToolsConfig(offered=(one, two), limits={"rate": 2, "concurrency": 3}), [(one,), (two,)])
        tools = {tool.name: tool for tool in (one, two)}
        names = ["search", "other"] * 5
        calls = (
            both.call(tools, Call(name=name, arguments={"query": str(i)}), CONTEXT) for i, name in enumerate(names)
        )
        outcomes = await asyncio.gather(*calls)
        starts = sorted([*one.starts, *two.starts])
        assert all(b - a > 0.499 for a, b in pairwise(starts)), starts
        assert one.most_at_once + two.most_at_once <= 4 and all(o.status is CallStatus.OK for o in outcomes)

    in_virtual_time(main())


def test_who_gives_up_waiting_takes_no_start_from_those_behind():
    async def main():
        ask = live(None, limits={"rate": 0.5})
        given_up = [asyncio.create_task(ask(str(number))) for number in range(50)]
        await asyncio.sleep(3.0)
        for call in given_up:
            call.cancel()
        await asyncio.gather(*given_up, return_exceptions=True)
        behind = asyncio.get_running_loop().time()
        await asyncio.gather(ask("a"), ask("b"))
        assert asyncio.get_running_loop().time() - behind < 4.1, "two starts, not the fifty that nobody waits for"
        assert all(b - a > 1.999 for a, b in pairwise(ask.tool.starts)), ask.tool.starts

    in_virtual_time(main())


def test_an_outage_goes_on_in_the_next_event_loop():
    ask = live(lambda number: ProviderError("503") if number == 0 else "fine", limits={"retries": 0})

    async def interrupted():
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ask(), 0.2)

    async def again():
        return await asyncio.wait_for(ask(), 5.0)

    asyncio.run(interrupted())  # a notebook's cell, or a chat's question, that somebody ends while the provider is down
    assert asyncio.run(again()).text == "fine"


def test_waiting_for_a_place_is_no_part_of_a_calls_deadline():
    async def main():
        tool = Search(seconds=4.0)
        tool.cacheable = False
        ask = Gated(tool, limits={"concurrency": 1})
        outcomes = await asyncio.gather(*(ask(str(i)) for i in range(4)))
        assert [o.status for o in outcomes] == [CallStatus.OK] * 4 and tool.most_at_once == 1

    in_virtual_time(main())


def test_what_may_be_tried_again_is_and_what_not_is_not():
    async def main():
        ask = live(lambda number: ProviderError("503") if number < 2 else "yes")
        outcome = await ask()
        assert outcome.text == "yes" and outcome.attempts == 3 and ask.tool.starts[2] >= 1.0 and not ask.said
        told = live(lambda number: ToolError("no such page"))
        assert (await told()).status is CallStatus.ERROR and told.tool.calls == 1
        nothing = live(lambda number: ToolResult(text="No results.", empty=True))
        assert (await nothing()).status is CallStatus.OK and nothing.tool.calls == 1
        refused = live(lambda number: ProviderError("401: the key is wrong", retriable=False))
        with pytest.raises(ToolsStoppedError, match=r"web refuses every call.*401"):
            await refused()
        assert refused.tool.calls == 1

    in_virtual_time(main())


def test_a_provider_says_when_to_come_back():
    async def main():
        ask = live(lambda number: ProviderError("429", retry_after_s=4.0) if number == 0 else "yes")
        assert (await ask()).text == "yes" and ask.tool.starts[1] - ask.tool.starts[0] >= 4.0 and not ask.said
        ask = live(lambda number: ProviderError("429", retry_after_s=40.0) if number == 0 else "yes")
        assert (await ask()).text == "yes" and ask.tool.starts[1] - ask.tool.starts[0] >= 40.0
        assert len(ask.said) == 2, "a wait that long pauses everybody, and is said"

    in_virtual_time(main())


def test_the_run_pauses_while_a_provider_is_down_and_nobody_trains_on_that():
    async def main():
        def reply(number):
            return ProviderError("503 down") if asyncio.get_running_loop().time() < 100 else "back"

        ask = live(reply)
        outcomes = await asyncio.gather(*(ask(str(i)) for i in range(20)))
        assert {o.text for o in outcomes} == {"back"}
        paused, on = ask.said
        assert "paused: web does not answer (503 down)" in paused and "answers again after" in on
        assert ask.tool.calls < 20 * 4 + 20 + 12, "while it is down one call at a time tries"

    in_virtual_time(main())


def test_a_provider_that_stays_down_stops_the_run():
    async def main():
        ask = live(lambda number: ProviderError("503 down"), limits={"patience_s": 120})
        done = await asyncio.gather(*(ask(str(i)) for i in range(5)), return_exceptions=True)
        assert all(isinstance(error, ToolsStoppedError) for error in done)
        assert "web has been down for 1" in str(done[0]) and "503 down" in str(done[0]) and "--resume" in str(done[0])
        assert 120 <= asyncio.get_running_loop().time() < 150

    in_virtual_time(main())


def test_one_call_that_never_works_does_not_hold_up_the_others():
    class Poisoned(Search):
        cacheable = False

        async def __call__(self, arguments, context):
            if arguments["query"] == "poison":
                raise ProviderError("500")
            return await super().__call__(arguments, context)

    async def main():
        ask = Gated(Poisoned(seconds=0.1))

        async def others():
            return [await ask(str(i)) for i in range(200)]

        bad, good = await asyncio.gather(ask("poison"), others())
        assert bad.status is CallStatus.UNAVAILABLE and all(o.text.startswith("found") for o in good)

    in_virtual_time(main())


def test_a_cancelled_probe_hands_its_turn_on():
    async def main():
        def reply(number):
            return ProviderError("503") if asyncio.get_running_loop().time() < 50 else "back"

        ask = live(reply, limits={"retries": 0})
        tasks = [asyncio.create_task(ask(str(i))) for i in range(4)]
        for task in tasks[:3]:
            await asyncio.sleep(5)
            task.cancel()
        assert (await tasks[3]).text == "back"

    in_virtual_time(main())


# --- budgets and failures


def test_a_budget_of_calls_stops_the_run_and_counts_across_a_resumption():
    async def main():
        ask = live(None, limits={"calls": 3})
        for i in range(3):
            await ask(str(i))
        with pytest.raises(ToolsStoppedError, match=r"budget for calls of tools is used up: 3 calls.*tools.limits"):
            await ask("d")
        assert ask.tool.calls == 3
        resumed = live(None, limits={"calls": 4})
        resumed.tool_gateway.go_on(ask.tool_gateway.spent())
        await resumed("d")
        with pytest.raises(ToolsStoppedError):
            await resumed("e")

    asyncio.run(main())


def test_a_budget_of_money_stops_the_run_and_the_cache_costs_nothing(tmp_path):
    async def main():
        ask = Gated(Search(lambda number: ToolResult(text="x", cost=0.4)), tmp_path, limits={"money": 1.0})
        for query in "aaabbbccc":
            await ask(query)
        with pytest.raises(ToolsStoppedError, match=r"1\.2 in money for 3 calls"):
            await ask("d")
        assert ask.tool_gateway.usage["search"].cost == pytest.approx(1.2)

    asyncio.run(main())


def test_a_tool_that_fails_too_often_stops_the_run_with_its_last_errors(monkeypatch):
    monkeypatch.setattr("arpo.tools.gateway.ERROR_WINDOW", 10)

    async def main():
        ask = live(lambda number: KeyError(f"broken {number % 3}"), limits={"error_rate": 0.5})
        with pytest.raises(ToolsStoppedError, match=r"search failed in 100% of its last 10 calls") as stopped:
            for i in range(20):
                await ask(str(i))
        assert ask.tool.calls == 10 and all(f"broken {i}" in str(stopped.value) for i in range(3))
        half = live(lambda number: KeyError("x") if number % 2 else "fine", limits={"error_rate": 0.5})
        for i in range(50):
            await half(str(i))
        reported = live(
            lambda n: ToolResult(text="Traceback", status=CallStatus.ERROR),
            limits={"error_rate": 0.5},
        )
        for i in range(50):
            await reported(str(i))

    asyncio.run(main())


# --- accounts


def test_every_call_is_accounted_for(tmp_path):
    async def main():
        def reply(number):
            return [ProviderError("503"), "a", KeyError("b"), "c"][min(number, 3)]

        ask = Gated(Search(reply, seconds=0.02), tmp_path)
        await asyncio.gather(ask("a"), ask("a"))
        await ask("a"), await ask("b"), await ask("c")
        await ask.tool_gateway.call({"search": ask.tool}, Call(name="serch"), CONTEXT)
        account = ask.tool_gateway.spent()["search"]
        values = {name: account[name] for name in ("asked", "executed", "attempts", "cached", "shared", "refused")}
        assert values == {"asked": 5, "executed": 3, "attempts": 4, "cached": 1, "shared": 1, "refused": 0}
        assert account["faults"] == {"raised KeyError": 1} and account["p50_s"] > 0.015
        assert ask.tool_gateway.spent()["(no such tool)"]["refused"] == 1
        merged = ToolGateway()
        merged.go_on(ask.tool_gateway.spent())
        merged.go_on(ask.tool_gateway.spent())
        assert merged.spent()["search"]["asked"] == 10 and merged.spent()["search"]["p50_s"] == account["p50_s"]

    asyncio.run(main())


def test_a_key_in_an_error_reaches_nobody(monkeypatch):
    monkeypatch.setenv("SERPER_API_KEY", "sk-very-secret-123")

    async def main():
        raised = await live(lambda number: RuntimeError("GET https://x/?key=sk-very-secret-123 failed"))()
        assert raised.text == "RuntimeError: GET https://x/?key=$SERPER_API_KEY failed"
        ask = live(
            lambda number: ProviderError("bad key sk-very-secret-123") if number == 0 else "x", limits={"retries": 0}
        )
        await ask()
        assert "$SERPER_API_KEY" in ask.said[0] and "secret" not in "".join(ask.said)
        with pytest.raises(ToolsStoppedError) as stopped:
            await live(lambda number: ProviderError("bad key sk-very-secret-123", retriable=False))()
        assert "secret" not in str(stopped.value)

    in_virtual_time(main())


def test_a_key_in_a_recipe_is_refused():
    with pytest.raises(ConfigError, match="keep keys in the environment"):
        ToolConfig(use="x:y", options={"api_key": "sk-very-secret-123"})
    assert ToolConfig(use="x:y", options={"api_key_env": "SERPER_API_KEY"})


@pytest.mark.parametrize(
    "options",
    [
        {"headers": {"Authorization": "Bearer sk-very-secret-123"}},
        {"headers": {"X-Subscription-Token": "sk-very-secret-123"}},
        {"env": {"OPENAI_API_KEY": "sk-very-secret-123"}},
        {"parameters": {"key": "sk-very-secret-123"}},
        {"provider": {"url": "https://h/", "params": {"api_key": "sk-very-secret-123"}}},
        {"summariser": {"url": "https://me:sk-very-secret-123@h/v1", "model": "m"}},
        {"url": "https://h/search?api_key=sk-very-secret-123"},
    ],
)
def test_so_is_one_that_lies_deeper(options):
    with pytest.raises(ConfigError, match="keep keys in the environment"):
        ToolConfig(use="x:y", options=options)


def test_what_is_no_secret_is_taken():
    names = {"provider": {"url": "https://h/?q={query}", "headers": {"X-Api-Key": "{key}"}, "key_env": "NAME", 3: "x"}}
    model = {"summariser": {"url": "https://h/v1", "model": "m", "key_env": "NAME", "options": {"max_tokens": None}}}
    server = {
        "headers": {"Authorization": "Bearer $TOKEN", "Accept": "text/html"},
        "env": {"API_KEY": "$KEY", "DEBUG": "1"},
    }
    for options in (names, model, server, {"key": "title", "token": "<eos>"}):
        assert ToolConfig(use="x:y", options=options)


def test_an_endpoint_takes_no_password_in_its_url():
    with pytest.raises(ConfigError, match="keep keys in the environment"):
        EndpointConfig(url="https://me:sk-very-secret-123@h/v1", model="m")


@pytest.mark.parametrize(
    "group", ['{"headers": {"Authorization": "sk-very-secret-123"}}', '{"url": "http://a:sk-very-secret-123@h"}']
)
def test_the_message_does_not_show_what_it_refuses(group):
    with pytest.raises(ConfigError, match="keep keys in the environment") as caught:
        load_recipe("quickstart", [f'tools=[{{"use": "mcp", "options": {group}}}]'])
    assert "sk-very" not in str(caught.value)


# --- what a tool says of itself


def test_a_tool_completes_and_normalises_its_arguments_and_may_stumble(tmp_path):
    class Folded(Search):
        def complete(self, arguments, context):
            return {**arguments, "task": context.task.id}

        def normalise(self, arguments):
            return {**arguments, "query": arguments["query"].casefold()}

    async def main():
        ask = Gated(Folded(), tmp_path)
        await ask("Lima")
        assert (await ask("LIMA")).cached and ask.tool.calls == 1
        await ask(None), await ask(None)
        assert ask.tool.calls == 3, "what cannot be understood is not kept: the tool is asked"

    asyncio.run(main())


def test_a_tool_that_is_not_ready_stops_a_run_before_it_starts_but_no_replay(tmp_path):
    class Keyless(Search):
        key = "a"

        def ready(self):
            if not self.key:
                raise ConfigError("needs a key", where="key_env", hint="Put it into the environment variable X")

    asyncio.run(Gated(Keyless(), tmp_path, mode="record")("x"))
    Keyless.key = ""
    with pytest.raises(ConfigError, match=r"tools.offered.0.options.key_env: needs a key"):
        Gated(Keyless(), tmp_path)
    assert asyncio.run(Gated(Keyless(), tmp_path, mode="replay")("x")).cached


def _spend_in_process(folder, paid):
    async def main():
        ask = live(lambda number: ToolResult(text="x", cost=0.25), limits={"money": 100})
        ask.tool_gateway.keep(Path(folder))
        for i in range(6):
            await ask(str(i))
        await asyncio.sleep(0.2)  # the writer is a thread of its own
        paid.set()
        await asyncio.sleep(60)

    asyncio.run(main())


def test_money_that_a_killed_process_spent_counts_against_the_next_one(tmp_path):
    context = multiprocessing.get_context("fork")
    paid = context.Event()
    process = context.Process(target=_spend_in_process, args=(str(tmp_path), paid))
    process.start()
    assert paid.wait(60)
    os.kill(process.pid, signal.SIGKILL)
    process.join()

    async def main():
        ask = live(lambda number: ToolResult(text="x", cost=0.25), limits={"money": 1.75})
        ask.tool_gateway.keep(tmp_path)
        assert ask.tool_gateway.usage["search"].cost == 1.5 and ask.tool_gateway.usage["search"].executed == 6
        await ask()
        with pytest.raises(ToolsStoppedError, match=r"1\.75 in money for 7 calls"):
            await ask()
        ask.tool_gateway.write_down()
        assert read_usage(tmp_path)["search"]["cost"] == 1.75

    asyncio.run(main())


def test_what_a_call_cost_counts_although_who_asked_first_has_left(tmp_path):
    async def main():
        ask = Gated(Search(lambda number: ToolResult(text="x", cost=2.0), seconds=0.05), tmp_path)
        first = asyncio.create_task(ask())
        await asyncio.sleep(0.01)
        second = asyncio.create_task(ask())
        await asyncio.sleep(0.01)
        first.cancel()
        assert (await second).shared and ask.tool_gateway.usage["search"].cost == 2.0

    asyncio.run(main())


def test_accounts_of_recorded_calls_are_those_of_the_calls(tmp_path):
    async def main():
        ask = Gated(Search(lambda number: KeyError("b") if number == 1 else ToolResult(text="x", cost=0.5)), tmp_path)
        outcomes = [await ask(query) for query in ("a", "a", "b", "c")]
        outcomes.append(await ask.tool_gateway.call({"search": ask.tool}, Call(name="serch"), CONTEXT))
        assert usage_of(outcomes, {"search"}) == ask.tool_gateway.spent()
        assert "4 requested, 3 executed, 1 answered from the cache, cost 1" in in_words(usage_of(outcomes[:4], ()))

    asyncio.run(main())
