"""Which run the arguments of `arpo train` ask for."""

from collections.abc import Sequence
from pathlib import Path

from arpo.errors import ConfigError
from arpo.recipe.load import bundled, load_recipe
from arpo.recipe.run import RunConfig
from arpo.runs.folder import RunFolder, check_is_run


def run_from_arguments(recipe: str | None, overrides: Sequence[str], resume: Path | None) -> RunConfig:
    """The run of `recipe` with `overrides`, or with `resume` the run in that folder (then every argument is an override): as
    it last went on, so that what was changed then holds."""
    if resume is None:
        if recipe is None:
            raise ConfigError("which recipe? None was named", hint=f"A file, or a bundled one: {', '.join(bundled())}")
        return load_recipe(recipe, overrides)
    check_is_run(resume)
    changes = [*([recipe] if recipe else []), *overrides]
    if recipe and "=" not in recipe:
        raise ConfigError("a resumed run has its own recipe", value=recipe, hint="Give --resume RUN alone, or key=value with it")
    return load_recipe(RunFolder(resume).recipe, changes)
