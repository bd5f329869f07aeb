"""Builds the run's configuration from the arguments of `arpo train`."""

from collections.abc import Sequence
from pathlib import Path

from arpo.errors import ConfigError
from arpo.recipe.load import bundled, load_recipe
from arpo.recipe.run import RunConfig
from arpo.runs.folder import RunFolder, check_is_run


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
