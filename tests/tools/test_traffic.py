"""What stands around calls: cached, shared, recorded, limited, paid, counted, and stopped where it must be."""

import asyncio
import multiprocessing
import os
import signal
import sqlite3
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from arpo.core.tree import Call, Outcome, Status
from arpo.endpoint.config import ServedModel
from arpo.errors import ConfigError, ProviderError, ToolError, ToolsStoppedError
from arpo.recipe import load_recipe
from arpo.tasks import Task
from arpo.tools import CallContext, ToolResult
from arpo.tools.accounts import accounts_of, in_words, read_accounts
from arpo.tools.cache import ReplayMissError
from arpo.tools.config import ToolConfig, ToolsConfig, build_tools
from arpo.tools.traffic import Traffic, build_traffic
from virtual_time import run as in_virtual_time

CONTEXT = CallContext(task=Task(id="t", messages=({"role": "user", "content": "q"},), answers=("a",)), deadline_s=5.0, seed=7)


class Search:
    """Counts its calls; `reply` says what becomes of each, by its number from 0."""

    description = "Finds facts."
    schema = {"type": "object", "properties": {"query": {"type": "string"}, "k": {"type": "integer", "default": 3}}}  # noqa: RUF012
    cacheable = True
    provider = "web"

    def __init__(self, reply: Any = None, seconds: float = 0.0, name: str = "search") -> None:
        self.reply, self.seconds, self.name = reply, seconds, name
        self.calls = self.at_once = self.most_at_once = 0
        self.starts: list[float] = []

    async def __call__(self, arguments: Any, context: CallContext) -> Any:
        number = self.calls
        self.calls += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self.starts.append(asyncio.get_running_loop().time())
        try:
            await asyncio.sleep(self.seconds)
            reply = self.reply(number) if self.reply else f"found {arguments.get('query')}"
            if isinstance(reply, Exception):
                raise reply
            return reply
        finally:
            self.at_once -= 1


class Asked:
    """A tool with its traffic."""

    def __init__(self, tool: Any, tmp_path: Path | None = None, **config: Any) -> None:
        file = {"cache": {"file": str(tmp_path / "calls.sqlite"), **config.pop("cache", {})}} if tmp_path else {}
        self.tool, self.said = tool, []
        self.traffic = build_traffic(ToolsConfig(offered=(tool,), **file, **config), [(tool,)])
        self.traffic.tell = lambda text, level: self.said.append(text)

    async def __call__(self, query: str = "x", **more: Any) -> Outcome:
        call = Call(name=self.tool.name, arguments={"query": query, **more})
        return await self.traffic.call({self.tool.name: self.tool}, call, CONTEXT)


# --- the cache


def test_a_result_is_asked_for_once_whatever_the_spelling(tmp_path):
    async def main():
        ask = Asked(Search(), tmp_path)
        first = await ask("caf\u00e9")
        same = [await ask(" cafe\u0301 "), await ask("caf\u00e9", k=3), await ask("caf\u00e9", k=3.0)]
        other = await ask("caf\u00e9", k=4)
        assert ask.tool.calls == 2 and not first.cached and not other.cached
        assert all(o.cached and o.text == first.text and not o.ran and o.answered for o in same)
        again = Asked(Search(), tmp_path)  # another process, later
        assert (await again("caf\u00e9")).cached and again.tool.calls == 0

    asyncio.run(main())


def test_another_version_tool_or_set_of_options_has_results_of_its_own(tmp_path):
    class Newer(Search):
        version = "2"

    async def main():
        for tool in (Search(), Newer(), Search(name="other")):
            await Asked(tool, tmp_path)()
            assert tool.calls == 1

    asyncio.run(main())


