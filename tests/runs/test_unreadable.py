"""Files and folders that this user may not read or write: one message that names them, before anything is computed."""

import contextlib
import ctypes
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tiny_project import TinyProject

SOURCE = Path(__file__).resolve().parents[2] / "src"
PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="root is made an ordinary user by Linux' capabilities")


def as_anybody() -> None:
    """In the child: root without the capabilities by which it reads everything. Others cannot drop them, and have
    none."""
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)


COMMANDS = """
import json, os, sys

import arpo.cli.commands, arpo.engines.local, arpo.learner.local, arpo.training.pipeline
import transformers.models.llama.modeling_llama
from arpo.cli import main

for line in sys.stdin:
    asked = json.loads(line)
    pid = os.fork()
    if not pid:
        os.chdir(asked["folder"])
        os.environ["ARPO_CACHE"] = asked["cache"]
        for number, path in ((1, asked["out"]), (2, asked["err"])):
            os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY), number)
        sys.path[0], sys.argv = "", ["arpo", *asked["arguments"]]
        main()
        sys.exit()
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
"""Runs commands as `python -m arpo` does, each in a fork of its own: loading torch takes longer than all that they
do."""


@dataclass(frozen=True, slots=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


class Anybody:
    """Whoever is no root gives commands of arpo."""

    def __init__(self, process: "subprocess.Popen[str]", folder: Path) -> None:
        self.process, self.folder = process, folder

    def __call__(self, folder: Path, cache: Path, *arguments: str) -> Done:
        out, err = (self.folder / name for name in ("out", "err"))
        for path in (out, err):
            path.write_text("")
        asked = {"folder": str(folder), "cache": str(cache), "arguments": arguments, "out": str(out), "err": str(err)}
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return Done(int(self.process.stdout.readline()), out.read_text(), err.read_text())


@pytest.fixture(scope="module")
def arpo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Anybody]:
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    process = subprocess.Popen(
        [sys.executable, "-c", COMMANDS],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=as_anybody,
    )
    yield Anybody(process, tmp_path_factory.mktemp("said"))
    process.communicate()


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
    path: str, said: str, project: Path, tmp_path: Path, arpo: Anybody
) -> None:
    with shut(project / path, 0):
        done = arpo(project, tmp_path / "cache", "train", "tiny.yaml", "--out", "run")
    assert done.returncode == 2 and done.stderr.startswith("error: ") and said in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (project / "run").exists()


def test_a_run_folder_that_may_not_be_written(project: Path, tmp_path: Path, arpo: Anybody) -> None:
    (project / "runs").mkdir()
    with shut(project / "runs", 0o555):
        done = arpo(project, tmp_path / "cache", "train", "tiny.yaml", "--out", "runs/mine")
    assert done.returncode == 2 and "runs/mine: the run folder cannot be written (Permission denied)" in done.stderr, (
        done.stderr
    )


def test_a_cache_that_may_not_be_written_is_told_before_the_cold_start_is_made(
    project: Path, tmp_path: Path, arpo: Anybody
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    with shut(cache, 0o555):
        done = arpo(project, cache, "train", "tiny.yaml", "--out", "run")
    assert done.returncode == 2 and "the cache cannot be written (Permission denied)" in done.stderr, done.stderr
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
