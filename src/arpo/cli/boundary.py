"""How a command begins and ends. Under torchrun one process carries it out. An error of arpo or an unusable file gives
one clear message, and Ctrl-C a single word; bugs keep their traceback."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

import typer

from arpo.cli import INTERRUPTED
from arpo.errors import ArpoError, ConfigError
from arpo.terminal_safe import print_line

P = ParamSpec("P")
R = TypeVar("R")

TRAIN = ("train", "sft")  # commands that several processes carry out together
MISTAKE = 2  # exit code of an ArpoError or an OSError, which the user can fix


def check_processes(name: str | None) -> None:
    """Under torchrun: raise ConfigError, in the first process alone, unless the command `name` trains."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and name not in TRAIN:
        follow_first_rank(trains=False)
        raise ConfigError(
            f"arpo {name} runs in one process",
            hint=f"Start it without torchrun, which is for arpo {' and arpo '.join(TRAIN)}",
        )


def follow_first_rank(*, trains: bool = True) -> None:
    """Under torchrun the first process alone reads the recipe and carries it out. In any other: do what it asks, where
    it `trains`, and then exit."""
    if int(os.environ.get("RANK", 0)):
        if trains:
            from arpo.learner.rank import torch_rank
            from arpo.learner.ranks import follow

            follow(torch_rank)
        raise typer.Exit


@contextmanager
def told() -> Iterator[None]:
    """Print one error message to stderr, and exit."""
    try:
        yield
    except ArpoError as error:
        print_line(f"error: {error}", sys.stderr)
        raise typer.Exit(MISTAKE) from error
    except OSError as error:
        if error.filename is None:  # from a bug, or from the network
            raise
        print_line(f"error: {os.fsdecode(error.filename)}: {error.strerror or type(error).__name__}", sys.stderr)
        raise typer.Exit(MISTAKE) from error
    except KeyboardInterrupt as error:
        print_line("\nstopped", sys.stderr)
        raise typer.Exit(INTERRUPTED) from error


def command(function: Callable[P, R]) -> Callable[P, R]:
    """`function` as the body of a command."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with told():
            return function(*args, **kwargs)

    return run


def path(text: str) -> Path:
    """A path from the command line. An empty text, as from an unset shell variable, is refused: it would mean this
    folder."""
    if not text.strip() or "\0" in text:
        raise typer.BadParameter("is no path" if text.strip() else "is empty")
    return Path(text)