def test_freshness_is_shorter_where_nothing_was_found_and_none_for_errors(tmp_path):
    replies = {"nothing": ToolResult(text="No results.", empty=True), "something": ToolResult(text="yes")}

    class Both(Search):
        async def __call__(self, arguments, context):
            self.calls += 1
            if arguments["query"] == "error":
                raise ToolError("no such page")
            return replies[arguments["query"]]

    async def main():
        ask = Asked(Both(), tmp_path, cache={"days": 1000, "empty_days": 1e-9})
        for query, calls in (("something", 1), ("nothing", 2), ("error", 2)):
            before = ask.tool.calls
            await ask(query)
            await asyncio.sleep(0.01)
            await ask(query)
            assert ask.tool.calls - before == calls, query

    asyncio.run(main())


def test_tools_that_do_not_say_so_are_not_cached_and_a_recipe_may_say_so(tmp_path):
    class Silent(Search):
        cacheable = False

    async def main():
        ask = Asked(Silent(), tmp_path)
        await ask(), await ask()
        assert ask.tool.calls == 2 and ask.traffic.cache is None and not list(tmp_path.iterdir())

    asyncio.run(main())
    kept = ToolConfig(use="search", options={"documents": [{"text": "Lima is in Peru."}]}, cache={"keep": True})
    config = ToolsConfig(offered=(kept,), cache={"file": str(tmp_path / "x.sqlite")})
    (tool,) = build_tools(config.offered)
    traffic = build_traffic(config, [(tool,)])
    call = Call(name="search", arguments={"query": "Peru"})
    outcomes = [asyncio.run(traffic.call({"search": tool}, call, CONTEXT)) for _ in range(2)]
    assert [o.cached for o in outcomes] == [False, True] and outcomes[0].text == outcomes[1].text


def test_searches_in_documents_of_two_tasks_are_two_searches(tmp_path):
    kept = ToolConfig(use="search", cache={"keep": True})
    config = ToolsConfig(offered=(kept,), cache={"file": str(tmp_path / "x.sqlite")})
    (tool,) = build_tools(config.offered)
    traffic = build_traffic(config, [(tool,)])

    def found(text):
        task = Task(id="t", messages=CONTEXT.task.messages, answers=(), documents=({"text": text},))
        call = Call(name="search", arguments={"query": "capital"})
        return asyncio.run(traffic.call({"search": tool}, call, CallContext(task=task, deadline_s=5.0, seed=1)))

    outcomes = [found(text) for text in ("The capital is Lima.", "The capital is Oslo.", "The capital is Lima.")]
    assert [(o.text, o.cached) for o in outcomes] == [
        ("The capital is Lima.", False),
        ("The capital is Oslo.", False),
        ("The capital is Lima.", True),
    ]


def test_a_stateful_tool_cannot_be_kept(tmp_path):
    class Stateful(Search):
        async def open(self, task): ...

    with pytest.raises(ConfigError, match="has a state"):
        Asked(Stateful(), tmp_path)


def test_a_file_that_is_no_cache_is_named(tmp_path):
    (tmp_path / "calls.sqlite").write_text("these are no tables, and it is long enough to be seen as a file of something else" * 20)
    with pytest.raises(ConfigError, match=r"calls.sqlite: cannot be used as a cache: .*not a database"):
        Asked(Search(), tmp_path)


# --- calls under way


def test_equal_calls_under_way_run_once_and_all_get_the_answer(tmp_path):
    async def main():
        ask = Asked(Search(seconds=0.05), tmp_path)
        outcomes = await asyncio.gather(*(ask("same") for _ in range(16)), ask("other"))
        assert ask.tool.calls == 2 and {o.text for o in outcomes[:16]} == {"found same"}
        assert sum(o.shared for o in outcomes) == 15 and sum(o.ran for o in outcomes) == 2

    asyncio.run(main())


def test_who_asked_first_may_leave_without_taking_the_answer_away(tmp_path):
    async def main():
        ask = Asked(Search(seconds=0.05), tmp_path)
        first = asyncio.create_task(ask())
        await asyncio.sleep(0.01)
        second = asyncio.create_task(ask())
        await asyncio.sleep(0.01)
        first.cancel()
        assert (await second).text == "found x" and ask.tool.calls == 1
        alone = asyncio.create_task(ask("y"))
        await asyncio.sleep(0.01)
        alone.cancel()
        await asyncio.gather(alone, return_exceptions=True)
        assert ask.tool.at_once == 0, "a call that nobody waits for is cancelled"
        assert (await ask("y")).ran, "and leaves no lease behind"

    asyncio.run(main())


