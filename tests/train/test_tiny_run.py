"""A whole run of the tiny project, from its cold start to its report."""

import json
from pathlib import Path

from arpo.train.runfolder import RunFolder


def test_a_run_leaves_everything_that_it_promises(tiny_run: Path) -> None:
    folder = RunFolder(tiny_run)
    summary = folder.summary()
    assert summary["status"] == "finished" and summary["steps"] == 2
    for name in ("accuracy_before", "accuracy_after", "greedy_before", "greedy_after"):
        assert set(summary[name]) == {"mean", "low", "high", "n"}, name
    assert summary["accuracy_before"]["n"] == 12 and summary["greedy_before"]["n"] == 6
    assert summary["tool_calls"] > 0 and summary["tokens_generated"] > summary["tool_calls"]
    assert [line["step"] for line in folder.metrics()] == [1, 2] and folder.event_steps() == [1, 2]
    assert sorted(path.name for path in (tiny_run / "checkpoints").iterdir()) == ["step-000001", "step-000002"]
    assert (tiny_run / "report.md").is_file()


def test_the_cold_start_taught_the_protocol(tiny_run: Path) -> None:
    before = json.loads((tiny_run / "evaluation" / "before.json").read_text())
    called = [sample["calls"] > 0 for sample in before["samples"]]
    assert sum(called) > len(called) / 2, "a model that never calls a tool makes the other tests empty"
    assert set(before["by_family"]) == {"one digit", "two digits"}
