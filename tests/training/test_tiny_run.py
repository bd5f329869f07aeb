"""A whole run of the tiny project, from its cold start to its report."""

from pathlib import Path

import pytest

from arpo.core.place import show
from arpo.evaluation.results import read_results
from arpo.evaluation.samples import read_samples
from arpo.runs.folder import RunFolder


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


def test_the_summary_holds_the_accuracy_of_every_family(tiny_run: Path) -> None:
    summary = RunFolder(tiny_run).summary()
    for when in ("before", "after"):
        families = summary[f"families_{when}"]
        assert set(families) == {"one digit", "two digits"}
        assert all(set(family) == {"mean", "low", "high", "n"} for family in families.values())
        assert sum(family["n"] for family in families.values()) == summary[f"accuracy_{when}"]["n"] == 12
        correct = sum(family["n"] * family["mean"] for family in families.values())
        assert correct == pytest.approx(12 * summary[f"accuracy_{when}"]["mean"])


def test_recorded_tokens_can_be_read_with_the_runs_own_tokenizer(tiny_run: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_run / "tokenizer")
    for record in RunFolder(tiny_run).trees(1):
        assert tokenizer.decode(record.tree.prompt.tokens) == record.notes["prompt"]
        for place, turn in record.tree.turns.items():
            assert tokenizer.decode(turn.tokens) == record.notes["texts"][show(place)]


def test_the_cold_start_taught_the_protocol(tiny_run: Path) -> None:
    folder = tiny_run / "evaluation" / "before"
    called = [sample.calls > 0 for sample in read_samples(folder).values()]
    assert sum(called) > len(called) / 2, "a model that never calls a tool makes the other tests empty"
    assert set(read_results(folder).benchmarks[0].by_family) == {"one digit", "two digits"}
