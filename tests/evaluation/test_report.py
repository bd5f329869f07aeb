import re

import pytest
from synthetic_run import write_run

from arpo.display.tables import markdown_table
from arpo.errors import ConfigError
from arpo.report.run_report import write_report
from arpo.runs.folder import RunFolder


def test_a_finished_run_is_told_whole(tmp_path):
    text = write_report(write_run(tmp_path / "run")).read_text()
    for title in (
        "## Evaluations",
        "### By family",
        "## Gates",
        "## Warnings and events",
        "## Curves",
        "## Sample trajectories",
    ):
        assert title in text
    assert "| state | finished |" in text and "`after` minus `before`" in text
    assert "| `rollout.rule.kind` | paper |" in text and "the last task came back empty twice" in text


@pytest.mark.real_plots
def test_every_picture_that_is_named_is_there(tmp_path):
    path = write_report(write_run(tmp_path / "run"))
    named = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", path.read_text())
    assert [name.rpartition("/")[2] for name in named] == ["reward.png", "tools.png", "branching.png", "learner.png"]
    assert all((path.parent / name).read_bytes().startswith(b"\x89PNG") for name in named)


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_runs_cut_off_early_have_a_report(tmp_path, steps):
    run = write_run(tmp_path / "run", steps=steps, finished=False, evaluated=False)
    if steps:
        with (run / "metrics.jsonl").open("a") as file:
            file.write('{"step": 99, "reward/le')
    text = write_report(run).read_text()
    assert "cut off" in text and f"| steps | {steps} |" in text


def test_a_run_that_is_still_written_says_so(tmp_path):
    with RunFolder.create(tmp_path / "run", "name: x\n", {}) as run:
        run.append_metrics(1, {"reward/probe_lines": float("nan")})
        assert "still going" in write_report(tmp_path / "run").read_text()


def test_grpo_has_no_branching_figure(tmp_path):
    path = write_report(write_run(tmp_path / "run", rule="none", steps=3, evaluated=False))
    assert "Siblings wanted" not in path.read_text() and (path.parent / "plots" / "branching.png").exists()


def test_text_of_a_model_cannot_break_out_of_its_block(tmp_path):
    with RunFolder.create(tmp_path / "run", "name: x\n", {}) as run:
        run.append_sample(1, "````\n# not a heading", reward=0.0)
        run.note("a | b\nc", level="warning")
    text = write_report(tmp_path / "run").read_text()
    assert "`````text\n````\n# not a heading\n`````" in text and "a \\| b c" in text


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no run"):
        write_report(tmp_path)


def test_tables_align_numbers_right():
    assert markdown_table(["a", "b"], [["x", 1]]) == "| a | b |\n| --- | ---: |\n| x | 1 |"
