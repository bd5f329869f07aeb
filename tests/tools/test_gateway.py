"""What stands around calls: cached, shared, recorded and replayed."""

import asyncio
import multiprocessing
import os
import signal
import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest
from gateway_world import CONTEXT, Gated, Search

from arpo.core.tree import Call, CallStatus
from arpo.errors import ConfigError, ToolError
from arpo.tasks import Task
from arpo.tools import CallContext, ToolResult
from arpo.tools.cache import ReplayMissError
from arpo.tools.config import ToolConfig, ToolsConfig, build_tools
from arpo.tools.function import tool
from arpo.tools.gateway import build_gateway
from arpo.tools.search import SearchTool

# --- the cache


def test_a_result_is_asked_for_once_whatever_the_spelling(tmp_path):
    async def main():
        ask = Gated(Search(), tmp_path)
        first = await ask("caf\u00e9")
        same = [await ask("cafe\u0301"), await ask("caf\u00e9", k=3), await ask("caf\u00e9", k=3.0)]
        other = await ask("caf\u00e9", k=4)
        assert ask.tool.calls == 2 and not first.cached and not other.cached
        assert all(o.cached and o.text == first.text and not o.ran and o.answered for o in same)
        again = Gated(Search(), tmp_path)  # another process, later
        assert (await again("caf\u00e9")).cached and again.tool.calls == 0

    asyncio.run(main())


def test_space_is_another_call_but_for_tools_that_say_it_is_not(tmp_path):
    @tool(cacheable=True)
    def joined(query: str, between: str = " ") -> str:
        """Joins."""
        return between.join(query)

    async def main():
        ask = Gated(joined, tmp_path)
        for between in (" ", "", "\n", ", ", ","):
            assert (await ask("ab", between=between)).text == f"a{between}b"
        search: Any = SearchTool([{"text": "Lima is in Peru."}])
        search.cacheable = True
        ask = Gated(search, tmp_path)
        assert not (await ask("Lima")).cached and (await ask(" Lima\n")).cached

    asyncio.run(main())


def test_two_tools_of_one_name_that_say_no_version_do_not_answer_for_each_other(tmp_path):
    def looking_up(module):
        def lookup(query: str) -> str:
            """Looks up."""
            return module

        lookup.__module__ = module
        return tool(lookup, cacheable=True)

    async def main():
        for module in ("one", "another"):  # two projects that share the user's cache
            assert (await Gated(looking_up(module), tmp_path)("x")).text == module
        assert (await Gated(looking_up("one"), tmp_path)("x")).cached

    asyncio.run(main())


def test_another_version_tool_or_set_of_options_has_results_of_its_own(tmp_path):
    class Newer(Search):
        version = "2"

    async def main():
        for one in (Search(), Newer(), Search(name="other")):
            await Gated(one, tmp_path)()
            assert one.calls == 1

    asyncio.run(main())


def test_freshness_is_shorter_where_nothing_was_found_and_none_for_errors(tmp_path, monkeypatch):
    monkeypatch.setattr("arpo.tools.gateway.EMPTY_DAYS", 1e-9)
    replies = {"nothing": ToolResult(text="No results.", empty=True), "something": ToolResult(text="yes")}

    class Both(Search):
        async def __call__(self, arguments, context):
            self.calls += 1
            if arguments["query"] == "error":
                raise ToolError("no such page")
            return replies[arguments["query"]]

    async def main():
        ask = Gated(Both(), tmp_path, cache={"days": 1000})
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
        ask = Gated(Silent(), tmp_path)
        await ask(), await ask()
        assert ask.tool.calls == 2 and ask.tool_gateway.cache is None and not list(tmp_path.iterdir())

    asyncio.run(main())
    kept = ToolConfig(use="search", options={"documents": [{"text": "Lima is in Peru."}]}, cache=True)
    config = ToolsConfig(offered=(kept,), cache={"file": str(tmp_path / "x.sqlite")})
    (tool,) = build_tools(config.offered)
    tool_gateway = build_gateway(config, [(tool,)])
    call = Call(name="search", arguments={"query": "Peru"})
    outcomes = [asyncio.run(tool_gateway.call({"search": tool}, call, CONTEXT)) for _ in range(2)]
    assert [o.cached for o in outcomes] == [False, True] and outcomes[0].text == outcomes[1].text


