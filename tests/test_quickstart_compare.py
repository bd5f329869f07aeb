"""The comparison of methods over seeds: what its cells share, what its tables say, and that it goes on where it
stopped."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import _cells as cells
import pytest
import quickstart_compare as benchmark

from arpo.errors import ConfigError, FormatError
from arpo.sft.cache import SFTCache
from tiny_project import TinyProject

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "quickstart_compare.py"


def plan_of(out: Path, **changed: Any) -> Any:
    given = {"recipe": "quickstart", "overrides": (), "methods": cells.METHODS, "seeds": (0, 1, 2), "out": out}
    return cells.Plan(**{**given, **changed})


def cell(method: str, seed: int, accuracy: float, *, calls: float = 100.0, recipe: dict[str, Any] | None = None) -> Any:
    """A finished cell that answers the first questions right, as many as `accuracy` says, and then one a seed more."""
    asked = [f"q{n:03d}" for n in range(200)]
    right = round(accuracy * len(asked)) + seed
    answered = {"after": right, "after-greedy": right, "before": 80, "before-greedy": 90}
    step = {"leaves/all": 64.0, "calls/executed": calls / 4, "tokens/generated": 500.0, "seconds/step": 10.0}
    return cells.Cell(
        method=method,
        seed=seed,
        cold_start_key="key",
        recipe=recipe or {"rollout": {"leaves": 8, "rule": {"rates": [0.4, 0.25]}}},
        want_rates={1: 0.5, 3: 0.25},
        seconds={"training": 40.0},
        evaluation={
            name: cells.Answers(
                accuracy={q: float(n < count) for n, q in enumerate(asked)},
                family=dict.fromkeys(asked, "one hop"),
                settings={"seed": 0},
            )
            for name, count in answered.items()
        },
        steps=[{"step": n, "accuracy/probe_lines": accuracy + n / 100, **step} for n in range(1, 5)],
    )


def write(plan: Any, *found: Any) -> None:
    for one in found:
        path = plan.cell_file(one.method, one.seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(one.model_dump_json())


def test_cells_differ_in_their_method_alone(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, overrides=("rollout.leaves=8", "rollout.roots=3"))
    runs = {(method, seed): cells.cell_run(plan, method, seed) for method, seed in plan.order()}
    assert len(runs) == 12 and len({SFTCache(run).key for run in runs.values()}) == 1
    assert {run.rollout.leaves for run in runs.values()} == {8}
    assert {run.evaluation.seed for run in runs.values()} == {0} and all(
        run.train.gates is None for run in runs.values()
    )
    assert {key: run.rollout.roots for key, run in runs.items() if key[1] == 0} == {
        ("grpo", 0): 8, ("fixed", 0): 3, ("random", 0): 3, ("arpo", 0): 3
    }  # fmt: skip
    rules = {method: runs[method, 0].rollout.rule.rule for method in cells.METHODS}
    assert rules == {"grpo": "none", "fixed": "fixed", "random": "random", "arpo": "paper"}
    fixed = runs["fixed", 0].rollout
    assert fixed.roots * (1 + fixed.rule.siblings) >= fixed.leaves, "sharing alone must be able to fill the tree"


def test_within_a_seed_arpo_comes_before_random_which_takes_its_rates(tmp_path: Path) -> None:
    order = plan_of(tmp_path).order()
    assert [seed for _, seed in order] == sorted(seed for _, seed in order)
    assert all(order.index(("arpo", seed)) < order.index(("random", seed)) for seed in range(3))
    assert cells.rates_of(cell("arpo", 0, 0.6), 0) == (0.5, 0.5, 0.25), (
        "a depth without a tip has the rate of the one before"
    )
    with pytest.raises(cells.CellError, match="not finished"):
        cells.rates_of(None, 0)


def test_a_comparison_goes_on_with_the_settings_that_it_began_with(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, methods=("grpo",), seeds=(0,))
    recipe = cells.plain(cells.cell_run(plan, "grpo", 0))
    write(plan, cell("grpo", 0, 0.6, recipe=recipe))
    cells.check_begun(plan)
    with pytest.raises(ConfigError, match=r"another optim\.lr"):
        cells.check_begun(plan_of(tmp_path, methods=("grpo",), seeds=(0,), overrides=("optim.lr=1e-6",)))
    plan.cell_file("grpo", 0).write_text('{"kind": "something else"}')
    with pytest.raises(FormatError, match="no finished cell"):
        cells.finished(plan, "grpo", 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--methods", "grpo,arppo"], "did you mean 'arpo'"),
        (["--methods", "grpo,random"], "add arpo"),
        (["--seeds", "0"], "at least one seed"),
        (["rollout.rule=aepo"], "a recipe for ARPO"),
        (["rollout.leafs=8"], "did you mean 'leaves'"),
    ],
)
def test_mistakes_are_told_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert benchmark.main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.slow  # draws
@pytest.mark.real_plots
def test_tables_and_closing_line_of_finished_cells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_of(tmp_path)
    accuracy, calls = {"grpo": 0.6, "fixed": 0.6, "random": 0.62, "arpo": 0.65}, {"grpo": 100.0, "arpo": 70.0}
    write(plan, *(cell(m, s, accuracy[m], calls=calls.get(m, 80.0)) for m in cells.METHODS for s in range(3)))
    assert benchmark.show(plan, {}) is False
    table, closing = (tmp_path / "table.md").read_text(), json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "12 of 12 cells" in table and "70 (0.70)" in table and "about 10 points" in table and "40 %, 25 %" in table
    assert (tmp_path / "plot.png").stat().st_size > 10_000
    arpo = closing["figures"]["arpo"]
    assert arpo["sampled"]["mean"] == pytest.approx(0.655) and arpo["sampled"]["n"] == 3
    assert arpo["over_cold_start"]["mean"] == pytest.approx(0.255)
    assert arpo["over_grpo_by_seed"]["mean"] == pytest.approx(0.05)
    assert arpo["accuracy_all_steps"]["mean"] == pytest.approx(0.675)
    assert closing["figures"]["at_equal_tool_calls"]["tool_calls"] == 70.0
    assert closing["name"] == "quickstart-compare" and all(goal["holds"] for goal in closing["goals"])
    assert {"what", "goal", "measured", "holds"} == set(closing["goals"][0])


def test_an_unfinished_comparison_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_of(tmp_path)
    assert benchmark.show(plan, {}) is False
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["figures"] == {}
    write(plan, cell("arpo", 0, 0.6))
    assert benchmark.show(plan, {"grpo-s0": "exit code 1"}) is True
    printed = capsys.readouterr().out
    assert (
        "failed: grpo-s0: exit code 1" in printed and json.loads(printed.splitlines()[-1])["goals"][0]["holds"] is False
    )
    assert "With one seed" in (tmp_path / "table.md").read_text()


def test_what_can_be_told_with_so_many_questions_and_seeds() -> None:
    assert benchmark.resolution(0.7, 200, 3) == pytest.approx(0.1, abs=0.01)
    assert benchmark.resolution(0.7, 800, 3) == pytest.approx(benchmark.resolution(0.7, 200, 3) / 2)
    assert math.isnan(benchmark.resolution(0.7, 200, 1))


def started(project: TinyProject, out: Path, *arguments: str) -> "subprocess.Popen[str]":
    source = str(SCRIPT.parents[1] / "src")
    paths = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
    command = [
        sys.executable,
        str(SCRIPT),
        "--recipe",
        str(project.recipe),
        "--out",
        str(out),
        "--seeds",
        "2",
        "--steps",
        "3",
    ]
    return subprocess.Popen(
        [*command, "--methods", "random,arpo", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_a_comparison_is_stopped_and_goes_on(tiny_project: TinyProject, tmp_path: Path) -> None:
    """Two methods, two seeds: one cell, then a Ctrl-C in the middle of the next, then the rest."""
    out = tmp_path / "comparison"
    process = started(tiny_project, out, "--cells", "1")
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed
    first = out / "cells" / "arpo-s0.json"
    written = first.stat().st_mtime_ns
    assert [path.name for path in first.parent.iterdir()] == ["arpo-s0.json"]

    process = started(tiny_project, out)
    assert process.stdout is not None
    for line in process.stdout:
        if "random-s0 | step 2/3" in line:
            process.send_signal(signal.SIGINT)
            break
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 130 and "the same command goes on" in printed
    assert list((out / "runs" / "random-s0" / "checkpoints").iterdir()) and len(list(first.parent.iterdir())) == 1

    process = started(tiny_project, out)
    printed, _ = process.communicate(timeout=600)
    assert process.returncode == 0, printed
    assert "random-s0 | step 1/3" not in printed, "the stopped cell goes on from its checkpoint"
    assert first.stat().st_mtime_ns == written, "a finished cell is left alone"
    closing = json.loads(printed.splitlines()[-1])
    holds = {goal["what"]: goal["holds"] for goal in closing["goals"]}
    assert holds["cells finished, at least"] and holds["cold starts that the cells came from, at most"]
    found = {path.stem: json.loads(path.read_text()) for path in first.parent.iterdir()}
    assert sorted(found) == ["arpo-s0", "arpo-s1", "random-s0", "random-s1"]
    for name, one in found.items():
        assert [step["step"] for step in one["steps"]] == [1, 2, 3], name
        assert not (out / "runs" / name / "checkpoints").exists(), "checkpoints of finished cells only take room"
    rates = found["random-s0"]["recipe"]["rollout"]["rule"]["rates"]
    assert rates == [round(rate, 4) for rate in found["arpo-s0"]["want_rates"].values()]

    again, _ = started(tiny_project, out).communicate(timeout=600)
    assert again.splitlines()[-1] == printed.splitlines()[-1]
    assert not re.search(r"\| step \d", again), "nothing is left to do, so nothing is trained"
