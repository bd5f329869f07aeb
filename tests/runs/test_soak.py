"""Killed runs resume as if nothing had been (`soak.py`). That a run does not grow: `test_benchmarks_quick.py`."""

from pathlib import Path

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