def test_searches_in_documents_of_two_tasks_are_two_searches(tmp_path):
    kept = ToolConfig(use="search", cache=True)
    config = ToolsConfig(offered=(kept,), cache={"file": str(tmp_path / "x.sqlite")})
    (tool,) = build_tools(config.offered)
    tool_gateway = build_gateway(config, [(tool,)])

    def found(text):
        task = Task(id="t", messages=CONTEXT.task.messages, answers=(), documents=({"text": text},))
        call = Call(name="search", arguments={"query": "capital"})
        return asyncio.run(tool_gateway.call({"search": tool}, call, CallContext(task=task, deadline_s=5.0, seed=1)))

    outcomes = [found(text) for text in ("The capital is Lima.", "The capital is Oslo.", "The capital is Lima.")]
    assert [(o.text, o.cached) for o in outcomes] == [
        ("The capital is Lima.", False),
        ("The capital is Oslo.", False),
        ("The capital is Lima.", True),
    ]


def test_a_stateful_tool_cannot_be_kept(tmp_path):
    class Stateful(Search):
        async def open(self, task): ...
        async def fork(self, state): ...
        async def close(self, state): ...

    with pytest.raises(ConfigError, match="has a state"):
        Gated(Stateful(), tmp_path)


def test_a_file_that_is_no_cache_is_named(tmp_path):
    (tmp_path / "calls.sqlite").write_text(
        "these are no tables, and it is long enough to be seen as a file of something else" * 20
    )
    with pytest.raises(ConfigError, match=r"calls.sqlite: cannot be used as a cache: .*not a database"):
        Gated(Search(), tmp_path)


# --- calls under way


def test_equal_calls_under_way_run_once_and_all_get_the_answer(tmp_path):
    async def main():
        ask = Gated(Search(seconds=0.05), tmp_path)
        outcomes = await asyncio.gather(*(ask("same") for _ in range(16)), ask("other"))
        assert ask.tool.calls == 2 and {o.text for o in outcomes[:16]} == {"found same"}
        assert sum(o.shared for o in outcomes) == 15 and sum(o.ran for o in outcomes) == 2

    asyncio.run(main())


