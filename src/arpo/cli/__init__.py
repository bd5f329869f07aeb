"""The command `arpo`. Nothing heavy is imported before a command runs, so that `arpo --help` answers at once."""

import os


def main() -> None:
    """Entry point of the `arpo` script."""
    # Spinning OpenMP threads slow a busy machine down many times over; these must be set before torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("KMP_BLOCKTIME", "0")
    from arpo.cli.commands import app

    app()
