"""The command `arpo`. A command imports heavy modules only when it runs, so that `arpo --help` answers at once."""

import os
import sys

INTERRUPTED = 130  # a shell's exit code for a command that Ctrl-C ended


def main() -> None:
    """Entry point of the `arpo` script."""
    prepare_process()
    try:
        from arpo.cli.commands import app

        app()
    except KeyboardInterrupt:  # outside of any command: while modules are imported, or options read
        print("\nstopped", file=sys.stderr)
        sys.exit(INTERRUPTED)


def prepare_process() -> None:
    """Set environment variables that torch reads when it loads. The user's settings stay."""
    # Spinning OpenMP threads slow down a busy machine many times over.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("KMP_BLOCKTIME", "0")
    # Large tensors in huge pages, where the system has them: fewer page faults (some 10 % of an update's time on a
    # CPU).
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
