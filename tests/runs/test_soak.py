"""Killed runs resume as if nothing had been (`soak.py`), and a run of many steps does not grow
(`benchmarks/memory.py`)."""

from pathlib import Path

import memory
import pytest
import soak


@pytest.mark.slow
def test_runs_killed_anywhere_are_resumed_as_if_nothing_had_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARPO_CACHE", "")  # the soak sets these; they are put back
    monkeypatch.setenv("TMPDIR", "")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2] / "src"))
    tally = soak.soak(tmp_path / "soak", runs=len(soak.KINDS), seed=1)  # every kind of kill comes first once
    assert tally.broken == [] and tally.killed == len(soak.KINDS)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="looks into /proc")
def test_a_run_of_many_steps_does_not_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARPO_CACHE", "")
    memory.measure(tmp_path, 120)
    series = dict(zip(memory.SERIES, zip(*memory.samples[memory.warm_up :], strict=True), strict=True))
    assert memory.growth(series["objects"]) / len(series["objects"]) < 5
    assert memory.growth(series["rss_mb"]) < 0.05 * series["rss_mb"][0]
    assert abs(memory.growth(series["descriptors"])) < 2
    assert abs(memory.growth(series["threads"])) < memory.POOL + 1
