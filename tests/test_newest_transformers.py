"""The pinned transformers is the one that also fits vLLM; the newest one must do as well."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

NEWEST = "5.23.0"
ROOT = Path(__file__).resolve().parents[1]
SUITES = ["tests/engines/test_local_engine.py", "tests/train/test_attention.py", "tests/train/test_learner.py", "tests/chat"]


@pytest.mark.slow
def test_engine_learner_and_chat_pass_with_the_newest_transformers(tmp_path):
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path), f"transformers=={NEWEST}"]
    fetched = subprocess.run(pip, capture_output=True, text=True, timeout=600)
    if fetched.returncode:
        pytest.skip(f"transformers {NEWEST} cannot be installed here: {fetched.stderr.strip().splitlines()[-1:]}")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT / "src")]), "OMP_NUM_THREADS": "1"}
    seen = subprocess.run(
        [sys.executable, "-c", "import transformers; print(transformers.__version__)"],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert seen.stdout.strip() == NEWEST
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *SUITES]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=1200)
    assert run.returncode == 0, run.stdout[-4000:]
