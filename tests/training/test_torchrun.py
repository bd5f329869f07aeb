"""`torchrun --nproc-per-node N -m arpo train R` (or `sft`) is the run of one process, and whole whatever ends it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tiny_project import TinyProject

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="gloo on Linux")]


def arpo(
    project: TinyProject, out: Path, *arguments: str, ranks: int = 1, command: str = "train"
) -> subprocess.Popen[str]:
    options = ["--standalone", f"--nproc-per-node={ranks}", "--shutdown-timeout=3600"]  # no machine is too slow
    launcher = ["-m", "torch.distributed.run", *options] if ranks > 1 else []
    environment = {**os.environ, "ARPO_CACHE": str(out.parent / f"cache-{out.name}")}
    line = [sys.executable, *launcher, "-m", "arpo", command, *arguments, "--out", str(out)]
    return subprocess.Popen(
        line, cwd=project.folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finished(process: subprocess.Popen[str]) -> str:
    text, _ = process.communicate()
    assert process.returncode == 0, text
    return text


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


# No cold start, and a step teaches also where all rewards are equal.
AT_ONCE = ("tiny.yaml", "cold_start=null", "evaluation={limit: 1, greedy_limit: 0}", "loss.entropy_coefficient=0.01")


def test_two_ranks_train_what_one_process_does(tiny_project: TinyProject, tmp_path: Path) -> None:
    """The cold start, two steps, a checkpoint that either resumes."""
    short = ("train.steps=2", "cold_start.steps=8", "evaluation.limit=2", "evaluation.greedy_limit=0")
    changes = ("tiny.yaml", *short, "loss.entropy_coefficient=0.01")  # which teaches where all rewards are equal
    finished(arpo(tiny_project, tmp_path / "one", *changes))
    text = finished(arpo(tiny_project, tmp_path / "two", *changes, ranks=2))
    assert text.count("cold start: loss") == 1, "a follower speaks"
    for one, two in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        for name in ("train/loss", "train/grad_norm", "reward/leaves"):
            assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-4), name
    last = "checkpoints/step-000002"
    weights = [load_file(tmp_path / run / last / "model" / "model.safetensors") for run in ("one", "two")]
    assert weights[0].keys() == weights[1].keys()
    assert max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0]) < 1e-4
    resume = ("--resume", str(tmp_path / "two"), "train.steps=3")
    finished(subprocess.Popen([sys.executable, "-m", "arpo", "train", *resume], cwd=tiny_project.folder, text=True))
    assert len(metrics(tmp_path / "two")) == 3
    assert torch.isfinite(torch.tensor(metrics(tmp_path / "two")[-1]["train/loss"]))


def test_a_cold_start_alone_is_made_by_both_and_told_by_one(tiny_project: TinyProject, tmp_path: Path) -> None:
    short = ("cold_start.steps=2", "evaluation.limit=1", "evaluation.greedy_limit=0")
    text = finished(arpo(tiny_project, tmp_path / "model", "tiny.yaml", *short, ranks=2, command="sft"))
    assert text.count("cold start: loss") == 1
    assert (tmp_path / "model" / "model.safetensors").is_file()


def test_a_signal_saves_what_is_finished_and_ends_all(tiny_project: TinyProject, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = arpo(tiny_project, out, *AT_ONCE, "train.steps=500", "train.save_every=1000", ranks=2)
    while process.poll() is None and not ((out / "metrics.jsonl").exists() and metrics(out)):
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    text, _ = process.communicate()
    assert process.returncode != 0 and f"arpo train --resume {out}" in text
    steps = len(metrics(out))
    assert steps and (out / "checkpoints" / f"step-{steps:06d}" / "MANIFEST.json").is_file()


def test_the_loss_of_a_rank_ends_the_run(tiny_project: TinyProject, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = arpo(tiny_project, out, *AT_ONCE, "train.steps=500", ranks=2)
    while process.poll() is None and not ((out / "metrics.jsonl").exists() and metrics(out)):
        time.sleep(0.2)
    os.kill(follower_of(process.pid), signal.SIGKILL)
    text, _ = process.communicate()
    assert process.returncode == 1, text
    summary = json.loads((out / "summary.json").read_text())
    assert summary["status"] == "failed" and "LearnerError" in summary["reason"], text


def follower_of(launcher: int) -> int:
    """The process of rank 1."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            environment = (path / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if parent == launcher and b"RANK=1" in environment:
            return int(path.name)
    raise AssertionError("no follower")
