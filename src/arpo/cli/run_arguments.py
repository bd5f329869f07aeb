"""Builds the run's configuration from the arguments of `arpo train`."""

import os
from collections.abc import Sequence
from pathlib import Path

import typer

from arpo.errors import ConfigError
from arpo.recipe.load import bundled, load_recipe
from arpo.recipe.run import RunConfig
from arpo.runs.folder import RunFolder, check_is_run


def follow_first_rank(*, trains: bool) -> None:
    """Under torchrun the first process alone reads the recipe and carries it out. In any other: do what it asks, where
    it `trains`, and then exit."""
    if int(os.environ.get("RANK", 0)):
        if trains:
            from arpo.learner.rank import torch_rank
            from arpo.learner.ranks import follow

            follow(torch_rank)
        raise typer.Exit


def run_from_arguments(recipe: str | None, overrides: Sequence[str], resume: Path | None) -> RunConfig:
    """The configuration of `recipe` with `overrides`. With `resume` the configuration of the run in that folder, with
    which it last continued; then every argument is an override."""
    if resume is None:
        if recipe is None:
            raise ConfigError("no recipe was named", hint=f"Name a file, or a bundled one: {', '.join(bundled())}")
        return load_recipe(recipe, overrides)
    check_is_run(resume)
    changes = [*([recipe] if recipe else []), *overrides]
    if recipe and "=" not in recipe:
        raise ConfigError(
            "a resumed run has its own recipe", value=recipe, hint="Give --resume RUN alone, or key=value with it"
        )
    return load_recipe(RunFolder(resume).recipe, changes)
