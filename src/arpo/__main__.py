"""`python -m arpo` is `arpo`."""

from arpo.cli import main

main()