def test_who_asks_while_the_same_call_is_being_given_up_is_not_given_up_with_it(tmp_path):
    async def main():
        ask = Asked(Search(seconds=0.2), tmp_path)
        first = asyncio.create_task(ask())
        await asyncio.sleep(0.1)
        first.cancel()
        await asyncio.sleep(0)
        assert (await ask()).ran and ask.tool.calls == 2
        await asyncio.sleep(0)
        assert not ask.traffic.cache._flights

    asyncio.run(main())


@pytest.mark.parametrize("written", [True, False], ids=["while its result is written", "while it asks for its turn"])
def test_who_leaves_while_the_file_is_busy_leaves_no_lease_and_loses_no_result(tmp_path, written):
    async def main():
        ask = Asked(Search(seconds=0.1), tmp_path)
        await ask("a file that is there")
        other = sqlite3.connect(tmp_path / "calls.sqlite", isolation_level=None)
        asking = asyncio.create_task(ask()) if written else None
        while written and not ask.tool.at_once:  # noqa: ASYNC110  the tool tells by a number
            await asyncio.sleep(0.005)
        other.execute("BEGIN IMMEDIATE")
        asking = asking or asyncio.create_task(ask())
        more = asyncio.create_task(ask("more"))  # the writer is at it: what comes after it waits in its queue
        while ask.tool.at_once:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.1)
        asking.cancel()
        await asyncio.sleep(0.05)
        other.execute("COMMIT")
        await more
        again = await asyncio.wait_for(ask(), 15.0)
        assert again.cached is written, "a result that was there is kept"
        assert other.execute("SELECT count(*) FROM leases").fetchone() == (0,)

    asyncio.run(main())


def _ask_in_process(folder, seconds, report, barrier):
    async def main():
        ask = Asked(Search(seconds=seconds), Path(folder))
        barrier.wait()
        outcome = await ask()
        report.put((ask.tool.calls, outcome.text, outcome.shared or outcome.cached))

    asyncio.run(main())


