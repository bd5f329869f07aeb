"""Studies: which cells are run, resumed and skipped, and what their rows say, against what was built in."""

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path

import pytest
from typer.testing import CliRunner

from arpo.cli.commands import app
from arpo.errors import ConfigError, FormatError
from arpo.evaluation.statistics import holm, sign_flip_test
from arpo.runs.folder import RunFolder
from arpo.study import sweep as sweep_module
from arpo.study.figures import Figures
from arpo.study.plan import Row, Study, cells_of, read_rows, read_study, rows_path
from arpo.study.sweep import HISTORY, sweep

TEXT = """\
recipe: lab
seeds: 2
set: {train.steps: 3}
baseline: grpo, leaves 4
cells: {grpo: {rollout.rule: none, rollout.roots: 2}, arpo: {rollout.rule: paper, rollout.roots: 2}}
grid: {rollout.leaves: [4, 8]}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(TEXT)
    return path


def row(cell, accuracy, calls):
    """A row whose accuracy by step and calls by step are given."""
    history = {name: [0.0] * len(calls) for name in HISTORY}
    history |= {"calls/executed": calls, "accuracy/probe_lines": accuracy}
    return Row(cell=cell.name, seed=cell.seed, key=cell.key, before=0.3, after=accuracy[-1], seconds=1.0,
               history=history)  # fmt: skip


def test_the_grid_crosses_cells_and_seeds_and_every_cell_has_its_own_key(file):
    cells = cells_of(read_study(file), file)
    assert [cell.name for cell in cells[:4]] == [f"{c}, leaves {n}" for c in ("grpo", "arpo") for n in (4, 8)]
    assert [cell.seed for cell in cells] == [0] * 4 + [1] * 4
    assert len({cell.key for cell in cells}) == 8
    file.write_text(TEXT.replace("train.steps: 3", "train.steps: 4"))
    assert not {cell.key for cell in cells} & {cell.key for cell in cells_of(read_study(file), file)}


def test_a_key_changes_with_whatever_a_recipe_builds_on_but_not_with_comments_and_places(file, tmp_path):
    def keys(folder: Path, base: str, own: str = "{}") -> list[str]:
        folder.mkdir(exist_ok=True)
        (folder / "below.yaml").write_text(f"base: lab\n{base}\n")
        (folder / "mine.yaml").write_text(f"base: below.yaml\nname: mine\noptim: {own}\n")
        (folder / "study.yaml").write_text(TEXT.replace("recipe: lab", "recipe: mine.yaml"))
        study = folder / "study.yaml"
        return [cell.key for cell in cells_of(read_study(study), study)]

    first = keys(tmp_path / "a", "train: {tasks_per_step: 4}")
    assert keys(tmp_path / "a", "train: {tasks_per_step: 4}  # of one machine") == first
    assert keys(tmp_path / "b", "train: {tasks_per_step: 4}") == first
    assert not {*keys(tmp_path / "a", "train: {tasks_per_step: 5}")} & {*first}
    assert not {*keys(tmp_path / "a", "train: {tasks_per_step: 4}", "{lr: 1.0e-4}")} & {*first}


def test_finished_cells_are_skipped_and_failed_ones_are_tried_again(file, monkeypatch):
    study, tried = read_study(file), []
    bad = {("arpo, leaves 8", 1)}

    def run_cell(cell, *_):
        tried.append((cell.name, cell.seed))
        return Path("log") if (cell.name, cell.seed) in bad else row(cell, [0.5] * 3, [10] * 3)

    monkeypatch.setattr(sweep_module, "run_cell", run_cell)
    assert sweep(study, file, file.parent / "runs", limit=3, tell=str) == 0
    assert sweep(study, file, file.parent / "runs", jobs=2, tell=str) == 1
    assert len(tried) == len(set(tried)) == 8
    bad.clear()
    with rows_path(file).open("ab") as cut:
        cut.write(b'{"cell": "gr')  # a sweep that was killed while it wrote
    assert sweep(study, file, file.parent / "runs", tell=str) == 0
    assert tried[8:] == [("arpo, leaves 8", 1)]
    assert len(read_rows(file)) == 8


def test_figures_are_those_that_were_built_in(file):
    """Straight lines: accuracy is calls / 1000, so 0.5 is reached at 500 calls, and the mean up to 800 is known."""
    study = Study(recipe="lab", cells={"a": {}, "b": {}}, accuracy=0.5)
    cells = {(cell.name, cell.seed): cell for cell in cells_of(study, file)}
    rows = []
    for seed in range(10):
        for name, speed in (("a", 1.0), ("b", 2.0)):
            calls = [10] * 100
            accuracy = [speed * (10 * i) / 1000 + 0.001 * seed for i in range(1, 101)]
            rows.append(row(cells[name, seed], accuracy, calls))
    figures = Figures(study, rows)
    assert figures.calls == 1000
    levels = figures.by_cell()
    lag = 20 / 1000  # a mean over five steps looks back by two
    assert levels["a"]["calls to 50%"].mean == pytest.approx(1000 * (0.5 + lag - 0.0045), abs=1)
    assert levels["b"]["calls to 50%"].mean == pytest.approx(500 * (0.5 + 2 * lag - 0.0045), abs=1)
    assert levels["a"]["accuracy at 1,000 calls"].mean == pytest.approx(1 - lag + 0.0045)
    assert levels["a"]["area"].mean == pytest.approx(0.505 - lag + 0.0045, abs=0.003)
    against = figures.differences()["b"]
    assert all(difference.p_value == pytest.approx(4 * 2 / 2**10) for difference in against.values())
    assert against["accuracy at 1,000 calls"].mean.low > 0.9
    assert "b" in figures.tables()[1].markdown()
    assert figures.draw(file.with_suffix(".png"))


def test_seeds_without_a_figure_are_left_out_of_it_alone(file):
    """A run without held-out tasks has no accuracy on them (null in its row)."""
    study = Study(recipe="lab", cells={"a": {}, "b": {}}, accuracy=0.5, seeds=6)
    rows = [row(cell, [0.1, 0.6 if cell.name == "a" else 0.8], [10, 10]) for cell in cells_of(study, file)]
    rows = [replace(one, after=None) if one.cell == "b" and one.seed < 4 else one for one in rows]
    figures = Figures(study, rows)
    assert figures.by_cell()["b"]["held-out after"].n == 2 and figures.by_cell()["b"]["area"].n == 6
    against = figures.differences()["b"]
    assert against["held-out after"].mean.n == 2 and against["held-out after"].mean.mean == pytest.approx(0.2)
    assert against["area"].mean.n == 6
    assert all(0 < difference.p_value <= 1 for difference in against.values())
    rows = [replace(one, after=None) for one in rows]
    assert "nan" not in "".join(table.markdown() for table in Figures(study, rows).tables())


def test_the_command_writes_table_and_curves_of_what_is_there_and_ends_with_1_where_a_cell_fails(file, monkeypatch):
    """Without --out too, whose default is a folder of its own."""
    monkeypatch.chdir(file.parent)
    monkeypatch.setattr(sweep_module, "run_cell", lambda cell, *_: row(cell, [0.2, 0.6, 0.8], [10] * 3))
    assert CliRunner().invoke(app, ["sweep", str(file), "--limit", "0"]).exit_code == 0
    assert not file.with_suffix(".md").exists(), "there is nothing to show yet"
    assert CliRunner().invoke(app, ["sweep", str(file), "--limit", "4"]).exit_code == 0
    page = file.with_suffix(".md").read_text()
    assert all(name in page for name in ("arpo, leaves 8", "calls to 70%", "area", "held-out after"))
    assert file.with_suffix(".png").is_file()
    monkeypatch.setattr(sweep_module, "run_cell", lambda *_: Path("a.log"))
    failed = CliRunner().invoke(app, ["sweep", str(file), "--limit", "1"])
    assert failed.exit_code == 1 and "a.log" in failed.output and len(read_rows(file)) == 4


def test_a_run_that_never_reaches_the_level_counts_with_all_its_calls(file):
    study = Study(recipe="lab", cells={"a": {}}, accuracy=0.9)
    figures = Figures(study, [row(cells_of(study, file)[0], [0.1] * 4, [10] * 4)])
    assert figures.reached("a") == 0
    assert figures.by_cell()["a"]["calls to 90%"].mean == 40


def test_holm_is_monotone_at_least_the_p_value_and_at_most_bonferroni():
    draw = random.Random(0)
    for _ in range(200):
        p = [draw.random() ** 3 for _ in range(draw.randint(0, 8))]
        corrected = holm(p)
        assert all(a <= b <= min(1.0, a * len(p)) + 1e-12 for a, b in zip(p, corrected, strict=True))
        assert all(a <= b for a, b in pairwise(c for _, c in sorted(zip(p, corrected, strict=True))))
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert sign_flip_test([0.1] * 5) == pytest.approx(2 / 2**5)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        (TEXT.replace("rollout.rule: paper", "rollout.rul: paper"), "rollout"),
        (TEXT.replace("baseline: grpo, leaves 4", "baseline: grpo"), "baseline"),
        (TEXT.replace("seeds: 2", "seeds: 0"), "seeds"),
        (TEXT.replace("seeds: 2", f"seeds: {10**12}"), "more than"),
        (TEXT.replace("[4, 8]", f"[4, 8], {', '.join(f'k{n}: [1, 2, 3, 4]' for n in range(40))}"), "more than"),
    ],
)
def test_a_mistake_in_a_study_is_named_before_anything_runs(file, text, where):
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_study(file)
    assert where in str(caught.value)


def test_rows_are_lines_of_json(file):
    cell = cells_of(read_study(file), file)[0]
    rows_path(file).write_text(json.dumps(asdict(row(cell, [0.5], [1]))) + "\n")
    assert read_rows(file)[0].key == cell.key


@pytest.mark.parametrize(
    "changes",
    [
        {"cell": None},
        {"seed": "x"},
        {"key": [1]},
        {"after": "much"},
        {"after": 10**400},
        {"seconds": None},
        {"history": []},
        {"history": {"calls/executed": "abc"}},
        {"history": {"calls/executed": [1], "leaves/all": [1, 2]}},
        {"more": 1},
    ],
    ids=str,
)
def test_a_row_of_something_else_is_named(file, changes):
    cell = cells_of(read_study(file), file)[0]
    rows_path(file).write_text(json.dumps({**asdict(row(cell, [0.5], [1])), **changes}) + "\n")
    with pytest.raises(FormatError, match=r"mine\.rows\.jsonl: row 1 is none of a study"):
        read_rows(file)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_cells_do_not_outlive_their_sweep(file, monkeypatch, number):
    """Whoever is told to end, in a terminal or not, ends the processes of its cells."""
    started, before = [], signal.getsignal(number)

    def run_cell(cell, recipe, runs, jobs, processes):
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        processes.add(process)
        started.append(process)
        os.kill(os.getpid(), number)
        process.wait()
        return Path("log")

    monkeypatch.setattr(sweep_module, "run_cell", run_cell)
    if before is signal.SIG_IGN:  # of `nohup`
        signal.signal(number, signal.SIG_DFL)
    try:
        with pytest.raises(KeyboardInterrupt):
            sweep(read_study(file), file, file.parent / "runs", tell=str)
    finally:
        signal.signal(number, before)
    assert [process.wait() for process in started] == [-signal.SIGTERM]


def test_rows_go_to_no_file_that_a_link_names(file, monkeypatch):
    monkeypatch.setattr(sweep_module, "run_cell", lambda cell, *_: row(cell, [0.5], [1]))
    victim = file.with_name("victim")
    victim.write_text("")
    rows_path(file).symlink_to(victim)
    with pytest.raises(FormatError, match="is a link"):
        sweep(read_study(file), file, file.parent / "runs", limit=1, tell=str)
    assert victim.read_text() == ""


@pytest.mark.slow
def test_a_study_of_real_runs_keeps_a_row_of_each_that_ends_and_survives_one_that_does_not(own_project):
    """The cell `strict` fails at its gates, before anything is trained. A row that was lost is made again from its run,
    without training."""
    path = own_project.folder / "study.yaml"
    path.write_text(
        "recipe: tiny.yaml\nseeds: 1\naccuracy: 0.4\n"
        "set: {train.steps: 2, evaluation.limit: 4, evaluation.greedy_limit: 0, train.trackers: {}}\n"
        "cells: {strict: {train.gates: {rise_positive: 1.0, mixed_groups: 1.0, format: 1.0}}, paper: {}}\n"
    )
    study, runs, told = read_study(path), own_project.folder / "runs", []
    assert sweep(study, path, runs, tell=told.append) == 1
    (row,) = read_rows(path)
    assert row.cell == "paper" and row.steps == 2 and "strict, seed 0: failed" in told[1]
    assert "not fit to be trained on" in next(runs.glob(f"{cells_of(study, path)[0].key}*.log")).read_text()
    folder = RunFolder(runs / f"{row.key}-seed0")
    for name in ("calls/executed", "leaves/all"):
        assert row.history[name] == [line[name] for line in folder.metrics()]
    rows_path(path).unlink()
    assert sweep(study, path, runs, tell=told.append) == 1
    assert replace(read_rows(path)[0], seconds=0.0) == replace(row, seconds=0.0)
    figures = Figures(study, read_rows(path))
    assert figures.calls == sum(row.history["calls/executed"])
