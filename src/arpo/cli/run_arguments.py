"""Builds the run's configuration, and what its resumption accepts, from the arguments of `arpo train` and `gateway`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arpo.assembly.resolve import is_trained, resolve_model
from arpo.cli.boundary import path
from arpo.errors import ConfigError
from arpo.recipe.load import bundled, load_recipe
from arpo.recipe.run import RunConfig
from arpo.runs.folder import RunFolder, check_is_run

GATEWAY_PORT = 8001


def resumed_folder(resume: str | None) -> Path | None:
    """The run's folder that `--resume` names. A URL is that of a copy (`train.copy_to`), which is fetched."""
    if resume is None or "://" not in resume:
        return None if resume is None else path(resume)
    from arpo.runs.copies import fetch_run

    return fetch_run(resume)


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


def run_behind_gateway(source: str, overrides: Sequence[str], options: Mapping[str, Any]) -> RunConfig:
    """The run of `source` (a recipe, or a trained run, whose model goes on learning) for agents that ask a gateway.

    Where the recipe has no gateway, its tools and its cold start, which teaches their use, are left out: the agents
    bring their own. `overrides` may set them again. Raises ConfigError.
    """
    trained = resolve_model(source) if is_trained(source) else None
    recipe = trained.folder or source if trained else source
    own = load_recipe(recipe).environment
    if own is not None and own.use == "gateway":
        changes = [f"environment.options.{name}={json.dumps(value)}" for name, value in options.items()]
    else:
        environment = {"use": "gateway", "options": {"port": GATEWAY_PORT, **options}}
        changes = [f"environment={json.dumps(environment)}", "tools=[]", "cold_start=null"]
    if trained is not None:
        if trained.run.model.lora is not None:
            hint = f"arpo export {source} DIR, then arpo gateway RECIPE model.source=DIR"
            raise ConfigError("this run has trained adapters; they must be merged first", value=source, hint=hint)
        changes.append(f"model.source={json.dumps(str(trained.weights))}")
    return load_recipe(recipe, [*changes, *overrides])


def accepted_from_arguments(
    recipe: str | None, overrides: Sequence[str], resume: Path | None, accept: str | None
) -> list[str]:
    """What a resumed run may have other than before: the parts named by `--accept`, and every key that is given.

    Raises ConfigError for `--accept` without `--resume`.
    """
    if resume is None:
        if accept is not None:
            raise ConfigError("only a resumed run (--resume) accepts changes", where="--accept", value=accept)
        return []
    keys = [override.partition("=")[0].strip() for override in (*([recipe] if recipe else []), *overrides)]
    return [*(name.strip() for name in (accept or "").split(",") if name.strip()), *keys]