def test_equal_calls_of_several_processes_run_once(tmp_path):
    context = multiprocessing.get_context("fork")
    report, barrier = context.Queue(), context.Barrier(4)
    processes = [context.Process(target=_ask_in_process, args=(str(tmp_path), 0.3, report, barrier)) for _ in range(4)]
    for process in processes:
        process.start()
    answers = [report.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sum(calls for calls, _, _ in answers) == 1 and {text for _, text, _ in answers} == {"found x"}
    assert sum(others for _, _, others in answers) == 3


def _fail_in_process(folder, report, barrier):
    async def main():
        ask = Asked(Search(lambda number: ToolError("no such page"), seconds=2.0), Path(folder))
        barrier.wait()
        began = time.time()
        outcome = await ask()
        first = ask.tool.calls
        again = barrier.wait() == 0  # all have their answer; one of them asks once more
        if again:
            await ask()
        report.put((first, outcome.status, outcome.text, outcome.shared, ask.tool.calls - first, again, began))

    asyncio.run(main())


def test_equal_calls_of_several_processes_that_fail_run_once_and_a_later_one_runs_anew(tmp_path):
    context = multiprocessing.get_context("fork")
    report, barrier = context.Queue(), context.Barrier(16)
    processes = [context.Process(target=_fail_in_process, args=(str(tmp_path), report, barrier)) for _ in range(16)]
    for process in processes:
        process.start()
    answers = [report.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    spread = max(began for *_, began in answers) - min(began for *_, began in answers)
    assert spread < 2.0, "they did not ask at the same time"
    assert {(status, text) for _, status, text, *_ in answers} == {(Status.ERROR, "no such page")}
    assert sum(first for first, *_ in answers) == 1 and sum(shared for _, _, _, shared, *_ in answers) == 15
    assert [(later, asked) for *_, later, asked, _ in answers if later or asked] == [(1, True)], "errors are not cached"


def test_a_process_that_is_killed_in_its_call_keeps_nobody_waiting_for_long(tmp_path, monkeypatch):
    monkeypatch.setattr("arpo.tools.cache.LEASE_S", 0.5)

    async def before():
        await Asked(Search(), tmp_path)("kept")

    asyncio.run(before())
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    process = context.Process(target=_ask_in_process, args=(str(tmp_path), 60.0, context.Queue(), barrier))
    process.start()
    barrier.wait()
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGKILL)
    process.join()

    async def main():
        ask = Asked(Search(), tmp_path)
        assert (await ask("kept")).cached, "what was there is still there"
        assert (await ask()).ran

    asyncio.run(main())


# --- record and replay


def test_a_record_replays_without_a_single_call_errors_included(tmp_path):
    def reply(number):
        return ToolError("no such page") if number == 1 else f"number {number}"

    async def asked(ask):
        return [await ask(query) for query in ("a", "b", "c", "a")]

    recording = Asked(Search(reply), tmp_path, mode="record")
    told = asyncio.run(asked(recording))
    assert recording.tool.calls == 3 and [o.status for o in told] == [Status.OK, Status.ERROR, Status.OK, Status.OK]
    replaying = Asked(Search(), tmp_path, mode="replay")
    again = asyncio.run(asked(replaying))
    assert replaying.tool.calls == 0 and [(o.status, o.text, o.fault) for o in again] == [(o.status, o.text, o.fault) for o in told]
    with pytest.raises(ReplayMissError, match=r'search\({"query":"d"}\) is not in the record'):
        asyncio.run(replaying("d"))
    assert not asyncio.run(Asked(Search(), tmp_path)("a")).cached, "a live run takes nothing from a record"


def test_a_replay_without_a_record_and_a_record_of_nothing_are_mistakes(tmp_path):
    class Silent(Search):
        cacheable = False

    with pytest.raises(ConfigError, match="no recorded call to replay"):
        Asked(Search(), tmp_path, mode="replay")
    with pytest.raises(ConfigError, match="nothing to record"):
        Asked(Silent(), tmp_path, mode="record")


# --- providers


def test_rate_and_concurrency_hold_for_all_tools_of_a_provider():
    async def main():
        one, two = Search(seconds=1.0), Search(seconds=1.0, name="other")
        one.cacheable = two.cacheable = False
        both = build_traffic(ToolsConfig(offered=(one, two), limits={"rate": 2, "concurrency": 3}), [(one,), (two,)])
        tools = {tool.name: tool for tool in (one, two)}
        names = ["search", "other"] * 5
        calls = (both.call(tools, Call(name=name, arguments={"query": str(i)}), CONTEXT) for i, name in enumerate(names))
        outcomes = await asyncio.gather(*calls)
        starts = sorted([*one.starts, *two.starts])
        assert all(b - a > 0.499 for a, b in pairwise(starts)), starts
        assert one.most_at_once + two.most_at_once <= 4 and all(o.status is Status.OK for o in outcomes)

    in_virtual_time(main())


def test_waiting_for_a_place_is_no_part_of_a_calls_deadline():
    async def main():
        tool = Search(seconds=4.0)
        tool.cacheable = False
        ask = Asked(tool, limits={"concurrency": 1})
        outcomes = await asyncio.gather(*(ask(str(i)) for i in range(4)))
        assert [o.status for o in outcomes] == [Status.OK] * 4 and tool.most_at_once == 1

    in_virtual_time(main())


def live(reply: Any, **config: Any) -> Asked:
    tool = Search(reply)
    tool.cacheable = False
    return Asked(tool, **config)


def test_what_may_be_tried_again_is_and_what_not_is_not():
    async def main():
        ask = live(lambda number: ProviderError("503") if number < 2 else "yes")
        outcome = await ask()
        assert outcome.text == "yes" and outcome.attempts == 3 and ask.tool.starts[2] >= 1.0 and not ask.said
        told = live(lambda number: ToolError("no such page"))
        assert (await told()).status is Status.ERROR and told.tool.calls == 1
        nothing = live(lambda number: ToolResult(text="No results.", empty=True))
        assert (await nothing()).status is Status.OK and nothing.tool.calls == 1
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
        ask = Asked(Poisoned(seconds=0.1))

        async def others():
            return [await ask(str(i)) for i in range(200)]

        bad, good = await asyncio.gather(ask("poison"), others())
        assert bad.status is Status.UNAVAILABLE and all(o.text.startswith("found") for o in good)

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
        resumed.traffic.go_on(ask.traffic.spent())
        await resumed("d")
        with pytest.raises(ToolsStoppedError):
            await resumed("e")

    asyncio.run(main())


def test_a_budget_of_money_stops_the_run_and_the_cache_costs_nothing(tmp_path):
    async def main():
        ask = Asked(Search(lambda number: ToolResult(text="x", cost=0.4)), tmp_path, limits={"money": 1.0})
        for query in "aaabbbccc":
            await ask(query)
        with pytest.raises(ToolsStoppedError, match=r"1\.2 in money for 3 calls"):
            await ask("d")
        assert ask.traffic.accounts["search"].cost == pytest.approx(1.2)

    asyncio.run(main())


def test_a_tool_that_fails_too_often_stops_the_run_with_its_last_errors():
    async def main():
        ask = live(lambda number: KeyError(f"broken {number % 3}"), limits={"error_rate": 0.5, "error_window": 10})
        with pytest.raises(ToolsStoppedError, match=r"search failed in 100% of its last 10 calls") as stopped:
            for i in range(20):
                await ask(str(i))
        assert ask.tool.calls == 10 and all(f"broken {i}" in str(stopped.value) for i in range(3))
        half = live(lambda number: KeyError("x") if number % 2 else "fine", limits={"error_rate": 0.5, "error_window": 10})
        for i in range(50):
            await half(str(i))
        reported = live(lambda n: ToolResult(text="Traceback", status=Status.ERROR), limits={"error_rate": 0.5, "error_window": 10})
        for i in range(50):
            await reported(str(i))

    asyncio.run(main())


# --- accounts


def test_every_call_is_accounted_for(tmp_path):
    async def main():
        def reply(number):
            return [ProviderError("503"), "a", KeyError("b"), "c"][min(number, 3)]

        ask = Asked(Search(reply, seconds=0.02), tmp_path)
        await asyncio.gather(ask("a"), ask("a"))
        await ask("a"), await ask("b"), await ask("c")
        await ask.traffic.call({"search": ask.tool}, Call(name="serch"), CONTEXT)
        account = ask.traffic.spent()["search"]
        values = {name: account[name] for name in ("asked", "executed", "attempts", "cached", "shared", "refused")}
        assert values == {"asked": 5, "executed": 3, "attempts": 4, "cached": 1, "shared": 1, "refused": 0}
        assert account["faults"] == {"raised KeyError": 1} and account["p50_s"] == pytest.approx(0.02, rel=0.5)
        assert ask.traffic.spent()["(no such tool)"]["refused"] == 1
        merged = Traffic()
        merged.go_on(ask.traffic.spent())
        merged.go_on(ask.traffic.spent())
        assert merged.spent()["search"]["asked"] == 10 and merged.spent()["search"]["p50_s"] == account["p50_s"]

    asyncio.run(main())


def test_a_key_in_an_error_reaches_nobody(monkeypatch):
    monkeypatch.setenv("SERPER_API_KEY", "sk-very-secret-123")

    async def main():
        raised = await live(lambda number: RuntimeError("GET https://x/?key=sk-very-secret-123 failed"))()
        assert raised.text == "RuntimeError: GET https://x/?key=$SERPER_API_KEY failed"
        ask = live(lambda number: ProviderError("bad key sk-very-secret-123") if number == 0 else "x", limits={"retries": 0})
        await ask()
        assert "$SERPER_API_KEY" in ask.said[0] and "secret" not in "".join(ask.said)
        with pytest.raises(ToolsStoppedError) as stopped:
            await live(lambda number: ProviderError("bad key sk-very-secret-123", retriable=False))()
        assert "secret" not in str(stopped.value)

    in_virtual_time(main())


def test_a_key_in_a_recipe_is_refused():
    with pytest.raises(ValueError, match="keep keys in the environment"):
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
    with pytest.raises(ValueError, match="keep keys in the environment"):
        ToolConfig(use="x:y", options=options)


def test_what_is_no_secret_is_taken():
    names = {"provider": {"url": "https://h/?q={query}", "headers": {"X-Api-Key": "{key}"}, "key_env": "NAME", 3: "x"}}
    model = {"summariser": {"url": "https://h/v1", "model": "m", "key_env": "NAME", "length_key": "max_completion_tokens"}}
    server = {"headers": {"Authorization": "Bearer $TOKEN", "Accept": "text/html"}, "env": {"API_KEY": "$KEY", "DEBUG": "1"}}
    for options in (names, model, server, {"key": "title", "token": "<eos>"}):
        assert ToolConfig(use="x:y", options=options)


def test_an_endpoint_takes_no_password_in_its_url():
    with pytest.raises(ValueError, match="keep keys in the environment"):
        ServedModel(url="https://me:sk-very-secret-123@h/v1", model="m")


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
        ask = Asked(Folded(), tmp_path)
        await ask("Lima")
        assert (await ask("LIMA")).cached and ask.tool.calls == 1
        await ask(None), await ask(None)
        assert ask.tool.calls == 3, "what cannot be understood is not kept: the tool is asked"

    asyncio.run(main())


def test_a_tool_that_is_not_ready_stops_a_run_before_it_starts_but_no_replay(tmp_path):
    class Keyless(Search):
        def ready(self):
            raise ConfigError("needs a key", where="key_env", hint="Put it into the environment variable X")

    asyncio.run(Asked(Search(), tmp_path, mode="record")("x"))
    with pytest.raises(ConfigError, match=r"tools.offered.0.options.key_env: needs a key"):
        Asked(Keyless(), tmp_path)
    assert asyncio.run(Asked(Keyless(), tmp_path, mode="replay")("x")).cached


def _spend_in_process(folder, paid):
    async def main():
        ask = live(lambda number: ToolResult(text="x", cost=0.25), limits={"money": 100})
        ask.traffic.keep(Path(folder))
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
        ask.traffic.keep(tmp_path)
        assert ask.traffic.accounts["search"].cost == 1.5 and ask.traffic.accounts["search"].executed == 6
        await ask()
        with pytest.raises(ToolsStoppedError, match=r"1\.75 in money for 7 calls"):
            await ask()
        ask.traffic.write_down()
        assert read_accounts(tmp_path)["search"]["cost"] == 1.75

    asyncio.run(main())


def test_what_a_call_cost_counts_although_who_asked_first_has_left(tmp_path):
    async def main():
        ask = Asked(Search(lambda number: ToolResult(text="x", cost=2.0), seconds=0.05), tmp_path)
        first = asyncio.create_task(ask())
        await asyncio.sleep(0.01)
        second = asyncio.create_task(ask())
        await asyncio.sleep(0.01)
        first.cancel()
        assert (await second).shared and ask.traffic.accounts["search"].cost == 2.0

    asyncio.run(main())


def test_accounts_of_recorded_calls_are_those_of_the_calls(tmp_path):
    async def main():
        ask = Asked(Search(lambda number: KeyError("b") if number == 1 else ToolResult(text="x", cost=0.5)), tmp_path)
        outcomes = [await ask(query) for query in ("a", "a", "b", "c")]
        outcomes.append(await ask.traffic.call({"search": ask.tool}, Call(name="serch"), CONTEXT))
        assert accounts_of(outcomes, {"search"}) == ask.traffic.spent()
        assert "4 asked for, 3 executed, 1 from the cache, 0 shared in flight, cost 1" in in_words(accounts_of(outcomes[:4], ()))

    asyncio.run(main())
