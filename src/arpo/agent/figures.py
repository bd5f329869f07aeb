"""What a server counts, in Prometheus' text format (`/metrics`)."""

from collections.abc import Iterator
from dataclasses import asdict
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from arpo.agent.admission import Admission
from arpo.engines.base import EngineBase
from arpo.rollout.watching import ResultsRead

SECONDS = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)


class ServerFigures:
    """Counters of one server, with a registry of their own."""

    def __init__(self, admission: Admission, engine: EngineBase | None) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("arpo_requests", "Requests and how they ended", ["kind", "outcome"], registry=None)
        self.seconds = Histogram("arpo_answer_seconds", "Of whole answers", ["kind"], buckets=SECONDS, registry=None)
        self.tokens = Counter("arpo_tokens", "Tokens read of prompts, and written", ["direction"], registry=None)
        self.calls = Counter("arpo_tool_calls", "Calls of the agent's own tools", ["tool", "status"], registry=None)
        for counted in (self.requests, self.seconds, self.tokens, self.calls):
            self.registry.register(counted)
        for name, about in (("running", "Requests that are answered now"), ("waiting", "Requests that wait")):
            Gauge(f"arpo_requests_{name}", about, registry=self.registry).set_function(
                partial(getattr, admission, name)
            )
        if engine is not None:
            self.registry.register(_EngineTotals(engine))

    def count_calls(self, event: ResultsRead) -> None:
        for result in event.results:
            self.calls.labels(result.tool, result.status.value).inc()

    def count_tokens(self, read: int, written: int) -> None:
        self.tokens.labels("read").inc(read)
        self.tokens.labels("written").inc(written)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class _EngineTotals(Collector):
    """The engine's own running totals, where it has any."""

    def __init__(self, engine: EngineBase) -> None:
        self.engine = engine

    def collect(self) -> Iterator[CounterMetricFamily]:
        for name, value in asdict(self.engine.stats).items() if self.engine.stats is not None else ():
            yield CounterMetricFamily(f"arpo_engine_{name}", f"The engine's {name}", value=value)
