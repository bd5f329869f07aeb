"""What the command sets for its process before torch loads."""

import os
import subprocess
import sys


def in_a_process(code: str, **settings: str) -> str:
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "KMP_", "THP_", "MALLOC_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, **settings},
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    return done.stdout.strip()


def test_what_the_user_has_set_stays():
    code = "import os; from arpo.cli import prepare_process; prepare_process(); print(os.environ['OMP_WAIT_POLICY'])"
    assert in_a_process(code) == "passive"
    assert in_a_process(code, OMP_WAIT_POLICY="active") == "active"
