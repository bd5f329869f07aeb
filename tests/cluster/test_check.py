"""`arpo cluster check` on a real Ray."""

from pathlib import Path
from typing import Any

import pytest

from arpo.cli.cluster import examine
from arpo.cli.doctor import Level
from arpo.cluster import connection

pytestmark = pytest.mark.slow


def test_a_sound_cluster_has_no_problem_and_each_fault_says_what_to_do(
    ray_nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARPO_CACHE", str(tmp_path / "cache"))
    nodes = connection.nodes()
    findings = list(examine(nodes, tmp_path / "runs"))
    assert [f.what for f in findings].count("node") == len(nodes) >= 3
    assert {f.what for f in findings} == {"node", "versions", "gpus", "runs", "cache", "bandwidth"}
    assert not [f for f in findings if f.level is Level.PROBLEM]
    assert not list((tmp_path / "runs").iterdir()), "the check leaves files"
    ghost = connection.Node("e" * 56, "10.9.9.9", "ghost", cpus=1.0, gpus=1.0)
    problems = [f for f in examine([ghost], tmp_path / "runs") if f.level is Level.PROBLEM]
    assert {f.what for f in problems} == {"versions", "gpus", "runs", "cache"}
    assert all(f.advice and "ghost" in f.text for f in problems)
