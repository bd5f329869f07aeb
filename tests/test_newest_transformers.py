"""The pinned transformers is the one that also fits vLLM; the newest one must do as well."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

NEWEST = "5.23.0"
ROOT = Path(__file__).resolve().parents[1]
# What reaches into transformers: networks of every family under the engine's own cache and under the packed attention,
# their
# weights as a folder, gradients with checkpointing and adapters, chat templates. The rest of these suites knows tensors
# and tokens.
ENGINE, LEARNER = "tests/engines/test_local_engine.py", "tests/learner/test_local_learner.py"
REACH = [
    f"{ENGINE}::test_every_family_agrees_with_its_own_forward",
    f"{ENGINE}::test_weights_from_a_folder_and_wrong_weights",
    f"{ENGINE}::test_models_that_cannot_be_sampled_say_why",
    f"{ENGINE}::TestLocal::test_greedy_tokens_are_those_of_a_plain_forward",
    "tests/learner/test_attention.py",
    f"{LEARNER}::test_gradient_checkpointing_gives_the_same_update",
    f"{LEARNER}::test_lora_under_checkpointing_gives_the_same_update",
    f"{LEARNER}::test_state_is_what_peft_merges_and_wears_nothing_down",
    f"{LEARNER}::test_engine_and_learner_give_a_token_the_same_probability",
    "tests/chat/test_published_formats.py",
    "tests/chat/test_template.py",
]


@pytest.mark.slow
def test_engine_learner_and_chat_pass_with_the_newest_transformers(tmp_path):
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(tmp_path),
        f"transformers=={NEWEST}",
    ]
    fetched = subprocess.run(pip, capture_output=True, text=True, timeout=1800)
    if fetched.returncode:
        pytest.skip(f"transformers {NEWEST} cannot be installed here: {fetched.stderr.strip().splitlines()[-1:]}")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT / "src")]),
        "OMP_NUM_THREADS": "1",
    }
    seen = subprocess.run(
        [sys.executable, "-c", "import transformers; print(transformers.__version__)"],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert seen.stdout.strip() == NEWEST
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *REACH]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, timeout=3600)
    assert run.returncode == 0, run.stdout[-4000:]
