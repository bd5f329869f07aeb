"""The cache of tool calls: what it costs, with a million entries, 16 processes and 16 equal calls under way.

    arpo bench cache            # a million entries, 16 processes; about three minutes, 1 GB on the disk
    arpo bench cache --quick    # 20,000 entries, 4 processes

Both sides in one run: a call with and without what stands around it, a small store and a large one, one process and many.
"""

import argparse
import asyncio
import multiprocessing
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from _figures import at_most, finish

from arpo.core.tree import Call, CallStatus
from arpo.errors import ToolError
from arpo.tasks import Task
from arpo.tools import CallContext, ToolBase, ToolResult
from arpo.tools.cache_key import canonical, key_of
from arpo.tools.call import run_call
from arpo.tools.config import ToolsConfig
from arpo.tools.gateway import ToolGateway, build_gateway
from arpo.tools.store import Entry, Store

CONTEXT = CallContext(task=Task(id="t", messages=({"role": "user", "content": "q"},), answers=("a",)), deadline_s=60.0, seed=0)
TEXT_CHARS = 600  # of a result: three snippets
SEARCH_S = 0.3  # what a search in the web takes


class Search(ToolBase):
    """Answers after `seconds`, and counts."""

    name, description = "search", "Finds facts."
    schema: Mapping[str, Any] = {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}

    def __init__(self, seconds: float = 0.0, *, cacheable: bool = True, fails: bool = False) -> None:
        self.seconds, self.cacheable, self.fails, self.calls = seconds, cacheable, fails, 0

    async def __call__(self, arguments: Mapping[str, Any], context: CallContext) -> str:
        self.calls += 1
        if self.seconds:
            await asyncio.sleep(self.seconds)
        if self.fails:
            raise ToolError("no such page")
        return result(arguments["query"])


class Paid(Search):
    """Says that a call costs money, so that its account is written down at once."""

    async def __call__(self, arguments: Mapping[str, Any], context: CallContext) -> Any:
        return ToolResult(text=await super().__call__(arguments, context), cost=0.001)


def result(query: str) -> str:
    return (query * 40)[:TEXT_CHARS]


def query(number: int) -> str:
    return f"what is known of entity {number}"


def entry(number: int) -> Entry:
    words = canonical({"query": query(number)}, {})
    key = key_of("search", "", words)
    text = result(query(number))
    return Entry(key=key, tool="search", version="", arguments=words, status=CallStatus.OK, text=text, made=time.time())


def traffic_over(file: Path | None, tool: Search) -> ToolGateway:
    cache = {"cache": {"file": str(file), "max_mb": 100_000}} if file else {}
    return build_gateway(ToolsConfig(offered=(tool,), **cache), [(tool,)])


