"""Every step says what the engine read of prompts, where the engine counts that."""

from pathlib import Path

from arpo.engines.base import EngineBase
from arpo.engines.stats import EngineStats, Prefill
from arpo.report.run_report import write_report
from arpo.runs.folder import RunFolder


class Counting(EngineBase):
    def __init__(self) -> None:
        self.stats = EngineStats(prefill_tokens=100, reused_tokens=10)


def test_figures_are_differences() -> None:
    engine = Counting()
    prefill = Prefill(engine)
    engine.stats.prefill_tokens += 7
    assert prefill.since() == {"engine/prefill_tokens": 7, "engine/reused_tokens": 0}
    engine.stats.reused_tokens += 3
    assert prefill.since() == {"engine/prefill_tokens": 0, "engine/reused_tokens": 3}


def test_an_engine_that_does_not_count_says_nothing() -> None:
    assert Prefill(EngineBase()).since() == {}


def test_a_run_says_what_forks_did_not_cost(tiny_run: Path) -> None:
    for line in RunFolder(tiny_run).metrics():
        assert line["engine/prefill_tokens"] > 0 and line["engine/reused_tokens"] > 0
    assert "prompt tokens that the engine computed / knew" in write_report(tiny_run).read_text()
