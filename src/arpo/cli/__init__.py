"""The command `arpo`. Nothing heavy is imported before a command runs, so that `arpo --help` answers at once."""

import os


def main() -> None:
    """Entry point of the `arpo` script."""
    prepare_process()
    from arpo.cli.commands import app

    app()


def prepare_process() -> None:
    """Set what torch reads from the process when it loads; what the user has set stays."""
    # Spinning OpenMP threads slow a busy machine down many times over.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("KMP_BLOCKTIME", "0")
    # Large tensors in huge pages, where the system has them: fewer page faults (some 10 % of an update's time on a
    # CPU).
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