def percentiles(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {f"p{share}_us": round(1e6 * ordered[int(share / 100 * (len(ordered) - 1))], 1) for share in (50, 95, 99)}


# --- one process


def around_a_call(calls: int, folder: Path) -> dict[str, float]:
    """CPU microseconds of a call of a tool that does nothing: bare, through the traffic with nothing configured, limited, with
    accounts that are kept on the disk, and the same where each call costs money."""
    tool = Search(cacheable=False)
    tools, call = {"search": tool}, Call(name="search", arguments={"query": "x"})
    plain = traffic_over(None, tool)
    limits = {"rate": 1e9, "concurrency": 64, "calls": 10**9, "money": 1e9}
    limited = build_gateway(ToolsConfig(offered=(tool,), limits=limits), [(tool,)])
    paid_tool = Paid(cacheable=False)
    kept, paid = traffic_over(None, tool), traffic_over(None, paid_tool)
    for number, tool_gateway in enumerate((kept, paid)):
        tool_gateway.keep(folder / f"accounts{number}")
    sides: dict[str, Callable[[], Any]] = {
        "bare": lambda: run_call(tools, call, CONTEXT),
        "nothing configured": lambda: plain.call(tools, call, CONTEXT),
        "all limits": lambda: limited.call(tools, call, CONTEXT),
        "accounts kept": lambda: kept.call(tools, call, CONTEXT),
        "accounts kept, all paid": lambda: paid.call({"search": paid_tool}, call, CONTEXT),
    }
    spent: dict[str, list[float]] = {name: [] for name in sides}

    async def measure() -> None:
        for _ in range(7):
            for name, make in sides.items():
                began = time.process_time()
                for _ in range(calls):
                    await make()
                spent[name].append((time.process_time() - began) / calls * 1e6)

    asyncio.run(measure())
    return {name: round(statistics.median(times), 1) for name, times in spent.items()}


def one_process(store: Store, num_entries: int, calls: int) -> dict[str, Any]:
    """Latencies of hits and misses through the whole way, over a store of `num_entries`."""
    draw = random.Random(0)
    tool = Search()
    tool_gateway = traffic_over(store.path, tool)
    tools = {"search": tool}
    hits: list[float] = []
    misses: list[float] = []

    async def measure() -> None:
        for number in range(calls):
            for times, text in ((hits, query(draw.randrange(num_entries))), (misses, f"new {number} {draw.random()}")):
                began = time.perf_counter()
                await tool_gateway.call(tools, Call(name="search", arguments={"query": text}), CONTEXT)
                times.append(time.perf_counter() - began)

    asyncio.run(measure())
    assert tool.calls == calls, "every known query is a hit, every new one a miss"
    return {"hit": percentiles(hits), "miss": percentiles(misses)}


def filled(file: Path, num_entries: int) -> tuple[Store, float]:
    store = Store(file, max_bytes=10**12)
    began = time.perf_counter()
    store.put(entries(num_entries))
    return store, time.perf_counter() - began


def entries(count: int) -> Iterator[Entry]:
    return map(entry, range(count))


# --- many processes


def worker(file: str, number: int, num_entries: int, calls: int, start: Any, report: Any) -> None:
    """90 % hits and 10 % new queries, some of which other processes ask at the same time."""
    draw, tool = random.Random(number), Search()
    tool_gateway = traffic_over(Path(file), tool)
    times: dict[str, list[float]] = {"hit": [], "miss": []}

    async def work() -> None:
        for turn in range(calls):
            known = draw.random() < 0.9
            text = query(draw.randrange(num_entries)) if known else f"new {turn} {draw.randrange(4)}"
            began = time.perf_counter()
            outcome = await tool_gateway.call({"search": tool}, Call(name="search", arguments={"query": text}), CONTEXT)
            assert outcome.text == result(text)
            times["hit" if outcome.cached else "miss"].append(time.perf_counter() - began)

    start.wait()
    began = time.perf_counter()
    asyncio.run(work())
    report.put((times, tool.calls, time.perf_counter() - began))


def many_processes(file: Path, num_entries: int, processes: int, calls: int) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    start, report = context.Barrier(processes), context.Queue()
    arguments = [(str(file), number, num_entries, calls, start, report) for number in range(processes)]
    started = [context.Process(target=worker, args=values) for values in arguments]
    for process in started:
        process.start()
    found = [report.get(timeout=600) for _ in started]
    for process in started:
        process.join()
    times = {kind: [one for times, _, _ in found for one in times[kind]] for kind in ("hit", "miss")}
    asked = len(times["miss"])
    return {
        "hit": percentiles(times["hit"]),
        "miss": percentiles(times["miss"]),
        "calls_a_second": round(processes * calls / max(seconds for _, _, seconds in found)),
        "misses_asked": asked,
        "misses_executed": sum(executed for _, executed, _ in found),
    }


def same_query(file: str, fails: bool, start: Any, report: Any) -> None:
    tool = Search(SEARCH_S, fails=fails)
    tool_gateway = traffic_over(Path(file), tool)

    async def ask() -> str:
        return (await tool_gateway.call({"search": tool}, Call(name="search", arguments={"query": "the same"}), CONTEXT)).text

    start.wait()
    began = time.perf_counter()
    text = asyncio.run(ask())
    report.put((text, tool.calls, time.perf_counter() - began))


def in_flight(folder: Path) -> dict[str, Any]:
    """16 equal queries at once: in one process, and in 16."""
    tool = Search(SEARCH_S)
    tool_gateway = traffic_over(folder / "one.sqlite", tool)

    async def all_at_once() -> None:
        call = Call(name="search", arguments={"query": "the same"})
        await asyncio.gather(*(tool_gateway.call({"search": tool}, call, CONTEXT) for _ in range(16)))

    asyncio.run(all_at_once())
    found, failing = in_16_processes(folder / "many.sqlite"), in_16_processes(folder / "failing.sqlite", fails=True)
    assert {text for text, _, _ in found} == {result("the same")} and {text for text, _, _ in failing} == {"no such page"}
    return {
        "one_process_calls": tool.calls,
        "processes_calls": sum(calls for _, calls, _ in found),
        "processes_calls_failing": sum(calls for _, calls, _ in failing),
        "processes_slowest_s": round(max(seconds for _, _, seconds in found), 3),
        "search_s": SEARCH_S,
    }


def in_16_processes(file: Path, *, fails: bool = False) -> list[tuple[str, int, float]]:
    """What each was told, how many calls it executed, and after how many seconds it had its answer."""
    context = multiprocessing.get_context("spawn")
    start, report = context.Barrier(16), context.Queue()
    started = [context.Process(target=same_query, args=(str(file), fails, start, report)) for _ in range(16)]
    for process in started:
        process.start()
    found = [report.get(timeout=600) for _ in started]
    for process in started:
        process.join()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="20,000 entries and 4 processes")
    quick = parser.parse_args().quick
    num_entries, processes, calls = (20_000, 4, 300) if quick else (1_000_000, 16, 1_000)
    figures: dict[str, Any] = {
        "entries": num_entries,
        "processes": processes,
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        figures["around_a_call_cpu_us"] = around_a_call(300 if quick else 2_000, folder)
        small, _ = filled(folder / "small.sqlite", 1_000)
        large, seconds = filled(folder / "large.sqlite", num_entries)
        figures["filling_us_an_entry"] = round(seconds / num_entries * 1e6, 1)
        figures["file_mb"] = round(large.path.stat().st_size / 2**20, 1)
        figures["one_process"] = {
            "1,000 entries": one_process(small, 1_000, calls),
            f"{num_entries:,} entries": one_process(large, num_entries, calls),
        }
        figures["many_processes"] = many_processes(large.path, num_entries, processes, calls)
        figures["in_flight"] = in_flight(folder)
    for name, value in figures.items():
        print(f"{name}: {value}")
    around, flights = figures["around_a_call_cpu_us"], figures["in_flight"]
    many, alone = figures["many_processes"], figures["one_process"][f"{num_entries:,} entries"]
    goals = [
        at_most("CPU microseconds around a call with nothing configured", 50, around["nothing configured"] - around["bare"]),
        at_most(f"median hit in {num_entries:,} entries, microseconds", 1_000, alone["hit"]["p50_us"]),
        at_most(f"median hit with {processes} processes, microseconds", 1_000, many["hit"]["p50_us"]),
        at_most("executed calls for 16 equal queries in one process", 1, flights["one_process_calls"]),
        at_most("executed calls for 16 equal queries in 16 processes", 1, flights["processes_calls"]),
        at_most("executed calls for 16 equal queries that fail, in 16 processes", 1, flights["processes_calls_failing"]),
    ]
    return finish("cache", figures, goals)


if __name__ == "__main__":
    raise SystemExit(main())
