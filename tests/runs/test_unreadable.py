"""Files and folders that this user may not read or write: one message that names them, before anything is computed."""

import contextlib
import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from arpo.cli.commands import app
from tiny_project import TinyProject

SOURCE = Path(__file__).resolve().parents[2] / "src"
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="root is made an ordinary user by Linux' capabilities")


def as_anybody() -> None:
    """In the child: root without the capabilities by which it reads everything. Others cannot drop them, and have
    none."""
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


@contextlib.contextmanager
def without_rights() -> Iterator[None]:
    """The same for this thread, and those that it starts, for a while (capabilities(7))."""
    header, sets = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    ctypes.CDLL(None).capget(header, sets)
    effective = sets[0]
    sets[0] &= ~(1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH)
    ctypes.CDLL(None).capset(header, sets)
    try:
        yield
    finally:
        sets[0] = effective
        ctypes.CDLL(None).capset(header, sets)


@pytest.fixture
def arpo(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Whoever is no root gives commands in the project's folder."""
    monkeypatch.chdir(project)
    monkeypatch.setenv("ARPO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delitem(sys.modules, "tiny_world", raising=False)  # of another project
    monkeypatch.setattr(os, "access", partial(os.access, effective_ids=True))  # else: what root could get rights for

    def give(*arguments: str) -> Result:
        with without_rights():
            return CliRunner().invoke(app, arguments)

    return give


@contextlib.contextmanager
def shut(path: Path, mode: int) -> Iterator[None]:
    before = path.stat().st_mode
    path.chmod(mode)
    try:
        yield
    finally:
        path.chmod(before)


@pytest.fixture
def project(tiny_files: TinyProject, tmp_path: Path) -> Path:
    copied = tmp_path / "project"
    shutil.copytree(tiny_files.folder, copied, ignore=shutil.ignore_patterns("cache", "runs", "__pycache__"))
    probe = tmp_path / "probe"
    probe.touch(mode=0)
    if not subprocess.run(["cat", probe], preexec_fn=as_anybody, capture_output=True).returncode:
        pytest.skip("nothing can be shut to this user")
    return copied


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("tiny.yaml", "tiny.yaml: cannot be read"),
        ("train.jsonl", "train.jsonl: cannot be read (Permission denied)"),
        ("traces.jsonl", "traces.jsonl: cannot be read (Permission denied)"),
        ("tiny_world.py", "tools.offered.0.use: cannot import tiny_world"),
        ("model", "model.source: permission to read this is missing"),
        ("model/tokenizer.json", "model/tokenizer.json"),
    ],
)
def test_what_may_not_be_read_is_named_before_a_run_begins(
    path: str, said: str, project: Path, arpo: Callable[..., Result]
) -> None:
    with shut(project / path, 0):
        done = arpo("train", "tiny.yaml", "--out", "run")
    assert done.exit_code == 2 and done.stderr.startswith("error: ") and said in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (project / "run").exists()


def test_a_run_folder_that_may_not_be_written(project: Path, arpo: Callable[..., Result]) -> None:
    (project / "runs").mkdir()
    with shut(project / "runs", 0o555):
        done = arpo("train", "tiny.yaml", "--out", "runs/mine")
    assert done.exit_code == 2 and "runs/mine: the run folder cannot be written (Permission denied)" in done.stderr, (
        done.stderr
    )


def test_a_cache_that_may_not_be_written_is_told_before_the_cold_start_is_made(
    tmp_path: Path, arpo: Callable[..., Result]
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    with shut(cache, 0o555):
        done = arpo("train", "tiny.yaml", "--out", "run")
    assert done.exit_code == 2 and "the cache cannot be written (Permission denied)" in done.stderr, done.stderr
    assert "ARPO_CACHE" in done.stderr and "Traceback" not in done.stderr and "step" not in done.stdout


@pytest.mark.slow
def test_without_a_cold_start_a_run_goes_on_without_a_cache(project: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    plan = (
        "cold_start=null",
        "train.steps=1",
        "evaluation={limit: 2, greedy_limit: 0}",
        "tools.cache.file=./tools.sqlite",
    )
    with shut(cache, 0o555):
        done = subprocess.run(
            [sys.executable, "-m", "arpo", "train", "tiny.yaml", *plan, "--out", "run"],
            cwd=project,
            env={**os.environ, "PYTHONPATH": str(SOURCE), "ARPO_CACHE": str(cache)},
            capture_output=True,
            text=True,
            preexec_fn=as_anybody,
        )
    assert "not kept in the cache (Permission denied" in done.stdout and "step 1/1" in done.stdout, done.stderr