def test_a_file_that_somebody_keeps_locked_holds_up_calls_once(tmp_path, monkeypatch):
    monkeypatch.setattr("arpo.tools.store.BUSY_S", 0.3)

    async def main():
        ask, waits = Gated(Search(), tmp_path), []
        write = ask.tool_gateway.cache.store.claim
        monkeypatch.setattr(ask.tool_gateway.cache.store, "claim", lambda *each: waits.append(each) or write(*each))
        other = sqlite3.connect(tmp_path / "calls.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        outcomes = [*await asyncio.gather(*(ask(f"q{number}") for number in range(8))), await ask("later")]
        assert [o.text for o in outcomes] == [*(f"found q{number}" for number in range(8)), "found later"]
        assert len(waits) == 1 and len(ask.said) == 1 and "go on without" in ask.said[0]
        other.close()

    asyncio.run(main())


def test_a_file_that_is_damaged_while_it_is_used_is_given_up_and_no_call_with_it(tmp_path):
    async def main():
        ask = Gated(Search(), tmp_path)
        assert (await ask("before")).text == "found before"
        other = sqlite3.connect(tmp_path / "calls.sqlite", isolation_level=None)
        other.execute("DROP TABLE leases")
        other.close()
        for query in ("one", "two"):
            assert (await ask(query)).text == f"found {query}"
        assert len(ask.said) == 1 and "go on without" in ask.said[0]

    asyncio.run(main())


def test_who_asked_first_may_leave_without_taking_the_answer_away(tmp_path):
    async def main():
        ask = Gated(Search(seconds=0.05), tmp_path)
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
        ask = Gated(Search(seconds=0.2), tmp_path)
        first = asyncio.create_task(ask())
        await asyncio.sleep(0.1)
        first.cancel()
        await asyncio.sleep(0)
        assert (await ask()).ran and ask.tool.calls == 2
        await asyncio.sleep(0)
        assert not ask.tool_gateway.cache._in_flight

    asyncio.run(main())


@pytest.mark.parametrize("written", [True, False], ids=["while its result is written", "while it asks for its turn"])
def test_who_leaves_while_the_file_is_busy_leaves_no_lease_and_loses_no_result(tmp_path, written):
    async def main():
        ask = Gated(Search(seconds=0.1), tmp_path)
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
        ask = Gated(Search(seconds=seconds), Path(folder))
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


class SearchForAll(Search):
    """Its call lasts until `everybody` has asked, and two seconds more."""

    async def __call__(self, arguments, context):
        while self.asking.value < self.everybody:  # noqa: ASYNC110  it is shared by processes
            await asyncio.sleep(0.01)
        return await super().__call__(arguments, context)


def _fail_in_process(folder, report, barrier, asking):
    async def main():
        tool = SearchForAll(lambda number: ToolError("no such page"), seconds=2.0)
        tool.asking, tool.everybody, tool.deadline_s = asking, barrier.parties, 60.0
        ask = Gated(tool, Path(folder))
        barrier.wait()
        with asking.get_lock():
            asking.value += 1
        outcome = await ask()
        first = ask.tool.calls
        again = barrier.wait() == 0  # all have their answer; one of them asks once more
        if again:
            await ask()
        report.put((first, outcome.status, outcome.text, outcome.shared, ask.tool.calls - first, again))

    asyncio.run(main())


def test_equal_calls_of_several_processes_that_fail_run_once_and_a_later_one_runs_anew(tmp_path):
    context = multiprocessing.get_context("fork")
    report, barrier, asking = context.Queue(), context.Barrier(16), context.Value("i", 0)
    processes = [
        context.Process(target=_fail_in_process, args=(str(tmp_path), report, barrier, asking)) for _ in range(16)
    ]
    for process in processes:
        process.start()
    answers = [report.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert {(status, text) for _, status, text, *_ in answers} == {(CallStatus.ERROR, "no such page")}
    assert sum(first for first, *_ in answers) == 1 and sum(shared for _, _, _, shared, *_ in answers) == 15
    assert [(later, asked) for *_, later, asked in answers if later or asked] == [(1, True)], "errors are not cached"


def test_a_process_that_is_killed_in_its_call_keeps_nobody_waiting_for_long(tmp_path, monkeypatch):
    monkeypatch.setattr("arpo.tools.cache.LEASE_S", 0.5)

    async def before():
        await Gated(Search(), tmp_path)("kept")

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
        ask = Gated(Search(), tmp_path)
        assert (await ask("kept")).cached, "what was there is still there"
        assert (await ask()).ran

    asyncio.run(main())


# --- record and replay


def test_a_record_replays_without_a_single_call_errors_included(tmp_path):
    def reply(number):
        return ToolError("no such page") if number == 1 else f"number {number}"

    async def asked(ask):
        return [await ask(query) for query in ("a", "b", "c", "a")]

    recording = Gated(Search(reply), tmp_path, mode="record")
    told = asyncio.run(asked(recording))
    assert recording.tool.calls == 3 and [o.status for o in told] == [
        CallStatus.OK,
        CallStatus.ERROR,
        CallStatus.OK,
        CallStatus.OK,
    ]
    replaying = Gated(Search(), tmp_path, mode="replay")
    again = asyncio.run(asked(replaying))
    assert replaying.tool.calls == 0 and [(o.status, o.text, o.fault) for o in again] == [
        (o.status, o.text, o.fault) for o in told
    ]
    with pytest.raises(ReplayMissError, match=r'search\({"query":"d"}\) is not in the record'):
        asyncio.run(replaying("d"))
    assert not asyncio.run(Gated(Search(), tmp_path)("a")).cached, "a live run takes nothing from a record"


def test_a_replay_without_a_record_and_a_record_of_nothing_are_mistakes(tmp_path):
    class Silent(Search):
        cacheable = False

    with pytest.raises(ConfigError, match="no recorded call to replay"):
        Gated(Search(), tmp_path, mode="replay")
    with pytest.raises(ConfigError, match="nothing to record"):
        Gated(Silent(), tmp_path, mode="record")
