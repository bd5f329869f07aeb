"""Benchmarks of speed, small: each runs to its end as a user would start it, and ends with one JSON object of the agreed form."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tiny_project import TinyProject

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"

pytestmark = pytest.mark.slow


def last_line(name: str, *arguments: str, **environment: str) -> dict[str, Any]:
    """What `benchmarks/NAME.py --quick ARGUMENTS` says last, after it was found to have the form that all share."""
    source = str(BENCHMARKS.parent / "src")
    ran = subprocess.run(
        [sys.executable, str(BENCHMARKS / f"{name}.py"), "--quick", *arguments],
        env={**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    said: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    assert said["name"] == name
    assert isinstance(said["figures"], dict) and said["figures"]
    assert said["goals"]
    for goal in said["goals"]:
        assert set(goal) == {"what", "goal", "measured", "holds"}
        sign, number = goal["goal"].split()
        assert sign in ("<=", ">=") and float(number) > 0
        assert isinstance(goal["measured"], float) and isinstance(goal["holds"], bool)
        assert goal["holds"] == (goal["measured"] <= float(number) if sign == "<=" else goal["measured"] >= float(number))
    assert {"cpu", "commit", "load"} <= set(said["machine"])
    return said


def test_core():
    said = last_line("core")
    assert said["figures"]["a_tree"]["leaves"] == 16
    assert set(said["figures"]["ms_a_tree"]) == {"expansion", "credit", "packing", "record", "in all"}


def test_packing():
    said = last_line("packing", "--shape", "tiny")
    by_name = {goal["what"]: goal for goal in said["goals"]}
    assert by_name["gradients in float64, relative distance of packed from flat"]["holds"]
    sides = said["figures"]["sides"]
    assert sides["packed"]["tokens"] < sides["prompt"]["tokens"] < sides["flat"]["tokens"]


def test_fork_of_a_random_model_without_vllm():
    said = last_line("fork", "--shape", "tiny", "--device", "cpu")
    assert not [goal for goal in said["goals"] if "vLLM" in goal["what"]]
    assert said["goals"][0]["what"].startswith("prefill") and said["goals"][0]["holds"]
    assert set(said["figures"]["tokens_per_s"]) == {"arpo", "generate"}


def test_step_beside_figures_that_were_kept(tiny_project: TinyProject, tmp_path: Path):
    kept = tmp_path / "before.json"
    place = {"ARPO_CACHE": str(tiny_project.cache)}
    first = last_line("step", "--recipe", str(tiny_project.recipe), "--json", str(kept), **place)
    phases = first["figures"]["phases_s"]
    assert sum(phases.values()) == pytest.approx(first["figures"]["step_s"])
    assert {"sampling", "update", "publication", "tools", "rewards", "packing", "records"} <= set(phases)
    second = last_line("step", "--recipe", str(tiny_project.recipe), "--baseline", str(kept), **place)
    assert second["figures"]["before"]["phases_s"] == phases


def test_an_unknown_earlier_commit_is_said():
    command = [sys.executable, str(BENCHMARKS / "step.py"), "--quick", "--before", "no-such-commit"]
    ran = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(BENCHMARKS.parent / "src")}, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2
    assert "no-such-commit" in ran.stderr and "Traceback" not in ran.stderr
