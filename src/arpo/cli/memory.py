"""`arpo plan`: whether a recipe fits on GPUs."""

import sys
from collections.abc import Sequence

from arpo.assembly.memory_plan import Gpus, check_fits, describe, plan_memory, shape_of
from arpo.errors import ConfigError
from arpo.models.sources import fetch_config
from arpo.recipe.load import load_recipe
from arpo.terminal_safe import print_line


def show_plan(recipe: str, overrides: Sequence[str], *, gpus: str, override: bool) -> None:
    """Print the plan. Raises ConfigError where the recipe does not fit, unless `override`."""
    machine = Gpus.parse(gpus)
    run = load_recipe(recipe, overrides)
    plan = plan_memory(run, shape_of(run, fetch_config(run.model.source)), machine)
    print_line(describe(plan))
    try:
        check_fits(plan)
    except ConfigError as error:
        if not override:
            raise
        print_line(f"warning: {error}", sys.stderr)
