"""Benchmarks of speed, small: each runs to its end as a user would start it, and ends with one JSON object of the
agreed form."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from _requests import Asked, unique_tokens

from arpo.engines import SamplingParams

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"

pytestmark = pytest.mark.slow


def last_line(name: str, *arguments: str, **environment: str) -> dict[str, Any]:
    """What `benchmarks/NAME.py --quick ARGUMENTS` says last, after it was found to have the form that all share."""
    return lines_of(name, *arguments, **environment)[-1]


def lines_of(name: str, *arguments: str, **environment: str) -> list[dict[str, Any]]:
    """Its lines of JSON."""
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
    lines = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("{")]
    assert said["name"] == name
    assert isinstance(said["figures"], dict) and said["figures"]
    assert said["goals"] or all("skipped" in check for check in said["figures"].values())
    for goal in said["goals"]:
        assert set(goal) == {"what", "goal", "measured", "holds"}
        sign, number = goal["goal"].split()
        assert sign in ("<=", ">=") and float(number) > 0
        assert isinstance(goal["measured"], float) and isinstance(goal["holds"], bool)
        assert goal["holds"] == (
            goal["measured"] <= float(number) if sign == "<=" else goal["measured"] >= float(number)
        )
    assert {"cpu", "commit", "load"} <= set(said["machine"])
    return lines


def test_answers():
    assert last_line("answers")["figures"]["pairs"] == 200


def test_core():
    said = last_line("core")
    assert said["figures"]["a_tree"]["leaves"] == 16
    assert set(said["figures"]["ms_a_tree"]) == {"expansion", "credit", "packing", "record", "in all"}


def test_reading():
    said = last_line("reading")
    assert len(said["figures"]["ms_a_turn"]) == 17 and said["figures"]["slowest_ms"] > 0


def test_wire():
    said = last_line("wire")
    assert said["figures"]["bytes_a_token"]["compact"] < 20 < said["figures"]["bytes_a_token"]["json"]


def test_recall():
    said = last_line("recall")
    assert set(said["figures"]) == {"recompose", "drop_results"}
    assert all(each["contexts_a_leaf"] >= 1 for each in said["figures"].values())


def test_cluster_simulation():
    assert all(0 < each["gpus"] <= 1 for each in last_line("cluster_simulation")["figures"].values())


def test_packing():
    said = last_line("packing", "--shape", "tiny")
    by_name = {goal["what"]: goal for goal in said["goals"]}
    assert by_name["gradients in float64, relative distance of packed from flat"]["holds"]
    assert said["figures"]["dealing"]["alike bins"]["mean"] <= 1.1 < said["figures"]["dealing"]["first fit"]["mean"]
    sides = said["figures"]["sides"]
    assert sides["packed"]["tokens"] < sides["prompt"]["tokens"] < sides["flat"]["tokens"]


def test_memory():  # that nothing grows: tests/runs/test_soak.py, over more steps
    assert last_line("memory")["figures"]["steps"] > 30


def of_checks(*arguments: str) -> dict[str, Any]:
    """The last line of gpu_check without a GPU, after each check was found to have a line of its own."""
    *lines, said = lines_of("gpu_check", *arguments, CUDA_VISIBLE_DEVICES="")
    assert lines == [{"check": name, **figures} for name, figures in said["figures"].items()]
    return said


def test_gpu_check_skips_what_is_not_there():
    said = of_checks()
    assert {"flex", "step", "train-7b", "offload", "ipc"} <= set(said["figures"]) and said["goals"] == []
    assert all("no GPU" in check["skipped"] for check in said["figures"].values())


def test_gpu_check_runs_tiny_on_a_cpu():
    said = of_checks("--tiny")
    ran = {name for name, figures in said["figures"].items() if "skipped" not in figures}
    assert ran == {"flex", "mask", "train-1.5b", "train-7b", "offload", "engine"}
    by_name = {goal["what"]: goal for goal in said["goals"]}
    assert by_name["FlexAttention from dense attention, worst relative distance"]["holds"]
    assert by_name["the engine's log-probabilities, nats from the model's"]["holds"]
    assert said["figures"]["offload"]["weights written, GB/s"] > 0


def test_unique_prefix_tokens_are_those_that_no_turn_wrote():
    after = Asked((1, 2, 3, 9, 9, 5), SamplingParams(max_tokens=1), 0)
    wrote = Asked((1, 2, 3), SamplingParams(max_tokens=2), 0, [9, 9])
    other = Asked((1, 2, 4), SamplingParams(max_tokens=2), 0)
    assert unique_tokens([wrote, wrote, other, after, after]) == 5
