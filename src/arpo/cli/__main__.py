"""`python -m arpo.cli` is `arpo`."""

from arpo.cli import main

main()
